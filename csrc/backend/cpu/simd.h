// One vector type for every instruction set: `F32v`, kLanes floats, by GCC's vector extensions. So
// + - * / and comparisons are plain operators, and one source serves SSE2, NEON, AVX2 and AVX-512.
// This file adds what operators do not cover (fma, conversions, exp, sums, tails), with intrinsics
// if an instruction exists.
//
// Everything is in an unnamed namespace. Its internal linkage avoids weak symbols (see kernels.h).
// A mask is an I32v whose lanes are -1 or 0.
#pragma once

#include <stdint.h>

#include "backend/dtype.h"

#if defined(__AVX2__)
// GCC 12 treats the undefined pass-through operands of its own AVX-512 intrinsics as uninitialized
// variables (bug 105593).
#pragma GCC diagnostic push
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#pragma GCC diagnostic pop
#endif

#define DIFFQKV_INLINE inline __attribute__((always_inline))
#define DIFFQKV_LAMBDA __attribute__((always_inline))

namespace diffqkv::cpu::DIFFQKV_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
constexpr int kVectorRegisters = 32;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
constexpr int kVectorRegisters = 16;
#elif defined(__aarch64__)
constexpr int kLanes = 4;
constexpr int kVectorRegisters = 32;
#else
constexpr int kLanes = 4;
constexpr int kVectorRegisters = 16;
#endif

constexpr float kInfinity = __builtin_inff();

typedef float F32v __attribute__((vector_size(kLanes * 4)));
typedef int32_t I32v __attribute__((vector_size(kLanes * 4)));
typedef uint32_t U32v __attribute__((vector_size(kLanes * 4)));
typedef uint16_t U16v __attribute__((vector_size(kLanes * 2)));
typedef uint8_t U8v __attribute__((vector_size(kLanes)));
typedef int8_t I8v __attribute__((vector_size(kLanes)));

// Element types in memory, besides float and int8_t.
struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};
struct f8e4m3 {
  uint8_t bits;
};

template <typename To, typename From>
DIFFQKV_INLINE To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  __builtin_memcpy(&to, &from, sizeof(to));
  return to;
}

DIFFQKV_INLINE F32v set1(float value) { return value - F32v{}; }  // keeps -0
DIFFQKV_INLINE int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }
DIFFQKV_INLINE int64_t max_of(int64_t a, int64_t b) { return a > b ? a : b; }
DIFFQKV_INLINE int64_t round_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }
DIFFQKV_INLINE int64_t ceil_div(int64_t value, int64_t unit) { return (value + unit - 1) / unit; }

// ---- arithmetic

DIFFQKV_INLINE F32v fma(F32v a, F32v b, F32v c) {
#if defined(__AVX512F__)
  return (F32v)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
  return (F32v)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  return a * b + c;
#endif
}

// If a lane of either is NaN, the result is b's lane, as in the min and max instructions of x86.
DIFFQKV_INLINE F32v max(F32v a, F32v b) { return a > b ? a : b; }
DIFFQKV_INLINE F32v min(F32v a, F32v b) { return a < b ? a : b; }

// The sum of the lanes, by halves.
DIFFQKV_INLINE float sum(F32v v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)v);
#else
#if defined(__AVX2__)
  const __m128 half = _mm_add_ps(_mm256_castps256_ps128((__m256)v), _mm256_extractf128_ps((__m256)v, 1));
  typedef float F32x4 __attribute__((vector_size(16)));
  const F32x4 q = (F32x4)half;
#else
  const F32v q = v;
#endif
  return (q[0] + q[2]) + (q[1] + q[3]);
#endif
}

