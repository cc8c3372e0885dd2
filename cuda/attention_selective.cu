// Selective V (paper, B.2) for one query per sequence: the softmax of all scores, but only the V
// rows of the k highest scores of each query head are read. Bound by memory: each byte of K is read
// once for up to 16 query heads, and of V only the selected rows are read.
//
// attention_selective_scores: a block is a unit (the query heads that share a K head) of one
// sequence, and one split of its keys. Its 8 warps process every eighth tile of keys through rings
// of cp.async slots, S^T = K Q^T by tensor cores, and the scores stay in shared memory. Then each
// warp processes one query head at a time: m and d of all its scores, and its own k best, exactly
// (attention_selective_top.h), which go to scratch memory in the order of the keys.
//
// attention_selective_values: a block is one query head of one sequence. It merges m and d, finds
// the k best of the splits' candidates, and gathers their V rows, 16 bytes per lane, with many rows
// in flight. Every sum has a fixed order.
//
// A tile is 16 keys, or 32 if an element of K is one byte, and comes in pieces of at most 64 dims:
// 2 KiB, a slot of the ring. Fragments are those of device/mma.h: of each 8 query heads a lane has
// lane % 4 * 2 and the next, and of each 16 keys lane / 4 and lane / 4 + 8.
#include <device/async.h>
#include <device/mma.h>
#include <algorithm>
#include <bit>
#include <cmath>

#include "attention_selective_top.h"
#include "bytes.h"
#include "element_types.h"
#include "finding.h"
#include "kernels.h"
#include "kv_page.h"
#include "soft_cap.h"

namespace diffqkv::cuda {
namespace {

// ---- Work split

constexpr int kMaxHeadDim = 256;
constexpr int kMinSplitKeys = 256;  // below, what a split leaves to merge would be too much beside what it reads
constexpr size_t kMaxScratchBytes = size_t{128} << 20;
constexpr int kThreads = 256, kWarps = kThreads / kWarpSize;
constexpr int kSlots = 4, kSlotBytes = 2048, kRingBytes = kWarps * kSlots * kSlotBytes;
constexpr int kPieceDims = 64;
constexpr int kSplitStep = 64;                            // splits are so many keys, or a multiple
constexpr int kMaxSplitKeys = 1024, kMinPageTokens = 32;  // a tile is in one page
constexpr int kMaxSegments = kMaxSplitKeys / kMinPageTokens;

// What is the same for all blocks of a launch.
struct Plan {
  int64_t first_batch;  // a launch does some of the sequences
  int q_heads_per_k_head;
  int unit_heads, parts;  // query heads that a block takes; blocks for the query heads of a K head
  int num_units;          // of a sequence
  int num_splits, min_split_keys;
  int top_k;
  int page_shift;   // keys lie in segments of 2^page_shift: pages, where K is paged
  int row_slots;    // of candidates, for a query head of a sequence
  int score_pitch;  // of the scores of a query head in shared memory, in floats
  int stage_slots;  // candidates that fit shared memory when splits are merged, 0 where not all do
  int window;
  float direction;  // the sign of sm_scale, 0 where that is 0: scores are ranked by q.k times this
  ScoreScale score;
  uint32_t* scores;  // [sequence][query head][row_slots]: candidates, see attention_selective_top.h
  uint32_t* keys;
  Words2* sums;  // [sequence][query head][split]: m, a raw score, and d
};

// The keys of a sequence, and how they are split. `first` is the first key that the query sees, and
// `start`, where the first split starts, is in its page.
struct Keys {
  int kv_len, first, start, per_split, used_splits;

