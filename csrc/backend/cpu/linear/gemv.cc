// out (+)= x weight^T for few tokens, and silu(x gate^T) * (x up^T). Bound by reading the weights from memory, which
// is done once for up to 16 tokens.
//
// Split by weight rows, evenly over the threads; a thread walks several far-apart runs of its rows side by side, each a
// stream that is contiguous in memory from end to end, with prefetch. bf16 x bf16 multiplies as it stands where the CPU
// can, by AMX tiles (gemv_tiles.h) or vectors; else weights widen to float32 in registers, x beforehand.
//
// What a token gets are the same bits however many others there are and however rows are split: which instructions
// multiply depends on the weight and the types alone, and each sum has one order.
#include "backend/cpu/amx.h"
#include "backend/cpu/arena.h"
#include "backend/cpu/isa_kernels.h"
#include "backend/cpu/linear/dot_rows.h"
#include "backend/cpu/parallel.h"
#include "backend/cpu/rowwise/activation.h"
#include "backend/cpu/simd.h"
#include "backend/error.h"

namespace diffqkv::cpu::DIFFQKV_ISA {
namespace {

constexpr int64_t kMaxTokens = 16;  // of one pass over the weights: the columns of a tile

// Tokens that meet so many rows in registers.
constexpr int group_for(int rows) {
  const int tokens = kVectorRegisters * 3 / 4 / rows;
  return tokens < 6 ? tokens : 6;
}

// An element of a weight in the cache costs about a quarter of an element of the other operators, which are split from
// kParallelElements on.
constexpr int64_t kElementsPerWork = 4;

// x as the kernels want it: float32, or bf16 where the weight is and the CPU multiplies bf16. Where it does so by tiles
// there is room for each thread's own copy in pairs (gemv_tiles.h): what another core has just written comes slowly.
struct PreparedX {
  const void* data;
  DType dtype;
  char* pairs = nullptr;
};

struct Product {
  PreparedX x;         // [num_x, in_features]
  const void* weight;  // [num_rows, in_features]
  DType weight_dtype;
  float* out;  // [num_x, num_rows]
  int64_t num_x, in_features, num_rows;
  bool accumulate;