// exp(x) within 2 ulp. The result is +inf above 88.8, denormal below -87.4, then 0. NaN stays NaN.
// x = n ln2 + r with |r| <= ln2 / 2, and e^r is the minimax polynomial of degree 7 of the Cephes
// library.
DIFFQKV_INLINE F32v exp(F32v x) {
  x = x > 89.0f ? set1(89.0f) : x;  // false for NaN, which stays
  x = x < -104.0f ? set1(-104.0f) : x;
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer in the low bits
  const F32v shifted = fma(x, set1(1.44269504088896341f), set1(kRound));
  const F32v n = shifted - kRound;
  F32v r = fma(n, set1(-0.693359375f), x);
  r = fma(n, set1(2.12194440e-4f), r);
  F32v poly = set1(1.9875691500e-4f);
  poly = fma(poly, r, set1(1.3981999507e-3f));
  poly = fma(poly, r, set1(8.3334519073e-3f));
  poly = fma(poly, r, set1(4.1665795894e-2f));
  poly = fma(poly, r, set1(1.6666665459e-1f));
  poly = fma(poly, r, set1(5.0000001201e-1f));
  poly = fma(poly, r * r, r + 1.0f);
#if defined(__AVX512F__)
  return (F32v)_mm512_scalef_ps((__m512)poly, (__m512)n);
#else
  // 2^n in two factors, because n = 128 and the denormals are out of range for one.
  const U32v k = (U32v)shifted - bit_cast<uint32_t>(kRound);
  const I32v low = (I32v)k >> 1;
  const I32v high = (I32v)k - low;
  return poly * (F32v)((U32v)(low + 127) << 23) * (F32v)((U32v)(high + 127) << 23);
#endif
}

// ---- conversions of whole vectors, round to nearest even. Bits are in the low part of each 32-bit
// lane.

DIFFQKV_INLINE U32v bf16_bits(F32v v) {
  // Not vcvtneps2bf16, because it flushes denormals.
  const U32v u = (U32v)v;
  const U32v rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  return v == v ? rounded : ((u >> 16) | 0x40u);
}

DIFFQKV_INLINE F32v from_bf16_bits(U32v bits) { return (F32v)(bits << 16); }

#if !defined(__AVX2__)
DIFFQKV_INLINE U32v f16_bits(F32v v) {
  const U32v u = (U32v)v;
  const U32v magnitude = u & 0x7fffffffu;
  // Below 2^-14 the unit is 2^-24, which is also the unit of floats in [0.5, 1), so an addition
  // rounds.
  const U32v denormal = (U32v)((F32v)magnitude + 0.5f) - 0x3f000000u;
  const U32v normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  U32v bits = magnitude < 0x38800000u ? denormal : normal;
  bits = magnitude >= 0x47800000u ? U32v{} + 0x7c00u : bits;
  bits = magnitude > 0x7f800000u ? (0x7e00u | ((magnitude >> 13) & 0x3ffu)) : bits;
  return bits | ((u >> 16) & 0x8000u);
}

DIFFQKV_INLINE F32v from_f16_bits(U32v bits) {
  const U32v magnitude = (bits & 0x7fffu) << 13;
  const F32v scaled = (F32v)magnitude * 0x1p112f;  // changes the bias of the exponent from 15 to 127, also of denormals
  U32v value = magnitude >= 0x0f800000u ? (magnitude | 0x7f800000u) : (U32v)scaled;
  value = magnitude > 0x0f800000u ? (value | 0x400000u) : value;  // NaN becomes quiet, as in hardware
  return (F32v)(value | ((bits & 0x8000u) << 16));
}
#endif

// OCP e4m3fn: bias 7, largest value 448, no infinity, NaN is 0x7f. 464 and more round beyond 448,
// so they become NaN.
DIFFQKV_INLINE U32v f8e4m3_bits(F32v v) {
  const U32v u = (U32v)v;
  const U32v magnitude = u & 0x7fffffffu;
  // Below 2^-6 the unit is 2^-9, which is also the unit of floats in [2^14, 2^15).
  const U32v denormal = (U32v)((F32v)magnitude + 16384.0f) - 0x46800000u;
  const U32v normal = (magnitude - 0x3c000000u + 0x7ffffu + ((magnitude >> 20) & 1u)) >> 20;
  U32v bits = magnitude < 0x3c800000u ? denormal : normal;
  bits = magnitude > 0x43e80000u ? U32v{} + 0x7fu : bits;
  return bits | ((u >> 24) & 0x80u);
}

DIFFQKV_INLINE F32v from_f8e4m3_bits(U32v bits) {
  const U32v magnitude = bits & 0x7fu;
  const F32v scaled = (F32v)(magnitude << 20) * 0x1p120f;
  const U32v value = magnitude == 0x7fu ? U32v{} + 0x7fc00000u : (U32v)scaled;
  return (F32v)(value | ((bits & 0x80u) << 24));
}

// ---- loads and stores of kLanes elements at any alignment

template <typename V, typename T>
DIFFQKV_INLINE V load_raw(const T* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}

