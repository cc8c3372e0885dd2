// How prefill attention's tiles of K and V get from the cache, contiguous or paged, to shared memory. 16-bit elements are
// copied there by cp.async. Of 8-bit elements the bytes are copied, a tile ahead, to a place of the thread's own; the thread
// that copied them widens them into the 16-bit tile, which needs no barrier of its own. Their scales go behind the tile.
#pragma once

#include <device/async.h>
#include "attention_prefill_tile.h"
#include "bytes.h"
#include "element_types.h"

namespace diffqkv::cuda {
namespace {

// A tile of keys; in a quantized kernel their scales lie behind it, as TileScales.
struct alignas(16) TileScales {
  float scale[kTileKeys];
  float power;  // of two, by which the scales are to be multiplied
};
__host__ __device__ __forceinline__ constexpr int tile_bytes(int dims, bool quantized) {
  return kTileKeys * dims * 2 + (quantized ? (static_cast<int>(sizeof(TileScales)) + 127) / 128 * 128 : 0);
}
__device__ __forceinline__ TileScales* tile_scales(unsigned char* tile, int dims) {
  return reinterpret_cast<TileScales*>(tile + kTileKeys * dims * 2);
}

// How a warp goes over a tile, 512 bytes of the cache at a time, 16 a lane: 2^rows_log2 rows by the lanes that are left.
struct Walk {
  int rows_log2, chunks, row, chunk;
  // 128 bytes of a row at a time where rows are a multiple of that, else 64; half of it where an element is a byte.
  __device__ __forceinline__ Walk(int dims, int element_bytes) {
    rows_log2 = (dims % 64 == 0 ? 3 : 4) - (element_bytes >> 1);
    chunks = 32 >> rows_log2;
    row = lane_index() / chunks, chunk = lane_index() % chunks;
  }
  // Of a piece of a tile.
  __device__ __forceinline__ int row_of(int piece) const {
    return ((piece & ((32 >> rows_log2) - 1)) << rows_log2) + row;
  }
  __device__ __forceinline__ int chunk_of(int piece) const { return (piece >> (5 - rows_log2)) * chunks + chunk; }
};
static_assert(kTileKeys == 32);

// One K or V head of a sequence in the cache.
template <bool kIsV, bool kQuantized>
class CacheHead {
 public:
  __device__ __forceinline__ CacheHead(const AttentionPrefillParams& p, int batch, int head)
      : p_(p), batch_(batch), head_(head) {
    if (!p.pages) start_ = data() + batch * batch_stride() * element_bytes();
  }

  // Finds the page of the tile at first_key, which has a key. Well before the tile is copied: it takes a while.
  __device__ __forceinline__ void seek(int first_key) {
    if (!p_.pages || (first_key & (page_tokens() - 1)) != 0) return;
    const KvPage* const page = ld_global(p_.pages + (p_.pages_shared ? 0 : batch_)) + first_key / page_tokens();
    start_ = static_cast<const unsigned char*>(ld_global(kIsV ? &page->v : &page->k)) + page_offset();
  }
  // Of the tile at first_key, for which seek() was called last.
  __device__ __forceinline__ const unsigned char* elements(int first_key) const {
    return start_ + int64_t{row(first_key)} * (dims() * element_bytes());
  }
  __device__ __forceinline__ const bf16* scales(int first_key) const {
    const bf16* const first =
        p_.pages ? reinterpret_cast<const bf16*>(start_ + int64_t{page_tokens()} * num_heads() * dims())
                 : static_cast<const bf16*>(kIsV ? p_.v_scales : p_.k_scales) + batch_ * (batch_stride() / dims());
    return first + row(first_key);
  }

  __device__ __forceinline__ bool has_8_bits() const { return kQuantized && is_quantized(dtype()); }
  __device__ __forceinline__ DType dtype() const { return kIsV ? p_.v_dtype : p_.k_dtype; }
  __device__ __forceinline__ int num_heads() const { return static_cast<int>(kIsV ? p_.num_v_heads : p_.num_k_heads); }

 private:
  __device__ __forceinline__ const unsigned char* data() const {
    return static_cast<const unsigned char*>(kIsV ? p_.v : p_.k);
  }
  __device__ __forceinline__ int64_t batch_stride() const { return kIsV ? p_.stride_v_batch : p_.stride_k_batch; }
  __device__ __forceinline__ int64_t page_offset() const { return kIsV ? p_.v_page_offset : p_.k_page_offset; }
  __device__ __forceinline__ int page_tokens() const { return static_cast<int>(p_.page_tokens); }
  __device__ __forceinline__ int dims() const { return static_cast<int>(kIsV ? p_.head_dim_vo : p_.head_dim_qk); }
  __device__ __forceinline__ int element_bytes() const { return has_8_bits() ? 1 : 2; }
  __device__ __forceinline__ int row(int key) const {
    return (p_.pages ? key & (page_tokens() - 1) : key) * num_heads() + head_;
  }

  const AttentionPrefillParams& p_;
  int batch_, head_;
  const unsigned char* start_ = nullptr;  // of the sequence, or of the layer's part of the page
};

// Fills tiles with the keys of one head, zeros for those from end_key on; one of num_workers warps that do it. dims, the
// head's, is a parameter of its calls, as the compiler may know it there.
template <typename T, bool kIsV, bool kQuantized>
class TileFiller {
 public:
  // staged: the warps' room for the bytes of a tile.
  __device__ __forceinline__ TileFiller(const CacheHead<kIsV, kQuantized>& head, int end_key, int worker,
                                        int num_workers, unsigned char* staged)
      : head_(head), end_key_(end_key), worker_(worker), num_workers_(num_workers), staged_(staged) {}

