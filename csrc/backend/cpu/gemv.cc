// out (+)= x weight^T for few tokens, and silu(x gate^T) * (x up^T) in one pass over both weights. Bound by reading the
// weights once from memory: each weight row meets all tokens while it is in registers.
//
// Split by weight rows, evenly over the threads; a thread walks several far-apart runs of its rows side by side, each a
// stream that is contiguous in memory from end to end, with prefetch. bf16 x bf16 multiplies as it stands where the CPU
// can; else weights widen to float32 in registers, x beforehand.
#include "backend/cpu/activation.h"
#include "backend/cpu/arena_slots.h"
#include "backend/cpu/dot_rows.h"
#include "backend/cpu/isa_kernels.h"
#include "backend/cpu/parallel.h"
#include "backend/cpu/simd.h"
#include "backend/error.h"

namespace diffqkv::cpu::DIFFQKV_ISA {
namespace {

constexpr int kMaxXs = 8;

// An element of a weight in the cache costs about a quarter of an element of the other operators, which are split from
// kParallelElements on.
constexpr int64_t kElementsPerWork = 4;

// Rows side by side: as many streams as registers allow, at most 4.
constexpr int rows_for(int num_x) {
  const int rows = kVectorRegisters * 3 / 4 / num_x;
  return rows >= 4 ? 4 : rows >= 2 ? 2 : 1;
}

// What both operators need to know of their rows.
struct Rows {
  const void* x;  // [num_x, in_features]
  int64_t in_features;
};

struct Output {
  void* data;  // [num_x, num_rows]
  DType dtype;
  bool accumulate;
  int64_t num_rows;

