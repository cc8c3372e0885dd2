// K and V of one sequence, apart from each other: each with its own head count, head size and type.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "backend/backend.h"
#include "model/config.h"

namespace diffqkv {

class KvCache {
 public:
  // Rows there are from the start; from then on the cache doubles, up to max_kv_len.
  static constexpr int64_t kInitialRows = 1024;

  KvCache(std::shared_ptr<Backend> backend, const Config& config, DType k_type, DType v_type, int64_t max_kv_len);

  // Makes room for kv_len rows and keeps the first `used`. Throws ERR_OUT_OF_MEMORY with those rows as they were.
  void reserve(int64_t kv_len, int64_t used);
  // Takes over the first kv_len rows of `other`, a cache of the same shape.
  void copy_rows(const KvCache& other, int64_t kv_len);

  void* k(int64_t layer) const { return layers_[layer].k.data(); }  // [capacity, num_k_heads, head_dim_qk]
  void* v(int64_t layer) const { return layers_[layer].v.data(); }  // [capacity, num_v_heads, head_dim_vo]
  DType k_type() const { return k_type_; }
  DType v_type() const { return v_type_; }
  int64_t capacity() const { return capacity_; }
  int64_t max_kv_len() const { return max_kv_len_; }

  // Bytes allocated so far; any thread.
  uint64_t k_bytes() const { return k_bytes_.load(); }
  uint64_t v_bytes() const { return v_bytes_.load(); }

 private:
  struct Layer {
    Buffer k, v;
  };
  void grow(Buffer& buffer, std::atomic<uint64_t>& total, uint64_t row_bytes, int64_t rows, int64_t used);

  std::shared_ptr<Backend> backend_;
  DType k_type_, v_type_;
  int64_t max_kv_len_, capacity_ = 0;
  uint64_t k_row_bytes_, v_row_bytes_;
  std::vector<Layer> layers_;
  std::atomic<uint64_t> k_bytes_{0}, v_bytes_{0};
};

}  // namespace diffqkv
