// The one forward graph, over Backend: the same calls in the same order on every device.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "backend/backend.h"
#include "model/config.h"
#include "model/kv_cache.h"
#include "model/lifted_keys.h"
#include "model/weights.h"

namespace diffqkv {

// Tokens that pass the layers together. A longer prompt goes in chunks, so that the workspace stays this size.
inline constexpr int64_t kPrefillChunk = 512;
// Sequences that decode together. On the CPU each of them gets the same bits as it would alone.
inline constexpr int64_t kDecodeBatch = 16;

// Device memory for one chunk's activations. Calls on one device run one after another, so a model's sessions share it.
struct Workspace {
  Workspace(const std::shared_ptr<Backend>& backend, const Config& config, const Weights& weights);

  Buffer residual;   // [kPrefillChunk, hidden_size], f32; what follows has the weights' type
  Buffer normed;     // [kPrefillChunk, hidden_size]
  Buffer q_in;       // [kPrefillChunk, q_size], where augmented Q is there and not folded
  Buffer q;          // [kPrefillChunk, q_size]
  Buffer q_lifted;   // [kPrefillChunk, num_q_heads, head_dim_k], where Q takes over the lift of K
  Buffer k, v;       // [kPrefillChunk, k_size], [kPrefillChunk, v_size]
  Buffer attention;  // [kPrefillChunk, o_size]
  Buffer
      steps;  // pointers to page tables [kDecodeBatch]; i32 [4][kPrefillChunk]: tokens, positions, kv_lens, sequences
  Buffer logits;      // f32 [kDecodeBatch, vocab_size]
  Buffer out_tokens;  // i32 [kDecodeBatch]
  LiftedKeys lifted;
};

struct ForwardSequence {
  KvCache* cache = nullptr;  // with room for pos + num_tokens rows
  int64_t pos = 0;           // of the first token: as many rows of the cache are in use
  int64_t num_tokens = 0;
};

struct ForwardStep {
  // One sequence with up to kPrefillChunk tokens, or up to kDecodeBatch with one token each and caches of the same types.
  std::vector<ForwardSequence> sequences;
  const int32_t* tokens = nullptr;  // host, [sum of num_tokens]
  bool logits =
      false;  // those of each sequence's last token go to Workspace::logits; else K and V are all that is wanted
  int64_t selective_top_k = 0;
  bool renormalize = false;
  std::vector<const std::atomic<bool>*> cancels;  // looked at before each layer: any of them ends the pass
};

// Writes the tokens' rows of the caches. Throws with the rows before them as they were.
void run_forward(Backend& backend, const Config& config, const Weights& weights, Workspace& workspace,
                 const ForwardStep& step);

}  // namespace diffqkv
