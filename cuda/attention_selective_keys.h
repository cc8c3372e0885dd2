// The keys of selective V: which keys a block has, where they lie, the stream of K through a warp's ring in shared
// memory, and the scores of a tile of keys, by tensor cores.
//
// A tile is 16 keys, or 32 where K has one byte an element, and comes in pieces of at most 64 dims: 2 KiB, a slot of
// the ring. Fragments are those of device/mma.h: of each 8 query heads a lane has lane % 4 * 2 and the next, and of
// each 16 keys lane / 4 and lane / 4 + 8.
#pragma once

#include <device/async.h>
#include <device/mma.h>
#include "bytes.h"
#include "element_types.h"
#include "finding.h"
#include "kv_page.h"

namespace diffqkv::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / kWarpSize;
constexpr int kSlots = 4, kSlotBytes = 2048, kRingBytes = kWarps * kSlots * kSlotBytes;
constexpr int kPieceDims = 64;
constexpr int kSplitStep = 64;                            // splits are so many keys, or a multiple
constexpr int kMaxSplitKeys = 1024, kMinPageTokens = 32;  // a tile lies in one page
constexpr int kMaxSegments = kMaxSplitKeys / kMinPageTokens;

// What is the same for all blocks of a launch.
struct Plan {
  int64_t first_batch;  // a launch does some of the sequences
  int q_heads_per_k_head;
  int unit_heads, parts;  // query heads that a block takes; blocks for the query heads of a K head
  int num_units;          // of a sequence
  int num_splits, min_split_keys;
  int top_k;
  int page_shift;           // keys lie in segments of 2^page_shift: pages, where K is paged
  int row_slots;            // of candidates, for a query head of a sequence
  int score_pitch;          // of the scores of a query head in shared memory, in floats
  int stage_slots;          // candidates that fit shared memory when splits are merged, 0 where not all do
  float direction;          // the sign of sm_scale, 0 where that is 0: scores are ranked by q.k times this
  float scale, scale_log2;  // |sm_scale|, the same times log2(e)
  uint32_t* scores;         // [sequence][query head][row_slots]: candidates, see attention_selective_top.h
  uint32_t* keys;
  Words2* sums;  // [sequence][query head][split]: m, a raw score, and d
};

// The keys of a sequence, and how they are split.
struct Keys {
  int kv_len, per_split, used_splits;

  __device__ __forceinline__ Keys(const AttentionDecodeParams& p, const Plan& plan, int64_t batch, Finding* finding) {
    kv_len = static_cast<int>(p.kv_len);
    if (p.kv_lens != nullptr) {
      const int given = ld_global(p.kv_lens + batch);
      if ((given < 0 || given > kv_len) && finding != nullptr && threadIdx.x == 0) {
        report(finding, Finding::kv_len, static_cast<int>(batch), given, kv_len);
      }
      kv_len = given < 0 ? 0 : given < kv_len ? given : kv_len;
    }
    per_split = kv_len / plan.num_splits + (kv_len % plan.num_splits != 0);
    if (per_split < plan.min_split_keys) per_split = plan.min_split_keys;
    per_split = (per_split + kSplitStep - 1) / kSplitStep * kSplitStep;
    used_splits = (kv_len + per_split - 1) / per_split;
  }
  __device__ __forceinline__ int end(int split) const {
    const int begin = split * per_split;
    return kv_len - begin < per_split ? kv_len : begin + per_split;
  }
};

// Rows of one K or V head: those of a page, or as many of a contiguous cache.
struct alignas(16) Segment {
  const unsigned char* data;
  const bf16* scales;
};
// A K or V head of a sequence, of elements of type E.
template <typename E>
class CacheHead {
 public:
  __device__ __forceinline__ static CacheHead of_k(const AttentionDecodeParams& p, int page_shift, int64_t batch,
                                                   int64_t head) {
    return CacheHead(p, page_shift, batch, head, false, p.k, p.k_scales, p.stride_k_batch, p.num_k_heads, p.head_dim_qk,
                     p.k_page_offset);
  }
  __device__ __forceinline__ static CacheHead of_v(const AttentionDecodeParams& p, int page_shift, int64_t batch,
                                                   int64_t head) {
    return CacheHead(p, page_shift, batch, head, true, p.v, p.v_scales, p.stride_v_batch, p.num_v_heads, p.head_dim_vo,
                     p.v_page_offset);
  }