// Bytes as 32-bit integers. GCC 12 converts a vector of bytes element by element.
DIFFQKV_INLINE I32v load_bytes(const int8_t* p) {
#if defined(__AVX512F__)
  return (I32v)_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#elif defined(__AVX2__)
  return (I32v)_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
#else
  return __builtin_convertvector(load_raw<I8v>(p), I32v);
#endif
}

DIFFQKV_INLINE F32v load(const float* p) { return load_raw<F32v>(p); }
DIFFQKV_INLINE F32v load(const bf16* p) { return from_bf16_bits(__builtin_convertvector(load_raw<U16v>(p), U32v)); }
DIFFQKV_INLINE F32v load(const f16* p) {
#if defined(__AVX512F__)
  return (F32v)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(__AVX2__)
  return (F32v)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
  return from_f16_bits(__builtin_convertvector(load_raw<U16v>(p), U32v));
#endif
}
DIFFQKV_INLINE F32v load(const int8_t* p) { return __builtin_convertvector(load_bytes(p), F32v); }
DIFFQKV_INLINE F32v load(const f8e4m3* p) {
  return from_f8e4m3_bits((U32v)load_bytes(reinterpret_cast<const int8_t*>(p)) & 0xffu);
}

DIFFQKV_INLINE void store(float* p, F32v v) { __builtin_memcpy(p, &v, sizeof(v)); }
DIFFQKV_INLINE void store(bf16* p, F32v v) {
  const U16v bits = __builtin_convertvector(bf16_bits(v), U16v);
  __builtin_memcpy(p, &bits, sizeof(bits));
}
DIFFQKV_INLINE void store(f16* p, F32v v) {
#if defined(__AVX512F__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#elif defined(__AVX2__)
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#else
  const U16v bits = __builtin_convertvector(f16_bits(v), U16v);
  __builtin_memcpy(p, &bits, sizeof(bits));
#endif
}
DIFFQKV_INLINE void store(f8e4m3* p, F32v v) {
  const U8v bits = __builtin_convertvector(f8e4m3_bits(v), U8v);
  __builtin_memcpy(p, &bits, sizeof(bits));
}

// The values must be in [-128, 127].
DIFFQKV_INLINE void store(int8_t* p, F32v v) {
  const I32v rounded = (I32v)(v + 12582912.0f) - 0x4b400000;  // 1.5 * 2^23 puts the integer in the low bits
  const I8v bytes = __builtin_convertvector(rounded, I8v);
  __builtin_memcpy(p, &bytes, sizeof(bytes));
}

// The first n elements, 0 <= n <= kLanes. The other lanes are 0 on load, and are not written on
// store.
template <typename T>
DIFFQKV_INLINE F32v load_n(const T* p, int64_t n) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    return (F32v)_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p);
  }
#endif
  T part[kLanes] = {};
  for (int64_t i = 0; i < n; ++i) part[i] = p[i];
  return load(part);
}
template <typename T>
DIFFQKV_INLINE void store_n(T* p, F32v v, int64_t n) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1), (__m512)v);
    return;
  }
#endif
  T part[kLanes];
  store(part, v);
  for (int64_t i = 0; i < n; ++i) p[i] = part[i];
}

template <typename T>
DIFFQKV_INLINE float load1(const T* p) {
  if constexpr (sizeof(T) == 4) {
    return *p;
  } else if constexpr (__is_same(T, bf16)) {
    return bit_cast<float>(static_cast<uint32_t>(p->bits) << 16);
#if defined(__AVX2__)
  } else if constexpr (__is_same(T, f16)) {
    return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(p->bits)));
#endif
  } else {
    return load_n(p, 1)[0];
  }
}
template <typename T>
DIFFQKV_INLINE void store1(T* p, float value) {
  if constexpr (sizeof(T) == 4) {
    *p = value;
  } else {
    store_n(p, set1(value), 1);
  }
}

// ---- transposition

