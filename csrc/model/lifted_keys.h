// Keys that are cached small and lifted where they are used: all of a sequence's keys of one layer, lifted into scratch
// memory, for the lifts that Q cannot take over (KeyLift::on_keys). K's pages are as small as key_head_dim says; what
// decoding reads is not.
#pragma once

#include <memory>
#include <vector>

#include "backend/backend.h"
#include "model/config.h"
#include "model/kv_cache.h"
#include "model/weights.h"

namespace diffqkv {

class LiftedKeys {
 public:
  LiftedKeys() = default;
  LiftedKeys(std::shared_ptr<Backend> backend, const Config& config, DType dtype);

  // Makes room for kv_len keys of the sequence, and its table: lifted K beside the cached V. Once a step and sequence.
  void begin(const KvCache& cache, int64_t kv_len);
  // Lifts layer `layer`. Attention then finds K in the weights' type at offset 0 of the pages.
  void lift(const LayerWeights& weights, const Weights& model, const KvCache& cache, int64_t layer);
  // In device memory: a pointer to the table.
  const KvPage* const* pages() const { return pointer_.as<const KvPage* const>(); }

 private:
  static constexpr int64_t kChunkKeys = 1024;  // at a time, a multiple of a page

  std::shared_ptr<Backend> backend_;
  const Config* config_ = nullptr;
  DType dtype_ = DType::f32;
  int64_t kv_len_ = 0;
  Buffer cached_;     // [kChunkKeys, num_k_heads, head_dim_k]
  Buffer keys_;       // [pages, page_tokens, num_k_heads, head_dim_qk]
  Buffer positions_;  // i32 [pages * page_tokens]: 0, 1, 2, ...
  Buffer table_, pointer_;
};

}  // namespace diffqkv
