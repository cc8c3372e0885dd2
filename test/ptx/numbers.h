// Numbers as PTX computes with them: 16-bit formats, the one NaN, rounding modes, minima and maxima.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

namespace diffqkv::ptx {

// Every NaN that an operation on f32 gives is this one. f64 keeps the one that went in.
inline float canonical(float x) { return x == x ? x : std::bit_cast<float>(0x7fffffffu); }
inline double canonical(double x) { return x; }

// .ftz: a subnormal number is a zero of its sign.
inline float flushed(float x) { return std::fabs(x) < std::numeric_limits<float>::min() ? std::copysign(0.0f, x) : x; }

// If one is NaN, the other; -0 is less than +0.
template <typename F>
F smaller(F x, F y) {
  if (x == y) return std::signbit(x) ? x : y;
  return x < y || y != y ? (x != x ? canonical(x) : x) : y;
}
template <typename F>
F larger(F x, F y) {
  if (x == y) return std::signbit(x) ? y : x;
  return x > y || y != y ? (x != x ? canonical(x) : x) : y;
}

inline float widen_bf16(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }
inline float widen_f16(uint16_t bits) { return static_cast<float>(std::bit_cast<_Float16>(bits)); }

// To nearest, ties to even.
inline uint16_t round_to_bf16(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  const uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1)) >> 16;
  return static_cast<uint16_t>(x == x ? rounded : 0x7fff);
}
inline uint16_t round_to_f16(float x) {
  const uint16_t rounded = std::bit_cast<uint16_t>(static_cast<_Float16>(x));
  return x == x ? rounded : uint16_t{0x7fff};
}

// a * b + c, rounded once: the product of two 16-bit numbers is exact in f64, and the sum is rounded to odd there.
inline double sum_to_odd(double x, double y) {
  const double sum = x + y;
  const double other = sum - x;
  const double error = (x - (sum - other)) + (y - other);
  if (!(error < 0 || error > 0) || !std::isfinite(sum)) return sum;
  const uint64_t bits = std::bit_cast<uint64_t>(sum);
  if (bits & 1) return sum;
  // Away from zero if the exact sum is larger in magnitude, else towards it.
  return std::bit_cast<double>((error > 0) == (sum > 0) ? bits + 1 : bits - 1);
}
inline float to_odd(double x) {  // f64 to f32, rounded to odd
  const float rounded = static_cast<float>(x);
  const double back = static_cast<double>(rounded);
  if (back == x || !(x == x) || std::isinf(x)) return rounded;
  const uint32_t bits = std::bit_cast<uint32_t>(rounded);
  const bool beyond = std::fabs(back) > std::fabs(x);
  const uint32_t towards_zero = beyond ? bits - 1 : bits;
  return std::bit_cast<float>(towards_zero | 1);
}
inline uint16_t fma_bf16(uint16_t a, uint16_t b, uint16_t c) {
  const double product = static_cast<double>(widen_bf16(a)) * static_cast<double>(widen_bf16(b));
  return round_to_bf16(to_odd(sum_to_odd(product, static_cast<double>(widen_bf16(c)))));
}
inline uint16_t fma_f16(uint16_t a, uint16_t b, uint16_t c) {
  const double product = static_cast<double>(widen_f16(a)) * static_cast<double>(widen_f16(b));
  return round_to_f16(to_odd(sum_to_odd(product, static_cast<double>(widen_f16(c)))));
}
inline uint32_t fma_bf16x2(uint32_t a, uint32_t b, uint32_t c) {
  const auto half = [&](int shift) {
    return static_cast<uint32_t>(fma_bf16(static_cast<uint16_t>(a >> shift), static_cast<uint16_t>(b >> shift),
                                          static_cast<uint16_t>(c >> shift)));
  };
  return half(16) << 16 | half(0);
}
inline uint32_t fma_f16x2(uint32_t a, uint32_t b, uint32_t c) {
  const auto half = [&](int shift) {
    return static_cast<uint32_t>(fma_f16(static_cast<uint16_t>(a >> shift), static_cast<uint16_t>(b >> shift),
                                         static_cast<uint16_t>(c >> shift)));
  };
  return half(16) << 16 | half(0);
}

// a * b + c, rounded down. The product is exact in f64, and so is what f64 loses of the sum.
inline float fma_down(float a, float b, float c) {
  const float nearest = std::fma(a, b, c);
  if (!std::isfinite(a) || !std::isfinite(b) || !std::isfinite(c)) return canonical(nearest);
  const double x = static_cast<double>(a) * static_cast<double>(b), y = static_cast<double>(c);
  const double sum = x + y;
  const double other = sum - x;
  const double error = (x - (sum - other)) + (y - other);
  const double difference = sum - static_cast<double>(nearest);
  const bool above = nearest == std::numeric_limits<float>::infinity() || difference + error < 0;
  return above ? std::nextafter(nearest, -std::numeric_limits<float>::infinity()) : nearest;
}

// An integral value as an integer, clamped; NaN is 0.
template <typename I, typename F>
I saturate(F x) {
  if (x != x) return 0;
  constexpr F kEnd = static_cast<F>(std::numeric_limits<I>::max() / 2 + 1) * 2;  // one more than the largest
  if (x >= kEnd) return std::numeric_limits<I>::max();
  if (x < static_cast<F>(std::numeric_limits<I>::min())) return std::numeric_limits<I>::min();
  return static_cast<I>(x);
}

}  // namespace diffqkv::ptx
