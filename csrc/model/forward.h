// The one forward graph, over Backend: the same calls in the same order on every device.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

#include "backend/backend.h"
#include "model/config.h"
#include "model/kv_cache.h"
#include "model/weights.h"

namespace diffqkv {

// Tokens that pass the layers together. A longer prompt goes in chunks, so that the workspace stays this size.
inline constexpr int64_t kPrefillChunk = 512;

// Device memory for one chunk's activations. Calls on one device run one after another, so a model's sessions share it.
struct Workspace {
  Workspace(const std::shared_ptr<Backend>& backend, const Config& config, const Weights& weights);

  Buffer residual;   // [kPrefillChunk, hidden_size], f32; what follows has the weights' type
  Buffer normed;     // [kPrefillChunk, hidden_size]
  Buffer q_in;       // [kPrefillChunk, q_size], where augmented Q is there and not folded
  Buffer q;          // [kPrefillChunk, q_size]
  Buffer k, v;       // [kPrefillChunk, k_size], [kPrefillChunk, v_size]
  Buffer attention;  // [kPrefillChunk, o_size]
  Buffer steps;      // i32 [3 * kPrefillChunk]: tokens, positions, kv_lens
};

struct ForwardStep {
  const int32_t* tokens = nullptr;  // host, [num_tokens], at most kPrefillChunk
  int64_t num_tokens = 0;
  int64_t pos = 0;           // of the first token: as many rows of the cache are in use
  KvCache* cache = nullptr;  // with room for pos + num_tokens rows
  float* logits = nullptr;   // device, [vocab_size]: those of the last token. Null: K and V are all that is wanted
  int64_t selective_top_k = 0;
  bool renormalize = false;
  const std::atomic<bool>* cancel = nullptr;  // looked at before each layer
};

// Writes the tokens' rows of the cache. Throws with the first `pos` rows as they were.
void run_forward(Backend& backend, const Config& config, const Weights& weights, Workspace& workspace,
                 const ForwardStep& step);

}  // namespace diffqkv
