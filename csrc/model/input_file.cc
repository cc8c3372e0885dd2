#include "model/input_file.h"

#include <algorithm>
#include <cerrno>
#include <cstring>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

namespace diffqkv {
namespace {

constexpr uint64_t kMaxRead = uint64_t{1} << 30;  // Linux reads at most 2 GiB at once

// strerror_r returns the message (glibc) or a status (POSIX). Unlike strerror, it is thread-safe.
[[maybe_unused]] const char* strerror_result(const char* message, const char*) { return message; }
[[maybe_unused]] const char* strerror_result(int status, const char* buffer) {
  return status == 0 ? buffer : "unknown error";
}

std::string system_error(int error) {
  char buffer[256] = "";
  return strerror_result(strerror_r(error, buffer, sizeof buffer), buffer);
}

}  // namespace

InputFile::InputFile(const std::string& path) : InputFile() {
  path_ = path;
  // O_NONBLOCK, because opening a FIFO would otherwise block until another process writes to it.
  fd_ = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd_ < 0) fail_file(path, "cannot be opened: " + system_error(errno));
  struct stat status;
  if (fstat(fd_, &status) != 0) fail_file(path, "cannot be read: " + system_error(errno));
  if (!S_ISREG(status.st_mode))
    fail_file(path, S_ISDIR(status.st_mode) ? "is a directory; it must be a file" : "is not a regular file");
  size_ = static_cast<uint64_t>(status.st_size);
#ifdef POSIX_FADV_SEQUENTIAL                        // macOS does not have it
  posix_fadvise(fd_, 0, 0, POSIX_FADV_SEQUENTIAL);  // a hint: it may fail
#endif
}

InputFile::~InputFile() {
  if (fd_ >= 0) close(fd_);
}

void InputFile::read(void* out, uint64_t offset, uint64_t bytes) const {
  auto* to = static_cast<char*>(out);
  while (bytes > 0) {
    const ssize_t count = pread(fd_, to, std::min<uint64_t>(bytes, kMaxRead), static_cast<off_t>(offset));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) fail_file(path_, "cannot be read: " + system_error(errno));
    if (count == 0)
      fail_file(path_, "ends at byte " + std::to_string(offset) + ", but had " + std::to_string(size_) +
                           " bytes when it was opened; do not change a checkpoint while it loads");
    to += count;
    offset += static_cast<uint64_t>(count);
    bytes -= static_cast<uint64_t>(count);
  }
}

std::string InputFile::read_text(uint64_t max_bytes) const {
  if (size_ > max_bytes) fail_file(path_, std::to_string(size_) + " bytes; the limit is " + std::to_string(max_bytes));
  std::string text(size_, '\0');
  read(text.data(), 0, size_);
  return text;
}

bool file_exists(const std::string& path) {
  struct stat status;
  return stat(path.c_str(), &status) == 0 || (errno != ENOENT && errno != ENOTDIR);
}

void check_directory(const std::string& directory) {
  if (directory.empty()) throw Error(ErrorCode::invalid_checkpoint, "the path of the checkpoint directory is empty");
  if (directory.find('\0') != std::string::npos) {
    throw Error(ErrorCode::invalid_checkpoint, "the path of the checkpoint directory has a NUL character");
  }
  struct stat status;
  if (stat(directory.c_str(), &status) != 0) fail_file(directory, "cannot be opened: " + system_error(errno));
  if (!S_ISDIR(status.st_mode))
    fail_file(directory, "is not a directory; pass the directory of config.json and the safetensors files");
}

}  // namespace diffqkv
