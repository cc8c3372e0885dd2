// The keys of one block of decode attention, and the stream of pieces of K and V that one of its warps takes through its
// ring in shared memory.
//
// A tile is kKeys keys. It comes in pieces: one K or V head of its keys, at most kSlotDims dims of it; first all K
// heads, then all V heads. A piece of 16-bit elements fits a slot of 4 KiB, so that one ring serves all head counts and
// sizes, and one of 8-bit elements half of it: where K and V both are, slots are 2 KiB and twice as many.
#pragma once

#include <device/async.h>
#include "kv_page.h"

namespace diffqkv::cuda {
namespace {

constexpr int kWarps = 4, kThreads = kWarps * kWarpSize;
constexpr int kSlots = 5, kSlotBytes = 4096, kRingBytes = kSlots * kSlotBytes;

__host__ __device__ __forceinline__ constexpr int slot_dims(int head_dim_vo) {
  return head_dim_vo <= 32 ? 32 : head_dim_vo <= 64 ? 64 : 128;
}
__host__ __device__ __forceinline__ constexpr int tile_keys(int head_dim_vo) {
  return kSlotBytes / 2 / slot_dims(head_dim_vo);
}

// Which heads a block has, and which keys.
struct Unit {
  int64_t batch;
  int first_head, num_heads;                                 // of Q, in the sequence
  int first_k_head, num_k_heads, first_v_head, num_v_heads;  // that those read
  int index, split_idx, used_splits, begin_key, end_key;     // index: of all units of all sequences
};

// What the elements of K or V are.
enum class Format { wide, i8, f8e4m3 };  // wide: the 16-bit type of Q

// K or V of a sequence. Contiguous: `rows` and `scales` are those of key 0. Paged: they are offsets from a page's start.
struct KeyRows {
  uint64_t rows;          // address of the unit's first head
  uint64_t scales;        // and of its scale; of no use where the format is wide
  int stride, num_heads;  // bytes from row to row; scales from row to row
};

// The rows of a tile: addresses of its first key.
struct TileRows {
  const unsigned char *k, *v;
  const bf16 *k_scales, *v_scales;
};

struct Cache {
  KeyRows k, v;
  const KvPage* table;  // null: contiguous
  int page_shift;       // log2(page_tokens), at least a tile

  // What rows() needs to have from memory; loaded early.
  __device__ __forceinline__ KvPage page(int key) const {
    return table ? load_page(table + (key >> page_shift)) : KvPage{};
  }
  __device__ __forceinline__ TileRows rows(int key, const KvPage& page) const {
    const int token = table ? key & ((1 << page_shift) - 1) : key;
    const uint64_t k_start = reinterpret_cast<uint64_t>(page.k), v_start = reinterpret_cast<uint64_t>(page.v);
    return {reinterpret_cast<const unsigned char*>(k_start + k.rows + static_cast<int64_t>(token) * k.stride),
            reinterpret_cast<const unsigned char*>(v_start + v.rows + static_cast<int64_t>(token) * v.stride),
            reinterpret_cast<const bf16*>(k_start + k.scales) + static_cast<int64_t>(token) * k.num_heads,
            reinterpret_cast<const bf16*>(v_start + v.scales) + static_cast<int64_t>(token) * v.num_heads};
  }
};

// Where the 16 bytes of `chunk` in `row` lie in a slot whose rows are kPitch bytes apart: neither 8 rows at one chunk nor
// what 8 lanes copy meet in a bank.
template <int kPitch>
__device__ __forceinline__ int place(int row, int chunk) {
  constexpr int kChunks = kPitch < 128 ? kPitch / 16 : 8, kRowsPer128 = kPitch < 128 ? 128 / kPitch : 1;
  return row * kPitch + ((chunk ^ (row / kRowsPer128 & (kChunks - 1))) << 4);
}

// kScaled: K or V, or both, are of 8 bits, as the formats say; else both are wide.
template <int kDimVo, bool kScaled>
class PieceStream {
 public:
  static constexpr int kSlotDims = slot_dims(kDimVo), kKeys = tile_keys(kDimVo), kKeyTiles = kKeys / 16;
  static constexpr int kValueDims = kDimVo < kSlotDims ? kDimVo : kSlotDims, kValuePieces = kDimVo / kValueDims;

  __device__ __forceinline__ PieceStream(const Unit& unit, const Cache& cache, int dim_qk, Format k_format,
                                         Format v_format, unsigned char* ring)
      : cache_(cache),
        dim_qk_(dim_qk),
        num_k_heads_(unit.num_k_heads),
        num_heads_(unit.num_k_heads + unit.num_v_heads),
        end_key_(unit.end_key),
        k_is_wide_(!kScaled || k_format == Format::wide),
        v_is_wide_(!kScaled || v_format == Format::wide),
        ring_(ring),
        key_(unit.begin_key + warp_index() * kKeys) {
    if (key_ < end_key_) next_page_ = cache_.page(key_);
    start_tile();
#pragma unroll 1  // copy_next() is long
    for (int i = 0; i < (small_slots() ? 2 * kSlots : kSlots) - 1; ++i) copy_next();
  }

  // The next piece, there for all lanes. What take() gave before is then no longer: its slot takes the next copy.
  __device__ __forceinline__ const unsigned char* take() {
    if (small_slots()) {
      cp_async_wait_group<2 * kSlots - 2>();
    } else {
      cp_async_wait_group<kSlots - 2>();
    }
    __syncwarp();
    const unsigned char* slot = ring_ + take_;
    take_ = next_slot(take_);
    copy_next();
    return slot;
  }