  __device__ __forceinline__ Keys(const AttentionDecodeParams& p, const Plan& plan, int64_t batch, Finding* finding) {
    kv_len = static_cast<int>(p.kv_len);
    if (p.kv_lens != nullptr) {
      const int given = ld_global(p.kv_lens + batch);
      if ((given < 0 || given > kv_len) && finding != nullptr && threadIdx.x == 0) {
        report(finding, Finding::kv_len, static_cast<int>(batch), given, kv_len);
      }
      kv_len = given < 0 ? 0 : given < kv_len ? given : kv_len;
    }
    first = kv_len > plan.window ? kv_len - plan.window : 0;
    start = first / kMinPageTokens * kMinPageTokens;
    const int span = kv_len - start;
    per_split = span / plan.num_splits + (span % plan.num_splits != 0);
    if (per_split < plan.min_split_keys) per_split = plan.min_split_keys;
    per_split = (per_split + kSplitStep - 1) / kSplitStep * kSplitStep;
    used_splits = (span + per_split - 1) / per_split;
  }
  __device__ __forceinline__ int begin(int split) const { return start + split * per_split; }
  __device__ __forceinline__ int end(int split) const {
    return kv_len - begin(split) < per_split ? kv_len : begin(split) + per_split;
  }
  // The first candidate of a split. Splits before it leave top_k candidates, or all of their keys.
  __device__ __forceinline__ int slot(int split, int top_k) const {
    if (split == 0) return 0;
    return smaller(top_k, end(0) - first) + (split - 1) * smaller(top_k, per_split);
  }
};

// ---- K and V in the cache

// Rows of one K or V head: those of a page, or as many of a contiguous cache.
struct alignas(16) Segment {
  const unsigned char* data;  // its first row; of a page, the head as KvHeadLayout has it
  const bf16* scales;
};
// A K or V head of a sequence, of elements of type E.
template <typename E>
class CacheHead {
 public:
  __device__ __forceinline__ CacheHead(const AttentionDecodeParams& p, int page_shift, KvTensor tensor, int64_t batch,
                                       int64_t head)
      : CacheHead(p, page_shift, tensor, batch, head, tensor == KvTensor::v ? p.v : p.k) {}

  __device__ __forceinline__ Segment segment(int index) const {
    if (pages_ != nullptr) {
      const KvPage page = load_page(pages_ + index);
      const KvHead head =
          head_in_page(tensor_ == KvTensor::v ? page.v : page.k, page_offset_, layout_, head_, num_heads_);
      return {head.elements, kScaled ? head.scales : nullptr};
    }
    const int64_t tokens = int64_t{1} << page_shift_;
    return {data_ + index * tokens * pitch_ + head_ * layout_.row_bytes,
            kScaled ? scales_ + index * tokens * num_heads_ + head_ : nullptr};
  }
  // A row: where its bytes are is row.at(layout(), byte).
  struct Row {
    const unsigned char* data;
    int token;
    __device__ __forceinline__ const unsigned char* at(const KvHeadLayout& layout, int byte) const {
      return data + layout.place(token, byte);
    }
  };
  __device__ __forceinline__ Row row(const Segment& segment, int key) const {
    if (pages_ != nullptr) return {segment.data, row_index(key)};
    return {segment.data + row_index(key) * pitch_, 0};
  }
  __device__ __forceinline__ const KvHeadLayout& layout() const { return layout_; }
  __device__ __forceinline__ float scale(const Segment& segment, int key) const {
    return load_float(segment.scales + row_index(key) * (pages_ != nullptr ? 1 : num_heads_));
  }
  __device__ __forceinline__ int segment_of(int key) const { return key >> page_shift_; }

 private:
  __device__ __forceinline__ CacheHead(const AttentionDecodeParams& p, int page_shift, KvTensor tensor, int64_t batch,
                                       int64_t head, const KvView& kv)
      : data_(static_cast<const unsigned char*>(kv.data)),
        scales_(static_cast<const bf16*>(kv.scales)),
        pages_(p.pages != nullptr ? ld_global(p.pages + (p.pages_shared ? 0 : batch)) : nullptr),
        page_offset_(kv.page_offset),
        layout_(kv.head_dim, kBytes, int64_t{1} << page_shift),
        pitch_(kv.num_heads * kv.head_dim * kBytes),
        head_(head),
        num_heads_(kv.num_heads),
        page_shift_(page_shift),
        tensor_(tensor) {
    if (pages_ != nullptr) return;
    layout_.has_panels = false;
    data_ += batch * kv.batch_stride * kBytes;
    if (kScaled) scales_ += batch * (kv.batch_stride / kv.head_dim);
  }
  __device__ __forceinline__ int row_index(int key) const { return key & ((1 << page_shift_) - 1); }

  static constexpr int kBytes = sizeof(E);
  static constexpr bool kScaled = kBytes == 1;
  const unsigned char* data_;
  const bf16* scales_;
  const KvPage* pages_;
  int64_t page_offset_;
  KvHeadLayout layout_;
  int64_t pitch_, head_, num_heads_;
  int page_shift_;
  KvTensor tensor_;
};

// ---- attention_selective_scores

// One warp's tiles of keys: every kWarps-th of its block's.
template <typename K>
class KeyStream {
 public:
  static constexpr bool kScaled = sizeof(K) == 1;
  static constexpr int kRowBytes = kPieceDims * sizeof(K), kTileKeys = kSlotBytes / kRowBytes;