  DIFFQKV_INLINE void put(int64_t x, int64_t row, float sum) const {
    float* to = out + x * num_rows + row;
    *to = accumulate ? *to + sum : sum;
  }
};

// Rows row, row + run, ... and tokens [token, token + kXs).
template <int kRows, int kXs, typename W, typename X>
DIFFQKV_INLINE void multiply_group(const Product& p, int64_t row, int64_t run, int64_t token, Ahead ahead) {
  const int64_t n = p.in_features;
  const W* rows[kRows];
  for (int r = 0; r < kRows; ++r) rows[r] = static_cast<const W*>(p.weight) + (row + r * run) * n;
  float sums[kRows][kXs];
  dot_rows<kRows, kXs, true>(rows, static_cast<const X*>(p.x.data) + token * n, n, n, sums, ahead);
  for (int r = 0; r < kRows; ++r) {
    for (int j = 0; j < kXs; ++j) p.put(token + j, row + r * run, sums[r][j]);
  }
}

// Rows [begin, end), kRows streams. Where there are more tokens than a group they meet the rows group by group, the
// first time from memory and then from the cache; each group prefetches its part of the next rows.
template <int kRows, typename W, typename X>
void walk(const Product& p, int64_t begin, int64_t end) {
  constexpr int kGroup = group_for(kRows);
  const int64_t num_groups = (p.num_x + kGroup - 1) / kGroup, group = (p.num_x + num_groups - 1) / num_groups;
  const int64_t run = (end - begin) / kRows, row_bytes = p.in_features * static_cast<int64_t>(sizeof(W));
  const int64_t part = row_bytes / num_groups, step = 64 / num_groups + 1;
  for (int64_t row = begin; row < begin + run; ++row) {
    Ahead ahead;
    if (num_groups > 1) ahead = {row_bytes, step};
    for (int64_t token = 0; token < p.num_x; token += group, ahead.first += part) {
      switch (min_of(group, p.num_x - token)) {
        case 1: multiply_group<kRows, 1, W, X>(p, row, run, token, ahead); break;
        case 2: multiply_group<kRows, 2, W, X>(p, row, run, token, ahead); break;
        case 3: multiply_group<kRows, 3, W, X>(p, row, run, token, ahead); break;
        case 4:
          if constexpr (kGroup >= 4) multiply_group<kRows, 4, W, X>(p, row, run, token, ahead);
          break;
        case 5:
          if constexpr (kGroup >= 5) multiply_group<kRows, 5, W, X>(p, row, run, token, ahead);
          break;
        case 6:
          if constexpr (kGroup >= 6) multiply_group<kRows, 6, W, X>(p, row, run, token, ahead);
          break;
      }
    }
  }
  if constexpr (kRows > 1) walk<1, W, X>(p, begin + kRows * run, end);
}

// As many streams as leave registers for a few tokens or, where there are more, for enough of them to be worth a row's
// widening.
template <typename W, typename X>
void walk_any(const Product& p, int64_t begin, int64_t end) {
  if (p.num_x <= group_for(4) || group_for(4) >= 6) return walk<4, W, X>(p, begin, end);
  walk<2, W, X>(p, begin, end);
}

// The dot products of gemv and gated_gemv by AMX, bf16 x bf16: a tile of weights as it lies in memory (rows far apart,
// by 32 features) times a tile of x (16 pairs of features by up to 16 tokens). Whatever the number of tokens, a tile of
// weights costs far less than reading it from memory does.
//
// A sum goes through the features in tdpbf16ps's own order, 32 by 32, the same for any number of tokens and of rows.
#if defined(__AVX512BF16__)
constexpr int kTileTokens = 16;
constexpr int kTileFeatures = 32;
constexpr int kTileRows = 8;  // streams through memory; 16 of them, as 4, reach a few per cent less of the bandwidth

// Tiles with fewer than 2 columns load slowly: a lone token stands beside a copy of itself.
constexpr int64_t tile_columns(int64_t num_x) { return num_x < 2 ? 2 : num_x; }

// Of x in pairs: whole cache lines, for n is a multiple of kTileFeatures.
constexpr int64_t pairs_bytes(int64_t num_x, int64_t n) { return tile_columns(num_x) * n * 2; }

// pairs[p * tile_columns(num_x) + t] = features 2p and 2p + 1 of token t, for num_pairs pairs, a multiple of 16, and up
// to kTileTokens tokens.
inline void pack_pairs(const bf16* x, int64_t num_x, int64_t num_pairs, uint32_t* pairs) {
  if (num_x == 1) {
    for (int64_t p = 0; p < num_pairs; ++p) pairs[2 * p] = pairs[2 * p + 1] = load_raw<uint32_t>(x + 2 * p);
    return;
  }
  const __mmask16 columns = static_cast<__mmask16>((1u << num_x) - 1);
  for (int64_t p = 0; p < num_pairs; p += 4) {  // 128-bit lane l of z[j] is of token 4l + j: then 4x4 inside of lanes
    __m512i z[4];
    for (int j = 0; j < 4; ++j) {
      __m128i part[4];
      for (int l = 0; l < 4; ++l) {
        const int64_t token = min_of(4 * l + j, num_x - 1);
        part[l] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(x + 2 * (token * num_pairs + p)));
      }
      z[j] = _mm512_inserti32x4(_mm512_castsi128_si512(part[0]), part[1], 1);
      z[j] = _mm512_inserti32x4(_mm512_inserti32x4(z[j], part[2], 2), part[3], 3);
    }
    const __m512i a = _mm512_unpacklo_epi32(z[0], z[1]), b = _mm512_unpackhi_epi32(z[0], z[1]);
    const __m512i c = _mm512_unpacklo_epi32(z[2], z[3]), d = _mm512_unpackhi_epi32(z[2], z[3]);
    uint32_t* to = pairs + p * num_x;
    _mm512_mask_storeu_epi32(to, columns, _mm512_unpacklo_epi64(a, c));
    _mm512_mask_storeu_epi32(to + num_x, columns, _mm512_unpackhi_epi64(a, c));
    _mm512_mask_storeu_epi32(to + 2 * num_x, columns, _mm512_unpacklo_epi64(b, d));
    _mm512_mask_storeu_epi32(to + 3 * num_x, columns, _mm512_unpackhi_epi64(b, d));
  }
}

DIFFQKV_INLINE void configure_tiles(int64_t num_rows, int64_t columns) {
  TileConfig config;
  config.palette = 1;
  const int64_t rows[3] = {num_rows, num_rows, 16}, bytes[3] = {4 * columns, 64, 4 * columns};  // sums, weights, x
  for (int i = 0; i < 3; ++i) {
    config.rows[i] = static_cast<uint8_t>(rows[i]);
    config.bytes_per_row[i] = static_cast<uint16_t>(bytes[i]);
  }
  asm volatile("ldtilecfg %0" : : "m"(config));
}

// sums[r][i] = row r . x i, for as many rows, stride_bytes apart, as tiles are configured to.
DIFFQKV_INLINE void dot_tiles(const char* rows, int64_t stride_bytes, const uint32_t* pairs, int64_t columns, int64_t n,
                              float (&sums)[kTileRows][kTileTokens]) {
  constexpr int64_t kAheadBytes = 512;
  constexpr int kToL2 = 2;  // not to the L1 cache, where the streams share sets
  DIFFQKV_TILE_ZERO(0);
  for (int64_t i = 0; i < n; i += kTileFeatures) {
    const char* from = rows + 2 * i;
    DIFFQKV_TILE_LOAD(2, pairs + i / 2 * columns, 4 * columns);
    DIFFQKV_TILE_LOAD(1, from, stride_bytes);
    for (int r = 0; r < kTileRows; ++r) __builtin_prefetch(from + r * stride_bytes + kAheadBytes, 0, kToL2);
    DIFFQKV_TILE_DOT(0, 1, 2);
  }
  DIFFQKV_TILE_STORE(0, sums, 4 * kTileTokens);
}

// Rows [begin, end), kTileRows streams; the rest in one tile of fewer rows.
void walk_tiles(const Product& p, int64_t begin, int64_t end) {
  const AmxScope amx(true);
  const char* weight = static_cast<const char*>(p.weight);
  const uint32_t* pairs = reinterpret_cast<const uint32_t*>(p.x.pairs);
  const int64_t n = p.in_features, columns = tile_columns(p.num_x);
  alignas(64) float sums[kTileRows][kTileTokens];
  const auto rows = [&](int64_t first, int64_t count, int64_t run) DIFFQKV_LAMBDA {
    dot_tiles(weight + 2 * n * first, 2 * n * run, pairs, columns, n, sums);
    for (int64_t j = 0; j < p.num_x; ++j) {
      for (int64_t r = 0; r < count; ++r) p.put(j, first + r * run, sums[r][j]);
    }
  };
  const int64_t run = (end - begin) / kTileRows, rest = begin + kTileRows * run;
  configure_tiles(kTileRows, columns);
  for (int64_t row = begin; row < begin + run; ++row) rows(row, kTileRows, run);
  if (rest == end) return;
  configure_tiles(end - rest, columns);
  rows(rest, end - rest, 1);
}
#endif

void multiply(const Product& p, int64_t begin, int64_t end) {
#if defined(__AVX512BF16__)
  if (p.x.pairs) return walk_tiles(p, begin, end);
#endif
  if constexpr (kHasDotBf16) {
    if (p.x.dtype == DType::bf16) return walk_any<bf16, bf16>(p, begin, end);
  }
  switch (p.weight_dtype) {
    case DType::f32: return walk_any<float, float>(p, begin, end);
    case DType::bf16: return walk_any<bf16, float>(p, begin, end);
    default: return walk_any<f16, float>(p, begin, end);
  }
}

PreparedX prepare_x(DType weight_dtype, DType x_dtype, const void* x, int64_t num_x, int64_t in_features,
                    Arena& arena) {
  if (x_dtype == DType::f32) return {x, x_dtype};
  if (kHasDotBf16 && x_dtype == DType::bf16 && weight_dtype == DType::bf16) {
#if defined(__AVX512BF16__)
    if (in_features > 0 && in_features % kTileFeatures == 0 && use_amx()) {
      const int64_t bytes = omp_get_max_threads() * pairs_bytes(num_x, in_features);
      return {x, x_dtype, static_cast<char*>(arena.get(kSlotX, bytes))};
    }
#endif
    return {x, x_dtype};
  }
  void* x_f32 = arena.get(kSlotX, num_x * in_features * sizeof(float));
  convert(DType::f32, x_f32, x_dtype, x, num_x * in_features);
  return {x_f32, DType::f32};
}

// The same for the calling thread.
PreparedX own_x(const PreparedX& x, [[maybe_unused]] int64_t num_x, [[maybe_unused]] int64_t in_features) {
#if defined(__AVX512BF16__)
  if (x.pairs) {
    char* pairs = x.pairs + omp_get_thread_num() * pairs_bytes(num_x, in_features);
    pack_pairs(static_cast<const bf16*>(x.data), num_x, in_features / 2, reinterpret_cast<uint32_t*>(pairs));
    return {x.data, x.dtype, pairs};
  }
#endif
  return x;
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

// Elements [begin, end) of each token's row of `out`, [num_x, n]: value(i, left) is a vector of `left` of them from
// element i of all on. For what the thread itself has computed, so that there is nothing to wait for.
template <typename F>
DIFFQKV_INLINE void store_rows(DType dtype, void* out, int64_t num_x, int64_t n, int64_t begin, int64_t end,
                               const F& value) {
  visit(dtype, [&](auto tag) {
    auto* to = static_cast<decltype(tag)*>(out);
    for (int64_t j = 0; j < num_x; ++j) {
      int64_t i = j * n + begin;
      for (; i + kLanes <= j * n + end; i += kLanes) store(to + i, value(i, int64_t{kLanes}));
      const int64_t left = j * n + end - i;
      if (left > 0) store_n(to + i, value(i, left), left);
    }
  });
}

}  // namespace

void gemv(const MatmulParams& p, Arena& arena) {
  check_types("matmul", p.weight_dtype, p.x_dtype, p.out_dtype, p.accumulate);
  const int64_t in = p.in_features, n = p.out_features;
  const bool round = p.out_dtype != DType::f32;
  for (int64_t token = 0; token < p.num_tokens; token += kMaxTokens) {
    const int64_t num_x = min_of(kMaxTokens, p.num_tokens - token);
    const char* x = static_cast<const char*>(p.x) + token * in * element_size(p.x_dtype);
    void* out = static_cast<char*>(p.out) + token * n * element_size(p.out_dtype);
    float* sums = static_cast<float*>(round ? arena.get(kSlotOut, num_x * n * sizeof(float)) : out);
    const PreparedX prepared = prepare_x(p.weight_dtype, p.x_dtype, x, num_x, in, arena);
    parallel_ranges(n, 1, n * in / kElementsPerWork, [&](int64_t begin, int64_t end) {
      const PreparedX own = own_x(prepared, num_x, in);
      multiply({own, p.weight, p.weight_dtype, sums, num_x, in, n, p.accumulate}, begin, end);
      if (!round) return;
      store_rows(p.out_dtype, out, num_x, n, begin, end,
                 [&](int64_t i, int64_t left) { return load_n(sums + i, left); });
    });
  }
}

void gated_gemv(const AugmentedQParams& p, void* inner, DType inner_dtype, Arena& arena) {
  check_types("augmented_q", p.weight_dtype, p.x_dtype, inner_dtype, false);
  const int64_t in = p.in_features, n = p.inner_size;
  float* gate_sums = static_cast<float*>(arena.get(kSlotGateSums, kMaxTokens * n * sizeof(float)));
  float* up_sums = static_cast<float*>(arena.get(kSlotUpSums, kMaxTokens * n * sizeof(float)));
  for (int64_t token = 0; token < p.num_tokens; token += kMaxTokens) {
    const int64_t num_x = min_of(kMaxTokens, p.num_tokens - token);
    const char* x = static_cast<const char*>(p.x) + token * in * element_size(p.x_dtype);
    void* out = static_cast<char*>(inner) + token * n * element_size(inner_dtype);
    const PreparedX prepared = prepare_x(p.weight_dtype, p.x_dtype, x, num_x, in, arena);
    parallel_ranges(n, 1, 2 * n * in / kElementsPerWork, [&](int64_t begin, int64_t end) {
      const PreparedX own = own_x(prepared, num_x, in);
      multiply({own, p.gate, p.weight_dtype, gate_sums, num_x, in, n, false}, begin, end);
      multiply({own, p.up, p.weight_dtype, up_sums, num_x, in, n, false}, begin, end);
      store_rows(inner_dtype, out, num_x, n, begin, end, [&](int64_t i, int64_t left) {
        return silu(load_n(gate_sums + i, left)) * load_n(up_sums + i, left);
      });
    });
  }
}

}  // namespace diffqkv::cpu::DIFFQKV_ISA
