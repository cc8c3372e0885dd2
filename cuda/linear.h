// What the linear layers share: one description of a product, the ways to form it, and what ends
// them.
#pragma once

#include <algorithm>

#include "element_types.h"

namespace diffqkv::cuda {

// out = x weight^T, or, with a gate, out = activation(x gate^T) * (x weight^T). Sums are f32.
struct LinearOutput : MatmulOutput {
  WeightView gate = {};  // as `weight`, or without data
  DType dtype = DType::f32;
};

// Products of one x, or of its normalized rows. The weights of all outputs have one type and group size.
struct LinearParams {
  static constexpr int kMaxOutputs = 1 + MatmulParams::kMaxOthers;

  const void* x = nullptr;  // [num_tokens, in_features]
  InputNorm norm = {};
  const float* row_scale = nullptr;  // [num_tokens], or null: each row of out is multiplied by it. Only gemm takes it.
  DType x_dtype = DType::f32;        // with a norm, that of the normalized rows
  int64_t num_tokens = 0, in_features = 0;
  int64_t x_stride = 0;                      // of a copy of x (below): elements from row to row
  void* x_scratch = nullptr;                 // x_scratch_bytes
  bool accumulate = false;                   // out += instead of out =; outputs are f32 then, and have no gate
  Activation activation = Activation::silu;  // of the outputs with a gate; gemm has only silu
  LinearOutput outputs[kMaxOutputs];
  int num_outputs = 0;

  void add(const LinearOutput& output) { outputs[num_outputs++] = output; }
  LinearParams single(int i) const {
    LinearParams one = *this;
    one.outputs[0] = outputs[i];
    one.num_outputs = 1;
    return one;
  }
  // Of the type and group size that all weights have.
  const WeightView& weight() const { return outputs[0].weight; }
  bool has_gate() const {
    return std::any_of(outputs, outputs + num_outputs, [](const LinearOutput& o) { return o.gate.data != nullptr; });
  }
  int64_t all_features() const {
    int64_t sum = 0;
    for (int i = 0; i < num_outputs; ++i) sum += outputs[i].out_features;
    return sum;
  }
};

// An output as a kernel for few tokens has it. A unit of work is some rows of it. 2^slices_log2 warps share a unit.
//
// A kernel for outputs with a gate multiplies the same rows of two matrices. An output without one, beside them, has its
// rows in two halves, which are the two matrices.
struct RowOutput {
  const unsigned char* weights[2];  // gate and up, the halves, or one twice
  const uint16_t* scales[2];        // of quantized weights
  void* out;
  int64_t out_features;  // rows of each of `weights`
  int64_t out_stride;    // elements from row to row of out
  DType dtype;
  bool has_gate;
  int slices_log2;
  int end_block;  // its blocks begin at the end of the output before
};
struct RowOutputs {
  static constexpr int kMost = LinearParams::kMaxOutputs;
  RowOutput outputs[kMost];