  // segments: in shared memory, from the one that holds begin_key on, which is a multiple of
  // kMinPageTokens. Keys before first_key are not read.
  __device__ __forceinline__ KeyStream(const CacheHead<K>& head, const Segment* segments, int dim, int begin_key,
                                       int first_key, int end_key, unsigned char* ring)
      : head_(head),
        segments_(segments - head.segment_of(begin_key)),
        dim_(dim),
        first_key_(first_key),
        end_key_(end_key),
        ring_(ring),
        key_(begin_key + warp_index() * kTileKeys) {
    for (int i = 0; i < kSlots - 1; ++i) copy_next();
  }

  // The next piece, there for all lanes. What take() gave before is then no longer: its slot takes
  // the next copy.
  __device__ __forceinline__ const unsigned char* take() {
    cp_async_wait_group<kSlots - 2>();
    __syncwarp();
    const unsigned char* const slot = ring_ + take_ * kSlotBytes;
    take_ = (take_ + 1) % kSlots;
    copy_next();
    return slot;
  }

  // The scale of key `tile_key` + lane, which is in a tile of this warp; 0 for keys that are not
  // read.
  __device__ __forceinline__ float load_scale(int tile_key) const {
    const int key = tile_key + lane_index();
    if (!reads(key)) return 0.0f;
    return head_.scale(ld_shared(segments_ + head_.segment_of(key)), key);
  }

  // Where the 16 bytes of `chunk` in `row` lie: neither 8 rows at one chunk nor what 8 lanes copy
  // meet in a bank.
  __device__ __forceinline__ static int place(int row, int chunk) {
    return row * kRowBytes + ((chunk ^ (kRowBytes == 128 ? row & 7 : row >> 1 & 3)) << 4);
  }

 private:
  __device__ __forceinline__ bool reads(int key) const {
    return static_cast<unsigned>(key - first_key_) < static_cast<unsigned>(end_key_ - first_key_);
  }