  // Before all else; a wait for copies is to follow. first_key 0 is below end_key.
  __device__ __forceinline__ void begin(int dims) {
    head_.seek(0);
    if (head_.has_8_bits()) stage(0, dims);
  }

  // The tile at first_key, one after the other from 0 on. Comes after a wait for the copies that the last call began. What
  // it copies takes a wait, and what it widens none; both a barrier.
  __device__ __forceinline__ void fill(unsigned char* tile, int first_key, int dims) {
    if (head_.has_8_bits()) {
      widen(tile, dims);
      if (first_key + kTileKeys < end_key_) stage(first_key + kTileKeys, dims);
    } else {
      copy(tile, first_key, dims);
    }
  }

 private:
  __device__ __forceinline__ void copy(unsigned char* tile, int first_key, int dims) {
    const Walk walk(dims, 2);
    const T* const from = reinterpret_cast<const T*>(head_.elements(first_key));
    const int stride = head_.num_heads() * dims;
    for (int piece = worker_; piece < dims / 8; piece += num_workers_) {
      const int row = walk.row_of(piece), chunk = walk.chunk_of(piece);
      const bool valid = first_key + row < end_key_;
      cp_async_cg(tile + row * dims * 2 + ((chunk ^ swizzle(row, dims)) << 4),
                  valid ? from + row * stride + chunk * 8 : from, valid ? 16 : 0);
    }
    if (kQuantized && worker_ == 0) store_scale(tile_scales(tile, dims), 1.0f, 1.0f);
    if (first_key + kTileKeys < end_key_) head_.seek(first_key + kTileKeys);
  }

  __device__ __forceinline__ void stage(int first_key, int dims) {
    const Walk walk(dims, 1);
    const unsigned char* const from = head_.elements(first_key);
    const int stride = head_.num_heads() * dims;
#pragma unroll 1
    for (int piece = worker_; piece < dims / 16; piece += num_workers_) {
      const int row = walk.row_of(piece), chunk = walk.chunk_of(piece);
      const bool valid = first_key + row < end_key_;
      cp_async_cg(staged_ + (piece * kWarpSize + lane_index()) * 16, valid ? from + row * stride + chunk * 16 : from,
                  valid ? 16 : 0);
    }
    if (worker_ == 0) {
      const bool valid = first_key + lane_index() < end_key_;
      scale_ = valid ? ld_global(head_.scales(first_key) + lane_index() * head_.num_heads()) : bf16{0};
    }
    if (first_key + kTileKeys < end_key_) head_.seek(first_key + kTileKeys);
  }

  __device__ __forceinline__ void widen(unsigned char* tile, int dims) {
    const Walk walk(dims, 1);
    const bool is_i8 = head_.dtype() == DType::i8;
#pragma unroll 1
    for (int piece = worker_; piece < dims / 16; piece += num_workers_) {
      const int row = walk.row_of(piece), chunk = walk.chunk_of(piece);
      Words4 bytes = ld_shared(reinterpret_cast<const Words4*>(staged_ + (piece * kWarpSize + lane_index()) * 16));
#pragma unroll
      for (int i = 0; i < 4; ++i) bytes.w[i] = swap_middle_bytes(bytes.w[i]);
      const WidenedBytes words = is_i8 ? widen_i8<T>(bytes.w) : widen_f8e4m3<T>(bytes.w);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const Words4 four = {{words.even[2 * i], words.odd[2 * i], words.even[2 * i + 1], words.odd[2 * i + 1]}};
        st_shared(reinterpret_cast<Words4*>(tile + row * dims * 2 + (((chunk * 2 + i) ^ swizzle(row, dims)) << 4)),
                  four);
      }
    }
    if (worker_ == 0) {
      const float scale = to_float(scale_);
      // P times the scale of V is rounded to T. Of f16, which reaches down to 2^-24 alone, it is kept near 1: the largest
      // scale so far is below twice the power. An infinity or NaN does not count.
      if (kIsV && __is_same(T, f16)) {
        const uint32_t exponent = bit_cast<uint32_t>(warp_max(finite_magnitude(scale))) & 0x7f800000u;
        power_ = max_number(power_, bit_cast<float>(exponent));
      }
      store_scale(tile_scales(tile, dims), scale * __frcp_rn(power_), power_);
    }
  }

  __device__ __forceinline__ static void store_scale(TileScales* scales, float scale, float power) {
    st_shared(&scales->scale[lane_index()], scale);
    if (lane_index() == 0) st_shared(&scales->power, power);
  }
  __device__ __forceinline__ static float finite_magnitude(float x) {
    const float magnitude = bit_cast<float>(bit_cast<uint32_t>(x) & 0x7fffffffu);
    return magnitude < 0x1p126f ? magnitude : 0.0f;
  }
  // So that the widened pairs are of neighbors.
  __device__ __forceinline__ static uint32_t swap_middle_bytes(uint32_t word) {
    return (word & 0xff0000ffu) | (word & 0xff00u) << 8 | (word >> 8 & 0xff00u);
  }

  CacheHead<kIsV, kQuantized> head_;
  int end_key_, worker_, num_workers_;
  unsigned char* staged_;
  float power_ = kIsV && __is_same(T, f16) ? 0x1p-40f : 1.0f;
  bf16 scale_ = {0};  // of the staged bytes' key of the same index as the lane
};

}  // namespace
}  // namespace diffqkv::cuda
