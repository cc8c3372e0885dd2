// A regular file, open for reading. It is not mapped into memory: if another process shortened a
// mapped file, the next access would end the process with SIGBUS.
#pragma once

#include <cstdint>
#include <string>

#include "backend/error.h"

namespace diffqkv {

// Throws ERR_INVALID_CHECKPOINT with the message "path: what".
[[noreturn]] inline void fail_file(const std::string& path, const std::string& what) {
  throw Error(ErrorCode::invalid_checkpoint, path + ": " + what);
}

class InputFile {
 public:
  // Throws ERR_INVALID_CHECKPOINT, with the path and the cause, unless it is a readable regular
  // file.
  explicit InputFile(const std::string& path);
  ~InputFile();
  InputFile(const InputFile&) = delete;
  InputFile& operator=(const InputFile&) = delete;

  const std::string& path() const { return path_; }
  uint64_t size() const { return size_; }  // in bytes, when it was opened
  // Throws ERR_INVALID_CHECKPOINT if the file now ends before offset + bytes or cannot be read.
  void read(void* out, uint64_t offset, uint64_t bytes) const;
  // The whole file. Throws ERR_INVALID_CHECKPOINT if it has more than max_bytes.
  std::string read_text(uint64_t max_bytes) const;

 private:
  InputFile() = default;  // so that the destructor closes the file if the other constructor throws

  std::string path_;
  int fd_ = -1;
  uint64_t size_ = 0;
};

bool file_exists(const std::string& path);  // of any kind
// Throws ERR_INVALID_CHECKPOINT if `directory` is not a directory.
void check_directory(const std::string& directory);

}  // namespace diffqkv