  // One copy group each time, empty past the end. Zeros for keys that are not read.
  __device__ __forceinline__ void copy_next() {
    if (key_ < end_key_) {
      constexpr int kLanes = kRowBytes / 16, kRows = kWarpSize / kLanes;
      unsigned char* const slot = ring_ + fill_ * kSlotBytes;
      const int row = lane_index() / kLanes, chunk = lane_index() % kLanes;
      const int byte = piece_dim_ * static_cast<int>(sizeof(K)), end_byte = dim_ * static_cast<int>(sizeof(K));
      const Segment segment = ld_shared(segments_ + head_.segment_of(key_));
      if (byte + chunk * 16 < end_byte) {
#pragma unroll
        for (int first = 0; first < kTileKeys; first += kRows) {
          const bool valid = reads(key_ + first + row);
          const unsigned char* const from =
              valid ? head_.row(segment, key_ + first + row).at(head_.layout(), byte + chunk * 16) : segment.data;
          cp_async_cg(slot + place(first + row, chunk), from, valid ? 16 : 0);
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
  int dim_, first_key_, end_key_;
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

  // Rows of Q in shared memory are so far apart that 8 lanes that read together fall on different
  // banks.
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
  // Bytes come four dims to a lane, whose even ones stand for dims 2t, 2t + 1 of the fragment and
  // odd ones for 2t + 8, 2t + 9; so they do in Q.
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

struct ScoresShared {
  Segment segments[kMaxSegments];
  unsigned char rings[kRingBytes];
  // Then Q and the scores.
};

// m and d of a query head's scores, and its candidates. kCount: of scores a lane has room for.
template <int kCount>
__device__ __forceinline__ void select_candidates(const Plan& plan, float* scores, int first_key, int num_keys,
                                                  int64_t row, const Keys& keys, int split) {
  const int lane = lane_index();
  if (plan.score.cap_factor != 0.0f) {
#pragma unroll 1
    for (int j = lane; j < num_keys; j += kWarpSize) {  // each lane those that it reads below
      st_shared(scores + j, cap_score(ld_shared(scores + j), plan.score.cap_factor));
    }
  }
  uint32_t ordered[kCount];
  float top = -infinity();
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const int j = i * kWarpSize + lane;
    const float score = j < num_keys ? ld_shared(scores + j) : -infinity();
    top = larger(top, score);
    ordered[i] = j < num_keys ? order_score(score) : 0u;
  }
  top = warp_reduce(top, larger);
  float d = 0;
  if (top > -infinity() && top < infinity()) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if (ordered[i] != 0) d += weight_of(ordered_score(ordered[i]), top, plan.score.scale_log2);
    }
  }
  d = warp_sum(d);
  if (lane == 0) {
    st_global(plan.sums + row * plan.num_splits + split, Words2{{bit_cast<uint32_t>(top), bit_cast<uint32_t>(d)}});
  }
  Kept kept;
  if (num_keys > plan.top_k) kept = keep_best(ordered, static_cast<uint32_t>(plan.top_k));
  const int64_t slot = row * plan.row_slots + keys.slot(split, plan.top_k);
  Places places;
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const int place = places.take(kept, ordered[i]);
    if (place >= 0) {
      st_global(plan.scores + slot + place, ordered[i]);
      st_global(plan.keys + slot + place, static_cast<uint32_t>(first_key + i * kWarpSize + lane));
    }
  }
}

// kTiles: room for that many times 8 query heads.
template <typename T, typename K, int kTiles>
__global__ void __launch_bounds__(kThreads, 2)
    attention_selective_scores_kernel(AttentionDecodeParams p, Plan plan, Finding* finding) {
  using Stream = KeyStream<K>;
  using Tile = TileScores<T, K, kTiles>;
  const int block = blockIdx.x, unit = block % plan.num_units, rest = block / plan.num_units;
  const int split = rest % plan.num_splits, sequence = rest / plan.num_splits;
  const int64_t batch = plan.first_batch + sequence;
  const Keys keys(p, plan, batch, unit == 0 && split == 0 ? finding : nullptr);
  if (split >= keys.used_splits) return;
  const int begin_key = keys.begin(split), end_key = keys.end(split);
  const int first_key = begin_key > keys.first ? begin_key : keys.first;
  const int k_head = unit / plan.parts, first = unit % plan.parts * plan.unit_heads;
  const int first_head = k_head * plan.q_heads_per_k_head + first;
  const int num_heads = smaller(plan.unit_heads, plan.q_heads_per_k_head - first);

  const int dim = static_cast<int>(p.k.head_dim), pitch = Tile::query_pitch(dim);
  const int warp = warp_index(), lane = lane_index();
  auto* const shared = reinterpret_cast<ScoresShared*>(dynamic_shared());
  unsigned char* const queries = dynamic_shared() + sizeof(*shared);
  float* const scores = reinterpret_cast<float*>(queries + kTiles * 8 * pitch);

  // Q, with rows of zeros past the unit's last head.
  const T* const q = static_cast<const T*>(p.q) + (batch * p.num_q_heads + first_head) * dim;
  for (int i = threadIdx.x; i < kTiles * dim; i += kThreads) {
    const int row = i / (dim / 8), chunk = i % (dim / 8);
    const bool valid = row < num_heads;
    cp_async_cg(queries + row * pitch + chunk * 16, valid ? q + row * dim + chunk * 8 : q, valid ? 16 : 0);
  }
  cp_async_commit_group();
  const CacheHead<K> cache(p, plan.page_shift, KvTensor::k, batch, k_head);
  const int first_segment = cache.segment_of(begin_key);
  const int num_segments = cache.segment_of(end_key - 1) - first_segment + 1;
  for (int i = threadIdx.x; i < num_segments; i += kThreads) {
    st_shared(&shared->segments[i], cache.segment(first_segment + i));
  }
  __syncthreads();
  Stream stream(cache, shared->segments, dim, begin_key, first_key, end_key,
                shared->rings + warp * kSlots * kSlotBytes);
  cp_async_wait_group<kSlots - 1>();
  __syncthreads();  // Q is there

  Tile tile;
  int key = begin_key + warp * Stream::kTileKeys;
  float next_scale = Stream::kScaled ? stream.load_scale(key) : 0.0f;
  for (; key < end_key; key += kWarps * Stream::kTileKeys) {
    const float scale = next_scale;
    if (Stream::kScaled) next_scale = stream.load_scale(key + kWarps * Stream::kTileKeys);
    tile.clear();
    for (int d = 0; d < dim; d += kPieceDims) tile.add(stream.take(), dim - d, queries + d * 2, pitch);
#pragma unroll
    for (int half = 0; half < Tile::kKeyTiles * 2; ++half) {
      const float key_scale = Stream::kScaled ? __shfl_sync(kAllLanes, scale, half * 8 + lane / 4) : 1.0f;
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int head = n * 8 + lane % 4 * 2 + i;
          const float dot = tile.s[n][half / 2][half % 2 * 2 + i];
          const float score = Stream::kScaled ? dot * key_scale * plan.direction : dot * plan.direction;
          if (head < num_heads) {
            st_shared(scores + head * plan.score_pitch + key - begin_key + half * 8 + lane / 4, score);
          }
        }
      }
    }
  }
  __syncthreads();
  for (int head = warp; head < num_heads; head += kWarps) {
    select_candidates<kMaxSplitKeys / kTiles / kWarpSize>(
        plan, scores + head * plan.score_pitch + first_key - begin_key, first_key, end_key - first_key,
        static_cast<int64_t>(sequence) * p.num_q_heads + first_head + head, keys, split);
  }
}

// ---- attention_selective_values

constexpr int kListRows = 2048;  // V rows that are gathered at once
static_assert(kThreads == kBins && kThreads >= kMaxHeadDim && kListRows % kThreads == 0);

struct ValuesShared {
  BinSearch search;
  uint32_t warps[2][kWarps];  // two numbers of each warp
  union {
    struct {
      const unsigned char* rows[kListRows];  // CacheHead::Row of V
      uint32_t weights[kListRows];           // at first the candidates' indices
      uint16_t tokens[kListRows];            // CacheHead::Row::token
    } list;
    float sums[kThreads * 16];  // [rows at once][head_dim_vo]
  };
  // Then the candidates' scores, where they fit.
};

// Two numbers of each thread, reduced over the block: the same bits in every thread. Ends with a
// barrier.
template <typename T, typename F, typename G>
__device__ __forceinline__ void block_reduce(T& a, T& b, const F& f, const G& g, ValuesShared* shared) {
  a = warp_reduce(a, f), b = warp_reduce(b, g);
  if (lane_index() == 0) {
    st_shared(&shared->warps[0][warp_index()], bit_cast<uint32_t>(a));
    st_shared(&shared->warps[1][warp_index()], bit_cast<uint32_t>(b));
  }
  __syncthreads();
  a = bit_cast<T>(ld_shared(&shared->warps[0][0])), b = bit_cast<T>(ld_shared(&shared->warps[1][0]));
  for (int i = 1; i < kWarps; ++i) {
    a = f(a, bit_cast<T>(ld_shared(&shared->warps[0][i])));
    b = g(b, bit_cast<T>(ld_shared(&shared->warps[1][i])));
  }
  __syncthreads();
}
__device__ __forceinline__ float add_floats(float a, float b) { return a + b; }

// The sum of weighted V rows: a thread owns 16 bytes of every rows_at_once-th row of the list.
template <typename V>
struct Gather {
  static constexpr int kElements = 16 / sizeof(V), kAtOnce = kElements > 8 ? 2 : 4;  // kAtOnce: loads under way
  int dim, rows_at_once, slot, first_dim;
  float o[kElements] = {};

