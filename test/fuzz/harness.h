// What the fuzz targets of csrc/model share: files that stand in memory, and the rules that every opening of them keeps.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include "backend/error.h"

namespace diffqkv::fuzz {

inline const std::string kDirectory = "/checkpoint";

void clear_files();
void put_file(const std::string& name, std::string_view bytes);  // of kDirectory

// Runs `work`, which opens the files. Whatever stands in them, it ends soon, takes no more memory than `times` their
// bytes, and throws nothing but an Error of the code `malformed`, ERR_UNSUPPORTED_MODEL or ERR_OUT_OF_MEMORY, with a message
// of one line of UTF-8 that begins with `origin`. What does not keep to it ends the process. True where nothing was thrown.
bool opens(int times, const std::function<void()>& work, ErrorCode malformed = ErrorCode::invalid_checkpoint,
           const std::string& origin = kDirectory);

// Ends the process where `good` does not hold: a finding.
void check(bool good, const char* what);

// Memory that is not the files' to answer for: within its scope nothing is counted.
class Uncounted {
 public:
  Uncounted();
  ~Uncounted();

 private:
  bool before_;
};

}  // namespace diffqkv::fuzz