 private:
  __device__ __forceinline__ bool small_slots() const { return kScaled && !k_is_wide_ && !v_is_wide_; }
  __device__ __forceinline__ int next_slot(int at) const {
    const int next = at + (small_slots() ? kSlotBytes / 2 : kSlotBytes);
    return next == kRingBytes ? 0 : next;
  }

  // The page of the tile after this one is asked for now, and there when its turn comes.
  __device__ __forceinline__ void start_tile() {
    if (key_ >= end_key_) return;
    const TileRows rows = cache_.rows(key_, next_page_);
    k_ = rows.k, v_ = rows.v;
    const int next_key = key_ + kWarps * kKeys;
    if (next_key < end_key_) next_page_ = cache_.page(next_key);
  }

  // One copy group each time, empty past the end.
  __device__ __forceinline__ void copy_next() {
    if (key_ < end_key_) {
      unsigned char* const slot = ring_ + fill_;
      if (head_ < num_k_heads_) {
        const int left = dim_qk_ - dim_, dims = left < kSlotDims ? left : kSlotDims;
        const int element = head_ * dim_qk_ + dim_;
        if (k_is_wide_) {
          copy_keys<2>(slot, k_ + element * 2, dims);
        } else {
          copy_keys<1>(slot, k_ + element, dims);
        }
        dim_ = left <= kSlotDims ? 0 : dim_ + kSlotDims;
        head_ += dim_ == 0;
      } else {
        const int element = (head_ - num_k_heads_) * kDimVo + dim_;
        if (v_is_wide_) {
          copy_rows<kSlotDims * 2, kValueDims * 2>(slot, v_ + element * 2, cache_.v.stride);
        } else {
          copy_rows<kSlotDims, kValueDims>(slot, v_ + element, cache_.v.stride);
        }
        dim_ = kValuePieces > 1 && dim_ == 0 ? kValueDims : 0;
        if (dim_ == 0 && ++head_ == num_heads_) {
          head_ = 0, key_ += kWarps * kKeys;
          start_tile();
        }
      }
    }
    cp_async_commit_group();
    fill_ = next_slot(fill_);
  }

  template <int kElementBytes>
  __device__ __forceinline__ void copy_keys(unsigned char* slot, const unsigned char* from, int dims) const {
    constexpr int kPitch = kSlotDims * kElementBytes;
    if (dims == kSlotDims) {
      copy_rows<kPitch, kPitch>(slot, from, cache_.k.stride);
    } else {
      constexpr int kStep = 32 * kElementBytes;
#pragma unroll 1
      for (int at = 0; at < dims * kElementBytes; at += kStep) {
        copy_rows<kPitch, kStep>(slot, from + at, cache_.k.stride, at / 16);
      }
    }
  }

  // kBytes of each key, into the chunks from first_chunk on; zeros for keys from the end on. At a time 4 rows by 128
  // bytes; 8 by 64 or 16 by 32 where rows are no multiple of more.
  template <int kPitch, int kBytes>
  __device__ __forceinline__ void copy_rows(unsigned char* slot, const unsigned char* from, int stride,
                                            int first_chunk = 0) const {
    constexpr int kLanes = kBytes % 128 == 0 ? 8 : kBytes % 64 == 0 ? 4 : 2, kRows = kWarpSize / kLanes;
    const int chunk = lane_index() % kLanes, row = copied_row<kPitch, kLanes>(lane_index() / kLanes);
    const unsigned char* at = from + static_cast<int64_t>(row) * stride + chunk * 16;
#pragma unroll
    for (int pass = 0; pass < kKeys / kRows; ++pass, at += static_cast<int64_t>(kRows) * stride) {
      const bool valid = key_ + pass * kRows + row < end_key_;
#pragma unroll
      for (int c = 0; c < kBytes / 16; c += kLanes) {
        cp_async_cg(slot + place<kPitch>(pass * kRows + row, first_chunk + chunk + c), valid ? at + c * 16 : from,
                    valid ? 16 : 0);
      }
    }
  }

  // Which row the i-th kLanes lanes copy: where they copy less than a row, or 128 bytes of it, the rows of 8 lanes are such
  // that place() puts what they copy on different banks.
  template <int kPitch, int kLanes>
  __device__ __forceinline__ static int copied_row(int i) {
    if constexpr (kLanes == 8 || kLanes * 16 == kPitch) {
      return i;
    } else if constexpr (kLanes == 4) {
      return i / 2 | (i & 1) << 2;
    } else if constexpr (kPitch == 64) {
      return (i & 9) | (i & 2) << 1 | (i & 4) >> 1;
    } else {
      return (i & 8) | (i & 3) << 1 | (i & 4) >> 2;
    }
  }

  Cache cache_;
  int dim_qk_, num_k_heads_, num_heads_, end_key_;
  bool k_is_wide_, v_is_wide_;
  unsigned char* ring_;
  int key_, head_ = 0, dim_ = 0;  // of the next copy; V heads follow K heads
  KvPage next_page_ = {};
  const unsigned char *k_ = nullptr, *v_ = nullptr;  // of the tile
  int fill_ = 0, take_ = 0;                          // slots, as bytes of the ring
};

}  // namespace
}  // namespace diffqkv::cuda