  // The output of a block, which becomes the block's number within it.
  __device__ __forceinline__ RowOutput find(int& block) const {
    RowOutput found = outputs[0];
    int begin = 0;
#pragma unroll
    for (int i = 1; i < kMost; ++i) {
      if (block < outputs[i - 1].end_block) continue;
      found = outputs[i];
      begin = outputs[i - 1].end_block;
    }
    block -= begin;
    return found;
  }
  int num_blocks() const { return outputs[kMost - 1].end_block; }
};

// Whether a kernel for few tokens has all outputs in one launch.
inline bool has_row_outputs(const LinearParams& p) {
  return !p.has_gate() || std::all_of(p.outputs, p.outputs + p.num_outputs, [](const LinearOutput& o) {
    return o.gate.data != nullptr || o.out_features % 2 == 0;
  });
}

// For blocks of num_warps warps, and units of rows_per_unit rows of RowOutput::out_features. slices_log2 of an output is
// slices_of(its units), which must not depend on the other outputs, so that an output has the same bits beside others and
// alone. In halves it has as many units as it has alone, of twice the rows.
template <typename SlicesOf>
RowOutputs row_outputs(const LinearParams& p, int rows_per_unit, int num_warps, const SlicesOf& slices_of) {
  RowOutputs r = {};
  int end = 0;
  for (int i = 0; i < RowOutputs::kMost; ++i) {
    RowOutput& to = r.outputs[i];
    if (i < p.num_outputs && p.outputs[i].out_features > 0) {
      const LinearOutput& output = p.outputs[i];
      to.has_gate = output.gate.data != nullptr;
      const bool in_halves = p.has_gate() && !to.has_gate;
      to.out_stride = output.out_features;
      to.out_features = in_halves ? output.out_features / 2 : output.out_features;
      const WeightView first = to.has_gate ? output.gate : output.weight;
      const WeightView second = weight_rows(output.weight, p.in_features, in_halves ? to.out_features : 0);
      to.weights[0] = static_cast<const unsigned char*>(first.data);
      to.weights[1] = static_cast<const unsigned char*>(second.data);
      to.scales[0] = static_cast<const uint16_t*>(first.scales);
      to.scales[1] = static_cast<const uint16_t*>(second.scales);
      to.out = output.out;
      to.dtype = output.dtype;
      const int64_t units = (to.out_features + rows_per_unit - 1) / rows_per_unit;
      to.slices_log2 = slices_of(units);
      const int64_t units_per_block = num_warps >> to.slices_log2;
      end += static_cast<int>((units + units_per_block - 1) / units_per_block);
    }
    to.end_block = end;
  }
  return r;
}

// Whether rows of `row_size` elements that begin at p all begin at a multiple of 16 bytes.
inline bool rows_aligned(const void* p, int64_t row_size, DType dtype) {
  return reinterpret_cast<uintptr_t>(p) % 16 == 0 && row_size * static_cast<int64_t>(dtype_size(dtype)) % 16 == 0;
}

// Whether gemv has wide loads: all rows are aligned, and a column's number is an int. Normalized rows
// are in scratch memory.
inline bool gemv_is_aligned(const LinearParams& p) {
  const DType weight_dtype = p.weight().dtype;
  return p.in_features < 1 << 30 && rows_aligned(p.norm.weight ? nullptr : p.x, p.in_features, p.x_dtype) &&
         std::all_of(p.outputs, p.outputs + p.num_outputs, [&](const LinearOutput& o) {
           return rows_aligned(o.weight.data, p.in_features, weight_dtype) &&
                  rows_aligned(o.gate.data, p.in_features, weight_dtype);
         });
}

// What `linear` puts in x_scratch, aligned to 256 bytes. The normalized rows of x, if it has a norm.
// With quantized weights rows of x must begin at multiples of 16 bytes. If they do not, a copy of them,
// padded with zeros to a multiple of 8 elements.
size_t x_scratch_bytes(const LinearParams& p);

// Normalizes x into x_scratch by a launch of its own, if it has a norm: p is then the same product of
// these rows.
void apply_norm(LinearParams* p, Context& context);
// Whether the blocks of gemv and gemv_packed have room for the rows of x. Only then may x have a norm.
bool gemv_stages_x(const LinearParams& p, const Context& context);
bool gemv_packed_stages_x(const LinearParams& p, const Context& context);

// Up to so many tokens share one reading of the weights: 16 if the tensor cores multiply them.
constexpr int kGemvTokens = 8, kTensorGemvTokens = 16;
inline int gemv_tokens(DType x, DType weight) {
  return dtype_is_packed(weight) || (x == weight && x != DType::f32) ? kTensorGemvTokens : kGemvTokens;
}

// Any float types and sizes; weights are read once for every gemv_tokens tokens, or for every
// kGemvTokens if rows are not aligned to 16 bytes.
void gemv(const LinearParams& p, Context& context);
// Weights of i8 or i4, any sizes and types of x and out; weights are read once for every
// kTensorGemvTokens tokens.
void gemv_packed(const LinearParams& p, Context& context);
// By tensor cores: x of a 16-bit type, the weight of that type, i8 or i4, out of x's type or f32.
inline bool gemm_takes(DType x, DType weight, DType out) {
  return x != DType::f32 && (weight == x || dtype_is_packed(weight)) && (out == x || out == DType::f32);
}
void gemm(const LinearParams& p, const LinearOutput& output, Context& context);
// Whether gemm suits, and not gemv or gemv_packed.
inline bool suits_gemm(const LinearParams& p) {
  const DType weight_dtype = p.weight().dtype;
  const bool shares = dtype_is_packed(weight_dtype) || gemv_is_aligned(p);
  return p.num_tokens > (shares ? gemv_tokens(p.x_dtype, weight_dtype) : kGemvTokens) &&
         std::all_of(p.outputs, p.outputs + p.num_outputs,
                     [&](const LinearOutput& o) { return gemm_takes(p.x_dtype, o.weight.dtype, o.dtype); });
}
// The one that suits. Nothing is launched if there is nothing to write.
void linear(LinearParams p, Context& context);

// gated_activation from f32 to bf16. The tensors are aligned to 16 bytes.
void gated_activation_to_bf16(const GatedActivationParams& p, Context& context);

// Throws unless x and out are f32, f16 or bf16, the weight one of these or i8 or i4, and
// `accumulate` goes with an f32 output.
void check_linear_types(const char* name, DType x, DType weight, DType out, bool accumulate);

// out[index] = value, or += value, where out is f32.
__device__ __forceinline__ void put(void* out, DType dtype, int64_t index, float value, bool accumulate) {
  store_any(out, dtype, index, accumulate ? ld_global(static_cast<const float*>(out) + index) + value : value);
}

}  // namespace diffqkv::cuda
