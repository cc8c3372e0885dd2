// The only exception type that crosses layers. csrc/addon turns it into a JS Error with `code`.
#pragma once

#include <stdexcept>
#include <string>
#include <utility>

namespace diffqkv {

enum class ErrorCode {
  invalid_argument,
  device_unavailable,
  out_of_memory,
  invalid_checkpoint,
  unsupported_model,
  kv_cache_full,
  disposed,
  aborted,
};

// "ERR_INVALID_ARGUMENT" and so on; "ABORT_ERR" for `aborted`.
const char* error_code_name(ErrorCode code);

class Error : public std::runtime_error {
 public:
  Error(ErrorCode code, std::string message);
  ErrorCode code() const { return code_; }

 private:
  ErrorCode code_;
};

// Throws Error with a printf-style message. Not inline, so that kernel files for one instruction
// set may call it.
[[noreturn]] void fail(ErrorCode code, const char* format, ...) __attribute__((format(printf, 2, 3)));

}  // namespace diffqkv
