// A file mapped into memory, read-only.
#pragma once

#include <cstdint>
#include <string>

namespace diffqkv {

class MappedFile {
 public:
  // Throws ERR_INVALID_CHECKPOINT, with the path and the cause, unless it is a readable regular
  // file.
  explicit MappedFile(const std::string& path);
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&&) = delete;

  const uint8_t* data() const { return data_; }
  uint64_t size() const { return size_; }

 private:
  const uint8_t* data_ = nullptr;
  uint64_t size_ = 0;
};

bool file_exists(const std::string& path);  // of any kind
// Throws ERR_INVALID_CHECKPOINT if `directory` is not a directory.
void check_directory(const std::string& directory);

}  // namespace diffqkv
