// Lifts the cached keys of one layer of a sequence into scratch memory, for lifts that cannot be
// absorbed by Q (KeyLift::on_keys). The K pages have key_head_dim elements per head, but attention
// reads the lifted keys.
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

  // Makes room for kv_len keys and builds a page table of lifted K and cached V. Once per step and
  // sequence.
  void begin(const KvCache& cache, int64_t kv_len);
  // Lifts the keys of `layer`. k_view() describes them.
  void lift(const LayerWeights& weights, const Weights& model, const KvCache& cache, int64_t layer);
  KvView k_view() const {
    return {.num_heads = config_->num_k_heads, .head_dim = config_->head_dim_qk, .dtype = dtype_};
  }
  // A pointer to the table, in device memory.
  const KvPage* const* pages() const { return pointer_.as<const KvPage* const>(); }

 private:
  static constexpr int64_t kChunkKeys = 1024;  // keys lifted at a time, a multiple of a page

  std::shared_ptr<Backend> backend_;
  const Config* config_ = nullptr;
  DType dtype_ = DType::f32;
  int64_t kv_len_ = 0;
  Buffer cached_;     // [kChunkKeys, num_k_heads, head_dim_k]
  Buffer chunk_;      // [kChunkKeys, num_k_heads, head_dim_qk]: lifted, without RoPE
  Buffer keys_;       // pages
  Buffer positions_;  // i32 [pages * page_tokens]: 0, 1, 2, ...
  Buffer table_;
  Buffer pointer_;
};

}  // namespace diffqkv
