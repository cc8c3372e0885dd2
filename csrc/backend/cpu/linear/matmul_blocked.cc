// out (+)= x weight^T for any number of tokens, if oneDNN is not built in. Split by blocks of
// weight rows. A thread keeps a block in its L2 cache, in float32 (or bf16 if the CPU multiplies
// that), converted if it has another type, and goes over the tokens in groups of four: tiles of 4 rows x 4 tokens in registers. Bound
// by arithmetic.
#include "backend/cpu/arena.h"
#include "backend/cpu/isa_kernels.h"
#include "backend/cpu/linear/dot_rows.h"
#include "backend/cpu/linear/packed.h"
#include "backend/cpu/parallel.h"
#include "backend/cpu/simd.h"

namespace diffqkv::cpu::DIFFQKV_ISA {
namespace {

constexpr int64_t kBlockRows = 16;
constexpr int64_t kBlockTokens = 256;  // x is converted to float32 in blocks of this many tokens
constexpr int kTile = 4;

void store_sum(const MatmulParams& p, int64_t token, int64_t row, float value) {
  const int64_t i = token * p.out_features + row;
  switch (p.out_dtype) {
    case DType::f32: {
      float* out = static_cast<float*>(p.out) + i;
      *out = p.accumulate ? *out + value : value;
      return;
    }
    case DType::bf16: store1(static_cast<bf16*>(p.out) + i, value); return;
    default: store1(static_cast<f16*>(p.out) + i, value); return;
  }
}

template <int kXs, typename T>
void tile_row(const MatmulParams& p, const T* weight, const T* x, int64_t row, int64_t num_rows, int64_t token) {
  const int64_t n = p.in_features;
  int64_t r = 0;
  for (; r + kTile <= num_rows; r += kTile) {
    const T* const rows[kTile] = {weight + r * n, weight + (r + 1) * n, weight + (r + 2) * n, weight + (r + 3) * n};
    float sums[kTile][kXs];
    dot_rows<kTile, kXs, false>(rows, x, n, n, sums);
    for (int i = 0; i < kTile; ++i) {
      for (int j = 0; j < kXs; ++j) store_sum(p, token + j, row + r + i, sums[i][j]);
    }
  }
  for (; r < num_rows; ++r) {
    const T* const rows[1] = {weight + r * n};
    float sums[1][kXs];
    dot_rows<1, kXs, false>(rows, x, n, n, sums);
    for (int j = 0; j < kXs; ++j) store_sum(p, token + j, row + r, sums[0][j]);
  }
}

// Rows [row, row + num_rows), at `weight`, and tokens [token, token + num_x), at `x`.
template <typename T>
void multiply_block(const MatmulParams& p, const T* weight, const T* x, int64_t row, int64_t num_rows, int64_t token,
                    int64_t num_x) {
  int64_t t = 0;
  for (; t + kTile <= num_x; t += kTile) tile_row<kTile>(p, weight, x + t * p.in_features, row, num_rows, token + t);
  for (; t < num_x; ++t) tile_row<1>(p, weight, x + t * p.in_features, row, num_rows, token + t);
}

// Converts on this thread only. convert() would start threads.
template <typename W>
const float* widen(const W* src, int64_t count, float* dst) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(dst + i, load(src + i));
  if (i < count) store_n(dst + i, load_n(src + i, count - i), count - i);
  return dst;
}
const float* widen(const float* src, int64_t, float*) { return src; }

// Rows [row, row + num_rows) of a weight with elements W in f32.
template <typename W>
const float* widen_rows(const WeightView& weight, int64_t n, int64_t row, int64_t num_rows, float* dst) {
  return widen(static_cast<const W*>(weight.data) + row * n, num_rows * n, dst);
}

struct Packed {};  // the elements of a quantized weight

template <>
const float* widen_rows<Packed>(const WeightView& weight, int64_t n, int64_t row, int64_t num_rows, float* dst) {
  for (int64_t r = 0; r < num_rows; ++r) dequantize_row(weight_rows(weight, n, row + r), n, dst + r * n);
  return dst;
}

template <typename W>
void multiply_f32(const MatmulParams& p, Arena& arena) {
  const int64_t n = p.in_features;
  float* x_scratch = nullptr;
  if (p.x_dtype != DType::f32) {
    x_scratch = static_cast<float*>(arena.get(kSlotX, min_of(kBlockTokens, p.num_tokens) * n * sizeof(float)));
  }
  float* panels = nullptr;
  if (sizeof(W) != sizeof(float)) {
    panels = static_cast<float*>(arena.get(kSlotWeight, omp_get_max_threads() * kBlockRows * n * sizeof(float)));
  }
  for (int64_t token = 0; token < p.num_tokens; token += kBlockTokens) {
    const int64_t num_x = min_of(kBlockTokens, p.num_tokens - token);
    const float* x = static_cast<const float*>(p.x) + token * n;
    if (x_scratch) {
      convert(DType::f32, x_scratch, p.x_dtype, static_cast<const char*>(p.x) + token * n * 2, num_x * n);
      x = x_scratch;
    }
    parallel_ranges(p.out_features, kBlockRows, p.out_features * n * num_x, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; row += kBlockRows) {
        const int64_t num_rows = min_of(kBlockRows, end - row);
        float* panel = panels ? panels + omp_get_thread_num() * kBlockRows * n : nullptr;
        const float* weight = widen_rows<W>(p.weight, n, row, num_rows, panel);
        multiply_block(p, weight, x, row, num_rows, token, num_x);
      }
    });
  }
}

}  // namespace

void matmul_blocked(const MatmulParams& p, Arena& arena) {
  if constexpr (kHasDotBf16) {
    if (p.x_dtype == DType::bf16 && p.weight.dtype == DType::bf16) {
      const bf16* weight = static_cast<const bf16*>(p.weight.data);
      const int64_t work = p.out_features * p.in_features * p.num_tokens;
      parallel_ranges(p.out_features, kBlockRows, work, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; row += kBlockRows) {
          multiply_block(p, weight + row * p.in_features, static_cast<const bf16*>(p.x), row,
                         min_of(kBlockRows, end - row), 0, p.num_tokens);
        }
      });
      return;
    }
  }
  if (dtype_is_packed(p.weight.dtype)) return multiply_f32<Packed>(p, arena);
  visit(p.weight.dtype, [&](auto tag) { multiply_f32<decltype(tag)>(p, arena); });
}

}  // namespace diffqkv::cpu::DIFFQKV_ISA
