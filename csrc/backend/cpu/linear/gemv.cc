// out (+)= x weight^T for few tokens, and activation(x gate^T) * (x up^T). Bound by reading the
// weights from memory, which happens once for up to 16 tokens. Quantized weights are multiplied here
// for up to 32 tokens.
//
// Split by weight rows, evenly among the threads. A thread reads several distant runs of its rows
// in parallel. Each is a stream, contiguous in memory from end to end, with prefetch. bf16 x bf16
// is multiplied directly if the CPU can, by AMX tiles or vectors. Quantized weights are multiplied
// by integers (packed.h). Else weights are converted to float32 in registers, and x beforehand.
//
// A token gets the same bits for any number of tokens and any split of rows: the instructions
// depend on only the weight and the types, and each sum has one order.
#include "backend/cpu/amx.h"
#include "backend/cpu/arena.h"
#include "backend/cpu/isa_kernels.h"
#include "backend/cpu/linear/dot_rows.h"
#include "backend/cpu/linear/packed.h"
#include "backend/cpu/parallel.h"
#include "backend/cpu/rowwise/activation.h"
#include "backend/cpu/simd.h"

namespace diffqkv::cpu::DIFFQKV_ISA {
namespace {

constexpr int64_t kMaxTokens = 16;  // in one pass over the weights: the columns of a tile

// The same of quantized weights: as many as have their integers in a part of the L2 cache, and their sums in
// bounded memory.
int64_t pass_tokens(DType weight_dtype, int64_t in_features, int64_t out_features) {
  if (!dtype_is_packed(weight_dtype)) return kMaxTokens;
  constexpr int64_t kIntegersBytes = int64_t{1} << 19;
  constexpr int64_t kSumsBytes = int64_t{16} << 20;
  const int64_t of_integers = kIntegersBytes / (3 * in_features + 1);
  const int64_t of_sums = kSumsBytes / (4 * out_features + 1);
  return max_of(kMaxTokens, min_of(of_integers, of_sums) / kMaxTokens * kMaxTokens);
}

// The number of tokens that fit in registers with this number of rows.
constexpr int group_for(int rows) {
  const int tokens = kVectorRegisters * 3 / 4 / rows;
  return tokens < 6 ? tokens : 6;
}

// An element of a weight in the CPU cache costs about a quarter of an element of the other
// operators, which use threads from kParallelElements on.
constexpr int64_t kElementsPerWork = 4;

// x as the kernels read it: float32, or bf16 if the weight is bf16 and the CPU multiplies bf16. For
// AMX tiles there is also memory for a copy in pairs for each thread, because data that another
// core has just written is slow to read. For quantized weights it is XStep [steps, num_x], with two
// terms if dtype is f32.
struct PreparedX {
  const void* data;
  DType dtype;
  char* pairs = nullptr;
};

struct Product {
  PreparedX x;        // [num_x, in_features]
  WeightView weight;  // [num_rows, in_features]
  float* out;         // [num_x, num_rows]
  int64_t num_x, in_features, num_rows;
  bool accumulate;

