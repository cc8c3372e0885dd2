// What one warp of decode attention works with: the stream of pieces of K and V through its ring in shared memory, and
// the fragments that it computes on.
//
// A tile is kKeys keys. It comes in pieces: one K or V head of its keys, at most kSlotDims dims of it; first all K
// heads, then all V heads. A piece fits a slot of 4 KiB, so that one ring serves all head counts and sizes.
//
// Fragments are those of device/mma.h: of each 8 query heads a lane has lane % 4 * 2 and the next (index i, or i % 2,
// of the arrays below), and of each 16 keys or dims lane / 4 and lane / 4 + 8.
#pragma once

#include "device/async.h"
#include "device/mma.h"
#include "device/softmax.h"

namespace diffqkv::DIFFQKV_DEVICE_NS {
namespace {

constexpr int kWarps = 4, kThreads = kWarps * kWarpSize;
constexpr int kSlots = 5, kSlotBytes = 4096;

DIFFQKV_HOST_DEVICE constexpr int slot_dims(int head_dim_vo) {
  return head_dim_vo <= 32 ? 32 : head_dim_vo <= 64 ? 64 : 128;
}

// Which heads a block has, and which keys.
struct Unit {
  int64_t batch;
  int first_head, num_heads;                                 // of Q, in the sequence
  int first_k_head, num_k_heads, first_v_head, num_v_heads;  // that those read
  int index, split_idx, used_splits, begin_key, end_key;     // index: of all units of all sequences
};

template <typename T, int kDimVo>
class PieceStream {
 public:
  static constexpr int kSlotDims = slot_dims(kDimVo), kKeys = kSlotBytes / 2 / kSlotDims, kKeyTiles = kKeys / 16;
  static constexpr int kValueDims = kDimVo < kSlotDims ? kDimVo : kSlotDims, kValuePieces = kDimVo / kValueDims;
  static constexpr int kPitch = kSlotDims * 2;  // of a row, in bytes

  // k, v: the unit's first head of key 0.
  DIFFQKV_DEVICE PieceStream(const Unit& unit, const T* k, const T* v, int k_stride, int v_stride, int dim_qk,
                             unsigned char* ring)
      : k_(k),
        v_(v),
        k_stride_(k_stride),
        v_stride_(v_stride),
        dim_qk_(dim_qk),
        num_k_heads_(unit.num_k_heads),
        num_heads_(unit.num_k_heads + unit.num_v_heads),
        end_key_(unit.end_key),
        ring_(ring),
        key_(unit.begin_key + thread_index() / kWarpSize * kKeys) {
    for (int i = 0; i < kSlots - 1; ++i) copy_next();
  }

  // The next piece, there for all lanes. What take() gave before is then no longer: its slot takes the next copy.
  DIFFQKV_DEVICE const unsigned char* take() {
    cp_async_wait<kSlots - 2>();
    sync_warp();
    const unsigned char* slot = ring_ + take_ * kSlotBytes;
    take_ = take_ + 1 == kSlots ? 0 : take_ + 1;
    copy_next();
    return slot;
  }

  // Where the 16 bytes of `chunk` in `row` lie: neither 8 rows at one chunk nor what 8 lanes copy meet in a bank.
  DIFFQKV_DEVICE static int place(int row, int chunk) {
    return row * kPitch + ((chunk ^ (kSlotDims == 32 ? row >> 1 & 3 : row & 7)) << 4);
  }

