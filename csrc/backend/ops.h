// One Params struct per operator of operators.h. Pointers are device memory, row-major, last axis
// contiguous. Strides are in elements. Values that change from one decode step to the next (tokens,
// positions, kv_lens) are read from device memory, so that a step can be captured once and
// replayed. test/support/reference.ts defines each operator in float64.
#pragma once

#include <cstdint>

#include "backend/activation.h"
#include "backend/dtype.h"

namespace diffqkv {

// out[t, :] = scale * table[tokens[t], :], rounded once. A token outside [0, vocab_size) is
// ERR_INVALID_ARGUMENT.
struct EmbedParams {
  const void* table = nullptr;      // [vocab_size, hidden_size]
  const int32_t* tokens = nullptr;  // [num_tokens]
  void* out = nullptr;              // [num_tokens, hidden_size]
  DType table_dtype = DType::f32, out_dtype = DType::f32;
  int64_t num_tokens = 0, vocab_size = 0, hidden_size = 0;
  float scale = 1;  // at 1, out has the bits of the table
};

// out = h / sqrt(mean(h^2) + eps) * weight, or out += that if accumulate is set. If residual is
// given, residual += x first (in place, in residual's type), and h = residual; else h = x.
struct RmsNormParams {
  const void* x = nullptr;       // [num_tokens, hidden_size]
  void* residual = nullptr;      // [num_tokens, hidden_size], or null
  const void* weight = nullptr;  // [hidden_size]
  void* out = nullptr;           // [num_tokens, hidden_size]
  DType x_dtype = DType::f32, residual_dtype = DType::f32, weight_dtype = DType::f32, out_dtype = DType::f32;
  int64_t num_tokens = 0, hidden_size = 0;
  float eps = 0;
  bool accumulate = false;  // out must be f32, and residual null
};

// out[t, :] = x[t, :] + bias. out may be x.
struct AddBiasParams {
  const void* x = nullptr;      // [num_tokens, num_features]
  const float* bias = nullptr;  // [num_features]
  void* out = nullptr;          // [num_tokens, num_features]
  DType dtype = DType::f32;     // of x and out
  int64_t num_tokens = 0, num_features = 0;
};

// The weight of a linear layer, [out_features, in_features]: f32, f16, bf16, or integers, i8 or i4,
// with a scale, bf16 or f16, for each group of group_size elements of a row (32, 64 or 128; the last
// group may be shorter). The value of an element is its scale times its integer.
//
// Rows of integers are padded with zeros to a multiple of 32. i8 has a byte for each. i4, from -8 to
// 7, has eight in a 32-bit word, each as integer + 8 in 4 bits: element 2 k + h is at bit 16 h + 4 k,
// so that (word >> 4 k) & 0x000f000f are two neighbors.
struct WeightView {
  const void* data = nullptr;
  DType dtype = DType::f32;
  const void* scales = nullptr;     // i8 or i4: [out_features, weight_row_groups]
  int64_t group_size = 0;           // i8 or i4
  DType scale_dtype = DType::bf16;  // or f16
  bool is_constant = false;         // no operator writes it: it may be read before earlier ones have ended
};

constexpr int64_t weight_row_bytes(DType dtype, int64_t in_features) {
  const int64_t padded = (in_features + 31) / 32 * 32;
  if (dtype == DType::i4) return padded / 2;
  return dtype == DType::i8 ? padded : in_features * static_cast<int64_t>(dtype_size(dtype));
}
constexpr int64_t weight_row_groups(int64_t in_features, int64_t group_size) {
  return (in_features + group_size - 1) / group_size;
}

// The rows of a weight from `first` on.
__attribute__((always_inline)) inline WeightView weight_rows(const WeightView& weight, int64_t in_features,
                                                             int64_t first) {
  WeightView rows = weight;
  rows.data = static_cast<const char*>(weight.data) + first * weight_row_bytes(weight.dtype, in_features);
  if (weight.scales) {
    const int64_t groups = weight_row_groups(in_features, weight.group_size);
    rows.scales = static_cast<const char*>(weight.scales) + first * groups * 2;
  }
  return rows;
}

// Quantizes a weight to i8 or i4 by group (WeightView). Among a few scales, each group gets the bf16
// scale with the least squared error, and each element the integer nearest to element / scale. The
// error is at most that of the scale max |element| / 127 or / 7. A scale may be negative. A group
// with max |element| below 2^-100 has scale 0 and integers 0. A group with a NaN or an infinity has
// scale NaN and integers 0.
struct QuantizeWeightParams {
  const void* weight = nullptr;  // [out_features, in_features]: f32, f16 or bf16
  void* data = nullptr;          // out_features rows of weight_row_bytes(dtype, in_features)
  void* scales = nullptr;        // bf16 [out_features, weight_row_groups]
  DType weight_dtype = DType::f32, dtype = DType::i8;
  int64_t out_features = 0, in_features = 0, group_size = 32;
};

// A norm of x before it is multiplied. x is then f32. Each of its rows is normalized as by rms_norm,
// with an f32 weight, and rounded to x_dtype; y = rms_norm(x) W^T.
struct InputNorm {
  const float* weight = nullptr;  // [in_features]; null: no norm, and x is of type x_dtype
  float eps = 0;
};

struct MatmulOutput {
  WeightView weight;    // [out_features, in_features]
  void* out = nullptr;  // [num_tokens, out_features]
  int64_t out_features = 0;
};

// out = x weight^T, or out += x weight^T if accumulate is set. Sums are f32. `others` are outputs of
// the same x, type and accumulate, with weights of the same types and group size: K, V and Q of a
// layer are one call.
struct MatmulParams {
  const void* x = nullptr;  // [num_tokens, in_features]
  InputNorm norm = {};
  WeightView weight;    // [out_features, in_features]
  void* out = nullptr;  // [num_tokens, out_features]
  DType x_dtype = DType::f32, out_dtype = DType::f32;
  int64_t num_tokens = 0, in_features = 0, out_features = 0;
  bool accumulate = false;  // out must be f32
  static constexpr int kMaxOthers = 2;
  MatmulOutput others[kMaxOthers];
  int num_others = 0;