  DIFFQKV_INLINE void put(int64_t x, int64_t row, float value) const {
    const int64_t i = x * num_rows + row;
    switch (dtype) {
      case DType::f32: {
        float* out = static_cast<float*>(data) + i;
        *out = accumulate ? *out + value : value;
        return;
      }
      case DType::bf16: store1(static_cast<bf16*>(data) + i, value); return;
      default: store1(static_cast<f16*>(data) + i, value); return;
    }
  }
};

// Rows [begin, end) of kMatrices weights of the same shape, kRuns streams in each.
template <int kMatrices, int kRuns, int kXs, typename W, typename X>
DIFFQKV_INLINE void walk(const W* const (&weights)[kMatrices], const Rows& rows, int64_t begin, int64_t end,
                         const Output (&outputs)[kMatrices]) {
  const int64_t n = rows.in_features;
  const X* x = static_cast<const X*>(rows.x);
  const int64_t run = (end - begin) / kRuns;
  const W* heads[kMatrices * kRuns];
  float sums[kMatrices * kRuns][kXs];
  for (int64_t step = 0; step < run; ++step) {
    for (int m = 0; m < kMatrices; ++m) {
      for (int r = 0; r < kRuns; ++r) heads[m * kRuns + r] = weights[m] + (begin + r * run + step) * n;
    }
    dot_rows<kMatrices * kRuns, kXs, true>(heads, x, n, n, sums);
    for (int m = 0; m < kMatrices; ++m) {
      for (int r = 0; r < kRuns; ++r) {
        for (int j = 0; j < kXs; ++j) outputs[m].put(j, begin + r * run + step, sums[m * kRuns + r][j]);
      }
    }
  }
  if constexpr (kRuns > 1) walk<kMatrices, 1, kXs, W, X>(weights, rows, begin + kRuns * run, end, outputs);
}

template <int kMatrices, typename W, typename X>
void walk_any(int num_x, const void* const (&weights)[kMatrices], const Rows& rows, int64_t begin, int64_t end,
              const Output (&outputs)[kMatrices]) {
  const W* typed[kMatrices];
  for (int m = 0; m < kMatrices; ++m) typed[m] = static_cast<const W*>(weights[m]);
#define DIFFQKV_CASE(kXs)                                                                                            \
  case kXs:                                                                                                          \
    walk<kMatrices, (rows_for(kXs) > kMatrices ? rows_for(kXs) / kMatrices : 1), kXs, W, X>(typed, rows, begin, end, \
                                                                                            outputs);                \
    break;
  switch (num_x) {
    DIFFQKV_CASE(1)
    DIFFQKV_CASE(2)
    DIFFQKV_CASE(3)
    DIFFQKV_CASE(4)
    DIFFQKV_CASE(5)
    DIFFQKV_CASE(6)
    DIFFQKV_CASE(7)
    DIFFQKV_CASE(8)
  }
#undef DIFFQKV_CASE
}

// The types of weight and x, known at run time: x comes as float32, or as bf16 where the weight is and the CPU
// multiplies bf16.
template <int kMatrices>
void walk_typed(DType weight_dtype, DType x_dtype, int num_x, const void* const (&weights)[kMatrices], const Rows& rows,
                int64_t begin, int64_t end, const Output (&outputs)[kMatrices]) {
  if constexpr (kHasDotBf16) {
    if (x_dtype == DType::bf16) return walk_any<kMatrices, bf16, bf16>(num_x, weights, rows, begin, end, outputs);
  }
  switch (weight_dtype) {
    case DType::f32: return walk_any<kMatrices, float, float>(num_x, weights, rows, begin, end, outputs);
    case DType::bf16: return walk_any<kMatrices, bf16, float>(num_x, weights, rows, begin, end, outputs);
    default: return walk_any<kMatrices, f16, float>(num_x, weights, rows, begin, end, outputs);
  }
}

// x as walk_typed wants it.
struct PreparedX {
  const char* data;
  DType dtype;
};

PreparedX prepare_x(DType weight_dtype, DType x_dtype, const void* x, int64_t count, Arena& arena) {
  const bool as_is = x_dtype == DType::f32 || (kHasDotBf16 && x_dtype == DType::bf16 && weight_dtype == DType::bf16);
  if (as_is) return {static_cast<const char*>(x), x_dtype};
  void* x_f32 = arena.get(kSlotX, count * sizeof(float));
  convert(DType::f32, x_f32, x_dtype, x, count);
  return {static_cast<const char*>(x_f32), DType::f32};
}

void check_types(const char* name, DType weight, DType x, DType out, bool accumulate) {
  for (const DType dtype : {weight, x, out}) {
    if (!visit(dtype, [](auto) {})) {
      fail(ErrorCode::invalid_argument, "%s: a tensor of type %s; f32, f16 and bf16 are known", name,
           dtype_name(dtype));
    }
  }
  if (accumulate && out != DType::f32) {
    fail(ErrorCode::invalid_argument, "%s: accumulates into out of type f32 only, not %s", name, dtype_name(out));
  }
}

DIFFQKV_INLINE int64_t element_size(DType dtype) { return dtype == DType::f32 ? 4 : 2; }

}  // namespace

void gemv(const MatmulParams& p, Arena& arena) {
  check_types("matmul", p.weight_dtype, p.x_dtype, p.out_dtype, p.accumulate);
  const PreparedX x = prepare_x(p.weight_dtype, p.x_dtype, p.x, p.num_tokens * p.in_features, arena);
  for (int64_t token = 0; token < p.num_tokens; token += kMaxXs) {
    const int num_x = static_cast<int>(min_of(kMaxXs, p.num_tokens - token));
    const Rows rows = {x.data + token * p.in_features * element_size(x.dtype), p.in_features};
    const void* const weights[1] = {p.weight};
    const Output outputs[1] = {{static_cast<char*>(p.out) + token * p.out_features * element_size(p.out_dtype),
                                p.out_dtype, p.accumulate, p.out_features}};
    parallel_ranges(p.out_features, 1, p.out_features * p.in_features / kElementsPerWork,
                    [&](int64_t begin, int64_t end) {
                      walk_typed<1>(p.weight_dtype, x.dtype, num_x, weights, rows, begin, end, outputs);
                    });
  }
}

void gated_gemv(const AugmentedQParams& p, void* inner, DType inner_dtype, Arena& arena) {
  check_types("augmented_q", p.weight_dtype, p.x_dtype, inner_dtype, false);
  const PreparedX x = prepare_x(p.weight_dtype, p.x_dtype, p.x, p.num_tokens * p.in_features, arena);
  const int64_t n = p.inner_size;
  float* gate_sums = static_cast<float*>(arena.get(kSlotGateSums, n * kMaxXs * sizeof(float)));
  float* up_sums = static_cast<float*>(arena.get(kSlotUpSums, n * kMaxXs * sizeof(float)));
  for (int64_t token = 0; token < p.num_tokens; token += kMaxXs) {
    const int num_x = static_cast<int>(min_of(kMaxXs, p.num_tokens - token));
    const Rows rows = {x.data + token * p.in_features * element_size(x.dtype), p.in_features};
    const void* const weights[2] = {p.gate, p.up};
    const Output outputs[2] = {{gate_sums, DType::f32, false, n}, {up_sums, DType::f32, false, n}};
    parallel_ranges(n, 1, 2 * n * p.in_features / kElementsPerWork, [&](int64_t begin, int64_t end) {
      walk_typed<2>(p.weight_dtype, x.dtype, num_x, weights, rows, begin, end, outputs);
      // The thread's own rows, so there is nothing to wait for.
      visit(inner_dtype, [&](auto tag) {
        for (int j = 0; j < num_x; ++j) {
          auto* out = static_cast<decltype(tag)*>(inner) + (token + j) * n;
          for (int64_t i = begin; i < end; i += kLanes) {
            const int64_t left = min_of(kLanes, end - i);
            store_n(out + i, silu(load_n(gate_sums + j * n + i, left)) * load_n(up_sums + j * n + i, left), left);
          }
        }
      });
    });
  }
}

}  // namespace diffqkv::cpu::DIFFQKV_ISA