 private:
  // One copy group each time, empty past the end.
  DIFFQKV_DEVICE void copy_next() {
    if (key_ < end_key_) {
      unsigned char* const slot = ring_ + fill_ * kSlotBytes;
      if (head_ < num_k_heads_) {
        const int left = dim_qk_ - dim_, dims = left < kSlotDims ? left : kSlotDims;
        const T* const from = k_ + static_cast<int64_t>(key_) * k_stride_ + head_ * dim_qk_ + dim_;
        if (dims == kSlotDims) {
          copy_rows<kSlotDims>(slot, from, k_stride_);
        } else {
          for (int dim = 0; dim < dims; dim += 32) copy_rows<32>(slot, from + dim, k_stride_, dim / 8);
        }
        dim_ = left <= kSlotDims ? 0 : dim_ + kSlotDims;
        head_ += dim_ == 0;
      } else {
        copy_rows<kValueDims>(
            slot, v_ + static_cast<int64_t>(key_) * v_stride_ + (head_ - num_k_heads_) * kDimVo + dim_, v_stride_);
        dim_ = kValuePieces > 1 && dim_ == 0 ? kValueDims : 0;
        if (dim_ == 0 && ++head_ == num_heads_) head_ = 0, key_ += kWarps * kKeys;
      }
    }
    cp_async_commit();
    fill_ = fill_ + 1 == kSlots ? 0 : fill_ + 1;
  }

  // kDims elements of each key, into the chunks from first_chunk on; zeros for keys from the end on. 4 rows by 128
  // bytes at a time, or 8 by 64 where rows are no multiple of 128 bytes.
  template <int kDims>
  DIFFQKV_DEVICE void copy_rows(unsigned char* slot, const T* from, int stride, int first_chunk = 0) const {
    constexpr int kLanes = kDims % 64 == 0 ? 8 : 4, kRows = kWarpSize / kLanes;
    const int lane = lane_index(), chunk = lane % kLanes;
    const int row = kLanes == 8 || kSlotDims == 32 ? lane / kLanes : lane / 8 + (lane & 4);
    const T* at = from + static_cast<int64_t>(row) * stride + chunk * 8;
    DIFFQKV_UNROLL
    for (int pass = 0; pass < kKeys / kRows; ++pass, at += static_cast<int64_t>(kRows) * stride) {
      const bool valid = key_ + pass * kRows + row < end_key_;
      DIFFQKV_UNROLL
      for (int c = 0; c < kDims / 8; c += kLanes) {
        cp_async_16(slot + place(pass * kRows + row, first_chunk + chunk + c), valid ? at + c * 8 : from,
                    valid ? 16 : 0);
      }
    }
  }

  const T *k_, *v_;
  int k_stride_, v_stride_;
  int dim_qk_, num_k_heads_, num_heads_, end_key_;
  unsigned char* ring_;
  int key_, head_ = 0, dim_ = 0;  // of the next copy; V heads follow K heads
  int fill_ = 0, take_ = 0;       // slots
};

// kTiles times 8 query heads.
template <typename T, int kDimVo, int kTiles>
struct Attention {
  using Pieces = PieceStream<T, kDimVo>;
  static constexpr int kKeyTiles = Pieces::kKeyTiles, kDimTiles = kDimVo / 16;

  float s[kTiles][kKeyTiles][4];     // S^T, then P^T
  uint32_t p[kTiles][kKeyTiles][2];  // P^T as it is multiplied
  float o[kTiles][kDimTiles][4];     // O^T
  SoftmaxState state[kTiles][2];     // d: this lane's keys alone, of P before it is rounded; for lse
  float divisor[kTiles][2];          // the sum of the rounded P, by the same products with ones: V = 1 gives exactly 1

  DIFFQKV_DEVICE Attention() {
    DIFFQKV_UNROLL
    for (int n = 0; n < kTiles; ++n) {
      DIFFQKV_UNROLL
      for (int i = 0; i < 2; ++i) state[n][i] = SoftmaxState::empty(), divisor[n][i] = 0;
      DIFFQKV_UNROLL
      for (int i = 0; i < kDimTiles * 4; ++i) o[n][i / 4][i % 4] = 0;
    }
  }

  DIFFQKV_DEVICE void clear_scores() {
    DIFFQKV_UNROLL
    for (int i = 0; i < kTiles * kKeyTiles * 4; ++i) s[i / (kKeyTiles * 4)][i / 4 % kKeyTiles][i % 4] = 0;
  }

