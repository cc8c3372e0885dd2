// Products of quantized weight rows (i8 and i4, WeightView) with num_x vectors x, in integers.
//
// Each block of 32 elements of x becomes integers times a power of two: one 16-bit integer for an
// element of f16 or bf16, two for one of f32. The largest element of a block keeps 15 or 30 bits, so
// the rounding of x is far below that of its own type. Products and sums of a lane are then exact
// integers: pmaddwd, or vpdpwssd with VNNI, multiplies as many pairs as AVX512-BF16 does and exists on every CPU.
// A lane's sum is converted to float32 once for each step, and multiplied by both scales.
//
// A step has 8 elements for each lane. A lane reads elements of one group and one block only, so
// scales are vectors.
#pragma once

#include "backend/cpu/linear/dot_rows.h"
#include "backend/cpu/simd.h"
#include "backend/ops.h"

#if !defined(__AVX2__) && defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace diffqkv::cpu::DIFFQKV_ISA {
namespace {

constexpr int64_t kXBlock = 32;

// acc + the products of the two 16-bit integers in each lane.
DIFFQKV_INLINE I32v dot_pairs(I32v acc, I32v a, I32v b) {
#if defined(__AVX512VNNI__)
  return (I32v)_mm512_dpwssd_epi32((__m512i)acc, (__m512i)a, (__m512i)b);
#elif defined(__AVX512F__)
  return acc + (I32v)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  return acc + (I32v)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#elif defined(__SSE2__)
  return acc + (I32v)_mm_madd_epi16((__m128i)a, (__m128i)b);
#else
  return acc + ((a << 16) >> 16) * ((b << 16) >> 16) + (a >> 16) * (b >> 16);
#endif
}

// The 16-bit halves of each lane, shifted. Not 32-bit shifts: a sign must not cross the halves.
typedef int16_t Halves __attribute__((vector_size(kLanes * 4)));
typedef uint16_t UHalves __attribute__((vector_size(kLanes * 4)));

// How a weight type is read: a step of kBytes has 8 elements for each lane, from 8 l on. pairs[v][l]
// are elements pair_of(v, 0) and pair_of(v, 1) of these 8, as 16-bit integers.
template <DType kType>
struct Packing;

constexpr int kPairs = 4;
constexpr int64_t kStep = 8 * kLanes;

template <>
struct Packing<DType::i4> {
  static constexpr int64_t kBytes = 4 * kLanes;
  static constexpr int32_t kOffset = 8;  // the stored integer minus the weight's
  DIFFQKV_INLINE static void unpack(const char* from, I32v (&pairs)[kPairs]) {
    const UHalves words = load_raw<UHalves>(from);
    for (int v = 0; v < kPairs - 1; ++v) pairs[v] = (I32v)((words >> (4 * v)) & 15);
    pairs[3] = (I32v)(words >> 12);
  }
  static constexpr int pair_of(int v, int half) { return 2 * v + half; }
};

template <>
struct Packing<DType::i8> {
  static constexpr int64_t kBytes = 8 * kLanes;
  static constexpr int32_t kOffset = 0;
  DIFFQKV_INLINE static void unpack(const char* from, I32v (&pairs)[kPairs]) {
    const I32v first = load_raw<I32v>(from);
    const I32v second = load_raw<I32v>(from + 4 * kLanes);
    I32v even, odd;
    for (int l = 0; l < kLanes; ++l) {
      even[l] = 2 * l;
      odd[l] = 2 * l + 1;
    }
    const Halves a = (Halves)__builtin_shuffle(first, second, even);
    const Halves b = (Halves)__builtin_shuffle(first, second, odd);
    pairs[0] = (I32v)((Halves)((UHalves)a << 8) >> 8);
    pairs[1] = (I32v)(a >> 8);
    pairs[2] = (I32v)((Halves)((UHalves)b << 8) >> 8);
    pairs[3] = (I32v)(b >> 8);
  }
  static constexpr int pair_of(int v, int half) { return 4 * (v / 2) + v % 2 + 2 * half; }
};

// x of one token, for one step. The integer of an element is high + low / 2^15 times the scale;
// kTerms is 1 without low.
template <DType kType, int kTerms>
struct XStep {
  I32v pairs[kTerms][kPairs];
  I32v offset[kTerms];  // minus kOffset times the sum of the lane's elements
  F32v scale;
};

static_assert(kStep % kXBlock == 0);
DIFFQKV_INLINE int64_t steps_of(int64_t n) { return ceil_div(n, kStep); }

constexpr int kBlocks = static_cast<int>(kStep / kXBlock);  // of a step
constexpr int kVectorsOfBlock = static_cast<int>(kXBlock / kLanes);
constexpr int kVectorsOfStep = kBlocks * kVectorsOfBlock;
constexpr int kLanesOfBlock = static_cast<int>(kXBlock / 8);  // in XStep

// The groups of `kWidth` lanes of a, then those of b, each folded to half its width by the maximum.
template <int kWidth>
DIFFQKV_INLINE I32v fold_largest(I32v a, I32v b) {
  constexpr int kHalf = kWidth / 2;
  I32v lower, upper;
  for (int l = 0; l < kLanes; ++l) {
    lower[l] = l / kHalf * kWidth + l % kHalf;
    upper[l] = lower[l] + kHalf;
  }
  const I32v x = __builtin_shuffle(a, b, lower);
  const I32v y = __builtin_shuffle(a, b, upper);
  return x > y ? x : y;
}

template <int kCount>
DIFFQKV_INLINE I32v fold_blocks(const I32v* largest) {
  if constexpr (kCount == 1) {
    return largest[0];
  } else {
    constexpr int kWidth = 2 * kLanesOfBlock * (kBlocks / kCount);
    return fold_largest<kWidth>(fold_blocks<kCount / 2>(largest), fold_blocks<kCount / 2>(largest + kCount / 2));
  }
}

// Lanes [b * kLanesOfBlock, (b + 1) * kLanesOfBlock) are the largest lane of largest[b].
DIFFQKV_INLINE I32v largest_of_blocks(const I32v (&largest)[kBlocks]) {
  I32v v = fold_blocks<kBlocks>(largest);
  for (int width = kLanesOfBlock / 2; width > 0; width /= 2) {
    I32v other;
    for (int l = 0; l < kLanes; ++l) other[l] = l / kLanesOfBlock * kLanesOfBlock + (l + width) % kLanesOfBlock;
    const I32v rotated = __builtin_shuffle(v, other);
    v = rotated > v ? rotated : v;
  }
  return v;
}

// Words of two 16-bit integers: of a, then of b.
DIFFQKV_INLINE I32v join_halves(I32v a, I32v b) {
  I32v even, odd;
  for (int l = 0; l < kLanes; ++l) {
    even[l] = 2 * l;
    odd[l] = 2 * l + 1;
  }
  return (__builtin_shuffle(a, b, even) & 0xffff) | (I32v)((U32v)__builtin_shuffle(a, b, odd) << 16);
}

// pairs[v][l] = elements of x in the order of Packing::pair_of. words[i] are words i * kLanes on of x.
template <DType kType>
DIFFQKV_INLINE void order_pairs(const I32v (&words)[kPairs], I32v (&pairs)[kPairs]) {
  // word[v][l] = word 4 l + v: elements 2 v and 2 v + 1 of the lane.
  I32v word[4];
  for (int v = 0; v < 4; ++v) {
    I32v pick, join;
    for (int l = 0; l < kLanes; ++l) {
      pick[l] = 4 * (l % (kLanes / 2)) + v;
      join[l] = l < kLanes / 2 ? l : kLanes + l - kLanes / 2;
    }
    const I32v a = __builtin_shuffle(words[0], words[1], pick);
    const I32v b = __builtin_shuffle(words[2], words[3], pick);
    word[v] = __builtin_shuffle(a, b, join);
  }
  if constexpr (kType == DType::i4) {
    for (int v = 0; v < 4; ++v) pairs[v] = word[v];
  } else {
    for (int v = 0; v < 4; v += 2) {
      const U32v a = (U32v)word[v];
      const U32v b = (U32v)word[v + 1];
      pairs[v] = (I32v)((a & 0xffff) | (b << 16));
      pairs[v + 1] = (I32v)((a >> 16) | (b & 0xffff0000u));
    }
  }
}

// One step of x, whose elements are `values`, as integers.
template <DType kType, int kTerms>
DIFFQKV_INLINE void quantize_step(const F32v (&values)[kVectorsOfStep], XStep<kType, kTerms>& out) {
  using P = Packing<kType>;
  I32v largest[kBlocks];
  for (int b = 0; b < kBlocks; ++b) {
    largest[b] = I32v{};
    for (int i = 0; i < kVectorsOfBlock; ++i) {
      const I32v magnitude = (I32v)values[b * kVectorsOfBlock + i] & 0x7fffffff;
      largest[b] = magnitude > largest[b] ? magnitude : largest[b];
    }
  }
  const I32v stored_exponent = largest_of_blocks(largest) >> 23;
  // The largest magnitude becomes at least 2^14, or less if it is below 2^-99.
  const I32v exponent = stored_exponent > 28 ? stored_exponent : I32v{} + 28;
  const I32v finite = stored_exponent < 255;
  const I32v inverses = ((268 - exponent) << 23) & finite;
  out.scale = (F32v)(finite ? (exponent - 14) << 23 : I32v{} + 0x7fc00000);
  I32v words[kTerms][kPairs];
  for (int w = 0; w < kPairs; ++w) {
    I32v halves[kTerms][2];
    for (int i = 0; i < 2; ++i) {
      const int at = 2 * w + i;
      const int block = at / kVectorsOfBlock;
      const I32v of_block = I32v{} + block * kLanesOfBlock;
      const F32v inverse = (F32v)__builtin_shuffle(inverses, of_block);
      const I32v is_finite = __builtin_shuffle(finite, of_block);
      constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer in the low bits
      const F32v scaled = (F32v)((I32v)(values[at] * inverse) & is_finite);
      const F32v rounded = min((scaled + kRound) - kRound, set1(32767.0f));
      halves[0][i] = __builtin_convertvector(rounded, I32v);
      if constexpr (kTerms == 2) {
        const F32v rest = min(((scaled - rounded) * 32768.0f + kRound) - kRound, set1(32767.0f));
        halves[1][i] = __builtin_convertvector(rest, I32v);
      }
    }
    for (int t = 0; t < kTerms; ++t) words[t][w] = join_halves(halves[t][0], halves[t][1]);
  }
  for (int t = 0; t < kTerms; ++t) {
    order_pairs<kType>(words[t], out.pairs[t]);
    out.offset[t] = I32v{};
    if (P::kOffset == 0) continue;
    const I32v factor = I32v{} + ((-P::kOffset & 0xffff) | (-P::kOffset * 65536));
    for (int v = 0; v < kPairs; ++v) out.offset[t] = dot_pairs(out.offset[t], out.pairs[t][v], factor);
  }
}

// Fills out[step * stride] for steps_of(n) steps, for one token of n features.
template <DType kType, int kTerms, typename T>
void prepare_token(const T* x, int64_t n, XStep<kType, kTerms>* out, int64_t stride) {
  F32v values[kVectorsOfStep];
  int64_t i = 0;
  for (; i + kStep <= n; i += kStep, out += stride) {
    for (int v = 0; v < kVectorsOfStep; ++v) values[v] = load(x + i + v * kLanes);
    quantize_step(values, *out);
  }
  if (i == n) return;
  for (int v = 0; v < kVectorsOfStep; ++v) {
    const int64_t rest = min_of(n - i - v * kLanes, kLanes);
    values[v] = rest > 0 ? load_n(x + i + v * kLanes, rest) : F32v{};
  }
  quantize_step(values, *out);
}

// The scales of the lanes of a step that has kSpread groups, from f16.
template <int kSpread>
DIFFQKV_INLINE F32v spread_f16_scales(const uint16_t* scales) {
#if defined(__AVX512F__)
  const __m128i halves =
      kSpread == 4 ? _mm_cvtsi64_si128(load_raw<long long>(scales)) : _mm_cvtsi32_si128(load_raw<int>(scales));
  I32v groups;
  for (int l = 0; l < kLanes; ++l) groups[l] = l * kSpread / kLanes;
  return (F32v)_mm512_permutexvar_ps((__m512i)groups, _mm512_castps128_ps512(_mm_cvtph_ps(halves)));
#else
  F32v out;
  for (int l = 0; l < kLanes; ++l) out[l] = load1(reinterpret_cast<const f16*>(scales) + l * kSpread / kLanes);
  return out;
#endif
}

// The scales of the lanes of a step that has kSpread groups.
template <int kSpread>
DIFFQKV_INLINE F32v spread_scales(const uint16_t* scales, DType dtype) {
  if constexpr (kSpread == 1) {
    return set1(dtype == DType::f16 ? load1(reinterpret_cast<const f16*>(scales))
                                    : load1(reinterpret_cast<const bf16*>(scales)));
  } else {
    if (dtype == DType::f16) return spread_f16_scales<kSpread>(scales);
#if defined(__AVX512F__)
    // Byte selectors: each lane's scale to its upper half, and 0 below.
    alignas(64) static constexpr struct Selectors {
      uint8_t bytes[64];
      constexpr Selectors() : bytes() {
        for (int i = 0; i < 64; ++i) {
          const int group = i / 4 * kSpread / 16;
          bytes[i] = static_cast<uint8_t>(i % 4 < 2 ? 0x80 : 2 * group + i % 2);
        }
      }
    } selectors;
    const __m512i all =
        kSpread == 4 ? _mm512_set1_epi64(load_raw<long long>(scales)) : _mm512_set1_epi32(load_raw<int>(scales));
    return (F32v)_mm512_shuffle_epi8(all, _mm512_load_si512(selectors.bytes));
#elif defined(__AVX2__)
    static_assert(kSpread == 2);
    const __m256i selectors = _mm256_setr_epi64x(0x0100808001008080, 0x0100808001008080,  //
                                                 0x0302808003028080, 0x0302808003028080);
    return (F32v)_mm256_shuffle_epi8(_mm256_set1_epi32(load_raw<int>(scales)), selectors);
#else
    F32v out;
    for (int l = 0; l < kLanes; ++l) {
      out[l] = bit_cast<float>(static_cast<uint32_t>(scales[l * kSpread / kLanes]) << 16);
    }
    return out;
#endif
  }
}

// kLanes integers of a row from element i, a multiple of kLanes, on.
template <DType kType>
DIFFQKV_INLINE F32v load_integers(const char* row, int64_t i) {
  if constexpr (kType == DType::i8) {
    return load(reinterpret_cast<const int8_t*>(row) + i);
  } else {
    I32v shifts;
    for (int l = 0; l < kLanes; ++l) shifts[l] = 16 * (l % 2) + 4 * (l % 8 / 2);
    if constexpr (kLanes < 8) shifts = shifts + (i % 8 == 0 ? 0 : 8);
    U32v words = U32v{} + load_raw<uint32_t>(row + i / 8 * 4);
    if constexpr (kLanes == 16) {
      I32v first;
      for (int l = 0; l < kLanes; ++l) first[l] = l < 8 ? -1 : 0;
      words = first ? words : U32v{} + load_raw<uint32_t>(row + i / 8 * 4 + 4);
    }
    return __builtin_convertvector((I32v)((words >> (U32v)shifts) & 15) - 8, F32v);
  }
}

template <DType kType, typename S, typename T>
DIFFQKV_INLINE void dequantize_row_of(const WeightView& row, int64_t n, T* out) {
  const char* data = static_cast<const char*>(row.data);
  const S* scales = static_cast<const S*>(row.scales);
  for (int64_t first = 0; first < n; first += row.group_size, ++scales) {
    const F32v scale = set1(load1(scales));
    const int64_t end = min_of(n, first + row.group_size);
    int64_t i = first;
    for (; i + kLanes <= end; i += kLanes) store(out + i, load_integers<kType>(data, i) * scale);
    if (i < end) store_n(out + i, load_integers<kType>(data, i) * scale, end - i);
  }
}

// out = the values of one row of a quantized weight, of n elements.
template <typename T>
DIFFQKV_INLINE void dequantize_row(const WeightView& row, int64_t n, T* out) {
  const auto by_scales = [&](auto scale) DIFFQKV_LAMBDA {
    if (row.dtype == DType::i4) return dequantize_row_of<DType::i4, decltype(scale)>(row, n, out);
    dequantize_row_of<DType::i8, decltype(scale)>(row, n, out);
  };
  if (row.scale_dtype == DType::f16) return by_scales(f16{});
  by_scales(bf16{});
}

// A row of packed weights and its scales.
struct PackedRow {
  const char* data;
  const uint16_t* scales;
};

// sums[r][j] = row r . x j, where x j is at x[j] and in steps of `stride`. The order of each sum does
// not depend on kRows and kXs.
template <DType kType, int kTerms, int kSpread, int kRows, int kXs>
DIFFQKV_INLINE void dot_packed(const PackedRow (&rows)[kRows], int64_t row_bytes, int64_t num_scales,
                               int64_t group_size, DType scale_dtype, const XStep<kType, kTerms>* x, int64_t stride,
                               float (&sums)[kRows][kXs], Ahead ahead) {
  using P = Packing<kType>;
  F32v acc[kRows][kXs] = {};
  const auto step = [&](const PackedRow(&from)[kRows], const XStep<kType, kTerms>* xs) DIFFQKV_LAMBDA {
    I32v q[kRows][kPairs];
    F32v scale[kRows];
    for (int r = 0; r < kRows; ++r) {
      P::unpack(from[r].data, q[r]);
      scale[r] = spread_scales<kSpread>(from[r].scales, scale_dtype);
    }
    for (int j = 0; j < kXs; ++j) {
      I32v term[kTerms][kRows];
      for (int t = 0; t < kTerms; ++t) {
        for (int r = 0; r < kRows; ++r) term[t][r] = P::kOffset ? xs[j].offset[t] : I32v{};
        for (int v = 0; v < kPairs; ++v) {
          const I32v pair = xs[j].pairs[t][v];
          for (int r = 0; r < kRows; ++r) term[t][r] = dot_pairs(term[t][r], q[r][v], pair);
        }
      }
      const F32v x_scale = xs[j].scale;
      for (int r = 0; r < kRows; ++r) {
        F32v value = __builtin_convertvector(term[0][r], F32v);
        if constexpr (kTerms == 2) value = fma(__builtin_convertvector(term[1][r], F32v), set1(0x1p-15f), value);
        acc[r][j] = fma(value, scale[r] * x_scale, acc[r][j]);
      }
    }
  };
  int shift = 0;  // of a step's index to that of its scale, if kSpread is 1
  while ((kStep << shift) < group_size) ++shift;
  const auto scale_at = [&](int64_t i) DIFFQKV_LAMBDA { return kSpread > 1 ? i * kSpread : i >> shift; };
  const int64_t whole = row_bytes / P::kBytes;
  for (int64_t i = 0; i < whole; ++i) {
    PackedRow from[kRows];
    for (int r = 0; r < kRows; ++r) from[r] = {rows[r].data + i * P::kBytes, rows[r].scales + scale_at(i)};
    for (int64_t line = 0; line < P::kBytes; line += 64, ahead.first += ahead.step) {
      for (int r = 0; r < kRows; ++r) __builtin_prefetch(rows[r].data + ahead.first);
    }
    step(from, x + i * stride);
  }
  const int64_t rest = row_bytes - whole * P::kBytes;
  if (rest > 0) {
    alignas(64) char data[kRows][P::kBytes] = {};
    uint16_t scales[kRows][kSpread] = {};
    PackedRow from[kRows];
    const int64_t first = scale_at(whole);
    for (int r = 0; r < kRows; ++r) {
      __builtin_memcpy(data[r], rows[r].data + whole * P::kBytes, rest);
      __builtin_memcpy(scales[r], rows[r].scales + first, min_of(kSpread, num_scales - first) * 2);
      from[r] = {data[r], scales[r]};
    }
    step(from, x + whole * stride);
  }
  for (int r = 0; r < kRows; ++r) {
    for (int j = 0; j < kXs; ++j) sums[r][j] = sum(acc[r][j]);
  }
}

}  // namespace
}  // namespace diffqkv::cpu::DIFFQKV_ISA