  __attribute__((always_inline)) int num_outputs() const { return 1 + num_others; }
  __attribute__((always_inline)) MatmulOutput output(int i) const {
    return i == 0 ? MatmulOutput{weight, out, out_features} : others[i - 1];
  }
  // The params of one output.
  MatmulParams single(int i) const {
    MatmulParams one = *this;
    one.weight = output(i).weight;
    one.out = output(i).out;
    one.out_features = output(i).out_features;
    one.num_others = 0;
    return one;
  }
};

// out (+)= (activation(x gate^T) * (x up^T)) down^T: a layer's FFN, and the MLP that augments Q.
// Without a gate, out (+)= activation(x up^T) down^T. Gate and up have one type and group size; down
// may have another. `others` are products of the same x, of out's type and never accumulated, with
// weights of the types and group size of gate and up: K, V and augmented Q of a layer are one call.
struct GatedMlpParams {
  const void* x = nullptr;  // [num_tokens, in_features]
  InputNorm norm = {};
  WeightView gate;      // [inner_size, in_features], or without data
  WeightView up;        // [inner_size, in_features]
  WeightView down;      // [out_features, inner_size]
  void* out = nullptr;  // [num_tokens, out_features]
  DType x_dtype = DType::f32, out_dtype = DType::f32;
  int64_t num_tokens = 0, in_features = 0, inner_size = 0, out_features = 0;
  Activation activation = Activation::silu;
  bool accumulate = false;  // out must be f32
  MatmulOutput others[MatmulParams::kMaxOthers];
  int num_others = 0;
};

// out = activation(gate) * up, elementwise, or activation(up) without a gate; all have the same
// type. out may be gate or up.
struct GatedActivationParams {
  const void* gate = nullptr;  // or null
  const void* up = nullptr;
  void* out = nullptr;
  DType dtype = DType::f32;
  int64_t count = 0;
  Activation activation = Activation::silu;
};

// out = cap * tanh(x / cap), elementwise. out may be x.
struct SoftcapParams {
  const float* x = nullptr;
  float* out = nullptr;
  int64_t count = 0;
  float cap = 0;  // positive and finite
};

// Rotate-half RoPE: for d < head_dim / 2 and a = position * inv_freq[d],
//   out[d] = x[d] cos a - x[d + head_dim/2] sin a
//   out[d + head_dim/2] = x[d + head_dim/2] cos a + x[d] sin a
// and both are multiplied by scale. A pair with inv_freq 0 is copied, without the scale.
// Angles are computed and reduced in float64, because float32 would lose the third digit at
// position 100,000. out may be x.
struct RopeParams {
  const void* x = nullptr;             // [num_tokens, num_heads, head_dim]
  void* out = nullptr;                 // the same
  const int32_t* positions = nullptr;  // [num_tokens]
  const double* inv_freq = nullptr;    // [head_dim / 2]; head_dim is even
  DType dtype = DType::f32;
  int64_t num_tokens = 0, num_heads = 0, head_dim = 0;
  float scale = 1;
};

// Quantizes rows (K or V of one token and head) to i8 or f8e4m3, each with one bf16 scale. The
// value of an element is element * scale.
//   scale = max |x| of the row / 127 (i8) or / 448 (f8e4m3), rounded up to bf16
//   element = round to nearest even(x / scale), divided in f32
// A row with max |x| below 2^-100 has scale 0 and elements 0. A row with a NaN or an infinity has
// scale NaN and elements 0, so that all of it reads as NaN.
struct QuantizeParams {
  const void* x = nullptr;  // [num_rows, head_dim]
  void* out = nullptr;      // the same, i8 or f8e4m3
  void* scales = nullptr;   // bf16 [num_rows]
  DType x_dtype = DType::f32, out_dtype = DType::i8;
  int64_t num_rows = 0, head_dim = 0;
};

// A page of a KV cache: the K and V rows of page_tokens tokens, for all layers, with K and V in
// pools of their own. A layer's part of a page starts KvView::page_offset bytes after the start of
// the page. It has the elements, and for i8 and f8e4m3 after them the scales, bf16. The order of both
// is the backend's own: on the CPU [page_tokens, num_heads, head_dim] and [page_tokens, num_heads], on
// CUDA as in cuda/kv_page.h. Only kv_append writes rows; a page is copied as a whole. Pages and
// offsets are multiples of 128 bytes. page_tokens is 32, 64 or 128. Each sequence has a page table in
// device memory: token j is in pages[j / page_tokens].
struct KvPage {
  void* k;
  void* v;
};

enum class KvTensor { k, v };

// Bytes of one layer's part of a page of K or of V.
constexpr int64_t kv_page_layer_bytes(DType dtype, int64_t page_tokens, int64_t num_heads, int64_t head_dim) {
  const int64_t scale_bytes = dtype_is_scaled(dtype) ? 2 : 0;
  const int64_t row_bytes = head_dim * static_cast<int64_t>(dtype_size(dtype)) + scale_bytes;
  const int64_t bytes = page_tokens * num_heads * row_bytes;
  return (bytes + 127) / 128 * 128;
}

// K or V of a cache, each with its own head count, head size and type: f32, f16, bf16, or i8 or
// f8e4m3 with scales. It is contiguous, or in pages if the operator's params have page tables.
struct KvView {
  const void* data = nullptr;    // contiguous: [batch_size, kv_len, num_heads, head_dim]
  const void* scales = nullptr;  // contiguous, i8 or f8e4m3: bf16 [batch_size, kv_len, num_heads]
  int64_t num_heads = 0, head_dim = 0;
  int64_t batch_stride = 0;  // contiguous: from sequence to sequence; 0: all share one cache
  int64_t page_offset = 0;   // paged: bytes from the start of a page to the layer's part
  DType dtype = DType::f32;
};

// Writes rope(k) and v of num_tokens new tokens into the caches of their sequences, at
// positions[t]. Quantizes them if the cache is quantized. No other operator writes a cache. If
// inv_freq is null, K is written without RoPE. The queries of the same step, `q`, are rotated in the
// same launch.
struct KvAppendParams {
  const void* k = nullptr;               // [num_tokens, k_cache.num_heads, k_cache.head_dim]
  const void* v = nullptr;               // [num_tokens, v_cache.num_heads, v_cache.head_dim]
  KvView k_cache, v_cache;               // paged
  const KvPage* const* pages = nullptr;  // [number of sequences]: their page tables
  const int32_t* sequences = nullptr;    // [num_tokens]: index of its sequence; null: 0 for all
  const int32_t* positions = nullptr;    // [num_tokens], each in [0, max_kv_len)
  const double* inv_freq = nullptr;      // [k_cache.head_dim / 2]; the size is even
  float rope_scale = 1;                  // RopeParams::scale
  DType k_dtype = DType::f32, v_dtype = DType::f32;
  int64_t num_tokens = 0, max_kv_len = 0, page_tokens = 0;
  RopeParams q = {};  // without tokens, none
};

// out[j] = row j of a sequence's K cache, multiplied by its scale, for j < num_keys. Used if K must
// be lifted before attention.
struct KvGatherParams {
  KvView k;                       // paged
  const KvPage* pages = nullptr;  // one page table
  void* out = nullptr;            // [num_keys, k.num_heads, k.head_dim]
  DType out_dtype = DType::f32;
  int64_t num_keys = 0, page_tokens = 0;
};

// Softmax attention of Q over separate K and V. Q head i reads K head i * k.num_heads / num_q_heads
// and V head i * v.num_heads / num_q_heads (integer division). A query that sees no key gives
// out = 0 and lse = -inf. The score of a key is sm_scale * q.k, or softcap * tanh(sm_scale * q.k /
// softcap) if softcap is not 0. lse is the natural logarithm of the sum of exp(score) over all keys
// that the query sees. A kv_lens entry outside [0, kv_len] is ERR_INVALID_ARGUMENT.
//
// With a window, a query at position p sees only keys j > p - window of those that it would see
// without. Its position is that of its last visible key. No key before the windows of all queries of
// a sequence is read, and entries of the page table that have only such keys may be anything.
struct AttentionParams {
  const void* q = nullptr;               // [batch_size, q_len, num_q_heads, k.head_dim]
  KvView k, v;                           // any two types
  void* out = nullptr;                   // [batch_size, q_len, num_q_heads, v.head_dim]
  float* lse = nullptr;                  // [batch_size, num_q_heads, q_len], or null
  const int32_t* kv_lens = nullptr;      // [batch_size], or null: kv_len for all
  const KvPage* const* pages = nullptr;  // [batch_size]: page tables; null: K and V are contiguous
  bool pages_shared = false;             // `pages` has one page table, for all sequences
  // Types of q and out: f32, f16 or bf16.
  DType q_dtype = DType::f32, out_dtype = DType::f32;
  float sm_scale = 0;
  float softcap = 0;   // 0: none
  int64_t window = 0;  // 0: none. Prefill with a window must be causal.
  int64_t page_tokens = 0;
  int64_t batch_size = 0, kv_len = 0, num_q_heads = 0;
};

// Causal: query i of sequence b sees keys j <= kv_lens[b] - q_len + i.
struct AttentionPrefillParams : AttentionParams {
  int64_t q_len = 0;
  bool causal = false;
};

// One query per sequence: q_len is 1. If top_k > 0 (selective V; paper, B.2), only the V rows of
// the top_k highest scores of each query head enter the sum; of equal scores the earlier key wins.
// The softmax still runs over all keys unless renormalize is set.
struct AttentionDecodeParams : AttentionParams {
  int64_t num_splits = 0;  // 0: the backend chooses
  int64_t top_k = 0;       // 0: all
  bool renormalize = false;
};

// A number that is added to the logit of a token; -infinity forbids the token, whatever its logit is.
struct LogitBias {
  int32_t token = 0;
  float bias = 0;
};

// How the token of one row is drawn, in device memory. check_sample_row (check.h) has the ranges; the
// operator does not check them.
struct SampleRow {
  const int32_t* history = nullptr;  // [history_len]: tokens that are penalized
  int64_t history_len = 0;
  const LogitBias* biases = nullptr;  // [num_biases], in rising order of tokens
  int64_t num_biases = 0;
  // [ceil(vocab_size / 32)]: bit t % 32 of word t / 32 says whether token t can be drawn. Null: all can.
  const uint32_t* allowed = nullptr;
  uint64_t seed = 0, step = 0;
  int64_t top_k = 0;  // 0: all
  float temperature = 0, top_p = 1, min_p = 0, repetition_penalty = 1;
  int64_t draws = 1;  // 0: nothing is drawn, read or written for this row
  bool operator==(const SampleRow&) const = default;
};
static_assert(sizeof(SampleRow) == 88, "no padding");

// Draws the next token of each row. In this order: repetition penalty over `history` (logit /
// penalty if the logit is positive, else logit * penalty), biases, -infinity for tokens that are not
// allowed, temperature, top-k, top-p, min-p, then one uniform number from Philox-4x32-10 keyed by
// seed at counter `step`. Temperature 0 selects the largest of these logits, and of equal logits the
// lowest index. A token of a history or a bias that is outside [0, vocab_size) is
// ERR_INVALID_ARGUMENT.
//
// A token's weight is exp((logit - largest logit) / temperature). On the CPU weights and their sums
// are f64. On a GPU they are f32, within a relative error of 2^-21, and rounded down to a multiple of
// 2^-44 (a smaller power for vocabularies above 2^18), with exact sums. So only a draw or a border of
// top-p or min-p that is about so close to another token can differ. A draw depends on neither the
// other rows nor the size of the GPU.
//
// No token can be drawn from a NaN, or if all logits are -infinity. That is not an error of the call:
// out_invalid says so for the row, whose token is then 0.
struct SampleParams {
  const float* logits = nullptr;    // [num_rows, vocab_size], not changed
  const SampleRow* rows = nullptr;  // [num_rows]
  int32_t* out_tokens = nullptr;    // [num_rows]
  // [num_rows]: 0 if a token was drawn; 1 + t if the logit of token t is the first that is NaN, after
  // the penalty; kNoLogit if all are -infinity.
  int32_t* out_invalid = nullptr;
  int64_t num_rows = 0, vocab_size = 0;
  static constexpr int32_t kNoLogit = -1;
};

// Log probabilities: log(softmax(logits)) of one token of each row, and of the top_n most likely
// tokens, the most likely first, of equal ones the lowest index first. A row with a NaN or +infinity, or
// without a finite logit, gives NaN. A token outside [0, vocab_size) is ERR_INVALID_ARGUMENT.
struct LogProbsParams {
  static constexpr int64_t kMaxTopN = 20;
  const float* logits = nullptr;                    // [num_rows, vocab_size]
  const int32_t* tokens = nullptr;                  // [num_rows]
  float* out = nullptr;                             // [num_rows]
  int32_t* out_top_tokens = nullptr;                // [num_rows, top_n], not read if top_n is 0
  float* out_top = nullptr;                         // [num_rows, top_n]
  int64_t num_rows = 0, vocab_size = 0, top_n = 0;  // top_n <= min(vocab_size, kMaxTopN)
};

}  // namespace diffqkv
