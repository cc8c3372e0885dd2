// Linear layers of many tokens: out (+)= x weight^T, by the matrix products of attention. A thread
// packs a block of weight rows into panels of 16, which stay in its L2 cache while 256 tokens pass.
// The product is in bf16 if x is bf16, the weight is bf16 or quantized (then it is rounded), and the
// CPU multiplies bf16, else in f32. Each sum goes through the features in order. Bound by arithmetic,
// except if there are fewer blocks of 16 rows than threads.
#include "backend/cpu/attention/gemm.h"
#include "backend/cpu/arena.h"
#include "backend/cpu/isa_kernels.h"
#include "backend/cpu/linear/packed.h"
#include "backend/cpu/parallel.h"
#include "backend/cpu/rowwise/activation.h"

namespace diffqkv::cpu::DIFFQKV_ISA {
namespace {

constexpr int64_t kBlockTokens = 256;
constexpr int64_t kMostPanels = 6;                   // of a block, for each weight
constexpr int64_t kBlockBytes = int64_t{512} << 10;  // of the panels, if that leaves at least one for each weight
constexpr int kMaxWeights = 2;

// x times one or two weights of the same shape.
struct Product {
  const void* x;  // [num_tokens, in_features]
  DType x_dtype;
  WeightView weights[kMaxWeights];
  int num_weights;
  int64_t num_tokens, in_features, out_features;

  DIFFQKV_INLINE bool in_bf16() const {
    bool all = kHasBf16Gemm && x_dtype == DType::bf16;
    for (int w = 0; w < num_weights; ++w) {
      all = all && (weights[w].dtype == DType::bf16 || dtype_is_packed(weights[w].dtype));
    }
    return all;
  }
  DIFFQKV_INLINE bool any_packed() const {
    bool any = false;
    for (int w = 0; w < num_weights; ++w) any = any || dtype_is_packed(weights[w].dtype);
    return any;
  }
};

// How a product is divided, and the scratch memory of each thread.
struct Blocks {
  bool bf16_product;
  int64_t depth;         // features in a panel and in a row of x, padded with zeros
  int64_t stride_panel;  // in floats
  int64_t num_panels;    // in a block, for each weight
  float* panels;         // [thread][num_panels][stride_panel]
  char* rows;            // [thread][16][in_features], f32 or bf16, if the weight is quantized
  float* sums;           // [thread][num_weights][kBlockTokens][num_panels * 16]
  const void* x;         // [kBlockTokens][depth], f32 or bf16