  // The query heads that read one K or V head, as columns of the tiles: `count` from `first` on, which may be below 0.
  struct Readers {
    int first, count;
    DIFFQKV_DEVICE bool has(int n, int i) const {
      return static_cast<unsigned>(n * 8 + lane_index() % 4 * 2 + i - first) < static_cast<unsigned>(count);
    }
    DIFFQKV_DEVICE bool any(int n) const { return kTiles == 1 || (first < n * 8 + 8 && first + count > n * 8); }
  };

  // S^T += K Q^T for a piece of a K head, in the columns of the query heads that read it: the products of all 8 are
  // formed, and those of the others dropped. queries: this lane's chunk of the piece's first dims, see query_chunk.
  DIFFQKV_DEVICE void add_scores(const unsigned char* piece, int dims, const unsigned char* queries, int query_pitch,
                                 Readers readers) {
    DIFFQKV_UNROLL
    for (int i = 0; i < kTiles * kKeyTiles; ++i) {
      const int n = i / kKeyTiles, tile = i % kKeyTiles;
      if (!readers.any(n)) continue;
      float(&sum)[4] = s[n][tile];
      float c[4] = {sum[0], sum[1], sum[2], sum[3]};
      const auto add_32_dims = [&](int pair) {
        const int row = tile * 16 + lane_index() % 16, chunk = pair * 4 + lane_index() / 16;
        uint32_t low[4], high[4], b[4];
        ldmatrix_x4(low, piece + Pieces::place(row, chunk));
        ldmatrix_x4(high, piece + Pieces::place(row, chunk + 2));
        ldmatrix_x4(b, queries + n * 8 * query_pitch + pair * 64);
        mma_m16n8k16<T>(c, low, {b[0], b[1]});
        mma_m16n8k16<T>(c, high, {b[2], b[3]});
      };
      if (kTiles == 1 && dims == Pieces::kSlotDims) {  // with more tiles it would not fit the registers
        DIFFQKV_UNROLL
        for (int pair = 0; pair < Pieces::kSlotDims / 32; ++pair) add_32_dims(pair);
      } else {
        for (int pair = 0; pair < dims / 32; ++pair) add_32_dims(pair);
      }
      DIFFQKV_UNROLL
      for (int j = 0; j < 4; ++j) sum[j] = readers.has(n, j % 2) ? c[j] : sum[j];
    }
  }
  // Rows of Q are query_pitch apart, an odd number of chunks, so that 8 of them fall on different banks.
  DIFFQKV_DEVICE static int query_chunk(int query_pitch) {
    return lane_index() % 8 * query_pitch + lane_index() / 8 * 16;
  }

  // P from S, of the tile's first `keys` keys.
  DIFFQKV_DEVICE void add_weights(int keys, float scale_log2) {
    constexpr uint32_t kOnes = __is_same(T, bf16) ? 0x3f803f80u : 0x3c003c00u;
    const uint32_t ones[4] = {kOnes, kOnes, kOnes, kOnes};
    const int row = lane_index() / 4;
    DIFFQKV_UNROLL
    for (int n = 0; n < kTiles; ++n) {
      float factor[2];
      DIFFQKV_UNROLL
      for (int i = 0; i < 2; ++i) {
        float top = -infinity();
        DIFFQKV_UNROLL
        for (int half = 0; half < kKeyTiles * 2; ++half) {
          const float x = s[n][half / 2][half % 2 * 2 + i] * scale_log2;
          if (half * 8 + row < keys) top = fmaxf(top, x);  // passes over NaN
        }
        DIFFQKV_UNROLL
        for (int mask = 4; mask < kWarpSize; mask *= 2) top = fmaxf(top, shuffle_xor(top, mask));
        factor[i] = state[n][i].raise(top);
        const float base = -state[n][i].base();
        DIFFQKV_UNROLL
        for (int half = 0; half < kKeyTiles * 2; ++half) {
          float& x = s[n][half / 2][half % 2 * 2 + i];
          x = half * 8 + row < keys ? exp2_fast(fused_multiply_add(x, scale_log2, base)) : 0.0f;
          state[n][i].d += x;
        }
      }
      if (ballot(factor[0] != 1.0f || factor[1] != 1.0f) != 0) {
        divisor[n][0] *= factor[0], divisor[n][1] *= factor[1];
        DIFFQKV_UNROLL
        for (int i = 0; i < kDimTiles * 4; ++i) o[n][i / 4][i % 4] *= factor[i % 2];
      }
      float sum[4] = {divisor[n][0], divisor[n][1], 0.0f, 0.0f};
      DIFFQKV_UNROLL
      for (int tile = 0; tile < kKeyTiles; ++tile) {
        DIFFQKV_UNROLL
        for (int half = 0; half < 2; ++half) {
          p[n][tile][half] = movmatrix_trans(pack2<T>(s[n][tile][half * 2], s[n][tile][half * 2 + 1]));
        }
        mma_m16n8k16<T>(sum, ones, p[n][tile]);
      }
      divisor[n][0] = sum[0], divisor[n][1] = sum[1];
    }
  }

