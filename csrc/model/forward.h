// The forward graph: the same Backend calls in the same order on every device.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "backend/backend.h"
#include "model/config.h"
#include "model/kv_cache.h"
#include "model/lifted_keys.h"
#include "model/replays.h"
#include "model/step_ahead.h"
#include "model/weights.h"

namespace diffqkv {

// Maximum number of tokens per forward pass. A longer prompt runs in chunks, which bounds the
// workspace. `free_bytes`: Backend::free_memory. 512 tokens keep the caches of a CPU busy; a GPU needs
// more, if it has the memory.
constexpr int64_t prefill_chunk_for(uint64_t free_bytes) {
  constexpr uint64_t kGiB = uint64_t{1} << 30;
  if (free_bytes >= 16 * kGiB) return 4096;
  return free_bytes >= 6 * kGiB ? 2048 : 512;
}
// Maximum number of sequences that decode together. On the CPU a sequence gets the same bits in any
// batch.
inline constexpr int64_t kDecodeBatch = 16;

// Device memory for the activations of one chunk. Calls on a device run one after another, so the
// sessions of a model share it.
struct Workspace {
  // The weights are in memory.
  Workspace(const std::shared_ptr<Backend>& backend, const Config& config, const Weights& weights);

  const int64_t prefill_chunk;  // of prefill_chunk_for

  Buffer residual;  // [prefill_chunk, hidden_size], f32

  // In the type of the weights.
  Buffer q_in;       // [prefill_chunk, q_size]; only if augmented Q is not folded
  Buffer q;          // [prefill_chunk, q_size]
  Buffer q_lifted;   // [prefill_chunk, num_q_heads, head_dim_k]; only if Q absorbs the lift of K
  Buffer k;          // [prefill_chunk, k_size]
  Buffer v;          // [prefill_chunk, v_size]
  Buffer attention;  // [prefill_chunk, attention_size]
  // Of differential attention: [prefill_chunk, o_size], the output of the heads a, then of o_proj's
  // input; f32 of the same shape, -lambda times the output of the heads b; i32
  // [prefill_chunk * num_v_heads], the rows of the heads a and b.
  Buffer minuend, subtrahend, minuend_rows, subtrahend_rows;
  // [prefill_chunk, intermediate_size], bf16 if the weights are, else f32, because products of f16
  // may exceed its range. Only if the FFN has biases.
  Buffer gate, up;

  // f32 [prefill_chunk, hidden_size]: what attention or FFN adds to the residual stream, if it is
  // normalized before.
  Buffer branch;
  // Only if a layer has no norm before attention or FFN: i32 [prefill_chunk], 0, 1, 2 and so on; and
  // [prefill_chunk, hidden_size], the residual stream in the type of the weights.
  Buffer rows, converted;

  // Of MLA: [prefill_chunk, q_rank]; [prefill_chunk, rank]; [prefill_chunk, rope]; for all heads,
  // [prefill_chunk, num_q_heads, max(nope + rope, v)], and the same with head_dim_k elements more;
  // f32 [prefill_chunk, head_dim_k].
  Buffer q_a, latent, rotary, heads_a, heads_b, cached_row;
  Buffer by_head, by_token;  // i32 [prefill_chunk * num_q_heads]

  RopeBuffers dynamic_rope;  // of dynamic RoPE, for ForwardStep::rope_length

  // Pointers to page tables [kDecodeBatch], then i32 [4][prefill_chunk]: tokens, positions,
  // kv_lens, sequences.
  Buffer steps;
  Buffer logits;         // f32 [kDecodeBatch, vocab_size]
  Buffer sample_rows;    // SampleRow [kDecodeBatch]
  Buffer sample_inputs;  // of SampleInputs::upload
  // i32 [3][2][kDecodeBatch]: out_tokens and out_invalid of SampleParams; slot 0 is of steps that were
  // asked for, the others in turn of steps ahead.
  Buffer sampled;
  LiftedKeys lifted;
  Replays replays;
  std::optional<StepAhead> ahead;

  int32_t* sampled_slot(int slot) const { return sampled.as<int32_t>() + slot * 2 * kDecodeBatch; }
};

struct ForwardSequence {
  KvCache* cache = nullptr;  // with room for pos + num_tokens rows
  int64_t pos = 0;           // position of the first token: the number of rows in use
  int64_t num_tokens = 0;
};

struct ForwardStep {
  // One sequence of up to Workspace::prefill_chunk tokens, or up to kDecodeBatch sequences of one
  // token, with the same cache types.
  std::vector<ForwardSequence> sequences;
  const int32_t* tokens = nullptr;  // host, [sum of num_tokens]
  // Instead of `tokens`, if they are not empty: places of the tokens in device memory.
  std::vector<const int32_t*> device_tokens;
  // Whether to write the logits of the last token of each sequence to Workspace::logits. If not,
  // only the caches are written.
  bool logits = false;
  int64_t rope_length = 0;  // Session::rope_length, of all sequences
  int64_t selective_top_k = 0;
  bool renormalize = false;
  // Any ends the pass: checked before each layer, or before a pass that may be replayed.
  std::vector<const std::atomic<bool>*> cancels;
};

// Whether steps of one token for each sequence are the same calls, so that they can be replayed: the
// host has nothing to upload in between.
bool can_replay(Backend& backend, const Config& config);

// Writes the rows of the tokens in the caches. After an error earlier rows are unchanged.
void run_forward(Backend& backend, const Config& config, const Weights& weights, Workspace& workspace,
                 const ForwardStep& step);

}  // namespace diffqkv
