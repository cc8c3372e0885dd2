// Checks of a direct kernel call: shapes, types, head counts, aliasing. They turn tensors into the
// Params of ops.h. They throw ERR_INVALID_ARGUMENT with value, limit and remedy. The forward graph
// makes its own Params and does not use them.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "backend/ops.h"

namespace diffqkv {

struct TensorView {
  const char* name = "";  // of the argument, for messages
  void* data = nullptr;
  DType dtype = DType::f32;
  std::vector<int64_t> shape;
};

std::string shape_text(const std::vector<int64_t>& shape);  // "[2, 16, 64]"

// The tensors of an attention call. Optional ones may be null.
struct AttentionViews {
  const TensorView &q, &k, &v, &out;
  const TensorView *k_scales, *v_scales, *lse, *kv_lens;
};

// The other arguments, with the meaning that ops.h gives them.
struct ScoreOptions {
  std::optional<double> sm_scale;  // default: 1 / sqrt(headDimQk)
  double softcap = 0;
  int64_t window = 0;
};
struct PrefillOptions {
  bool causal = false;
  ScoreOptions scores;
};
struct DecodeOptions {
  int64_t num_splits = 0, top_k = 0;
  bool renormalize = false;
  ScoreOptions scores;
};

AttentionPrefillParams check_attention_prefill(const AttentionViews& tensors, const PrefillOptions& options);
AttentionDecodeParams check_attention_decode(const AttentionViews& tensors, const DecodeOptions& options);
QuantizeParams check_quantize(const TensorView& x, const TensorView& out, const TensorView& scales);
// A weight of a direct call: [out, in] of a float type without scales; else i8 [out, padded in] or
// i32 [out, padded in / 8] (eight i4 in each), with scales bf16 or f16 [out, groups], where padded in
// is in rounded up to a multiple of 32.
struct WeightArgument {
  const TensorView& tensor;
  const TensorView* scales;  // or null
  const char* scales_name;
  int64_t group_size = 32;
};
GatedMlpParams check_gated_mlp(const TensorView& x, const WeightArgument* gate, const WeightArgument& up,
                               const WeightArgument& down, const TensorView& out, const std::string& activation);
MatmulParams check_matmul(const TensorView& x, const WeightArgument& weight, const TensorView& out);
QuantizeWeightParams check_quantize_weight(const TensorView& weight, const TensorView& values, const TensorView& scales,
                                           int64_t group_size);
RmsNormParams check_rms_norm(const TensorView& x, const TensorView& weight, const TensorView& out,
                             const TensorView* residual, double eps, bool accumulate);
AddBiasParams check_add_bias(const TensorView& x, const TensorView& bias, const TensorView& out);
// Leaves inv_freq null.
RopeParams check_rope(const TensorView& x, const TensorView& positions, const TensorView& out, double theta);
GatedActivationParams check_gated_activation(const TensorView* gate, const TensorView& up, const TensorView& out,
                                             const std::string& activation);
SoftcapParams check_softcap(const TensorView& x, const TensorView& out, double cap);
EmbedParams check_embed(const TensorView& table, const TensorView& tokens, const TensorView& out, double scale);

// Checks the sampling options. The device checks the history and the logits, which are in its
// memory.
void check_sample(const SampleParams& p);

}  // namespace diffqkv
