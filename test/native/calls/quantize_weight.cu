// Calls of quantize_weight.
#include "calls/plain.h"
#include "random.h"

namespace diffqkv::cuda {
namespace {

// Groups as QuantizeCase has rows: with zeros, tiny ones, NaN and infinity among them.
struct QuantizeWeightCase {
  DType weight, out;
  int64_t group_size, num_rows, num_columns;
};

Call quantize_weight_call(const QuantizeWeightCase& c) {
  check::Random random(6);
  std::vector<float> values(count_of({c.num_rows, c.num_columns}));
  const auto row_of = [&](int64_t row) { return values.begin() + row * c.num_columns; };
  for (int64_t row = 0; row < c.num_rows; ++row) {
    const float size = row == 1 ? 0.0f : row == 2 ? 0x1p-110f : std::exp2(random.normal(3));
    for (int64_t i = 0; i < c.num_columns; ++i) row_of(row)[i] = random.normal(size);
  }
  row_of(3)[2] = NAN;
  row_of(4)[c.num_columns - 1] = -INFINITY;
  Call call;
  QuantizeWeightParams p;
  p.weight = add_tensor(call, "weight", c.weight, bytes_of_floats(c.weight, values));
  p.data = add_output(call, "data", DType::i8, count_of({c.num_rows, weight_row_bytes(c.out, c.num_columns)}),
                      Comparison::bits);
  p.scales = add_output(call, "scales", DType::bf16,
                        count_of({c.num_rows, weight_row_groups(c.num_columns, c.group_size)}), Comparison::bits);
  p.weight_dtype = c.weight;
  p.dtype = c.out;
  p.out_features = c.num_rows;
  p.in_features = c.num_columns;
  p.group_size = c.group_size;
  set_operator(call, quantize_weight, p);
  return call;
}

// One group of a weight. Sums over a group are formed as the definition allows only in one order that gives its bits: 16
// partial sums of every 16th element, then halved.
struct QuantizeGroupParams {
  QuantizeWeightParams p;
  int64_t row_bytes, row_groups;
};

struct WeightGroup {
  float w[128];
  int count;  // a multiple of 32
  float low, high;

  __device__ __forceinline__ float integer(int i, float inverse) const {
    const float scaled = w[i] * inverse;
    const float clamped = scaled < low ? low : scaled > high ? high : scaled;
    return (clamped + 12582912.0f) - 12582912.0f;
  }
  template <typename Term>
  __device__ __forceinline__ float sum(const Term& term) const {
    float parts[16] = {};
    for (int i = 0; i < count; ++i) parts[i % 16] = term(i, parts[i % 16]);
    for (int half = 8; half > 0; half /= 2) {
      for (int i = 0; i < half; ++i) parts[i] += parts[i + half];
    }
    return parts[0];
  }
};

__global__ void __launch_bounds__(kPlainThreads, 1) quantize_weight_group(QuantizeGroupParams g) {
  const QuantizeWeightParams& p = g.p;
  const int64_t index = output_index(), row = index / g.row_groups, first = index % g.row_groups * p.group_size;
  if (row >= p.out_features) return;
  const bool is_i4 = p.dtype == DType::i4;
  WeightGroup group = {};
  group.low = is_i4 ? -8.0f : -128.0f;
  group.high = is_i4 ? 7.0f : 127.0f;
  const int64_t rest = p.in_features - first < p.group_size ? p.in_features - first : p.group_size;
  group.count = static_cast<int>((rest + 31) / 32 * 32);
  float most = 0, least = 0;
  bool finite = true;
  for (int i = 0; i < rest; ++i) {
    const float w = load_any(p.weight, p.weight_dtype, row * p.in_features + first + i);
    group.w[i] = w;
    finite = finite && w - w == 0;
    most = w > most ? w : most;
    least = w < least ? w : least;
  }
  const bool zero = !finite || (most < 0x1p-100f && -least < 0x1p-100f);
  bf16 best = {static_cast<uint16_t>(finite ? 0 : 0x7fc0)};
  float inverse = 0;
  if (!zero) {
    const float largest = most > -least ? most : least, factor = 1.0f / largest;
    for (int i = 0; i < group.count; ++i) group.w[i] *= factor;
    float least_error = infinity();
    const auto try_scale = [&](float relative) {
      const bf16 scale = from_float<bf16>(relative * largest);
      const float rounded = to_float(scale) * factor, one_over = 1.0f / rounded;
      const float error = group.sum([&](int i, float before) {
        const float off = __fmaf_rn(-group.integer(i, one_over), rounded, group.w[i]);
        return __fmaf_rn(off, off, before);
      });
      if (!(error < least_error)) return;
      least_error = error;
      best = scale;
      inverse = one_over;
    };
    try_scale(1.0f / group.high);
    for (int i = 0; i < (is_i4 ? 12 : 5); ++i) {
      try_scale(__fmaf_rn(is_i4 ? 0.03f : 0.005f, static_cast<float>(i), is_i4 ? 0.79f : 0.99f) / group.low);
    }
    for (int round = 0; round < 2; ++round) {
      const float by = inverse;
      const float wq = group.sum([&](int i, float s) { return __fmaf_rn(group.w[i], group.integer(i, by), s); });
      const float qq =
          group.sum([&](int i, float s) { return __fmaf_rn(group.integer(i, by), group.integer(i, by), s); });
      try_scale(wq / qq);
    }
  }
  st_global(static_cast<bf16*>(p.scales) + index, best);
  unsigned char* const to = static_cast<unsigned char*>(p.data) + row * g.row_bytes;
  for (int i = 0; i < group.count; i += 8) {
    uint32_t word = 0;
    for (int j = 0; j < 8; ++j) {
      const int q = zero ? 0 : static_cast<int>(group.integer(i + j, inverse));
      if (is_i4) {
        word |= static_cast<uint32_t>(q + 8) << (16 * (j % 2) + 4 * (j / 2));
      } else {
        st_global(reinterpret_cast<i8*>(to) + first + i + j, i8{static_cast<int8_t>(q)});
      }
    }
    if (is_i4) st_global(reinterpret_cast<uint32_t*>(to) + (first + i) / 8, word);
  }
}

}  // namespace

void reference(const QuantizeWeightParams& p, Context& context) {
  const QuantizeGroupParams g = {p, weight_row_bytes(p.dtype, p.in_features),
                                 weight_row_groups(p.in_features, p.group_size)};
  run_over(p.out_features * g.row_groups, quantize_weight_group, g, context);
}

OperatorCalls quantize_weight_calls() {
  OperatorCalls calls;
  calls.seeded.add("weights to i4", quantize_weight_call, {kF16, kI4, 64, 5, 200});
  for (const DType packed : {kI8, kI4}) {
    const std::string name = "weights to " + text_of(packed);
    for (const int64_t group_size : {32, 64, 128}) {
      const std::string size = std::to_string(group_size);
      for (const DType x : kFloats) {
        calls.small.add(name + ", " + text_of(x) + ", groups of " + size, quantize_weight_call,
                        {x, packed, group_size, 9, 300});
      }
      calls.ptx.add(name + " by " + size, quantize_weight_call, {kBf16, packed, group_size, 6, 200});
    }
  }
  return calls;
}

}  // namespace diffqkv::cuda
