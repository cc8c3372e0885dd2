// A device of plain memory: blocks of just their size, so that AddressSanitizer sees what goes past one, and operators that
// look at no more than the two ends of their operands. Loading needs no others than matmul.
#pragma once

#include <cstdlib>
#include <cstring>
#include <string>

#include "backend/backend.h"
#include "harness.h"

namespace diffqkv::fuzz {

// A backend whose operators do nothing.
class IdleBackend : public Backend {
 public:
#define DIFFQKV_OVERRIDE(name, Params) \
  void name(const Params&) override {}
  DIFFQKV_OPERATORS(DIFFQKV_OVERRIDE)
#undef DIFFQKV_OVERRIDE
};

class HostBackend final : public IdleBackend {
 public:
  explicit HostBackend(int fails_at) : fails_at_(fails_at) {}
  uint64_t allocated() const { return allocated_; }

  const DeviceInfo& info() const override { return info_; }
  void* allocate(size_t bytes) override {
    if (fails_at_-- == 0 || allocated_ + bytes > kMaxBytes)
      throw Error(ErrorCode::out_of_memory, std::to_string(bytes) + " bytes");
    allocated_ += bytes;
    const Uncounted scope;
    return malloc(bytes);
  }
  void free(void* data, size_t bytes) noexcept override {
    allocated_ -= bytes;
    const Uncounted scope;
    ::free(data);
  }
  void upload(void* dst, const void* src, size_t bytes) override { copy(dst, src, bytes); }
  void download(void* dst, const void* src, size_t bytes) override { copy(dst, src, bytes); }
  void copy(void* dst, const void* src, size_t bytes) override {
    if (bytes) memcpy(dst, src, bytes);
  }
  void synchronize() override {}
  uint64_t free_memory() override { return 0; }
  std::unique_ptr<Event> record_event() override { return std::make_unique<Event>(); }
  double elapsed_ms(const Event&, const Event&) override { return 0; }

  void matmul(const MatmulParams& p) override {
    check(p.num_tokens > 0 && p.in_features > 0 && p.out_features > 0, "a product of no size");
    read_ends(p.x, p.num_tokens * p.in_features * dtype_size(p.x_dtype));
    for (int i = 0; i < p.num_outputs(); i++) {
      const MatmulOutput output = p.output(i);
      read_ends(output.weight.data, output.out_features * weight_row_bytes(output.weight.dtype, p.in_features));
      memset(output.out, 0, p.num_tokens * output.out_features * dtype_size(p.out_dtype));
    }
  }

 private:
  static constexpr uint64_t kMaxBytes = uint64_t{64} << 20;

  static void read_ends(const void* data, size_t bytes) {
    const auto* bytes_of = static_cast<const volatile uint8_t*>(data);
    (void)bytes_of[0];
    (void)bytes_of[bytes - 1];
  }

  DeviceInfo info_;
  int fails_at_;
  uint64_t allocated_ = 0;
};

}  // namespace diffqkv::fuzz