  __device__ __forceinline__ Segment segment(int index) const {
    const int64_t tokens = int64_t{1} << page_shift_;
    const unsigned char* data;
    const bf16* scales = nullptr;
    if (pages_ != nullptr) {
      const KvPage page = load_page(pages_ + index);
      const KvRows rows = rows_in_page(is_v_ ? page.v : page.k, page_offset_, 0, static_cast<int>(tokens),
                                       static_cast<int>(num_heads_), row_bytes_);
      data = rows.elements, scales = rows.scales;
    } else {
      data = data_ + index * tokens * pitch_;
      if (kScaled) scales = scales_ + index * tokens * num_heads_;
    }
    return {data + head_ * row_bytes_, kScaled ? scales + head_ : nullptr};
  }
  __device__ __forceinline__ const unsigned char* row(const Segment& segment, int key) const {
    return segment.data + row_index(key) * pitch_;
  }
  __device__ __forceinline__ float scale(const Segment& segment, int key) const {
    return load_float(segment.scales + row_index(key) * num_heads_);
  }
  __device__ __forceinline__ int segment_of(int key) const { return key >> page_shift_; }
  __device__ __forceinline__ int64_t pitch() const { return pitch_; }

 private:
  __device__ __forceinline__ CacheHead(const AttentionDecodeParams& p, int page_shift, int64_t batch, int64_t head,
                                       bool is_v, const void* data, const void* scales, int64_t stride_batch,
                                       int64_t num_heads, int64_t dim, int64_t page_offset)
      : data_(static_cast<const unsigned char*>(data)),
        scales_(static_cast<const bf16*>(scales)),
        pages_(p.pages != nullptr ? ld_global(p.pages + (p.pages_shared ? 0 : batch)) : nullptr),
        page_offset_(page_offset),
        row_bytes_(dim * kBytes),
        pitch_(num_heads * dim * kBytes),
        head_(head),
        num_heads_(num_heads),
        page_shift_(page_shift),
        is_v_(is_v) {
    if (pages_ != nullptr) return;
    data_ += batch * stride_batch * kBytes;
    if (kScaled) scales_ += batch * (stride_batch / dim);
  }
  __device__ __forceinline__ int64_t row_index(int key) const { return key & ((1 << page_shift_) - 1); }

  static constexpr int kBytes = sizeof(E);
  static constexpr bool kScaled = kBytes == 1;
  const unsigned char* data_;
  const bf16* scales_;
  const KvPage* pages_;
  int64_t page_offset_, row_bytes_, pitch_, head_, num_heads_;
  int page_shift_;
  bool is_v_;
};

// One warp's tiles of keys: every kWarps-th of its block's.
template <typename K>
class KeyStream {
 public:
  static constexpr bool kScaled = sizeof(K) == 1;
  static constexpr int kRowBytes = kPieceDims * sizeof(K), kTileKeys = kSlotBytes / kRowBytes;

  // segments: in shared memory, from the one that holds begin_key on, which is a multiple of kSplitStep.
  __device__ __forceinline__ KeyStream(const CacheHead<K>& head, const Segment* segments, int dim, int begin_key,
                                       int end_key, unsigned char* ring)
      : head_(head),
        segments_(segments - head.segment_of(begin_key)),
        dim_(dim),
        end_key_(end_key),
        ring_(ring),
        key_(begin_key + warp_index() * kTileKeys) {
    for (int i = 0; i < kSlots - 1; ++i) copy_next();
  }

  // The next piece, there for all lanes. What take() gave before is then no longer: its slot takes the next copy.
  __device__ __forceinline__ const unsigned char* take() {
    cp_async_wait_group<kSlots - 2>();
    __syncwarp();
    const unsigned char* const slot = ring_ + take_ * kSlotBytes;
    take_ = (take_ + 1) % kSlots;
    copy_next();
    return slot;
  }

  // The scale of key `first_key` + lane, one that stands in a tile of this warp; 0 past the end.
  __device__ __forceinline__ float load_scale(int first_key) const {
    const int key = first_key + lane_index();
    if (key >= end_key_) return 0.0f;
    return head_.scale(ld_shared(segments_ + head_.segment_of(key)), key);
  }

  // Where the 16 bytes of `chunk` in `row` lie: neither 8 rows at one chunk nor what 8 lanes copy meet in a bank.
  __device__ __forceinline__ static int place(int row, int chunk) {
    return row * kRowBytes + ((chunk ^ (kRowBytes == 128 ? row & 7 : row >> 1 & 3)) << 4);
  }

