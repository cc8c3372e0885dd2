// Quantizes weights to i8 and i4 by group, and converts rows of them back. Split by rows; bound by
// arithmetic, because each group is rounded with every candidate scale.
//
// A scale that maps the largest element to the end of the range is seldom the best: a smaller one
// clips that element and is finer for all others. So the candidates are that scale times a few
// factors, signed such that the largest element is at the negative end, which reaches one further;
// then the least squares scale of the integers found, sum(w q) / sum(q q). Each is rounded to bf16
// before it is tried.
#include "backend/cpu/arena.h"
#include "backend/cpu/isa_kernels.h"
#include "backend/cpu/linear/packed.h"
#include "backend/cpu/parallel.h"
#include "backend/error.h"

namespace diffqkv::cpu::DIFFQKV_ISA {
namespace {

// The largest lane of an F32v without NaN or of an I32v, by halves.
template <typename V>
DIFFQKV_INLINE auto largest_lane(V v) {
  for (int width = kLanes / 2; width > 0; width /= 2) {
    I32v other;
    for (int l = 0; l < kLanes; ++l) other[l] = (l + width) % kLanes;
    const V rotated = __builtin_shuffle(v, other);
    v = rotated > v ? rotated : v;
  }
  return v[0];
}

constexpr int64_t kMaxGroup = 128;
constexpr float kSmallest = 0x1p-100f;

// The integers of a type and the candidates for its scale.
struct Range {
  float low, high;
  float first_factor, step;
  int num_factors;
};
constexpr Range kI4 = {-8, 7, 0.79f, 0.03f, 12};
constexpr int kMaxCandidates = 24;
constexpr Range kI8 = {-128, 127, 0.99f, 0.005f, 5};

// Of a finite number.
uint16_t bf16_of(float value) {
  const uint32_t u = bit_cast<uint32_t>(value);
  return static_cast<uint16_t>((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}
float float_of(uint16_t bits) { return bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

// One group, padded with zeros to kMaxGroup elements.
struct Group {
  alignas(64) float w[kMaxGroup];
  int64_t parts;  // vectors in use
};

DIFFQKV_INLINE F32v integers(F32v w, F32v inverse, const Range& range) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const F32v clamped = min(max(w * inverse, set1(range.low)), set1(range.high));
  return (clamped + kRound) - kRound;
}

// Returns the scale and writes the integers.
uint16_t quantize_group(Group& group, const Range& range, int8_t* out) {
  const int64_t count = group.parts * kLanes;
  F32v high = {};
  F32v low = {};
  I32v bits = {};
  for (int64_t i = 0; i < count; i += kLanes) {
    const F32v w = load(group.w + i);
    high = max(w, high);
    low = max(-w, low);
    const I32v magnitude = (I32v)w & 0x7fffffff;
    bits = magnitude > bits ? magnitude : bits;
  }
  const bool finite = largest_lane(bits) < 0x7f800000;
  const float most = largest_lane(high);
  const float least = largest_lane(low);
  const float largest = most > least ? most : -least;
  if (!finite || (most < kSmallest && least < kSmallest)) {
    for (int64_t i = 0; i < count; ++i) out[i] = 0;
    return finite ? 0 : 0x7fc0;
  }
  // Errors are relative to the largest element, because squares of elements may leave the range of
  // float32.
  const float factor = 1 / largest;
  for (int64_t i = 0; i < count; i += kLanes) store(group.w + i, load(group.w + i) * factor);
  // The scale of each candidate as it is stored, and its error. The errors are compared afterwards:
  // branches here would be mispredicted.
  uint16_t scales[kMaxCandidates];
  float errors[kMaxCandidates];
  const auto try_scale = [&](int candidate, float relative) DIFFQKV_LAMBDA {
    scales[candidate] = bf16_of(relative * largest);
    const float rounded = float_of(scales[candidate]) * factor;
    const F32v s = set1(rounded);
    const F32v inverse = set1(1 / rounded);
    F32v error = {};
    for (int64_t i = 0; i < count; i += kLanes) {
      const F32v w = load(group.w + i);
      const F32v rest = w - integers(w, inverse, range) * s;
      error = fma(rest, rest, error);
    }
    errors[candidate] = sum(error);
  };
  int candidates = 0;
  try_scale(candidates++, 1 / range.high);
  for (int i = 0; i < range.num_factors; ++i) {
    try_scale(candidates++, (range.first_factor + range.step * static_cast<float>(i)) / range.low);
  }
  int best = 0;
  for (int i = 1; i < candidates; ++i) best = errors[i] < errors[best] ? i : best;
  for (int round = 0; round < 2; ++round) {
    const F32v inverse = set1(1 / (float_of(scales[best]) * factor));
    F32v wq = {};
    F32v qq = {};
    for (int64_t i = 0; i < count; i += kLanes) {
      const F32v w = load(group.w + i);
      const F32v q = integers(w, inverse, range);
      wq = fma(w, q, wq);
      qq = fma(q, q, qq);
    }
    try_scale(candidates, sum(wq) / sum(qq));
    best = errors[candidates] < errors[best] ? candidates : best;
    ++candidates;
  }
  const F32v inverse = set1(1 / (float_of(scales[best]) * factor));
  for (int64_t i = 0; i < count; i += kLanes) store(out + i, integers(load(group.w + i), inverse, range));
  return scales[best];
}

// 32 integers to four words of i4.
void pack_i4(const int8_t* q, char* out) {
  for (int word = 0; word < 4; ++word) {
    uint32_t bits = 0;
    for (int e = 0; e < 8; ++e) bits |= static_cast<uint32_t>(q[8 * word + e] + 8) << (16 * (e % 2) + 4 * (e / 2));
    __builtin_memcpy(out + 4 * word, &bits, 4);
  }
}

template <typename T>
void quantize_rows(const QuantizeWeightParams& p, int64_t begin, int64_t end) {
  const int64_t n = p.in_features;
  const int64_t row_bytes = weight_row_bytes(p.dtype, n);
  const int64_t groups = weight_row_groups(n, p.group_size);
  const Range& range = p.dtype == DType::i4 ? kI4 : kI8;
  Group group;
  alignas(64) int8_t q[kMaxGroup];
  for (int64_t row = begin; row < end; ++row) {
    const T* from = static_cast<const T*>(p.weight) + row * n;
    char* to = static_cast<char*>(p.data) + row * row_bytes;
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t first = g * p.group_size;
      const int64_t count = min_of(p.group_size, n - first);
      const int64_t padded = round_up(count, 32);
      group.parts = padded / kLanes;
      for (int64_t i = 0; i < padded; i += kLanes) {
        const int64_t rest = max_of(0, min_of(count - i, kLanes));
        store(group.w + i, rest == kLanes ? load(from + first + i) : load_n(from + first + i, rest));
      }
      static_cast<uint16_t*>(p.scales)[row * groups + g] = quantize_group(group, range, q);
      if (p.dtype == DType::i8) {
        __builtin_memcpy(to + first, q, padded);
      } else {
        for (int64_t i = 0; i < padded; i += 32) pack_i4(q + i, to + (first + i) / 2);
      }
    }
  }
}

}  // namespace

void quantize_weight(const QuantizeWeightParams& p, Arena&) {
  require_compute_type("quantize_weight: weight", p.weight_dtype);
  if (!dtype_is_packed(p.dtype)) {
    fail(ErrorCode::invalid_argument, "quantize_weight: the type is %s; it must be i8 or i4", dtype_name(p.dtype));
  }
  if (p.group_size != 32 && p.group_size != 64 && p.group_size != 128) {
    fail(ErrorCode::invalid_argument, "quantize_weight: groupSize is %lld; it must be 32, 64 or 128",
         static_cast<long long>(p.group_size));
  }
  // An element costs much more than one of the other operators.
  parallel_ranges(p.out_features, 1, p.out_features * p.in_features * 16, [&](int64_t begin, int64_t end) {
    visit(p.weight_dtype, [&](auto tag) { quantize_rows<decltype(tag)>(p, begin, end); });
  });
}

void dequantize_rows(void* dst, const WeightView& weight, int64_t in_features, int64_t num_rows) {
  parallel_ranges(num_rows, 1, num_rows * in_features, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      dequantize_row(weight_rows(weight, in_features, row), in_features, static_cast<bf16*>(dst) + row * in_features);
    }
  });
}

}  // namespace diffqkv::cpu::DIFFQKV_ISA
