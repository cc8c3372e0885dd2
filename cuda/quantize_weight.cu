// Quantizes weights to i8 and i4 by group (QuantizeWeightParams in csrc/backend/ops.h). Half a warp
// works on a group, and reads each element once. Bound by arithmetic, because each group is rounded
// with every candidate scale.
//
// The candidates and their order are those of csrc/backend/cpu/linear/quantize_weight.cc: the scale
// that maps the largest element to the end of the range; that scale times a few factors, signed
// such that the largest element is at the negative end, which reaches one further; then the least
// squares scale of the integers found, sum(w q) / sum(q q), twice. Each is rounded to bf16 before
// it is tried. A lane has every 16th element and sums are halved over the lanes, as with vectors of
// 16 lanes on the CPU, so that both devices give the same bits.
#include "linear.h"

namespace diffqkv::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kGroupLanes = 16;
constexpr float kSmallest = 0x1p-100f;

// The integers of a type and the candidates for its scale.
template <DType kType>
struct Range;
template <>
struct Range<DType::i4> {
  static constexpr float kLow = -8, kHigh = 7, kFirstFactor = 0.79f, kStep = 0.03f;
  static constexpr int kFactors = 12;
};
template <>
struct Range<DType::i8> {
  static constexpr float kLow = -128, kHigh = 127, kFirstFactor = 0.99f, kStep = 0.005f;
  static constexpr int kFactors = 5;
};

__device__ __forceinline__ float group_sum(float x) {
#pragma unroll
  for (int mask = kGroupLanes / 2; mask > 0; mask /= 2) x += __shfl_xor_sync(kAllLanes, x, mask);
  return x;
}

template <DType kType>
__device__ __forceinline__ float integer_of(float w, float inverse) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const float scaled = w * inverse;
  const float above = scaled > Range<kType>::kLow ? scaled : Range<kType>::kLow;
  return ((above < Range<kType>::kHigh ? above : Range<kType>::kHigh) + kRound) - kRound;
}

// The scale with the least error so far.
struct Best {
  bf16 scale;
  float error;
};

// Elements w, divided by the largest, which is 1 / factor. Errors are relative to the largest,
// because squares of elements may leave the range of float32.
template <DType kType, int kElements>
__device__ __forceinline__ void try_scale(const float (&w)[kElements], float relative, float largest, float factor,
                                          Best* best) {
  const bf16 scale = from_float<bf16>(relative * largest);
  const float rounded = to_float(scale) * factor;
  const float inverse = 1.0f / rounded;
  float sum = 0;
#pragma unroll
  for (int j = 0; j < kElements; ++j) {
    const float rest = __fmaf_rn(-integer_of<kType>(w[j], inverse), rounded, w[j]);
    sum = __fmaf_rn(rest, rest, sum);
  }
  const float error = group_sum(sum);
  if (error < best->error) *best = {scale, error};
}

// Returns the scale, and replaces the elements by their integers. All 16 lanes get the same scale.
template <DType kType, int kElements>
__device__ __forceinline__ bf16 quantize_group(float (&w)[kElements]) {
  using R = Range<kType>;
  float most = 0, lowest = 0;
  uint32_t top = 0;  // the largest magnitude, as bits: which order NaN above infinity, and that above all numbers
#pragma unroll
  for (int j = 0; j < kElements; ++j) {
    most = w[j] > most ? w[j] : most;
    lowest = w[j] < lowest ? w[j] : lowest;
    const uint32_t bits = bit_cast<uint32_t>(w[j]) & 0x7fffffffu;
    top = bits > top ? bits : top;
  }
#pragma unroll
  for (int mask = kGroupLanes / 2; mask > 0; mask /= 2) {
    const float high = __shfl_xor_sync(kAllLanes, most, mask);
    const float low = __shfl_xor_sync(kAllLanes, lowest, mask);
    const uint32_t bits = __shfl_xor_sync(kAllLanes, top, mask);
    most = high > most ? high : most;
    lowest = low < lowest ? low : lowest;
    top = bits > top ? bits : top;
  }
  const bool finite = top < 0x7f800000u;
  const bool zero = !finite || bit_cast<float>(top) < kSmallest;
  // The lanes' other group may need the sums below, so a group of zeros forms them too, of ones.
  const float largest = zero ? 1.0f : most > -lowest ? most : lowest;
  const float factor = 1.0f / largest;
#pragma unroll
  for (int j = 0; j < kElements; ++j) w[j] = zero ? 1.0f : w[j] * factor;

  Best best = {{}, infinity()};
  try_scale<kType>(w, 1.0f / R::kHigh, largest, factor, &best);
#pragma unroll 1
  for (int i = 0; i < R::kFactors; ++i) {
    const float share = __fmaf_rn(R::kStep, static_cast<float>(i), R::kFirstFactor);
    try_scale<kType>(w, share / R::kLow, largest, factor, &best);
  }
#pragma unroll 1
  for (int round = 0; round < 2; ++round) {
    const float inverse = 1.0f / (to_float(best.scale) * factor);
    float wq = 0, qq = 0;
#pragma unroll
    for (int j = 0; j < kElements; ++j) {
      const float q = integer_of<kType>(w[j], inverse);
      wq = __fmaf_rn(w[j], q, wq);
      qq = __fmaf_rn(q, q, qq);
    }
    try_scale<kType>(w, group_sum(wq) / group_sum(qq), largest, factor, &best);
  }
  const float inverse = 1.0f / (to_float(best.scale) * factor);
#pragma unroll
  for (int j = 0; j < kElements; ++j) w[j] = zero ? 0.0f : integer_of<kType>(w[j], inverse);
  return !finite ? bf16{0x7fc0} : zero ? bf16{0} : best.scale;
}

