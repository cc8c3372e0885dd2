#include "model/mapped_file.h"

#include <cerrno>
#include <cstring>
#include <utility>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backend/error.h"

namespace diffqkv {
namespace {

[[noreturn]] void fail_file(const std::string& path, const std::string& what) {
  throw Error(ErrorCode::invalid_checkpoint, path + ": " + what);
}

struct FileDescriptor {
  int fd;
  ~FileDescriptor() { close(fd); }
};

}  // namespace

MappedFile::MappedFile(const std::string& path) {
  // O_NONBLOCK, because opening a FIFO would otherwise block until another process writes to it.
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) fail_file(path, std::string("cannot be opened: ") + strerror(errno));
  const FileDescriptor closer{fd};
  struct stat status;
  if (fstat(fd, &status) != 0) fail_file(path, std::string("cannot be read: ") + strerror(errno));
  if (!S_ISREG(status.st_mode))
    fail_file(path, S_ISDIR(status.st_mode) ? "is a directory; it must be a file" : "is not a regular file");
  size_ = static_cast<uint64_t>(status.st_size);
  if (size_ == 0) return;  // nothing to map
  void* data = mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, fd, 0);
  if (data == MAP_FAILED && errno == ENOMEM)
    fail(ErrorCode::out_of_memory, "%s: out of memory: mapping it needs %llu bytes of address space; raise `ulimit -v`",
         path.c_str(), static_cast<unsigned long long>(size_));
  if (data == MAP_FAILED)
    fail_file(path, "cannot be mapped into memory (" + std::to_string(size_) + " bytes): " + strerror(errno));
  madvise(data, size_, MADV_SEQUENTIAL);  // a hint: it may fail
  data_ = static_cast<const uint8_t*>(data);
}

MappedFile::~MappedFile() {
  if (data_) munmap(const_cast<uint8_t*>(data_), size_);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

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
  if (stat(directory.c_str(), &status) != 0) fail_file(directory, std::string("cannot be opened: ") + strerror(errno));
  if (!S_ISDIR(status.st_mode))
    fail_file(directory, "is not a directory; pass the directory of config.json and the safetensors files");
}

}  // namespace diffqkv