 private:
  // One copy group each time, empty past the end. Zeros for keys from the end on.
  __device__ __forceinline__ void copy_next() {
    if (key_ < end_key_) {
      constexpr int kLanes = kRowBytes / 16, kRows = kWarpSize / kLanes;
      unsigned char* const slot = ring_ + fill_ * kSlotBytes;
      const int row = lane_index() / kLanes, chunk = lane_index() % kLanes;
      const int byte = piece_dim_ * static_cast<int>(sizeof(K)), end_byte = dim_ * static_cast<int>(sizeof(K));
      const unsigned char* const from = head_.row(ld_shared(segments_ + head_.segment_of(key_)), key_) + byte;
      if (byte + chunk * 16 < end_byte) {
        const int64_t pitch = head_.pitch();
        const unsigned char* at = from + row * pitch + chunk * 16;
#pragma unroll
        for (int first = 0; first < kTileKeys; first += kRows, at += kRows * pitch) {
          const bool valid = key_ + first + row < end_key_;
          cp_async_cg(slot + place(first + row, chunk), valid ? at : from, valid ? 16 : 0);
        }
      }
      piece_dim_ += kPieceDims;
      if (piece_dim_ >= dim_) piece_dim_ = 0, key_ += kWarps * kTileKeys;
    }
    cp_async_commit_group();
    fill_ = (fill_ + 1) % kSlots;
  }

  const CacheHead<K>& head_;
  const Segment* segments_;
  int dim_, end_key_;
  unsigned char* ring_;
  int key_, piece_dim_ = 0;  // of the next copy
  int fill_ = 0, take_ = 0;  // slots
};

// S^T = K Q^T of a tile of keys and kTiles times 8 query heads.
template <typename T, typename K, int kTiles>
struct TileScores {
  using Stream = KeyStream<K>;
  static constexpr int kKeyTiles = Stream::kTileKeys / 16;
  float s[kTiles][kKeyTiles][4];

  // Rows of Q in shared memory are so far apart that 8 lanes that read together fall on different banks.
  __host__ __device__ __forceinline__ static constexpr int query_pitch(int dim) {
    return dim * 2 + (sizeof(K) == 1 ? 32 : 16);
  }

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < kTiles * kKeyTiles * 4; ++i) s[i / (kKeyTiles * 4)][i / 4 % kKeyTiles][i % 4] = 0;
  }

  // The piece's first `dims` dims; queries: Q from the first of them on.
  __device__ __forceinline__ void add(const unsigned char* piece, int dims, const unsigned char* queries, int pitch) {
#pragma unroll
    for (int step = 0; step < kPieceDims / 16; ++step) {
      if (step * 16 >= dims) break;
      uint32_t b[kTiles][2];
#pragma unroll
      for (int n = 0; n < kTiles; ++n) load_queries(b[n], queries + n * 8 * pitch + step * 32, pitch);
      uint32_t a[kKeyTiles][4];
      load_keys(a, piece, step);
#pragma unroll
      for (int i = 0; i < kKeyTiles * kTiles; ++i) {
        mma_m16n8k16<T>(s[i % kTiles][i / kTiles], a[i / kTiles], b[i % kTiles]);
      }
    }
  }

 private:
  // Bytes come four dims to a lane, whose even ones stand for dims 2t, 2t + 1 of the fragment and odd ones for 2t + 8,
  // 2t + 9; so they do in Q.
  __device__ __forceinline__ static void load_keys(uint32_t (&a)[kKeyTiles][4], const unsigned char* piece, int step) {
    if constexpr (sizeof(K) == 2) {
      ldmatrix_x4(a[0], piece + Stream::place(lane_index() % 16, step * 2 + lane_index() / 16));
    } else {
      uint32_t words[4];
      ldmatrix_x4(words, piece + Stream::place(lane_index(), step));
      WidenedBytes wide;
      if constexpr (__is_same(K, i8)) {
        wide = widen_i8<T>(words);
      } else {
        wide = widen_f8e4m3<T>(words);
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        a[i / 2][i % 2] = wide.even[i], a[i / 2][i % 2 + 2] = wide.odd[i];
      }
    }
  }
  __device__ __forceinline__ static void load_queries(uint32_t (&b)[2], const unsigned char* queries, int pitch) {
    if constexpr (sizeof(K) == 2) {
      ldmatrix_x2(b, queries + lane_index() % 8 * pitch + lane_index() / 8 % 2 * 16);
    } else {
      const Words2 dims =
          ld_shared(reinterpret_cast<const Words2*>(queries + lane_index() / 4 * pitch + lane_index() % 4 * 8));
      b[0] = (dims.w[0] & 0xffffu) | dims.w[1] << 16;
      b[1] = dims.w[0] >> 16 | (dims.w[1] & 0xffff0000u);
    }
  }
};

}  // namespace
}  // namespace diffqkv::cuda
