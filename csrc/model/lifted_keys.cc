#include "model/lifted_keys.h"

#include <algorithm>
#include <numeric>

namespace diffqkv {

LiftedKeys::LiftedKeys(std::shared_ptr<Backend> backend, const Config& config, DType dtype)
    : backend_(std::move(backend)),
      config_(&config),
      dtype_(dtype),
      cached_(backend_, kChunkKeys * config.k_size() * dtype_size(dtype)),
      chunk_(backend_, kChunkKeys * config.num_k_heads * config.head_dim_qk * dtype_size(dtype)),
      pointer_(backend_, sizeof(KvPage*)) {}

void LiftedKeys::begin(const KvCache& cache, int64_t kv_len) {
  constexpr int64_t kTokens = KvPool::kPageTokens;
  const int64_t page_bytes = kv_page_layer_bytes(dtype_, kTokens, config_->num_k_heads, config_->head_dim_qk);
  const size_t num_pages = static_cast<size_t>((kv_len + kTokens - 1) / kTokens);
  kv_len_ = kv_len;
  if (table_.bytes() < num_pages * sizeof(KvPage)) {
    const size_t room = std::max(num_pages, 2 * table_.bytes() / sizeof(KvPage));
    Buffer keys(backend_, room * page_bytes);
    Buffer table(backend_, room * sizeof(KvPage));
    Buffer positions(backend_, room * kTokens * sizeof(int32_t));
    std::vector<int32_t> numbers(room * kTokens);
    std::iota(numbers.begin(), numbers.end(), 0);
    backend_->upload(positions.data(), numbers.data(), positions.bytes());
    const KvPage* pointer = table.as<KvPage>();
    backend_->upload(pointer_.data(), &pointer, sizeof pointer);
    backend_->synchronize();  // a queued kernel may still read the old buffers
    keys_ = std::move(keys);
    table_ = std::move(table);
    positions_ = std::move(positions);
  }
  std::vector<KvPage> entries(num_pages);
  for (size_t i = 0; i < num_pages; i++) {
    entries[i] = {keys_.as<char>() + static_cast<int64_t>(i) * page_bytes, cache.pages()[i]->v};
  }
  backend_->upload(table_.data(), entries.data(), num_pages * sizeof(KvPage));
}

void LiftedKeys::lift(const LayerWeights& weights, const Weights& model, const KvCache& cache, int64_t layer) {
  const int64_t heads = config_->num_k_heads;
  for (int64_t key = 0; key < kv_len_; key += kChunkKeys) {
    const int64_t num_keys = std::min(kChunkKeys, kv_len_ - key);
    KvGatherParams gather;
    gather.k = cache.k_view(layer);
    gather.pages = cache.table() + key / KvPool::kPageTokens;
    gather.out = cached_.data();
    gather.out_dtype = dtype_;
    gather.num_keys = num_keys;
    gather.page_tokens = KvPool::kPageTokens;
    backend_->kv_gather(gather);
    if (config_->key_lift.kind == KeyLift::linear) {
      MatmulParams p;
      p.x = cached_.data();
      p.weight = weights.k_lift.view();
      p.out = chunk_.data();
      p.x_dtype = p.out_dtype = dtype_;
      p.num_tokens = num_keys * heads;
      p.in_features = config_->head_dim_k;
      p.out_features = config_->head_dim_qk;
      backend_->matmul(p);
    } else {
      GatedMlpParams p;  // the same formula
      p.x = cached_.data();
      p.gate = weights.k_lift_gate.view();
      p.up = weights.k_lift_up.view();
      p.down = weights.k_lift_down.view();
      p.out = chunk_.data();
      p.x_dtype = p.out_dtype = dtype_;
      p.num_tokens = num_keys * heads;
      p.in_features = config_->head_dim_k;
      p.inner_size = config_->key_lift.inner_size;
      p.out_features = config_->head_dim_qk;
      backend_->gated_mlp(p);
    }
    KvAppendParams p;  // only it knows the device's layout of a page
    p.k = chunk_.data();
    p.k_cache = k_view();
    p.pages = pages();
    p.positions = positions_.as<int32_t>() + key;
    p.inv_freq = config_->key_lift.before_rope ? model.ropes[0].inv_freq.as<double>() : nullptr;
    p.k_dtype = dtype_;
    p.num_tokens = num_keys;
    p.max_kv_len = kv_len_;
    p.page_tokens = KvPool::kPageTokens;
    backend_->kv_append(p);
  }
}

}  // namespace diffqkv