struct KernelParams {
  const void* weight;
  unsigned char* data;
  bf16* scales;
  DType weight_dtype;
  int64_t out_features, in_features;
  int64_t row_bytes;   // of data
  int64_t row_groups;  // groups of a row
};

template <DType kType, int kGroupSize>
__global__ void __launch_bounds__(kThreads, 4) quantize_weight_kernel(KernelParams p) {
  constexpr int kElements = kGroupSize / kGroupLanes;  // of a lane
  const int lane = lane_index() % kGroupLanes;
  const int64_t group = static_cast<int64_t>(blockIdx.x) * (kThreads / kGroupLanes) + threadIdx.x / kGroupLanes;
  const int64_t row = group / p.row_groups;
  const int64_t first = group % p.row_groups * kGroupSize;  // column of the group's first element
  const bool inside = row < p.out_features;
  float w[kElements];
#pragma unroll
  for (int j = 0; j < kElements; ++j) {
    const int64_t column = first + kGroupLanes * j + lane;
    w[j] = inside && column < p.in_features ? load_any(p.weight, p.weight_dtype, row * p.in_features + column) : 0.0f;
  }
  const bf16 scale = quantize_group<kType>(w);
  if (inside && lane == 0) st_global(p.scales + group, scale);

  unsigned char* to = p.data + row * p.row_bytes;
  const int64_t padded = (p.in_features + 31) / 32 * 32;
#pragma unroll
  for (int j = 0; j < kElements; ++j) {
    const int64_t column = first + kGroupLanes * j + lane;
    if constexpr (kType == DType::i8) {
      const i8 value = {static_cast<int8_t>(w[j])};
      if (inside && column < padded) st_global(reinterpret_cast<i8*>(to) + column, value);
    } else {
      // Eight lanes hold the elements of a word.
      const int e = lane % 8;
      uint32_t word = static_cast<uint32_t>(static_cast<int>(w[j]) + 8) << (16 * (e % 2) + 4 * (e / 2));
#pragma unroll
      for (int mask = 4; mask > 0; mask /= 2) word |= __shfl_xor_sync(kAllLanes, word, mask);
      if (inside && e == 0 && column < padded) st_global(reinterpret_cast<uint32_t*>(to + column / 2), word);
    }
  }
}

template <DType kType>
void launch_of(const QuantizeWeightParams& quantize, Context& context) {
  const KernelParams p = {quantize.weight,
                          static_cast<unsigned char*>(quantize.data),
                          static_cast<bf16*>(quantize.scales),
                          quantize.weight_dtype,
                          quantize.out_features,
                          quantize.in_features,
                          weight_row_bytes(kType, quantize.in_features),
                          weight_row_groups(quantize.in_features, quantize.group_size)};
  LaunchShape shape;
  constexpr int64_t kBlockGroups = kThreads / kGroupLanes;
  const int64_t num_groups = p.out_features * p.row_groups;
  shape.grid[0] = static_cast<unsigned>((num_groups + kBlockGroups - 1) / kBlockGroups);
  shape.threads = kThreads;
  const auto kernel = quantize.group_size == 32   ? quantize_weight_kernel<kType, 32>
                      : quantize.group_size == 64 ? quantize_weight_kernel<kType, 64>
                                                  : quantize_weight_kernel<kType, 128>;
  launch("quantize_weight", kernel, shape, context.stream, p);
}

}  // namespace

void quantize_weight(const QuantizeWeightParams& p, Context& context) {
  check_float_types("quantize_weight", {{"weight", p.weight_dtype}});
  if (!dtype_is_packed(p.dtype)) {
    fail(ErrorCode::invalid_argument, "quantize_weight: the type is %s; it must be i8 or i4", dtype_name(p.dtype));
  }
  if (p.group_size != 32 && p.group_size != 64 && p.group_size != 128) {
    fail(ErrorCode::invalid_argument, "quantize_weight: groupSize is %lld; it must be 32, 64 or 128",
         static_cast<long long>(p.group_size));
  }
  if (p.out_features <= 0 || p.in_features <= 0) return;
  if (p.dtype == DType::i8) return launch_of<DType::i8>(p, context);
  launch_of<DType::i4>(p, context);
}

}  // namespace diffqkv::cuda