  // O^T += V^T P^T for a piece of a V head, from dim kFirstDim on, likewise in its own columns alone. As the others'
  // products are dropped, and not multiplied by zeros, a NaN or infinity stays with the query heads that read it.
  template <int kFirstDim>
  DIFFQKV_DEVICE void add_values(const unsigned char* piece, Readers readers) {
    DIFFQKV_UNROLL
    for (int step = 0; step < Pieces::kValueDims / 16; ++step) {
      uint32_t a[kKeyTiles][4];
      DIFFQKV_UNROLL
      for (int tile = 0; tile < kKeyTiles; ++tile) {
        ldmatrix_x4_trans(a[tile], piece + Pieces::place(tile * 16 + lane_index() / 16 * 8 + lane_index() % 8,
                                                         step * 2 + lane_index() / 8 % 2));
      }
      DIFFQKV_UNROLL
      for (int n = 0; n < kTiles; ++n) {
        if (!readers.any(n)) continue;
        float(&sum)[4] = o[n][kFirstDim / 16 + step];
        float c[4] = {sum[0], sum[1], sum[2], sum[3]};
        DIFFQKV_UNROLL
        for (int tile = 0; tile < kKeyTiles; ++tile) mma_m16n8k16<T>(c, a[tile], p[n][tile]);
        DIFFQKV_UNROLL
        for (int i = 0; i < 4; ++i) sum[i] = readers.has(n, i % 2) ? c[i] : sum[i];
      }
    }
  }

  // What merging reads: rows of kDimVo elements of o, then m, d and the divisor; 16 bytes past a multiple of 128, so
  // that the lanes here fall on different banks.
  static constexpr int kRowFloats = kDimVo + 4;
  DIFFQKV_DEVICE void store_rows(float* rows) {
    DIFFQKV_UNROLL
    for (int n = 0; n < kTiles; ++n) {
      DIFFQKV_UNROLL
      for (int i = 0; i < 2; ++i) {
        float* const row = rows + (n * 8 + lane_index() % 4 * 2 + i) * kRowFloats;
        DIFFQKV_UNROLL
        for (int half = 0; half < kDimTiles * 2; ++half) {
          store_shared(row + half * 8 + lane_index() / 4, o[n][half / 2][half % 2 * 2 + i]);
        }
        float d = state[n][i].d;
        DIFFQKV_UNROLL
        for (int mask = 4; mask < kWarpSize; mask *= 2) d += shuffle_xor(d, mask);
        if (lane_index() < 4) {
          const Words4 sums = {
              {bit_cast<uint32_t>(state[n][i].m), bit_cast<uint32_t>(d), bit_cast<uint32_t>(divisor[n][i]), 0u}};
          store_shared(reinterpret_cast<Words4*>(row + kDimVo), sums);
        }
      }
    }
  }
};

}  // namespace
}  // namespace diffqkv::DIFFQKV_DEVICE_NS
