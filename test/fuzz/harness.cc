#include "harness.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <map>
#include <utility>

#if __has_feature(address_sanitizer)
#include <sanitizer/allocator_interface.h>
#endif

#include "model/input_file.h"
#include "model/json_text.h"

namespace diffqkv::fuzz {
namespace {

constexpr int64_t kBytesBesides =
    64 << 10;                   // messages, the tables of json.hpp, the 4096 frequencies of the largest heads
constexpr double kSeconds = 2;  // of CPU time, for files that are at most some 100 KB

std::map<std::string, std::string> files;  // path -> bytes

thread_local bool counting = false;
int64_t live_bytes = 0, peak_bytes = 0;

#if __has_feature(address_sanitizer)
void on_malloc(const volatile void*, size_t size) {
  if (!counting) return;
  live_bytes += static_cast<int64_t>(size);
  peak_bytes = std::max(peak_bytes, live_bytes);
}
void on_free(const volatile void* data) {
  if (!counting || !data) return;
  live_bytes -= static_cast<int64_t>(__sanitizer_get_allocated_size(const_cast<const void*>(data)));
}
#endif

double cpu_seconds() {
  timespec time;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

void check_error(const Error& error, ErrorCode malformed, const std::string& origin) {
  const ErrorCode code = error.code();
  check(code == malformed || code == ErrorCode::unsupported_model || code == ErrorCode::out_of_memory,
        error_code_name(code));
  const std::string message = error.what();
  if (code == ErrorCode::out_of_memory) return;
  check(message.rfind(origin, 0) == 0, "the message does not begin with its origin");
  check(message.size() <= 2000, "a message of more than 2000 bytes");
  check(std::all_of(message.begin(), message.end(),
                    [](char c) { return static_cast<unsigned char>(c) >= 0x20 && c != 0x7f; }),
        "a control character in the message");
  (void)Json(message).dump();  // throws where it is not UTF-8
}

}  // namespace

Uncounted::Uncounted() : before_(std::exchange(counting, false)) {}
Uncounted::~Uncounted() { counting = before_; }

void check(bool good, const char* what) {
  if (good) return;
  fprintf(stderr, "FOUND: %s\n", what);
  abort();
}

void clear_files() { files.clear(); }
void put_file(const std::string& name, std::string_view bytes) { files[kDirectory + "/" + name] = bytes; }

bool opens(int times, const std::function<void()>& work, ErrorCode malformed, const std::string& origin) {
  int64_t file_bytes = 0;
  for (const auto& [path, bytes] : files) file_bytes += static_cast<int64_t>(bytes.size());
  live_bytes = peak_bytes = 0;
  const double start = cpu_seconds();
  bool opened = false;
  counting = true;
  try {
    work();
    opened = true;
  } catch (const Error& error) {
    counting = false;
    check_error(error, malformed, origin);
  }
  counting = false;
  const double seconds = cpu_seconds() - start;
  if (seconds > kSeconds) fprintf(stderr, "%.1f s of CPU time\n", seconds);
  check(seconds <= kSeconds, "it took too long");
  if (peak_bytes > kBytesBesides + times * file_bytes) {
    fprintf(stderr, "%lld bytes of memory, files of %lld bytes\n", static_cast<long long>(peak_bytes),
            static_cast<long long>(file_bytes));
    check(false, "too much memory");
  }
  return opened;
}

}  // namespace diffqkv::fuzz

extern "C" int LLVMFuzzerInitialize(int*, char***) {
#if __has_feature(address_sanitizer)
  __sanitizer_install_malloc_and_free_hooks(diffqkv::fuzz::on_malloc, diffqkv::fuzz::on_free);
#endif
  return 0;
}

// Replaces input_file.cc. Each file is a block of its own, so that AddressSanitizer reports a read
// past its end, which the real one would report as an error.
namespace diffqkv {

using fuzz::files;

InputFile::InputFile(const std::string& path) : path_(path) {
  const auto file = files.find(path);
  if (file == files.end()) throw Error(ErrorCode::invalid_checkpoint, path + ": cannot be opened");
  size_ = file->second.size();
}

InputFile::~InputFile() = default;

void InputFile::read(void* out, uint64_t offset, uint64_t bytes) const {
  const fuzz::Uncounted scope;
  auto* block = static_cast<char*>(malloc(size_ ? size_ : 1));
  memcpy(block, files.at(path_).data(), size_);
  memcpy(out, block + offset, bytes);
  free(block);
}

std::string InputFile::read_text(uint64_t max_bytes) const {
  if (size_ > max_bytes) throw Error(ErrorCode::invalid_checkpoint, path_ + ": too long");
  std::string text(size_, '\0');
  if (size_ > 0) read(text.data(), 0, size_);
  return text;
}

bool file_exists(const std::string& path) { return files.count(path) > 0; }
void check_directory(const std::string&) {}

}  // namespace diffqkv