  DIFFQKV_INLINE int64_t stride_sums() const { return num_panels * kPanel; }
};

Rows contiguous_rows(const void* data, DType dtype, int64_t n) {
  return {static_cast<const char*>(data), n * static_cast<int64_t>(dtype_size(dtype))};
}

// Packs num_rows <= 16 rows of a weight, from `row` on.
void pack_panel(const WeightView& weight, const Blocks& b, int64_t n, int64_t row, int64_t num_rows, float* panel) {
  DType dtype = weight.dtype;
  Rows rows = {};
  if (dtype_is_packed(dtype)) {
    dtype = b.bf16_product ? DType::bf16 : DType::f32;
    rows = contiguous_rows(b.rows + omp_get_thread_num() * kPanel * n * 4, dtype, n);
    visit(dtype, [&](auto type) DIFFQKV_LAMBDA {
      auto* to = reinterpret_cast<decltype(type)*>(const_cast<char*>(rows.data));
      for (int64_t r = 0; r < num_rows; ++r) dequantize_row(weight_rows(weight, n, row + r), n, to + r * n);
    });
  } else {
    rows = contiguous_rows(weight_rows(weight, n, row).data, dtype, n);
  }
#if defined(__AVX512BF16__)
  if (b.bf16_product) return pack_k_panel_vnni(rows, num_rows, n, panel);
#endif
  visit(dtype, [&](auto type) DIFFQKV_LAMBDA { pack_k_panel<decltype(type)>(rows, num_rows, n, panel); });
}

// Rows [row, row + num_rows) of all weights, at most one block.
void multiply_block(const Product& p, const Blocks& b, int64_t num_tokens, int64_t row, int64_t num_rows,
                    int64_t* tile_rows) {
  const int64_t thread = omp_get_thread_num();
  float* panels = b.panels + thread * b.num_panels * b.stride_panel;
  for (int w = 0; w < p.num_weights; ++w) {
    for (int64_t r = 0; r < num_rows; r += kPanel) {
      pack_panel(p.weights[w], b, p.in_features, row + r, min_of(num_rows - r, kPanel),
                 panels + r / kPanel * b.stride_panel);
    }
    Gemm g = {};
    g.a = b.x;
    g.b = panels;
    g.c = b.sums + (thread * p.num_weights + w) * kBlockTokens * b.stride_sums();
    g.m = num_tokens;
    g.num_panels = ceil_div(num_rows, kPanel);
    g.k = b.depth;
    g.lda = b.depth;
    g.stride_panel = b.stride_panel;
    g.ldc = b.stride_sums();
    if (b.bf16_product) {
      gemm_bf16(g, tile_rows);
    } else {
      gemm_f32(g);
    }
  }
}

// The tokens from `token` on as rows of b.depth elements. Converts or pads them in scratch memory if
// they are not such rows already.
const void* rows_of_x(const Product& p, const Blocks& b, int64_t token, int64_t num_tokens, Arena& arena) {
  const int64_t n = p.in_features;
  const DType type = b.bf16_product ? DType::bf16 : DType::f32;
  const int64_t size = static_cast<int64_t>(dtype_size(p.x_dtype));
  const char* x = static_cast<const char*>(p.x) + token * n * size;
  if (p.x_dtype == type && b.depth == n) return x;
  const int64_t row_bytes = b.depth * static_cast<int64_t>(dtype_size(type));
  char* scratch = static_cast<char*>(arena.get(kSlotX, static_cast<size_t>(num_tokens * row_bytes)));
  if (b.depth == n) {
    convert(type, scratch, p.x_dtype, x, num_tokens * n);
    return scratch;
  }
  __builtin_memset(scratch, 0, static_cast<size_t>(num_tokens * row_bytes));
  for (int64_t t = 0; t < num_tokens; ++t) convert(type, scratch + t * row_bytes, p.x_dtype, x + t * n * size, n);
  return scratch;
}

// Calls on_sums(token, row, count, sums) for up to kLanes rows of a token: sums[w] is that of weight
// w.
template <typename OnSums>
DIFFQKV_INLINE void multiply(const Product& p, Arena& arena, const OnSums& on_sums) {
  const int64_t n = p.in_features;
  const int64_t num_threads = omp_get_max_threads();
  Blocks b = {};
  b.bf16_product = p.in_bf16();
  b.depth = b.bf16_product ? round_up(n, kPairStep) : n;
  b.stride_panel = b.bf16_product ? b.depth / 2 * kPanel : round_up(n, kPanel) * kPanel;
  b.num_panels = max_of(1, min_of(kBlockBytes / (b.stride_panel * 4), kMostPanels));
  const int64_t panels_bytes = num_threads * b.num_panels * b.stride_panel * 4;
  const int64_t rows_bytes = p.any_packed() ? num_threads * kPanel * n * 4 : 0;
  char* scratch = static_cast<char*>(arena.get(kSlotWeight, static_cast<size_t>(panels_bytes + rows_bytes)));
  b.panels = reinterpret_cast<float*>(scratch);
  b.rows = scratch + panels_bytes;
  b.sums = static_cast<float*>(
      arena.get(kSlotOut, static_cast<size_t>(num_threads * p.num_weights * kBlockTokens * b.stride_sums() * 4)));
  for (int64_t token = 0; token < p.num_tokens; token += kBlockTokens) {
    const int64_t num_tokens = min_of(kBlockTokens, p.num_tokens - token);
    b.x = rows_of_x(p, b, token, num_tokens, arena);
    const int64_t work = p.num_weights * p.out_features * n * num_tokens;
    parallel_ranges(p.out_features, kPanel, work, [&](int64_t begin, int64_t end) {
      const bool tiles = b.bf16_product && use_amx();
      const AmxScope amx(tiles);
      int64_t tile_rows = 0;
      const float* sums = b.sums + omp_get_thread_num() * p.num_weights * kBlockTokens * b.stride_sums();
      for (int64_t row = begin; row < end; row += b.stride_sums()) {
        const int64_t num_rows = min_of(end - row, b.stride_sums());
        multiply_block(p, b, num_tokens, row, num_rows, tiles ? &tile_rows : nullptr);
        for (int64_t t = 0; t < num_tokens; ++t) {
          for (int64_t r = 0; r < num_rows; r += kLanes) {
            F32v values[kMaxWeights] = {};
            for (int w = 0; w < p.num_weights; ++w) {
              values[w] = load(sums + (w * kBlockTokens + t) * b.stride_sums() + r);
            }
            on_sums(token + t, row + r, min_of(num_rows - r, kLanes), values);
          }
        }
      }
    });
  }
}

}  // namespace

void gemm(const MatmulParams& p, Arena& arena) {
  const Product product = {.x = p.x,
                           .x_dtype = p.x_dtype,
                           .weights = {p.weight, {}},
                           .num_weights = 1,
                           .num_tokens = p.num_tokens,
                           .in_features = p.in_features,
                           .out_features = p.out_features};
  visit(p.out_dtype, [&](auto type) DIFFQKV_LAMBDA {
    multiply(product, arena, [&](int64_t token, int64_t row, int64_t count, const F32v* sums) DIFFQKV_LAMBDA {
      auto* out = static_cast<decltype(type)*>(p.out) + token * p.out_features + row;
      store_n(out, p.accumulate ? sums[0] + load_n(out, count) : sums[0], count);
    });
  });
}

void gated_gemm(const GatedMlpParams& p, void* inner, DType inner_dtype, Arena& arena) {
  if (p.in_features == 0) return gated_gemv(p, inner, inner_dtype, arena);
  const bool gated = p.gate.data != nullptr;
  const Product product = {.x = p.x,
                           .x_dtype = p.x_dtype,
                           .weights = {p.up, p.gate},
                           .num_weights = gated ? 2 : 1,
                           .num_tokens = p.num_tokens,
                           .in_features = p.in_features,
                           .out_features = p.inner_size};
  visit(inner_dtype, [&](auto type) DIFFQKV_LAMBDA {
    multiply(product, arena, [&](int64_t token, int64_t row, int64_t count, const F32v* sums) DIFFQKV_LAMBDA {
      const F32v value = gated ? activate(p.activation, sums[1]) * sums[0] : activate(p.activation, sums[0]);
      store_n(static_cast<decltype(type)*>(inner) + token * p.inner_size + row, value, count);
    });
  });
}

}  // namespace diffqkv::cpu::DIFFQKV_ISA
