// The checks that a direct kernel call needs: shapes, types, head counts, aliasing. They turn tensors into the Params
// of ops.h, and fail with ERR_INVALID_ARGUMENT, giving value, limit and way out. Host only; the forward graph, which
// makes its own Params, does not come here.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "backend/ops.h"

namespace diffqkv {

struct TensorView {
  const char* name = "";  // the argument's, for messages
  void* data = nullptr;
  DType dtype = DType::f32;
  std::vector<int64_t> shape;
};

std::string shape_text(const std::vector<int64_t>& shape);  // "[2, 16, 64]"

// The tensors of an attention call; null where one is not given.
struct AttentionViews {
  const TensorView &q, &k, &v, &out;
  const TensorView *k_scales, *v_scales, *lse, *kv_lens;
};

AttentionPrefillParams check_attention_prefill(const AttentionViews& tensors, bool causal,
                                               std::optional<double> sm_scale);
AttentionDecodeParams check_attention_decode(const AttentionViews& tensors, std::optional<double> sm_scale,
                                             int64_t num_splits, int64_t selective_top_k, bool renormalize);
QuantizeParams check_quantize(const TensorView& x, const TensorView& out, const TensorView& scales);
AugmentedQParams check_augmented_q(const TensorView& x, const TensorView& gate, const TensorView& up,
                                   const TensorView& down, const TensorView& out);
MatmulParams check_matmul(const TensorView& x, const TensorView& weight, const TensorView& out);
RmsNormParams check_rms_norm(const TensorView& x, const TensorView& weight, const TensorView& out,
                             const TensorView* residual, double eps);
RopeParams check_rope(const TensorView& x, const TensorView& positions, const TensorView& out,
                      double theta);  // but inv_freq
SiluMulParams check_silu_mul(const TensorView& gate, const TensorView& up, const TensorView& out);
EmbedParams check_embed(const TensorView& table, const TensorView& tokens, const TensorView& out);

// The rest of SampleParams is the device's to check: the history and the logits lie in its memory.
void check_sample(const SampleParams& p);

}  // namespace diffqkv
