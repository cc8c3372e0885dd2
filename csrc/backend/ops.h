// One Params struct per operator. Pointers are device memory, row-major, last axis contiguous; strides are in
// elements. What changes from one decode step to the next (tokens, positions, kv_lens) is read from device memory, so
// that a step can be captured once and replayed. test/support/reference.ts defines each operator in float64.
#pragma once

#include <cstdint>

#include "backend/dtype.h"

namespace diffqkv {

// out[t, :] = table[tokens[t], :]. A token outside [0, vocab_size) is ERR_INVALID_ARGUMENT.
struct EmbedParams {
  const void* table = nullptr;      // [vocab_size, hidden_size]
  const int32_t* tokens = nullptr;  // [num_tokens]
  void* out = nullptr;              // [num_tokens, hidden_size]
  DType table_dtype = DType::f32, out_dtype = DType::f32;
  int64_t num_tokens = 0, vocab_size = 0, hidden_size = 0;
};

// Where residual is given: residual += x first (in place, in residual's type) and h = residual; else h = x.
// out = h / sqrt(mean(h^2) + eps) * weight.
struct RmsNormParams {
  const void* x = nullptr;       // [num_tokens, hidden_size]
  void* residual = nullptr;      // [num_tokens, hidden_size], or null
  const void* weight = nullptr;  // [hidden_size]
  void* out = nullptr;           // [num_tokens, hidden_size]
  DType x_dtype = DType::f32, residual_dtype = DType::f32, weight_dtype = DType::f32, out_dtype = DType::f32;
  int64_t num_tokens = 0, hidden_size = 0;
  float eps = 0;
};

// out = x weight^T, or out += x weight^T where accumulate is set (out is f32 then). Accumulates in f32.
struct MatmulParams {
  const void* x = nullptr;       // [num_tokens, in_features]
  const void* weight = nullptr;  // [out_features, in_features]
  void* out = nullptr;           // [num_tokens, out_features]
  DType x_dtype = DType::f32, weight_dtype = DType::f32, out_dtype = DType::f32;
  int64_t num_tokens = 0, in_features = 0, out_features = 0;
  bool accumulate = false;
};

// out (+)= (silu(x gate^T) * (x up^T)) down^T: the gated MLP that augments Q. A layer's FFN is the same formula, and
// the forward graph uses this operator for both.
struct AugmentedQParams {
  const void* x = nullptr;     // [num_tokens, in_features]
  const void* gate = nullptr;  // [inner_size, in_features]
  const void* up = nullptr;    // [inner_size, in_features]
  const void* down = nullptr;  // [out_features, inner_size]
  void* out = nullptr;         // [num_tokens, out_features]
  DType x_dtype = DType::f32, weight_dtype = DType::f32, out_dtype = DType::f32;
  int64_t num_tokens = 0, in_features = 0, inner_size = 0, out_features = 0;
  bool accumulate = false;  // out is f32 then
};

// out = silu(gate) * up, elementwise; all of one type. out may be gate or up.
struct SiluMulParams {
  const void* gate = nullptr;
  const void* up = nullptr;
  void* out = nullptr;
  DType dtype = DType::f32;
  int64_t count = 0;
};

// Rotate-half RoPE: for d < head_dim / 2 and a = position * inv_freq[d],
// out[d] = x[d] cos a - x[d + head_dim/2] sin a;  out[d + head_dim/2] = x[d + head_dim/2] cos a + x[d] sin a.
// Angles are formed and reduced in float64: at position 100,000 float32 would lose the third digit. out may be x.
struct RopeParams {
  const void* x = nullptr;             // [num_tokens, num_heads, head_dim]
  void* out = nullptr;                 // the same
  const int32_t* positions = nullptr;  // [num_tokens]
  const double* inv_freq = nullptr;    // [head_dim / 2]
  DType dtype = DType::f32;
  int64_t num_tokens = 0, num_heads = 0, head_dim = 0;
};

// A row of K or V of one head, quantized: type i8 or f8e4m3, with one scale, a bf16; an element means itself times the scale.
// scale = the largest magnitude of the row / 127 (i8) or / 448 (f8e4m3), rounded up to bf16 (away from zero), and
// element = round to nearest even(x / scale), divided in f32. A row whose largest magnitude is below 2^-100 has scale 0 and
// elements 0; one with a NaN or an infinity has scale NaN and elements 0, so that all of it reads as NaN.
struct QuantizeParams {
  const void* x = nullptr;  // [num_rows, head_dim]
  void* out = nullptr;      // the same, i8 or f8e4m3
  void* scales = nullptr;   // bf16 [num_rows]
  DType x_dtype = DType::f32, out_dtype = DType::i8;
  int64_t num_rows = 0, head_dim = 0;
};

// A page of a KV cache: K and V of page_tokens tokens, all layers, each in its own pool. A layer's part of a page lies
// k_page_offset (v_page_offset) bytes after its start: [page_tokens, num_heads, head_dim] elements, and for i8 and f8e4m3 behind
// them the scales, bf16 [page_tokens, num_heads]. Pages start at multiples of 128 bytes, and offsets are such multiples. page_tokens
// is a power of two from 32 to 128. A sequence's table of pages lies in device memory: token j is in pages[j / page_tokens].
struct KvPage {
  void* k;
  void* v;
};

// Bytes of one layer's part of a page of K or of V.
constexpr int64_t kv_page_layer_bytes(DType dtype, int64_t page_tokens, int64_t num_heads, int64_t head_dim) {
  const bool scaled = dtype == DType::i8 || dtype == DType::f8e4m3;
  const int64_t bytes =
      page_tokens * num_heads * (head_dim * static_cast<int64_t>(dtype_size(dtype)) + (scaled ? 2 : 0));
  return (bytes + 127) / 128 * 128;
}

// Writes rope(k) and v of num_tokens new tokens into the caches of their sequences, at positions[t], quantized where the cache is.
// The only writer of a cache. Where inv_freq is null K goes in as it is.
struct KvAppendParams {
  const void* k = nullptr;               // [num_tokens, num_k_heads, head_dim_qk], before RoPE
  const void* v = nullptr;               // [num_tokens, num_v_heads, head_dim_vo]
  const KvPage* const* pages = nullptr;  // [number of sequences]: their tables
  const int32_t* sequences = nullptr;    // [num_tokens]: whose token it is; null: all are of sequence 0
  const int32_t* positions = nullptr;    // [num_tokens], each in [0, max_kv_len)
  const double* inv_freq = nullptr;      // [head_dim_qk / 2]
  DType k_dtype = DType::f32, v_dtype = DType::f32, k_cache_dtype = DType::f32, v_cache_dtype = DType::f32;
  int64_t num_tokens = 0, max_kv_len = 0, num_k_heads = 0, num_v_heads = 0, head_dim_qk = 0, head_dim_vo = 0;
  int64_t page_tokens = 0, k_page_offset = 0, v_page_offset = 0;
};

// out[j] = row j of a sequence's K cache, for j < num_keys, with its scale multiplied in: where K must be lifted before attention
// can use it.
struct KvGatherParams {
  const KvPage* pages = nullptr;  // one table
  void* out = nullptr;            // [num_keys, num_k_heads, head_dim]
  DType cache_dtype = DType::f32, out_dtype = DType::f32;
  int64_t num_keys = 0, num_k_heads = 0, head_dim = 0;
  int64_t page_tokens = 0, k_page_offset = 0;
};

// Softmax attention of Q over separate K and V tensors, each with its own head count, head size and type.
// Q head i reads K head i * num_k_heads / num_q_heads and V head i * num_v_heads / num_q_heads (integer division).
// Causal: query i of sequence b sees keys j <= kv_lens[b] - q_len + i. A query that sees no key gives out = 0 and
// lse = -inf. lse is the natural logarithm of the sum of exp(sm_scale * q.k). A kv_lens entry outside [0, kv_len] is
// ERR_INVALID_ARGUMENT.
// K and V are each f32, f16, bf16, or i8 or f8e4m3 with scales, in any pair; Q and out f32, f16 or bf16. They are contiguous (k, v and
// the scales), or paged, where `pages` is given: then k, v, the scales and the batch strides are not looked at.
struct AttentionPrefillParams {
  const void* q = nullptr;           // [batch_size, q_len, num_q_heads, head_dim_qk]
  const void* k = nullptr;           // [batch_size, kv_len, num_k_heads, head_dim_qk]
  const void* v = nullptr;           // [batch_size, kv_len, num_v_heads, head_dim_vo]
  void* out = nullptr;               // [batch_size, q_len, num_q_heads, head_dim_vo]
  float* lse = nullptr;              // [batch_size, num_q_heads, q_len], or null
  const int32_t* kv_lens = nullptr;  // [batch_size], or null for kv_len everywhere
  DType q_dtype = DType::f32, k_dtype = DType::f32, v_dtype = DType::f32, out_dtype = DType::f32;
  int64_t batch_size = 0, q_len = 0, kv_len = 0;
  int64_t num_q_heads = 0, num_k_heads = 0, num_v_heads = 0, head_dim_qk = 0, head_dim_vo = 0;
  int64_t stride_k_batch = 0, stride_v_batch = 0;  // 0: all sequences share one cache
  const void* k_scales = nullptr;        // i8, f8e4m3: bf16 [batch_size, kv_len, num_k_heads], strides as k and v have
  const void* v_scales = nullptr;        // bf16 [batch_size, kv_len, num_v_heads]
  const KvPage* const* pages = nullptr;  // a table for each sequence; or one for all, where pages_shared is set
  bool pages_shared = false;
  int64_t page_tokens = 0, k_page_offset = 0, v_page_offset = 0;
  float sm_scale = 0;
  bool causal = false;
};

// One query per sequence. With selective_top_k > 0 only the V rows of the selective_top_k highest scores of each query head enter the sum (paper,
// B.2); of equal scores the earlier key wins. The softmax still runs over all keys unless renormalize is set.
struct AttentionDecodeParams {
  const void* q = nullptr;           // [batch_size, num_q_heads, head_dim_qk]
  const void* k = nullptr;           // [batch_size, kv_len, num_k_heads, head_dim_qk]
  const void* v = nullptr;           // [batch_size, kv_len, num_v_heads, head_dim_vo]
  void* out = nullptr;               // [batch_size, num_q_heads, head_dim_vo]
  float* lse = nullptr;              // [batch_size, num_q_heads], or null; over all keys, always
  const int32_t* kv_lens = nullptr;  // [batch_size], or null for kv_len everywhere
  DType q_dtype = DType::f32, k_dtype = DType::f32, v_dtype = DType::f32, out_dtype = DType::f32;
  int64_t batch_size = 0, kv_len = 0;
  int64_t num_q_heads = 0, num_k_heads = 0, num_v_heads = 0, head_dim_qk = 0, head_dim_vo = 0;
  int64_t stride_k_batch = 0, stride_v_batch = 0;  // 0: all sequences share one cache
  const void* k_scales = nullptr;        // i8, f8e4m3: bf16 [batch_size, kv_len, num_k_heads], strides as k and v have
  const void* v_scales = nullptr;        // bf16 [batch_size, kv_len, num_v_heads]
  const KvPage* const* pages = nullptr;  // a table for each sequence; or one for all, where pages_shared is set
  bool pages_shared = false;
  int64_t page_tokens = 0, k_page_offset = 0, v_page_offset = 0;
  float sm_scale = 0;
  int64_t num_splits = 0;  // 0: the backend chooses
  int64_t selective_top_k = 0;
  bool renormalize = false;
};

// Draws the next token. In this order: repetition penalty over `history` (logit / penalty where positive, else
// logit * penalty), temperature, top-k, top-p, min-p, then one uniform number from Philox-4x32-10 keyed by seed at
// counter `step`. temperature 0 takes the largest logit (the lowest index of equals) after the penalty.
struct SampleParams {
  const float* logits = nullptr;     // [vocab_size], left as it is
  const int32_t* history = nullptr;  // [history_len]: tokens that the penalty applies to
  int32_t* out_token = nullptr;      // [1]
  int64_t vocab_size = 0, history_len = 0;
  float temperature = 0;
  int64_t top_k = 0;  // 0: all
  float top_p = 1, min_p = 0, repetition_penalty = 1;
  uint64_t seed = 0, step = 0;
};

}  // namespace diffqkv