  __device__ __forceinline__ explicit Gather(int head_dim_vo) : dim(head_dim_vo) {
    const int thread = threadIdx.x, lanes = dim / kElements;
    rows_at_once = kThreads / lanes, slot = thread / lanes, first_dim = thread % lanes * kElements;
  }

  __device__ __forceinline__ void add(const ValuesShared* shared, const KvHeadLayout& layout, int count) {
    if (slot >= rows_at_once) return;
    for (int first = slot; first < count; first += rows_at_once * kAtOnce) {
      float weights[kAtOnce];
      Elements<V, kElements> parts[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const int j = first + i * rows_at_once;
        weights[i] = j < count ? bit_cast<float>(ld_shared(&shared->list.weights[j])) : 0.0f;
        if (weights[i] == 0.0f) continue;  // 0 times infinity is not to be seen
        const typename CacheHead<V>::Row row = {ld_shared(&shared->list.rows[j]), ld_shared(&shared->list.tokens[j])};
        parts[i] = ld_global(
            reinterpret_cast<const Elements<V, kElements>*>(row.at(layout, first_dim * static_cast<int>(sizeof(V)))));
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        if (weights[i] == 0.0f) continue;
#pragma unroll
        for (int e = 0; e < kElements; ++e) o[e] = __fmaf_rn(weights[i], to_float(parts[i].v[e]), o[e]);
      }
    }
  }