  DIFFQKV_INLINE void store_sum(int64_t x, int64_t row, float sum) const {
    float* to = out + x * num_rows + row;
    *to = accumulate ? *to + sum : sum;
  }
};

// Rows row, row + run, ... and tokens [token, token + kXs).
template <int kRows, int kXs, typename W, typename X>
DIFFQKV_INLINE void multiply_group(const Product& p, int64_t row, int64_t run, int64_t token, Ahead ahead) {
  const int64_t n = p.in_features;
  const W* rows[kRows];
  for (int r = 0; r < kRows; ++r) rows[r] = static_cast<const W*>(p.weight.data) + (row + r * run) * n;
  float sums[kRows][kXs];
  dot_rows<kRows, kXs, true>(rows, static_cast<const X*>(p.x.data) + token * n, n, n, sums, ahead);
  for (int r = 0; r < kRows; ++r) {
    for (int j = 0; j < kXs; ++j) p.store_sum(token + j, row + r * run, sums[r][j]);
  }
}

// Rows [begin, end) in kRows streams. If there are more tokens than a group, the groups multiply
// the same rows in turn, the first from memory and the others from the CPU cache. Each group
// prefetches its part of the next rows.
template <int kRows, typename W, typename X>
void multiply_streams(const Product& p, int64_t begin, int64_t end) {
  constexpr int kGroup = group_for(kRows);
  const int64_t num_groups = ceil_div(p.num_x, kGroup);
  const int64_t group = ceil_div(p.num_x, num_groups);
  const int64_t run = (end - begin) / kRows;
  const int64_t row_bytes = p.in_features * static_cast<int64_t>(sizeof(W));
  const int64_t part = row_bytes / num_groups;
  const int64_t step = 64 / num_groups + 1;
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
  if constexpr (kRows > 1) multiply_streams<1, W, X>(p, begin + kRows * run, end);
}

// As many streams as leave registers for a few tokens. With more tokens, fewer streams, so that
// more tokens share the conversion of a row.
template <typename W, typename X>
void choose_streams(const Product& p, int64_t begin, int64_t end) {
  if (p.num_x <= group_for(4) || group_for(4) >= 6) return multiply_streams<4, W, X>(p, begin, end);
  multiply_streams<2, W, X>(p, begin, end);
}

// The dot products of gemv and gated_gemv by AMX, bf16 x bf16: a tile of weights as it is in memory
// (distant rows by 32 features) times a tile of x (16 pairs of features by up to 16 tokens). For
// any number of tokens, multiplying a tile of weights costs much less than reading it from memory.
//
// A sum goes through the features in the order of tdpbf16ps, 32 at a time, which does not depend on
// the number of tokens and rows.
#if defined(__AVX512BF16__)
constexpr int kTileTokens = 16;
constexpr int kTileFeatures = 32;
constexpr int kTileRows = 8;  // streams through memory; 4 or 16 of them reach a few percent less of the bandwidth

// Tiles with fewer than 2 columns load slowly, so a single token is stored twice.
constexpr int64_t tile_columns(int64_t num_x) { return num_x < 2 ? 2 : num_x; }

// Bytes of x in pairs. These are whole cache lines, because n is a multiple of kTileFeatures.
constexpr int64_t pairs_bytes(int64_t num_x, int64_t n) { return tile_columns(num_x) * n * 2; }

// pairs[p * tile_columns(num_x) + t] = features 2p and 2p + 1 of token t, for num_pairs pairs, a
// multiple of 16, and up to kTileTokens tokens.
inline void pack_pairs(const bf16* x, int64_t num_x, int64_t num_pairs, uint32_t* pairs) {
  if (num_x == 1) {
    for (int64_t p = 0; p < num_pairs; ++p) {
      const uint32_t pair = load_raw<uint32_t>(x + 2 * p);
      pairs[2 * p] = pair;
      pairs[2 * p + 1] = pair;
    }
    return;
  }
  const __mmask16 columns = static_cast<__mmask16>((1u << num_x) - 1);
  for (int64_t p = 0; p < num_pairs; p += 4) {  // lane l of 128 bits of z[j] is of token 4l + j; then 4x4 in each lane
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
    const __m512i a = _mm512_unpacklo_epi32(z[0], z[1]);
    const __m512i b = _mm512_unpackhi_epi32(z[0], z[1]);
    const __m512i c = _mm512_unpacklo_epi32(z[2], z[3]);
    const __m512i d = _mm512_unpackhi_epi32(z[2], z[3]);
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
  // Tiles 0 to 2: sums, weights, x.
  const int64_t rows[3] = {num_rows, num_rows, 16};
  const int64_t bytes[3] = {4 * columns, 64, 4 * columns};
  for (int i = 0; i < 3; ++i) {
    config.rows[i] = static_cast<uint8_t>(rows[i]);
    config.bytes_per_row[i] = static_cast<uint16_t>(bytes[i]);
  }
  DIFFQKV_TILE_LOAD_CONFIG(config);
}

// sums[r][i] = row r . x i. The rows are stride_bytes apart, and the tiles are configured to their
// number.
DIFFQKV_INLINE void dot_tiles(const char* rows, int64_t stride_bytes, const uint32_t* pairs, int64_t columns, int64_t n,
                              float (&sums)[kTileRows][kTileTokens]) {
  constexpr int64_t kAheadBytes = 512;
  constexpr int kToL2 = 2;  // not to L1, in which the streams share sets
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

// Rows [begin, end) in kTileRows streams. The remaining rows are one tile of fewer rows.
void multiply_tiles(const Product& p, int64_t begin, int64_t end) {
  const AmxScope amx(p.x.pairs != nullptr);
  const char* weight = static_cast<const char*>(p.weight.data);
  const uint32_t* pairs = reinterpret_cast<const uint32_t*>(p.x.pairs);
  const int64_t n = p.in_features;
  const int64_t columns = tile_columns(p.num_x);
  alignas(64) float sums[kTileRows][kTileTokens];
  const auto rows = [&](int64_t first, int64_t count, int64_t run) DIFFQKV_LAMBDA {
    dot_tiles(weight + 2 * n * first, 2 * n * run, pairs, columns, n, sums);
    for (int64_t j = 0; j < p.num_x; ++j) {
      for (int64_t r = 0; r < count; ++r) p.store_sum(j, first + r * run, sums[r][j]);
    }
  };
  const int64_t run = (end - begin) / kTileRows;
  const int64_t rest = begin + kTileRows * run;
  configure_tiles(kTileRows, columns);
  for (int64_t row = begin; row < begin + run; ++row) rows(row, kTileRows, run);
  if (rest == end) return;
  configure_tiles(end - rest, columns);
  rows(rest, end - rest, 1);
}
#endif

// Rows [begin, end) of a quantized weight in kRows streams, as multiply_streams.
template <DType kType, int kTerms, int kSpread, int kRows, int kMostXs>
void multiply_packed(const Product& p, int64_t begin, int64_t end) {
  const int64_t n = p.in_features;
  const int64_t row_bytes = weight_row_bytes(kType, n);
  const int64_t groups = weight_row_groups(n, p.weight.group_size);
  const int64_t num_passes = ceil_div(p.num_x, kMostXs);
  const int64_t run = (end - begin) / kRows;
  const int64_t rows_ahead = ceil_div(kPrefetchBytes, max_of(row_bytes, 1));
  const auto* x = static_cast<const XStep<kType, kTerms>*>(p.x.data);
  // Rows first, first + distance, ... of which `count` are stored.
  const auto rows = [&](int64_t first, int64_t distance, int64_t count) DIFFQKV_LAMBDA {
    PackedRow packed[kRows];
    for (int r = 0; r < kRows; ++r) {
      const int64_t row = first + min_of(r, count - 1) * distance;
      packed[r] = {static_cast<const char*>(p.weight.data) + row * row_bytes,
                   static_cast<const uint16_t*>(p.weight.scales) + row * groups};
    }
    for (int64_t line = 0; line < 2 * groups; line += 64) {
      for (int r = 0; r < kRows; ++r) {
        const char* scales = reinterpret_cast<const char*>(packed[r].scales + rows_ahead * groups);
        __builtin_prefetch(scales + line);
      }
    }
    Ahead ahead;
    if (num_passes > 1) ahead = {row_bytes, 64 / num_passes + 1};
    const auto tokens = [&]<int kXs>(int64_t token) DIFFQKV_LAMBDA {
      float sums[kRows][kXs];
      dot_packed<kType, kTerms, kSpread, kRows, kXs>(packed, row_bytes, groups, p.weight.group_size,
                                                     p.weight.scale_dtype, x + token, p.num_x, sums, ahead);
      ahead.first += row_bytes / num_passes;
      for (int64_t r = 0; r < count; ++r) {
        for (int j = 0; j < kXs; ++j) p.store_sum(token + j, first + r * distance, sums[r][j]);
      }
    };
    int64_t token = 0;
    if constexpr (kMostXs >= 6) {
      for (; p.num_x - token >= 6; token += 6) tokens.template operator()<6>(token);
    }
    if constexpr (kMostXs >= 4) {
      for (; p.num_x - token >= 4; token += 4) tokens.template operator()<4>(token);
    }
    if constexpr (kMostXs >= 2) {
      for (; p.num_x - token >= 2; token += 2) tokens.template operator()<2>(token);
    }
    for (; token < p.num_x; ++token) tokens.template operator()<1>(token);
  };
  for (int64_t row = begin; row < begin + run; ++row) rows(row, run, kRows);
  if (begin + kRows * run < end) rows(begin + kRows * run, 1, end - begin - kRows * run);
}

// As many streams and tokens as leave registers. With two terms, fewer tokens, because they are rare
// and compile to twice the code.
template <DType kType, int kTerms, int kSpread>
void choose_packed_streams(const Product& p, int64_t begin, int64_t end) {
  constexpr bool kMany = kVectorRegisters >= 32;
  multiply_packed<kType, kTerms, kSpread, kMany ? 4 : 2, kMany && kTerms == 1 ? 6 : 2>(p, begin, end);
}

template <DType kType, int kTerms>
void choose_spread(const Product& p, int64_t begin, int64_t end) {
  const int64_t spread = kStep / p.weight.group_size;
  if constexpr (kStep >= 128) {
    if (spread == 4) return choose_packed_streams<kType, kTerms, 4>(p, begin, end);
  }
  if constexpr (kStep >= 64) {
    if (spread == 2) return choose_packed_streams<kType, kTerms, 2>(p, begin, end);
  }
  choose_packed_streams<kType, kTerms, 1>(p, begin, end);
}

template <DType kType>
void choose_terms(const Product& p, int64_t begin, int64_t end) {
  if (p.x.dtype == DType::f32) return choose_spread<kType, 2>(p, begin, end);
  choose_spread<kType, 1>(p, begin, end);
}

template <DType kType, int kTerms>
PreparedX prepare_packed(DType x_dtype, const void* x, int64_t num_x, int64_t in_features, Arena& arena) {
  const int64_t steps = steps_of(in_features);
  auto* out = static_cast<XStep<kType, kTerms>*>(arena.get(kSlotX, steps * num_x * sizeof(XStep<kType, kTerms>)));
  visit(x_dtype, [&](auto tag) {
    const auto* from = static_cast<const decltype(tag)*>(x);
    parallel_ranges(num_x, 1, num_x * in_features, [&](int64_t begin, int64_t end) {
      for (int64_t j = begin; j < end; ++j) prepare_token(from + j * in_features, in_features, out + j, num_x);
    });
  });
  return {out, x_dtype};
}

void multiply(const Product& p, int64_t begin, int64_t end) {
  if (p.weight.dtype == DType::i4) return choose_terms<DType::i4>(p, begin, end);
  if (p.weight.dtype == DType::i8) return choose_terms<DType::i8>(p, begin, end);
#if defined(__AVX512BF16__)
  if (p.x.pairs) return multiply_tiles(p, begin, end);
#endif
  if constexpr (kHasDotBf16) {
    if (p.x.dtype == DType::bf16) return choose_streams<bf16, bf16>(p, begin, end);
  }
  switch (p.weight.dtype) {
    case DType::f32: return choose_streams<float, float>(p, begin, end);
    case DType::bf16: return choose_streams<bf16, float>(p, begin, end);
    default: return choose_streams<f16, float>(p, begin, end);
  }
}

PreparedX prepare_x(DType weight_dtype, DType x_dtype, const void* x, int64_t num_x, int64_t in_features,
                    Arena& arena) {
  if (weight_dtype == DType::i4) {
    return x_dtype == DType::f32 ? prepare_packed<DType::i4, 2>(x_dtype, x, num_x, in_features, arena)
                                 : prepare_packed<DType::i4, 1>(x_dtype, x, num_x, in_features, arena);
  }
  if (weight_dtype == DType::i8) {
    return x_dtype == DType::f32 ? prepare_packed<DType::i8, 2>(x_dtype, x, num_x, in_features, arena)
                                 : prepare_packed<DType::i8, 1>(x_dtype, x, num_x, in_features, arena);
  }
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

// x for the calling thread.
PreparedX thread_x(const PreparedX& x, [[maybe_unused]] int64_t num_x, [[maybe_unused]] int64_t in_features) {
#if defined(__AVX512BF16__)
  if (x.pairs) {
    char* pairs = x.pairs + omp_get_thread_num() * pairs_bytes(num_x, in_features);
    pack_pairs(static_cast<const bf16*>(x.data), num_x, in_features / 2, reinterpret_cast<uint32_t*>(pairs));
    return {x.data, x.dtype, pairs};
  }
#endif
  return x;
}

DIFFQKV_INLINE int64_t element_size(DType dtype) { return dtype == DType::f32 ? 4 : 2; }

// Stores elements [begin, end) of each token's row of `out`, [num_x, n]. value(i, count) is a
// vector of `count` elements, from element i of the whole tensor on. A thread stores only what it
// has computed, so no synchronization is needed.
template <typename F>
DIFFQKV_INLINE void store_rows(DType dtype, void* out, int64_t num_x, int64_t n, int64_t begin, int64_t end,
                               const F& value) {
  visit(dtype, [&](auto tag) {
    auto* to = static_cast<decltype(tag)*>(out);
    for (int64_t j = 0; j < num_x; ++j) {
      int64_t i = j * n + begin;
      for (; i + kLanes <= j * n + end; i += kLanes) store(to + i, value(i, int64_t{kLanes}));
      const int64_t rest = j * n + end - i;
      if (rest > 0) store_n(to + i, value(i, rest), rest);
    }
  });
}

}  // namespace

void gemv(const MatmulParams& p, Arena& arena) {
  const int64_t in = p.in_features;
  const bool round = p.out_dtype != DType::f32;
  int64_t num_rows = 0;  // of all outputs
  for (int i = 0; i < p.num_outputs(); ++i) num_rows += p.output(i).out_features;
  const int64_t most = pass_tokens(p.weight.dtype, in, num_rows);
  for (int64_t token = 0; token < p.num_tokens; token += most) {
    const int64_t num_x = min_of(most, p.num_tokens - token);
    const char* x = static_cast<const char*>(p.x) + token * in * element_size(p.x_dtype);
    float* rounded_sums = static_cast<float*>(round ? arena.get(kSlotOut, num_x * num_rows * sizeof(float)) : nullptr);
    const PreparedX prepared = prepare_x(p.weight.dtype, p.x_dtype, x, num_x, in, arena);
    parallel_ranges(num_rows, 1, num_rows * in / kElementsPerWork, [&](int64_t begin, int64_t end) {
      const PreparedX mine = thread_x(prepared, num_x, in);
      int64_t first = 0;  // row of the output
      for (int i = 0; i < p.num_outputs(); ++i) {
        const MatmulOutput output = p.output(i);
        const int64_t n = output.out_features;
        const int64_t own_begin = max_of(begin - first, 0);
        const int64_t own_end = min_of(end - first, n);
        void* out = static_cast<char*>(output.out) + token * n * element_size(p.out_dtype);
        float* sums = round ? rounded_sums + num_x * first : static_cast<float*>(out);
        first += n;
        if (own_begin >= own_end) continue;
        const Product product = {.x = mine,
                                 .weight = output.weight,
                                 .out = sums,
                                 .num_x = num_x,
                                 .in_features = in,
                                 .num_rows = n,
                                 .accumulate = p.accumulate};
        multiply(product, own_begin, own_end);
        if (!round) continue;
        store_rows(p.out_dtype, out, num_x, n, own_begin, own_end,
                   [&](int64_t at, int64_t count) { return load_n(sums + at, count); });
      }
    });
  }
}

void gated_gemv(const GatedMlpParams& p, void* inner, DType inner_dtype, Arena& arena) {
  const int64_t in = p.in_features;
  const int64_t n = p.inner_size;
  const int64_t num_weights = p.gate.data ? 2 : 1;
  const int64_t most = pass_tokens(p.up.dtype, in, n);
  float* gate_sums = static_cast<float*>(arena.get(kSlotGateSums, most * n * sizeof(float)));
  float* up_sums = static_cast<float*>(arena.get(kSlotUpSums, most * n * sizeof(float)));
  for (int64_t token = 0; token < p.num_tokens; token += most) {
    const int64_t num_x = min_of(most, p.num_tokens - token);
    const char* x = static_cast<const char*>(p.x) + token * in * element_size(p.x_dtype);
    void* out = static_cast<char*>(inner) + token * n * element_size(inner_dtype);
    const PreparedX prepared = prepare_x(p.up.dtype, p.x_dtype, x, num_x, in, arena);
    parallel_ranges(n, 1, num_weights * n * in / kElementsPerWork, [&](int64_t begin, int64_t end) {
      const PreparedX mine = thread_x(prepared, num_x, in);
      Product product = {.x = mine,
                         .weight = p.up,
                         .out = up_sums,
                         .num_x = num_x,
                         .in_features = in,
                         .num_rows = n,
                         .accumulate = false};
      multiply(product, begin, end);
      if (p.gate.data) {
        product.weight = p.gate;
        product.out = gate_sums;
        multiply(product, begin, end);
      }
      store_rows(inner_dtype, out, num_x, n, begin, end, [&](int64_t i, int64_t count) {
        const F32v up = load_n(up_sums + i, count);
        return p.gate.data ? activate(p.activation, load_n(gate_sums + i, count)) * up : activate(p.activation, up);
      });
    });
  }
}

}  // namespace diffqkv::cpu::DIFFQKV_ISA