// out[d * 16 + i] = word d of row i, for kLanes rows of kLanes 32-bit words.
DIFFQKV_INLINE void transpose_words(const char* rows, int64_t stride_bytes, float* out) {
  constexpr int64_t kStride = 16;
#if defined(__AVX512F__)
  for (int c = 0; c < 4;
       ++c) {  // lane l of 128 bits of z[j] has words 4c to 4c + 3 of row 4l + j; then 4x4 in each lane
    __m512i z[4];
    for (int j = 0; j < 4; ++j) {
      const auto part = [&](int l) DIFFQKV_LAMBDA {
        return _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows + (4 * l + j) * stride_bytes) + c);
      };
      z[j] = _mm512_castsi128_si512(part(0));
      z[j] = _mm512_inserti32x4(z[j], part(1), 1);
      z[j] = _mm512_inserti32x4(z[j], part(2), 2);
      z[j] = _mm512_inserti32x4(z[j], part(3), 3);
    }
    const __m512i a = _mm512_unpacklo_epi32(z[0], z[1]);
    const __m512i b = _mm512_unpackhi_epi32(z[0], z[1]);
    const __m512i e = _mm512_unpacklo_epi32(z[2], z[3]);
    const __m512i f = _mm512_unpackhi_epi32(z[2], z[3]);
    float* to = out + 4 * c * kStride;
    _mm512_storeu_si512(to, _mm512_unpacklo_epi64(a, e));
    _mm512_storeu_si512(to + kStride, _mm512_unpackhi_epi64(a, e));
    _mm512_storeu_si512(to + 2 * kStride, _mm512_unpacklo_epi64(b, f));
    _mm512_storeu_si512(to + 3 * kStride, _mm512_unpackhi_epi64(b, f));
  }
#elif defined(__AVX2__)
  for (int c = 0; c < 2; ++c) {
    __m256 z[4];
    for (int j = 0; j < 4; ++j) {
      const auto part = [&](int l) DIFFQKV_LAMBDA {
        return _mm_loadu_ps(reinterpret_cast<const float*>(rows + (4 * l + j) * stride_bytes) + 4 * c);
      };
      z[j] = _mm256_insertf128_ps(_mm256_castps128_ps256(part(0)), part(1), 1);
    }
    const __m256d a = (__m256d)_mm256_unpacklo_ps(z[0], z[1]);
    const __m256d b = (__m256d)_mm256_unpackhi_ps(z[0], z[1]);
    const __m256d e = (__m256d)_mm256_unpacklo_ps(z[2], z[3]);
    const __m256d f = (__m256d)_mm256_unpackhi_ps(z[2], z[3]);
    float* to = out + 4 * c * kStride;
    _mm256_storeu_ps(to, (__m256)_mm256_unpacklo_pd(a, e));
    _mm256_storeu_ps(to + kStride, (__m256)_mm256_unpackhi_pd(a, e));
    _mm256_storeu_ps(to + 2 * kStride, (__m256)_mm256_unpacklo_pd(b, f));
    _mm256_storeu_ps(to + 3 * kStride, (__m256)_mm256_unpackhi_pd(b, f));
  }
#else
  F32v z[4];
  for (int j = 0; j < 4; ++j) z[j] = load(reinterpret_cast<const float*>(rows + j * stride_bytes));
  const F32v a = __builtin_shuffle(z[0], z[1], I32v{0, 4, 1, 5});
  const F32v b = __builtin_shuffle(z[0], z[1], I32v{2, 6, 3, 7});
  const F32v e = __builtin_shuffle(z[2], z[3], I32v{0, 4, 1, 5});
  const F32v f = __builtin_shuffle(z[2], z[3], I32v{2, 6, 3, 7});
  store(out, __builtin_shuffle(a, e, I32v{0, 1, 4, 5}));
  store(out + kStride, __builtin_shuffle(a, e, I32v{2, 3, 6, 7}));
  store(out + 2 * kStride, __builtin_shuffle(b, f, I32v{0, 1, 4, 5}));
  store(out + 3 * kStride, __builtin_shuffle(b, f, I32v{2, 3, 6, 7}));
#endif
}

// ---- from a DType at run time to an element type at compile time: calls f(T{}) and returns true,
// or returns false if the type does not match

template <typename F>
DIFFQKV_INLINE bool visit(DType dtype, F&& f) {
  switch (dtype) {
    case DType::f32: f(float{}); return true;
    case DType::f16: f(f16{}); return true;
    case DType::bf16: f(bf16{}); return true;
    default: return false;
  }
}

// The same, including the types that only a KV cache has.
template <typename F>
DIFFQKV_INLINE bool visit_cache(DType dtype, F&& f) {
  switch (dtype) {
    case DType::i8: f(int8_t{}); return true;
    case DType::f8e4m3: f(f8e4m3{}); return true;
    default: return visit(dtype, f);
  }
}

}  // namespace
}  // namespace diffqkv::cpu::DIFFQKV_ISA