  // Dim threadIdx.x of the sum; the list is overwritten.
  __device__ __forceinline__ float finish(ValuesShared* shared) const {
    if (slot < rows_at_once) {
#pragma unroll
      for (int e = 0; e < kElements; e += 4) {
        st_shared(reinterpret_cast<Words4*>(&shared->sums[slot * dim + first_dim + e]),
                  Words4{{bit_cast<uint32_t>(o[e]), bit_cast<uint32_t>(o[e + 1]), bit_cast<uint32_t>(o[e + 2]),
                          bit_cast<uint32_t>(o[e + 3])}});
      }
    }
    __syncthreads();
    float sum = 0;
    const int d = threadIdx.x;
    if (d < dim) {
      for (int i = 0; i < rows_at_once; ++i) sum += ld_shared(&shared->sums[i * dim + d]);
    }
    return sum;
  }
};

template <typename V>
__global__ void __launch_bounds__(kThreads, 2) attention_selective_values_kernel(AttentionDecodeParams p, Plan plan) {
  auto* const shared = reinterpret_cast<ValuesShared*>(dynamic_shared());
  uint32_t* const stage = reinterpret_cast<uint32_t*>(dynamic_shared() + sizeof(*shared));
  const int thread = threadIdx.x, warp = thread / kWarpSize, lane = lane_index();
  const int64_t row = blockIdx.x;
  const int head = static_cast<int>(row % p.num_q_heads);
  const int64_t batch = plan.first_batch + row / p.num_q_heads, out_row = batch * p.num_q_heads + head;
  const int dim = static_cast<int>(p.v.head_dim);
  const Keys keys(p, plan, batch, nullptr);

  // m and d of all keys, by every warp.
  const Words2* const sums = plan.sums + row * plan.num_splits;
  float top = -infinity(), d = 0;
  for (int i = lane; i < keys.used_splits; i += kWarpSize) top = larger(top, bit_cast<float>(ld_global(sums + i).w[0]));
  top = warp_reduce(top, larger);
  for (int i = lane; i < keys.used_splits; i += kWarpSize) {
    const Words2 part = ld_global(sums + i);
    d += bit_cast<float>(part.w[1]) * weight_of(bit_cast<float>(part.w[0]), top, plan.score.scale_log2);
  }
  d = warp_sum(d);
  // Without keys, out is 0 and lse is -inf. If the largest score m is not finite, exp(score - m) is
  // NaN at it, and so is every weight.
  if (keys.kv_len == 0 || !(top > -infinity() && top < infinity())) {
    const float nan = bit_cast<float>(0x7fc00000u);
    if (thread < dim) store_any(p.out, p.out_dtype, out_row * dim + thread, keys.kv_len == 0 ? 0.0f : nan);
    if (thread == 0 && p.lse != nullptr) st_global(p.lse + out_row, keys.kv_len == 0 ? -infinity() : nan);
    return;
  }

  const int last_split = keys.used_splits - 1;
  const int last_begin = last_split > 0 ? keys.begin(last_split) : keys.first;
  const int num_candidates = keys.slot(last_split, plan.top_k) + smaller(plan.top_k, keys.kv_len - last_begin);
  const uint32_t* const candidates = plan.scores + row * plan.row_slots;
  const bool staged = num_candidates <= plan.stage_slots;
  const auto score_of = [&](int j) { return staged ? ld_shared(stage + j) : ld_global(candidates + j); };
  uint32_t lowest = 0xffffffffu, highest = 0;
  for (int j = thread; j < num_candidates; j += kThreads) {
    const uint32_t score = ld_global(candidates + j);
    if (staged) st_shared(stage + j, score);
    lowest = smaller_word(lowest, score), highest = larger_word(highest, score);
  }
  block_reduce(lowest, highest, smaller_word, larger_word, shared);
  Kept kept;
  if (num_candidates > plan.top_k) {
    kept = keep_best(score_of, num_candidates, static_cast<uint32_t>(plan.top_k), lowest, highest, &shared->search);
  }

  // The kept go to the list in the order of their keys, a warp's share of a round at a time, and
  // are gathered when it is full.
  const CacheHead<V> cache(p, plan.page_shift, KvTensor::v, batch, head * p.v.num_heads / p.num_q_heads);
  Gather<V> gather(dim);
  float weight_sum = 0;
  int listed = 0;
  const auto gather_list = [&] {
    __syncthreads();
    for (int i = thread; i < listed; i += kThreads) {
      const int j = static_cast<int>(ld_shared(&shared->list.weights[i]));
      const int key = static_cast<int>(ld_global(plan.keys + row * plan.row_slots + j));
      float weight = weight_of(ordered_score(score_of(j)), top, plan.score.scale_log2);
      weight_sum += weight;
      const Segment segment = cache.segment(cache.segment_of(key));
      if (sizeof(V) == 1 && weight != 0.0f) weight *= cache.scale(segment, key);
      const typename CacheHead<V>::Row v_row = cache.row(segment, key);
      st_shared(&shared->list.rows[i], v_row.data);
      st_shared(&shared->list.tokens[i], static_cast<uint16_t>(v_row.token));
      st_shared(&shared->list.weights[i], bit_cast<uint32_t>(weight));
    }
    __syncthreads();
    gather.add(shared, cache.layout(), listed);
    __syncthreads();
    listed = 0;
  };
  Places before;  // in the rounds before, of all warps
  for (int first = 0; first < num_candidates; first += kListRows) {
    constexpr int kShare = kListRows / kWarps;
    const int begin = first + warp * kShare, end = smaller(begin + kShare, num_candidates);
    if (listed + smaller(kListRows, plan.top_k - static_cast<int>(before.total(kept))) > kListRows) gather_list();
    Places own;
    for (int at = begin; at < end; at += kWarpSize) own.count(kept, at + lane < end ? score_of(at + lane) : 0u);
    if (lane == 0) {
      st_shared(&shared->warps[0][warp], own.higher);
      st_shared(&shared->warps[1][warp], own.equal);
    }
    __syncthreads();
    const uint32_t before_round = before.total(kept);
    Places places = before;
    for (int i = 0; i < kWarps; ++i) {
      const uint32_t higher = ld_shared(&shared->warps[0][i]), equal = ld_shared(&shared->warps[1][i]);
      if (i < warp) places.higher += higher, places.equal += equal;
      before.higher += higher, before.equal += equal;
    }
    for (int at = begin; at < end; at += kWarpSize) {
      const int place = places.take(kept, at + lane < end ? score_of(at + lane) : 0u);
      if (place >= 0) {
        st_shared(&shared->list.weights[listed + place - static_cast<int>(before_round)],
                  static_cast<uint32_t>(at + lane));
      }
    }
    listed += static_cast<int>(before.total(kept) - before_round);
    __syncthreads();  // the warps' numbers have been read
  }
  gather_list();

  float unused = 0;
  if (p.renormalize) block_reduce(weight_sum, unused, add_floats, add_floats, shared);
  const float sum = gather.finish(shared);
  if (thread < dim) store_any(p.out, p.out_dtype, out_row * dim + thread, sum / (p.renormalize ? weight_sum : d));
  if (thread == 0 && p.lse != nullptr) st_global(p.lse + out_row, __fmaf_rn(top, plan.score.scale, logf(d)));
}

// ---- The launches

bool aligned(const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; }

// Whether the kernels support the call: Q and out of one 16-bit type, K of that type or of one byte per element, V of any
// type; head sizes in whole 16 bytes.
bool takes(const AttentionDecodeParams& p) {
  const auto fits = [&](const KvView& kv) {
    const int64_t bytes = static_cast<int64_t>(dtype_size(kv.dtype));
    return kv.head_dim * bytes % 16 == 0 && kv.head_dim <= kMaxHeadDim && p.num_q_heads % kv.num_heads == 0 &&
           (p.pages != nullptr || (aligned(kv.data) && kv.batch_stride * bytes % 16 == 0));
  };
  return (p.q_dtype == DType::bf16 || p.q_dtype == DType::f16) && p.out_dtype == p.q_dtype &&
         (p.k.dtype == p.q_dtype || is_quantized(p.k.dtype)) && p.k.head_dim % 16 == 0 && p.top_k > 0 && fits(p.k) &&
         fits(p.v) && aligned(p.q);
}

size_t scores_shared_bytes(int num_heads, size_t query_bytes, int keys) {
  return sizeof(ScoresShared) + query_bytes + static_cast<size_t>(num_heads) * static_cast<size_t>(keys + 4) * 4;
}

struct Launch {
  Plan plan;
  int64_t sequences;                  // of a launch
  size_t scores_bytes, values_bytes;  // of shared memory
};

Launch make_launch(const AttentionDecodeParams& p, Context& context) {
  Launch launch = {};
  Plan& plan = launch.plan;
  plan.q_heads_per_k_head = static_cast<int>(p.num_q_heads / p.k.num_heads);
  const int most = plan.q_heads_per_k_head <= 8 ? 8 : 16;
  plan.parts = (plan.q_heads_per_k_head + most - 1) / most;
  plan.unit_heads = (plan.q_heads_per_k_head + plan.parts - 1) / plan.parts;
  plan.num_units = static_cast<int>(p.k.num_heads) * plan.parts;
  plan.top_k = static_cast<int>(std::min(p.top_k, p.kv_len));
  plan.page_shift = p.pages != nullptr ? std::countr_zero(static_cast<uint64_t>(p.page_tokens)) : 6;
  plan.window = window_of(p);
  plan.score = score_scale_of(p);
  plan.direction = p.sm_scale > 0 ? 1.0f : p.sm_scale < 0 ? -1.0f : p.sm_scale * 0.0f;

  const size_t query_bytes = static_cast<size_t>(most) * (static_cast<size_t>(p.k.head_dim) * 2 + 32);
  int max_split_keys = kMaxSplitKeys * 8 / most;
  while (scores_shared_bytes(most, query_bytes, max_split_keys) > context.max_shared_bytes) {
    max_split_keys -= kSplitStep;
  }
  plan.score_pitch = max_split_keys + 4;  // so that the lanes that store a tile's scores fall on different banks
  launch.scores_bytes = scores_shared_bytes(most, query_bytes, max_split_keys);

  const auto divide_up = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
  const int64_t blocks = p.batch_size * plan.num_units;
  plan.min_split_keys = p.num_splits > 0 ? 1 : kMinSplitKeys;
  // The most keys of a sequence from its first split on.
  const int64_t most_keys = std::min(p.kv_len, static_cast<int64_t>(plan.window) + kMinPageTokens - 1);
  const int64_t wanted = p.num_splits > 0 ? p.num_splits : divide_up(context.num_multiprocessors, blocks);
  plan.num_splits = static_cast<int>(std::max<int64_t>(
      {std::min(wanted, divide_up(most_keys, plan.min_split_keys)), divide_up(most_keys, max_split_keys), 1}));
  plan.row_slots = static_cast<int>(std::min(p.kv_len, static_cast<int64_t>(plan.num_splits) * plan.top_k));
  const size_t room = (context.max_shared_bytes - sizeof(ValuesShared)) / 4;
  plan.stage_slots = static_cast<size_t>(plan.row_slots) <= room ? plan.row_slots : 0;
  launch.values_bytes = sizeof(ValuesShared) + static_cast<size_t>(plan.stage_slots) * 4;

  const size_t slots = static_cast<size_t>(p.num_q_heads) * static_cast<size_t>(plan.row_slots);
  const size_t sums = static_cast<size_t>(p.num_q_heads) * static_cast<size_t>(plan.num_splits);
  const size_t sequence_bytes = (slots + sums) * 8;
  launch.sequences = std::clamp<int64_t>(static_cast<int64_t>(kMaxScratchBytes / sequence_bytes), 1, p.batch_size);
  const size_t sequences = static_cast<size_t>(launch.sequences);
  plan.sums = static_cast<Words2*>(context.scratch(sequences * sequence_bytes));
  plan.scores = reinterpret_cast<uint32_t*>(plan.sums + sequences * sums);
  plan.keys = plan.scores + sequences * slots;
  return launch;
}

template <typename T, typename K>
void run_scores(const AttentionDecodeParams& p, const Plan& plan, const LaunchShape& shape, Context& context) {
  launch("attention_selective_scores",
         plan.q_heads_per_k_head <= 8 ? attention_selective_scores_kernel<T, K, 1>
                                      : attention_selective_scores_kernel<T, K, 2>,
         shape, context.stream, p, plan, context.finding);
}

template <typename T>
void run_scores_of(const AttentionDecodeParams& p, const Plan& plan, const LaunchShape& shape, Context& context) {
  switch (p.k.dtype) {
    case DType::i8: return run_scores<T, i8>(p, plan, shape, context);
    case DType::f8e4m3: return run_scores<T, f8e4m3>(p, plan, shape, context);
    default: return run_scores<T, T>(p, plan, shape, context);
  }
}

}  // namespace

bool attention_selective(const AttentionDecodeParams& p, Context& context) {
  if (!takes(p)) return false;
  if (p.batch_size <= 0) return true;
  Launch all = make_launch(p, context);
  Plan& plan = all.plan;
  LaunchShape scores, values;
  scores.threads = values.threads = kThreads;
  scores.shared_bytes = all.scores_bytes, values.shared_bytes = all.values_bytes;
  for (; plan.first_batch < p.batch_size; plan.first_batch += all.sequences) {
    const int64_t sequences = std::min(all.sequences, p.batch_size - plan.first_batch);
    scores.grid[0] = static_cast<unsigned>(sequences * plan.num_splits * plan.num_units);
    if (p.q_dtype == DType::bf16) {
      run_scores_of<bf16>(p, plan, scores, context);
    } else {
      run_scores_of<f16>(p, plan, scores, context);
    }
    values.grid[0] = static_cast<unsigned>(sequences * p.num_q_heads);
    visit_cache(p.v.dtype, [&](auto v) {
      launch("attention_selective_values", attention_selective_values_kernel<decltype(v)>, values, context.stream, p,
             plan);
    });
  }
  return true;
}

}  // namespace diffqkv::cuda
