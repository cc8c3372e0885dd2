#include "model/kv_cache.h"

#include <algorithm>

namespace diffqkv {

KvCache::KvCache(std::shared_ptr<Backend> backend, const Config& config, DType k_type, DType v_type, int64_t max_kv_len)
    : backend_(std::move(backend)),
      k_type_(k_type),
      v_type_(v_type),
      max_kv_len_(max_kv_len),
      k_row_bytes_(config.k_size() * dtype_size(k_type)),
      v_row_bytes_(config.v_size() * dtype_size(v_type)),
      layers_(config.num_layers) {
  reserve(std::min(max_kv_len_, kInitialRows), 0);
}

void KvCache::reserve(int64_t kv_len, int64_t used) {
  if (kv_len <= capacity_) return;
  int64_t rows = std::min(max_kv_len_, std::max(kv_len, 2 * capacity_));
  // One layer after the other, so that no more than one is there twice. If memory runs out on the way, the layers that
  // have grown keep their size, and the next try finds them so.
  const auto grow_all = [&] {
    for (Layer& layer : layers_) {
      grow(layer.k, k_bytes_, k_row_bytes_, rows, used);
      grow(layer.v, v_bytes_, v_row_bytes_, rows, used);
    }
  };
  try {
    grow_all();
  } catch (const Error& error) {
    if (error.code() != ErrorCode::out_of_memory || rows == kv_len) throw;
    rows = kv_len;  // what is needed may fit where its double does not
    grow_all();
  }
  capacity_ = rows;
}

void KvCache::grow(Buffer& buffer, std::atomic<uint64_t>& total, uint64_t row_bytes, int64_t rows, int64_t used) {
  const uint64_t bytes = row_bytes * rows;
  if (buffer.bytes() >= bytes) return;
  Buffer larger(backend_, bytes);
  if (used > 0) {
    backend_->copy(larger.data(), buffer.data(), row_bytes * used);
    backend_->synchronize();  // before the old one goes
  }
  total += bytes - buffer.bytes();
  buffer = std::move(larger);
}

void KvCache::copy_rows(const KvCache& other, int64_t kv_len) {
  reserve(kv_len, 0);
  if (kv_len == 0) return;
  for (size_t i = 0; i < layers_.size(); i++) {
    backend_->copy(layers_[i].k.data(), other.layers_[i].k.data(), k_row_bytes_ * kv_len);
    backend_->copy(layers_[i].v.data(), other.layers_[i].v.data(), v_row_bytes_ * kv_len);
  }
}

}  // namespace diffqkv
