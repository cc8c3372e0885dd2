// h = x, or h = residual += x; out (+)= h / sqrt(mean(h^2) + eps) * weight. Split by tokens. A row
// is read twice, the second time from the L1 or L2 cache. Bound by memory.
#include "backend/cpu/isa_kernels.h"
#include "backend/cpu/parallel.h"
#include "backend/cpu/simd.h"
#include "backend/error.h"

namespace diffqkv::cpu::DIFFQKV_ISA {
namespace {

// There are four tensors, so 108 combinations of types. The type is checked once per vector, by a
// branch that is always predicted.
DIFFQKV_INLINE F32v load_any(DType dtype, const void* data, int64_t i, int64_t n) {
  F32v v = {};
  visit(dtype, [&](auto tag) {
    const auto* p = static_cast<const decltype(tag)*>(data) + i;
    v = n >= kLanes ? load(p) : load_n(p, n);
  });
  return v;
}

DIFFQKV_INLINE void store_any(DType dtype, void* data, int64_t i, F32v v, int64_t n) {
  visit(dtype, [&](auto tag) {
    auto* p = static_cast<decltype(tag)*>(data) + i;
    if (n >= kLanes) {
      store(p, v);
    } else {
      store_n(p, v, n);
    }
  });
}

// The sum of squares in float64, for rows whose squares exceed the range of float32.
double sum_of_squares_f64(DType dtype, const void* row, int64_t begin, int64_t n) {
  double total = 0;
  for (int64_t i = 0; i < n; i += kLanes) {
    const F32v h = load_any(dtype, row, begin + i, n - i);
    for (int lane = 0; lane < kLanes; ++lane) total += static_cast<double>(h[lane]) * h[lane];
  }
  return total;
}

void rms_norm_rows(const RmsNormParams& p, int64_t begin, int64_t end) {
  const int64_t n = p.hidden_size;
  // h as the second pass reads it: the residual in its own type, rounded, if there is one.
  const void* h_data = p.residual ? p.residual : p.x;
  const DType h_dtype = p.residual ? p.residual_dtype : p.x_dtype;
  for (int64_t t = begin; t < end; ++t) {
    const int64_t row = t * n;
    double total = 0;
    constexpr int64_t kBlock = 64 * kLanes;  // sums of 64 squares per lane in float32, then float64
    for (int64_t block = 0; block < n; block += kBlock) {
      const int64_t block_end = min_of(block + kBlock, n);
      F32v squares = {};
      for (int64_t i = block; i < block_end; i += kLanes) {
        F32v h = load_any(p.x_dtype, p.x, row + i, n - i);
        if (p.residual) {
          h = h + load_any(p.residual_dtype, p.residual, row + i, n - i);
          store_any(p.residual_dtype, p.residual, row + i, h, n - i);
          if (p.residual_dtype != DType::f32) h = load_any(p.residual_dtype, p.residual, row + i, n - i);
        }
        squares = fma(h, h, squares);
      }
      total += static_cast<double>(sum(squares));
    }
    if (!(total >= 1e-28 && total <= 1e38)) total = sum_of_squares_f64(h_dtype, h_data, row, n);
    const double inv_rms = 1.0 / __builtin_sqrt(total / static_cast<double>(n) + static_cast<double>(p.eps));
    const F32v scale = set1(static_cast<float>(inv_rms));
    for (int64_t i = 0; i < n; i += kLanes) {
      const F32v h = load_any(h_dtype, h_data, row + i, n - i);
      F32v y = h * scale * load_any(p.weight_dtype, p.weight, i, n - i);
      if (p.accumulate) y = y + load_any(DType::f32, p.out, row + i, n - i);
      store_any(p.out_dtype, p.out, row + i, y, n - i);
    }
  }
}

}  // namespace

void rms_norm(const RmsNormParams& p, Arena&) {
  require_compute_type("rms_norm: x", p.x_dtype);
  if (p.residual) require_compute_type("rms_norm: residual", p.residual_dtype);
  require_compute_type("rms_norm: weight", p.weight_dtype);
  require_compute_type("rms_norm: out", p.out_dtype);
  if (p.accumulate) require_accumulator_type("rms_norm: out", p.out_dtype);
  if (p.hidden_size <= 0) return;
  parallel_ranges(p.num_tokens, 1, p.num_tokens * p.hidden_size,
                  [&](int64_t begin, int64_t end) { rms_norm_rows(p, begin, end); });
}

}  // namespace diffqkv::cpu::DIFFQKV_ISA
