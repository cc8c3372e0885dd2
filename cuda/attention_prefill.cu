// Attention of many queries: out = softmax(sm_scale Q K^T) V, on tensor cores, like
// FlashAttention-2. Q has a 16-bit type; K and V have the same type or 8 bits.
//
// Work split. A group is the Q heads that share both a K head and a V head. A block is one tile of
// query positions of one sequence, for all groups that share one K head (or one V head, if V has
// fewer heads), so that a tile of K or V is read once for all heads that use it. A group's rows are
// its Q heads times the tile's positions, head after head. A warp owns 32 rows of one group (16 at
// head_dim_vo 256), whose scores, softmax and output stay in its registers. For 32/4/16 x 64, a
// block of 8 warps is 32 positions x 8 Q heads; 4 groups of 2 Q heads share a tile of K and have a
// tile of V each.
//
// K and V come in tiles of 32 keys by cp.async. If shared memory suffices, there are two stages of
// both; else there is one of each, and V is copied during Q K^T and the next K during P V. Rows of
// shared memory are swizzled, so there are no bank conflicts. Keys that no query of the tile sees
// are not read. The first tile holds the first key that one of them sees, and a warp skips tiles
// before the windows of its own. Blocks with most keys start first, sequence by sequence, for the L2's sake.
//
// 16-bit elements are copied to the tile by cp.async. The bytes of 8-bit elements are copied one
// tile ahead to a place of the thread's own. The thread that copied them widens them into the
// 16-bit tile, which needs no further barrier. Their scales follow the tile: scores are multiplied
// by the scale of K, and P by that of V before it is rounded.
//
// Fragments are those of device/mma.h. Of each 16 rows a lane has lane / 4 and lane / 4 + 8 (index
// 0 and 1 of the arrays below); of each 8 columns it has lane % 4 * 2 and the next.
//
// Bound by arithmetic: 2 * (head_dim_qk + head_dim_vo) FLOPs per key and row, and one exp2 on a
// unit that does 16 per clock.
#include <device/async.h>
#include <device/memory.h>
#include <device/mma.h>
#include <algorithm>
#include <cmath>

#include "bytes.h"
#include "element_types.h"
#include "finding.h"
#include "kernels.h"
#include "kv_page.h"
#include "soft_cap.h"
#include "softmax.h"

namespace diffqkv::cuda {
namespace {

// ---- Work split

constexpr int kTileKeys = 32, kKeySteps = kTileKeys / 16;

// Rows of m16n8k16 that a warp owns, in units of 16: two use each fragment of K and V twice.
// Fewer where registers would not do.
__host__ __device__ __forceinline__ constexpr int row_tiles(int head_dim_qk, int head_dim_vo) {
  return head_dim_vo < 128 || (head_dim_vo == 128 && head_dim_qk == 128) ? 2 : 1;
}

constexpr int kMaxWarps = 8;

struct Plan {
  int groups_per_block, q_heads_per_group, warps_per_group;
  int num_units;  // blocks that one tile of positions takes: the K (or V) heads, more where a block can't hold all groups
  int num_tiles, tile_queries;
  bool k_is_shared;  // one tile of K and one of V for each group; else the other way round
  bool two_stages;
  ScoreScale score;
  int window;
  bool negate;  // sm_scale is negative
};

// Where a warp's row of a group lies.
struct Row {
  int head, query;  // of the group, of the sequence
  bool valid;
  __device__ __forceinline__ Row(const Plan& plan, int row, int first_query, int q_len) {
    head = row / plan.tile_queries;
    query = first_query + row - head * plan.tile_queries;
    valid = head < plan.q_heads_per_group && query < q_len;
  }
};

// ---- Tiles of K and V: from the cache to shared memory

// A tile in shared memory: rows of `dims` elements, in chunks of 16 bytes. Chunks are swizzled so
// that neither 8 rows at one column, nor what 8 lanes copy, meet in a bank: rows that are a
// multiple of 128 bytes by row % 8, the others, which start in one half of the banks and the other
// by turns, by row / 2 % 4.
__device__ __forceinline__ int swizzle(int row, int dims) { return dims % 64 == 0 ? row & 7 : row >> 1 & 3; }

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

// How a warp goes over a tile, 512 bytes of the cache at a time, 16 a lane: 2^rows_log2 rows by the
// lanes that are left.
struct Walk {
  int rows_log2, chunks, row, chunk;
  // 128 bytes of a row at a time where rows are a multiple of that, else 64; half of it where an
  // element is a byte.
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
    if (!p.pages) start_ = static_cast<const unsigned char*>(kv().data) + batch * kv().batch_stride * element_bytes();
  }

  // Finds the page of the tile at first_key, which has a key. Well before the tile is copied: it
  // takes a while.
  __device__ __forceinline__ void seek(int first_key) {
    if (!p_.pages || (first_key & (page_tokens() - 1)) != 0) return;
    const KvPage* const page = ld_global(p_.pages + (p_.pages_shared ? 0 : batch_)) + first_key / page_tokens();
    start_ = static_cast<const unsigned char*>(ld_global(kIsV ? &page->v : &page->k)) + kv().page_offset;
  }
  __device__ __forceinline__ void seek_page_of(int key) { seek(key & -page_tokens()); }
  // The rows of the tile at first_key, for which seek() was called last.
  struct TileRows {
    const unsigned char* head;  // of a page; else the tile's first row
    int first_token;            // in the page
    int stride;                 // bytes from row to row, if they are not in a page
    // 16 bytes of a row.
    __device__ __forceinline__ const unsigned char* at(const KvHeadLayout& layout, int row, int chunk) const {
      return stride > 0 ? head + static_cast<int64_t>(row) * stride + chunk * 16
                        : head + layout.place(first_token + row, chunk * 16);
    }
  };
  // The same of rows of whole panels of 128 bytes, by the place of 16 bytes in the tile. A page has
  // them in the order of the tile.
  struct TilePanels {
    const unsigned char* start;
    int row_stride, panel_stride;  // bytes
    int swizzle;                   // 7 if the rows are not swizzled, else 0
    __device__ __forceinline__ uint32_t offset(int row, int place) const {
      return row * row_stride + (place >> 3) * panel_stride + ((place & 7) ^ (row & swizzle)) * 16;
    }
  };
  __device__ __forceinline__ TileRows rows(int first_key, const KvHeadLayout& layout) const {
    if (p_.pages) return {start_ + head_ * layout.bytes(), first_key & (page_tokens() - 1), 0};
    const int stride = num_heads() * layout.row_bytes;
    return {start_ + int64_t{first_key} * stride + head_ * layout.row_bytes, 0, stride};
  }
  __device__ __forceinline__ TilePanels panels(int first_key, const KvHeadLayout& layout) const {
    const TileRows tile = rows(first_key, layout);
    if (p_.pages) return {tile.head + tile.first_token * 128, 128, 128 * layout.page_tokens, 0};
    return {tile.head, tile.stride, 128, 7};
  }
  __device__ __forceinline__ KvHeadLayout layout(int dims, int element_bytes) const {
    return {dims, element_bytes, page_tokens()};
  }
  // The scale of a key of that tile.
  __device__ __forceinline__ bf16 scale(int key) const {
    if (p_.pages) {
      const KvHeadLayout of_bytes = layout(dims(), 1);
      const bf16* const first = reinterpret_cast<const bf16*>(start_ + int64_t{num_heads()} * of_bytes.bytes());
      return ld_global(first + head_ * page_tokens() + (key & (page_tokens() - 1)));
    }
    const bf16* const first = static_cast<const bf16*>(kv().scales) + batch_ * (kv().batch_stride / dims());
    return ld_global(first + int64_t{key} * num_heads() + head_);
  }

  __device__ __forceinline__ bool has_8_bits() const { return kQuantized && is_quantized(dtype()); }
  __device__ __forceinline__ DType dtype() const { return kv().dtype; }
  __device__ __forceinline__ int num_heads() const { return static_cast<int>(kv().num_heads); }

 private:
  __device__ __forceinline__ const KvView& kv() const { return kIsV ? p_.v : p_.k; }
  __device__ __forceinline__ int page_tokens() const { return static_cast<int>(p_.page_tokens); }
  __device__ __forceinline__ int dims() const { return static_cast<int>(kv().head_dim); }
  __device__ __forceinline__ int element_bytes() const { return has_8_bits() ? 1 : 2; }

  const AttentionPrefillParams& p_;
  int batch_, head_;
  const unsigned char* start_ = nullptr;  // of the sequence, or of the layer's part of the page
};

// Fills tiles with the keys of one head from first_seen to end_key, zeros for others; one of
// num_workers warps that do it. dims, the head's, is a parameter of its calls, as the compiler may know it there.
template <typename T, bool kIsV, bool kQuantized>
class TileFiller {
 public:
  // staged: the warps' room for the bytes of a tile.
  __device__ __forceinline__ TileFiller(const CacheHead<kIsV, kQuantized>& head, int first_seen, int end_key,
                                        int worker, int num_workers, unsigned char* staged)
      : head_(head),
        first_seen_(first_seen),
        end_key_(end_key),
        worker_(worker),
        num_workers_(num_workers),
        staged_(staged) {}

  // Before all else; a wait for copies is to follow. first_key, of the first tile, is below end_key.
  __device__ __forceinline__ void begin(int first_key, int dims) {
    head_.seek_page_of(first_key);
    if (head_.has_8_bits()) stage(first_key, dims);
  }

  // The tile at first_key, one after the other. Comes after a wait for the copies that
  // the last call began. What it copies takes a wait, and what it widens none; both a barrier.
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
    const KvHeadLayout layout = head_.layout(dims, 2);
    if (dims % 64 == 0) {
      const auto from = head_.panels(first_key, layout);
      for (int piece = worker_; piece < dims / 8; piece += num_workers_) {
        const int row = walk.row_of(piece), place = walk.chunk_of(piece);
        const bool valid = reads(first_key + row);
        cp_async_cg(tile + row * dims * 2 + place * 16, from.start + (valid ? from.offset(row, place) : 0u),
                    valid ? 16 : 0);
      }
    } else {
      const auto from = head_.rows(first_key, layout);
      for (int piece = worker_; piece < dims / 8; piece += num_workers_) {
        const int row = walk.row_of(piece), chunk = walk.chunk_of(piece);
        const bool valid = reads(first_key + row);
        cp_async_cg(tile + row * dims * 2 + ((chunk ^ swizzle(row, dims)) << 4),
                    valid ? from.at(layout, row, chunk) : from.head, valid ? 16 : 0);
      }
    }
    if (kQuantized && worker_ == 0) store_scale(tile_scales(tile, dims), 1.0f, 1.0f);
    if (first_key + kTileKeys < end_key_) head_.seek(first_key + kTileKeys);
  }

  __device__ __forceinline__ void stage(int first_key, int dims) {
    const Walk walk(dims, 1);
    const KvHeadLayout layout = head_.layout(dims, 1);
    const auto from = head_.rows(first_key, layout);
#pragma unroll 1
    for (int piece = worker_; piece < dims / 16; piece += num_workers_) {
      const int row = walk.row_of(piece), chunk = walk.chunk_of(piece);
      const bool valid = reads(first_key + row);
      cp_async_cg(staged_ + (piece * kWarpSize + lane_index()) * 16, valid ? from.at(layout, row, chunk) : from.head,
                  valid ? 16 : 0);
    }
    if (worker_ == 0) {
      const bool valid = reads(first_key + lane_index());
      scale_ = valid ? head_.scale(first_key + lane_index()) : bf16{0};
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
      // P times the scale of V is rounded to T. Of f16, which reaches down to 2^-24 alone, it is
      // kept near 1: the largest scale so far is below twice the power. An infinity or NaN does not
      // count.
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

  __device__ __forceinline__ bool reads(int key) const {
    return static_cast<unsigned>(key - first_seen_) < static_cast<unsigned>(end_key_ - first_seen_);
  }

  CacheHead<kIsV, kQuantized> head_;
  int first_seen_, end_key_, worker_, num_workers_;
  unsigned char* staged_;
  float power_ = kIsV && __is_same(T, f16) ? 0x1p-40f : 1.0f;
  bf16 scale_ = {0};  // of the staged bytes' key of the same index as the lane
};

// ---- Scores, softmax and output of one warp

// The keys of a tile that a row sees, a bit each; end: the first key of the tile past them.
__device__ __forceinline__ uint32_t seen_bits(int end, int window) {
  const auto below = [](int key) { return key <= 0 ? 0u : key >= kTileKeys ? ~0u : (1u << key) - 1; };
  return below(end) & ~below(end - window);
}

// Of a tile's keys, those of the lane's columns.
struct KeyScales {
  float x[kTileKeys / 8][2];

  __device__ __forceinline__ explicit KeyScales(const float* key_scales) {
#pragma unroll
    for (int n = 0; n < kTileKeys / 8; ++n) {
      const Words2 two = ld_shared(reinterpret_cast<const Words2*>(key_scales + n * 8 + lane_index() % 4 * 2));
      x[n][0] = bit_cast<float>(two.w[0]), x[n][1] = bit_cast<float>(two.w[1]);
    }
  }
};

// S of a warp's rows and a tile of keys.
template <int kRowTiles>
struct Scores {
  float s[kRowTiles][kTileKeys / 8][4];

  // -inf for the keys that a row does not see; seen: seen_bits of each row.
  __device__ __forceinline__ void mask(const uint32_t (&seen)[kRowTiles][2]) {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int n = 0; n < kTileKeys / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          if (!sees(seen[m][i / 2], n, i % 2)) s[m][n][i] = -infinity();
        }
      }
    }
  }
  // Whether the lane's column i of the n-th 8 columns is among the keys.
  __device__ __forceinline__ static bool sees(uint32_t seen, int n, int i) {
    return (seen >> (lane_index() % 4 * 2) & 1u << (n * 8 + i)) != 0;
  }

  // A loop that moves the registers on by 4 each time. Unrolled, it would be as long as all else that
  // is done with a tile, and it is skipped without a cap.
  __device__ __forceinline__ void cap(float cap_factor) {
    constexpr int kColumns = kTileKeys / 8, kQuads = kRowTiles * kColumns;
#pragma unroll 1
    for (int turn = 0; turn < kQuads; ++turn) {
      float capped[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) capped[i] = cap_score(s[0][0][i], cap_factor);
#pragma unroll
      for (int i = 0; i < kQuads * 4; ++i) {
        const int next = i / 4 + 1;
        s[i / 4 / kColumns][i / 4 % kColumns][i % 4] =
            next < kQuads ? s[next % kQuads / kColumns][next % kColumns][i % 4] : capped[i % 4];
      }
    }
  }

  // Times the scales of the keys.
  __device__ __forceinline__ void scale(const float* key_scales) {
    const KeyScales scales(key_scales);
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int n = 0; n < kTileKeys / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) s[m][n][i] *= scales.x[n][i % 2];
      }
    }
  }
};

// P, rounded, as the A fragments of P V.
template <int kRowTiles>
struct Weights {
  uint32_t p[kRowTiles][kKeySteps][4];
};

template <int kRowTiles>
struct Softmax {
  SoftmaxState state[kRowTiles][2];  // d: this lane's summands alone, not rounded; for lse

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < 2 * kRowTiles; ++i) state[i / 2][i % 2] = SoftmaxState::empty();
  }

  // Takes in the largest scores. Returns whether this lane has a factor other than 1 for what was
  // summed before.
  __device__ __forceinline__ bool raise(const Scores<kRowTiles>& scores, float scale_log2,
                                        float (&factor)[kRowTiles][2]) {
    bool raised = false;
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float top = -infinity();
#pragma unroll
        for (int n = 0; n < kTileKeys / 8; ++n) {
          top = fmaxf(top, fmaxf(scores.s[m][n][2 * h], scores.s[m][n][2 * h + 1]));  // fmaxf passes over NaN
        }
        top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, 1));
        top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, 2));
        factor[m][h] = state[m][h].raise(top, scale_log2);
        raised |= factor[m][h] != 1.0f;
      }
    }
    return raised;
  }

  template <typename T>
  __device__ __forceinline__ Weights<kRowTiles> weights(Scores<kRowTiles>& scores, float scale_log2) {
    return weights_times<T>(scores, scale_log2, [](int, int, int, float weight) { return weight; });
  }
  // Multiplies by the scales of V, except for keys that the row does not see: 0 times NaN is not 0.
  template <typename T>
  __device__ __forceinline__ Weights<kRowTiles> scaled_weights(Scores<kRowTiles>& scores, float scale_log2,
                                                               const float* v_scales,
                                                               const uint32_t (&seen)[kRowTiles][2]) {
    const KeyScales scales(v_scales);
    return weights_times<T>(scores, scale_log2, [&](int row, int n, int i, float weight) {
      return Scores<kRowTiles>::sees(seen[row / 2][row % 2], n, i) ? weight * scales.x[n][i] : 0.0f;
    });
  }

  // The sum of a row's weights; all 4 lanes that share it.
  __device__ __forceinline__ float sum(int m, int h) const {
    float d = state[m][h].d;
    d += __shfl_xor_sync(kAllLanes, d, 1);
    d += __shfl_xor_sync(kAllLanes, d, 2);
    return d;
  }

 private:
  // The exponents are score * scale_log2 - base, one FMA each. Its error is that of base = m *
  // scale_log2, at most 2^-15 up to kMostBase. Beyond, m is subtracted from the scores first, see
  // SoftmaxState::weight, and base is 0.
  template <typename T, typename F>
  __device__ __forceinline__ Weights<kRowTiles> weights_times(Scores<kRowTiles>& scores, float scale_log2,
                                                              const F& times) {
    constexpr float kMostBase = 1024.0f;
    float bases[kRowTiles][2];
    bool large = false;
#pragma unroll
    for (int i = 0; i < 2 * kRowTiles; ++i) {
      const float base = state[i / 2][i % 2].base() * scale_log2;
      large |= fabsf(base) > kMostBase;
      bases[i / 2][i % 2] = base;
    }
    if (__ballot_sync(kAllLanes, large) != 0) {
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          bases[m][i / 2] = 0.0f;
#pragma unroll
          for (int n = 0; n < kTileKeys / 8; ++n) scores.s[m][n][i] -= state[m][i / 2].base();
        }
      }
    }
    Weights<kRowTiles> weights;
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const float base = -bases[m][h];
#pragma unroll
        for (int n = 0; n < kTileKeys / 8; ++n) {
          const float low = ex2_approx(__fmaf_rn(scores.s[m][n][2 * h], scale_log2, base));
          const float high = ex2_approx(__fmaf_rn(scores.s[m][n][2 * h + 1], scale_log2, base));
          state[m][h].d += low + high;
          const int row = 2 * m + h;
          weights.p[m][n / 2][n % 2 * 2 + h] = cvt_rn_x2<T>(times(row, n, 0, low), times(row, n, 1, high));
        }
      }
    }
    return weights;
  }
};

// Replaces the elements of a word of two that are not finite by 0.
template <typename T>
__device__ __forceinline__ uint32_t finite_only(uint32_t word) {
  constexpr uint32_t kLow = __is_same(T, bf16) ? 0x7f80u : 0x7c00u, kHigh = kLow << 16;
  return word & (((word & kLow) == kLow ? 0u : 0xffffu) | ((word & kHigh) == kHigh ? 0u : 0xffff0000u));
}

template <typename T, int kDimVo, int kRowTiles>
struct Accumulator {
  float o[kRowTiles][kDimVo / 8][4];
  float divisor[kRowTiles][4];  // the sum of the rounded P, by the same products with ones: V = 1 gives exactly 1

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        divisor[m][i] = 0;
#pragma unroll
        for (int n = 0; n < kDimVo / 8; ++n) o[m][n][i] = 0;
      }
    }
  }

  __device__ __forceinline__ void scale(const float (&factor)[kRowTiles][2]) {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        divisor[m][i] *= factor[m][i / 2];
#pragma unroll
        for (int n = 0; n < kDimVo / 8; ++n) o[m][n][i] *= factor[m][i / 2];
      }
    }
  }

  // Lane's row and chunk of the first 16 keys, for ldmatrix_x4_trans: two chunks, of each the first
  // 8 keys and the next 8.
  __device__ __forceinline__ static const unsigned char* value_row(const unsigned char* tile) {
    return tile + (lane_index() & 15) * (kDimVo * 2);
  }
  __device__ __forceinline__ static void load_values(uint32_t (&b)[4], const unsigned char* row, int key_step,
                                                     int pair) {
    const int chunk = pair * 2 + (lane_index() >> 4);
    ldmatrix_x4_trans(b, row + key_step * 16 * (kDimVo * 2) + ((chunk ^ swizzle(lane_index() & 15, kDimVo)) << 4));
  }

  // O += P V. With kFinite, elements of V that are not finite count as 0; returns whether this lane
  // met one.
  template <bool kFinite>
  __device__ __forceinline__ bool add(const Weights<kRowTiles>& weights, const unsigned char* tile) {
    constexpr uint32_t kOnes = __is_same(T, bf16) ? 0x3f803f80u : 0x3c003c00u;
    const uint32_t ones[2] = {kOnes, kOnes};
    const unsigned char* row = value_row(tile);
    uint32_t dropped = 0;
#pragma unroll
    for (int k = 0; k < kKeySteps; ++k) {
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) mma_m16n8k16<T>(divisor[m], weights.p[m][k], ones);
#pragma unroll
      for (int pair = 0; pair < kDimVo / 16; ++pair) {
        uint32_t v[4];
        load_values(v, row, k, pair);
        if (kFinite) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const uint32_t finite = finite_only<T>(v[i]);
            dropped |= v[i] ^ finite;
            v[i] = finite;
          }
        }
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          const uint32_t b[2] = {v[2 * n], v[2 * n + 1]};
#pragma unroll
          for (int m = 0; m < kRowTiles; ++m) mma_m16n8k16<T>(o[m][pair * 2 + n], weights.p[m][k], b);
        }
      }
    }
    return dropped != 0;
  }

  // What add<true> left out, key by key, for the rows that see it: the others' P is 0, but 0 times
  // infinity is not. seen: seen_bits of the lane's rows.
  __device__ __forceinline__ void add_nonfinite(const Weights<kRowTiles>& weights, const unsigned char* tile,
                                                const uint32_t (&seen)[kRowTiles][2]) {
    static_assert(kKeySteps == 2);
    const unsigned char* row = value_row(tile);
    for (int key = 0; key < kTileKeys; ++key) {
      // The word of a fragment's lower and upper half that holds this key, and none else.
      const uint32_t half = key & 1 ? 0xffff0000u : 0xffffu;
      const int word = key % 16 / 2 - lane_index() % 4;
      const uint32_t mask[2] = {word == 0 ? half : 0u, word == 4 ? half : 0u};
#pragma unroll
      for (int pair = 0; pair < kDimVo / 16; ++pair) {
        uint32_t v[4];
        load_values(v, row, key / 16, pair);
        uint32_t any = 0;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          v[i] = (v[i] ^ finite_only<T>(v[i])) & mask[i % 2];
          any |= v[i];
        }
        if (__ballot_sync(kAllLanes, any != 0) == 0) continue;
#pragma unroll
        for (int m = 0; m < kRowTiles; ++m) {
          uint32_t a[4];
#pragma unroll
          for (int i = 0; i < 4; ++i) a[i] = (key < 16 ? weights.p[m][0][i] : weights.p[m][1][i]) & mask[i / 2];
#pragma unroll
          for (int n = 0; n < 2; ++n) {
            const uint32_t b[2] = {v[2 * n], v[2 * n + 1]};
            float c[4] = {};
            mma_m16n8k16<T>(c, a, b);
#pragma unroll
            for (int i = 0; i < 4; ++i) o[m][pair * 2 + n][i] += (seen[m][i / 2] >> key & 1) != 0 ? c[i] : 0.0f;
          }
        }
      }
    }
  }

  // Divides and stores one row, a multiple of 32 elements. Its 4 lanes swap words, so that each has
  // 16 bytes in a row.
  __device__ __forceinline__ void store_row(int m, int h, T* out, bool valid) const {
    const int t = lane_index() % 4;
    const float inverse = divisor[m][2 * h] == 0.0f ? 0.0f : __frcp_rn(divisor[m][2 * h]);
#pragma unroll
    for (int n = 0; n < kDimVo / 8; n += 4) {
      Words4 words;
#pragma unroll
      for (int i = 0; i < 4; ++i)
        words.w[i] = cvt_rn_x2<T>(o[m][n + i][2 * h] * inverse, o[m][n + i][2 * h + 1] * inverse);
#pragma unroll
      for (int distance = 1; distance <= 2; distance *= 2) {
        const bool upper = (t & distance) != 0;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int low = i * (3 - distance), high = low + distance;
          const uint32_t got = __shfl_xor_sync(kAllLanes, upper ? words.w[low] : words.w[high], distance);
          words.w[low] = upper ? got : words.w[low], words.w[high] = upper ? words.w[high] : got;
        }
      }
      if (valid) st_global(reinterpret_cast<Words4*>(out + n * 8 + t * 8), words);
    }
  }
};

// ---- The kernel

// kDimQk 0: any head_dim_qk. kQuantized: K or V has 8 bits, or both have; else both are of type T.
template <typename T, int kDimQk, int kDimVo, bool kQuantized>
__global__ void __launch_bounds__(kMaxWarps * 32, 1)
    attention_prefill_kernel(AttentionPrefillParams p, Plan plan, Finding* finding) {
  constexpr int kRowTiles = row_tiles(kDimQk, kDimVo), kWarpRows = 16 * kRowTiles;
  // Q's fragments, where registers suffice; else they are read again for each tile of keys.
  constexpr bool kKeepQueries = kDimQk > 0 && kDimQk <= 64 && kDimVo <= 64;
  constexpr int kKeptSteps = kKeepQueries ? kDimQk / 16 : 1;
  const int dim_qk = kDimQk > 0 ? kDimQk : static_cast<int>(p.k.head_dim);
  const int warp = warp_index(), lane = lane_index(), num_warps = static_cast<int>(blockDim.x) / kWarpSize;
  const int q_len = static_cast<int>(p.q_len);

  const int block = blockIdx.x, unit = block % plan.num_units, tile_and_batch = block / plan.num_units;
  const int batch = tile_and_batch / plan.num_tiles;
  const int first_query = (plan.num_tiles - 1 - tile_and_batch % plan.num_tiles) * plan.tile_queries;
  const int group = warp / plan.warps_per_group, worker = warp % plan.warps_per_group;
  const int first_head = (unit * plan.groups_per_block + group) * plan.q_heads_per_group;

  int kv_len = static_cast<int>(p.kv_len);
  if (p.kv_lens) {
    const int given = ld_global(p.kv_lens + batch);
    if ((given < 0 || given > kv_len) && threadIdx.x == 0) report(finding, Finding::kv_len, batch, given, kv_len);
    kv_len = given < 0 ? 0 : given < kv_len ? given : kv_len;
  }
  const auto visible_keys = [&](int query) {
    if (!p.causal) return kv_len;
    const int visible = kv_len - q_len + 1 + (query < q_len ? query : q_len - 1);
    return visible > 0 ? visible : 0;
  };
  const int end_key = visible_keys(first_query + plan.tile_queries - 1);
  const int first_visible = visible_keys(first_query);
  const int first_seen = first_visible > plan.window ? first_visible - plan.window : 0;
  const int begin_key = first_seen / kTileKeys * kTileKeys;

  // Lane / 4 and lane / 4 + 8 are the lane's rows of each 16, lane % 4 its columns.
  int visible[kRowTiles][2], warp_least = end_key, warp_most = 0;
#pragma unroll
  for (int i = 0; i < 2 * kRowTiles; ++i) {
    const Row row(plan, worker * kWarpRows + i * 8 + lane / 4, first_query, q_len);
    const int keys = visible_keys(row.query);
    visible[i / 2][i % 2] = keys;
    warp_least = keys < warp_least ? keys : warp_least, warp_most = keys > warp_most ? keys : warp_most;
  }
#pragma unroll
  for (int mask = 16; mask >= 4; mask /= 2) {
    const int least = __shfl_xor_sync(kAllLanes, warp_least, mask), most = __shfl_xor_sync(kAllLanes, warp_most, mask);
    warp_least = least < warp_least ? least : warp_least, warp_most = most > warp_most ? most : warp_most;
  }

  // The warp's own rows of Q.
  unsigned char* const q_tile = dynamic_shared() + warp * kWarpRows * dim_qk * 2;
  const int64_t first_row = static_cast<int64_t>(batch) * q_len;  // of Q, out
  {
    const Walk walk(dim_qk, 2);
    const T* const q = static_cast<const T*>(p.q);
    for (int r = walk.row; r < kWarpRows; r += 1 << walk.rows_log2) {
      const Row row(plan, worker * kWarpRows + r, first_query, q_len);
      const T* from = q + ((first_row + row.query) * p.num_q_heads + first_head + row.head) * dim_qk;
      for (int chunk = walk.chunk; chunk < dim_qk / 8; chunk += walk.chunks) {
        cp_async_cg(q_tile + r * dim_qk * 2 + ((chunk ^ swizzle(r, dim_qk)) << 4), row.valid ? from + chunk * 8 : q,
                    row.valid ? 16 : 0);
      }
    }
    cp_async_commit_group();
  }

  // Each warp reads one tile of K and one of V, and fills its share of them.
  const int k_tile_bytes = tile_bytes(dim_qk, kQuantized), v_tile_bytes = tile_bytes(kDimVo, kQuantized);
  const int k_slot = plan.k_is_shared ? 0 : group, v_slot = plan.k_is_shared ? group : 0;
  const int k_slots = plan.k_is_shared ? 1 : plan.groups_per_block, v_slots = plan.groups_per_block + 1 - k_slots;
  const int stage_bytes = k_slots * k_tile_bytes + v_slots * v_tile_bytes;
  unsigned char* const tiles = dynamic_shared() + num_warps * kWarpRows * dim_qk * 2;
  unsigned char* const k_tiles = tiles + k_slot * k_tile_bytes;
  unsigned char* const v_tiles = tiles + k_slots * k_tile_bytes + v_slot * v_tile_bytes;
  unsigned char* const staged = tiles + (plan.two_stages ? 2 : 1) * stage_bytes;
  const int k_head = first_head / static_cast<int>(p.num_q_heads / p.k.num_heads);
  const int v_head = first_head / static_cast<int>(p.num_q_heads / p.v.num_heads);
  TileFiller<T, false, kQuantized> k(
      CacheHead<false, kQuantized>(p, batch, k_head), first_seen, end_key, plan.k_is_shared ? warp : worker,
      plan.k_is_shared ? num_warps : plan.warps_per_group, staged + k_slot * kTileKeys * dim_qk);
  TileFiller<T, true, kQuantized> v(
      CacheHead<true, kQuantized>(p, batch, v_head), first_seen, end_key, plan.k_is_shared ? worker : warp,
      plan.k_is_shared ? plan.warps_per_group : num_warps, staged + kTileKeys * (k_slots * dim_qk + v_slot * kDimVo));
  const auto fill_k = [&](int first_key) {
    k.fill(k_tiles + (plan.two_stages ? first_key / kTileKeys % 2 * stage_bytes : 0), first_key, dim_qk);
  };
  const auto fill_v = [&](int first_key) {
    v.fill(v_tiles + (plan.two_stages ? first_key / kTileKeys % 2 * stage_bytes : 0), first_key, kDimVo);
  };
  if (end_key > 0) {
    k.begin(begin_key, dim_qk), v.begin(begin_key, kDimVo);
    if constexpr (!kQuantized) {
      fill_k(begin_key);
      if (plan.two_stages) fill_v(begin_key);
    }
  }
  cp_async_commit_group();

  cp_async_wait_group<1>();
  if (plan.negate) {  // so that the largest product is the largest score; each lane's own copies
    const Walk walk(dim_qk, 2);
    for (int r = walk.row; r < kWarpRows; r += 1 << walk.rows_log2) {
      for (int chunk = walk.chunk; chunk < dim_qk / 8; chunk += walk.chunks) {
        Words4* at = reinterpret_cast<Words4*>(q_tile + r * dim_qk * 2 + ((chunk ^ swizzle(r, dim_qk)) << 4));
        st_shared(at, negated(ld_shared(at)));
      }
    }
  }
  __syncwarp();
  const auto load_queries = [&](uint32_t(&a)[kRowTiles][4], int step) {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
      const int chunk = step * 2 + (lane >> 4);
      ldmatrix_x4(a[m], q_tile + (m * 16 + (lane & 15)) * dim_qk * 2 + ((chunk ^ swizzle(lane & 15, dim_qk)) << 4));
    }
  };
  uint32_t q_kept[kKeptSteps][kRowTiles][4];
  if constexpr (kKeepQueries) {
#pragma unroll
    for (int step = 0; step < kKeptSteps; ++step) load_queries(q_kept[step], step);
  }

  Accumulator<T, kDimVo, kRowTiles> sum;
  sum.clear();
  Softmax<kRowTiles> softmax;
  softmax.clear();
  float v_power = 1;  // by which sum is to be multiplied
  // What widens bytes is large, and so it does it for the first tile in a turn before the first.
  for (int first_key = kQuantized ? begin_key - kTileKeys : begin_key; first_key < end_key; first_key += kTileKeys) {
    const int next_key = first_key + kTileKeys;
    const int stage = plan.two_stages ? first_key / kTileKeys % 2 * stage_bytes : 0;
    cp_async_wait_group<0>();
    __syncthreads();  // the tile is there, and nobody is at the one before any more
    if (plan.two_stages && next_key < end_key) fill_k(next_key);
    const int key_of_v = plan.two_stages ? next_key : first_key;
    if (key_of_v >= begin_key && key_of_v < end_key) fill_v(key_of_v);
    cp_async_commit_group();

    // S = Q K^T: per fragment of K, 16 keys (8 and 8) by two chunks.
    Scores<kRowTiles> scores = {};
    const bool sees = first_key >= begin_key && first_key < warp_most && next_key > warp_least - plan.window;
    if (sees) {
      const int key = (lane >> 4) * 8 + (lane & 7);
      const unsigned char* const k_row = k_tiles + stage + key * dim_qk * 2;
#pragma unroll
      for (int step = 0; step < dim_qk / 16; ++step) {
        uint32_t a[kRowTiles][4];
        if constexpr (!kKeepQueries) load_queries(a, step);
        const int chunk = step * 2 + (lane >> 3 & 1);
#pragma unroll
        for (int j = 0; j < kKeySteps; ++j) {
          uint32_t keys[4];
          ldmatrix_x4(keys, k_row + j * 16 * dim_qk * 2 + ((chunk ^ swizzle(key, dim_qk)) << 4));
#pragma unroll
          for (int n = 0; n < 2; ++n) {
            const uint32_t b[2] = {keys[2 * n], keys[2 * n + 1]};
#pragma unroll
            for (int m = 0; m < kRowTiles; ++m) {
              mma_m16n8k16<T>(scores.s[m][2 * j + n], kKeepQueries ? q_kept[kKeepQueries ? step : 0][m] : a[m], b);
            }
          }
        }
      }
      if constexpr (kQuantized) {
        scores.scale(tile_scales(k_tiles + stage, dim_qk)->scale);
      }
      if (plan.score.cap_factor != 0.0f) scores.cap(plan.score.cap_factor);
    }
    if (!plan.two_stages) {
      cp_async_wait_group<0>();
      __syncthreads();  // V is there, and nobody is at K any more
      if (next_key < end_key) fill_k(next_key);
      cp_async_commit_group();
    }
    if (!sees) continue;

    const bool masked = next_key > warp_least || first_key < warp_most - plan.window;
    uint32_t seen[kRowTiles][2];
#pragma unroll
    for (int i = 0; i < 2 * kRowTiles; ++i) {
      seen[i / 2][i % 2] = masked ? seen_bits(visible[i / 2][i % 2] - first_key, plan.window) : ~0u;
    }
    if (masked) scores.mask(seen);
    float factor[kRowTiles][2];
    bool raised = softmax.raise(scores, plan.score.scale_log2, factor);
    if constexpr (kQuantized) {
      const float power = ld_shared(&tile_scales(v_tiles + stage, kDimVo)->power);
      raised |= power != v_power;
#pragma unroll
      for (int i = 0; i < 2 * kRowTiles; ++i) factor[i / 2][i % 2] *= v_power * __frcp_rn(power);
      v_power = power;
    }
    if (__ballot_sync(kAllLanes, raised) != 0) sum.scale(factor);
    Weights<kRowTiles> weights;
    if constexpr (kQuantized) {
      const float* const v_scales = tile_scales(v_tiles + stage, kDimVo)->scale;
      weights = softmax.template scaled_weights<T>(scores, plan.score.scale_log2, v_scales, seen);
    } else {
      weights = softmax.template weights<T>(scores, plan.score.scale_log2);
    }
    if (!masked) {
      sum.template add<false>(weights, v_tiles + stage);
    } else if (__ballot_sync(kAllLanes, sum.template add<true>(weights, v_tiles + stage)) != 0) {
      sum.add_nonfinite(weights, v_tiles + stage, seen);
    }
  }

#pragma unroll
  for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const Row row(plan, worker * kWarpRows + m * 16 + h * 8 + lane / 4, first_query, q_len);
      const int64_t head = first_head + row.head;
      const float d = softmax.sum(m, h);
      if (kQuantized && is_quantized(p.v.dtype)) {  // the sum of P without the scales of V
        sum.divisor[m][2 * h] = d * __frcp_rn(v_power);
      }
      // The largest score has the weight 1, so with keys d is 0 only if all scores are -inf, because
      // the products overflowed. Their softmax is NaN.
      const float nan = bit_cast<float>(0x7fc00000u);
      const bool undefined = d == 0.0f && visible[m][h] > 0;
      if (undefined) sum.divisor[m][2 * h] = nan;
      sum.store_row(m, h, static_cast<T*>(p.out) + ((first_row + row.query) * p.num_q_heads + head) * kDimVo,
                    row.valid);
      if (p.lse) {
        const float lse = undefined ? nan : SoftmaxState{softmax.state[m][h].m, d}.lse(plan.score.scale);
        if (lane % 4 == 0 && row.valid) st_global(p.lse + (batch * p.num_q_heads + head) * q_len + row.query, lse);
      }
    }
  }
}

// ---- The launch

// Whether the kernel can take the call: one 16-bit type, but for K and V of 8 bits, head counts
// that nest, rows that start at 16 bytes. And a scale that scores of -inf can be multiplied by, as
// those of masked keys are.
bool takes(const AttentionPrefillParams& p) {
  const auto aligned = [](const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; };
  const auto size = [](int64_t dim) { return dim == 32 || dim == 64 || dim == 96 || dim == 128 || dim == 256; };
  const auto fits = [&](const KvView& kv) {
    const int64_t stride_bytes = kv.batch_stride * static_cast<int64_t>(dtype_size(kv.dtype));
    return (kv.dtype == p.q_dtype || is_quantized(kv.dtype)) && size(kv.head_dim) &&
           p.num_q_heads % kv.num_heads == 0 && (p.pages != nullptr || (aligned(kv.data) && stride_bytes % 16 == 0));
  };
  return (p.q_dtype == DType::bf16 || p.q_dtype == DType::f16) && p.out_dtype == p.q_dtype && fits(p.k) && fits(p.v) &&
         (p.k.num_heads % p.v.num_heads == 0 || p.v.num_heads % p.k.num_heads == 0) && std::isnormal(p.sm_scale) &&
         aligned(p.q) && aligned(p.out) && (p.pages == nullptr || p.page_tokens % kTileKeys == 0);
}

bool has_8_bits(const AttentionPrefillParams& p) { return is_quantized(p.k.dtype) || is_quantized(p.v.dtype); }

// What the kernel that takes the call is compiled for: 0 is any.
int kernel_dim_qk(const AttentionPrefillParams& p) {
  return !has_8_bits(p) && p.k.head_dim == p.v.head_dim ? static_cast<int>(p.k.head_dim) : 0;
}

int warp_rows(const AttentionPrefillParams& p) {
  return 16 * row_tiles(kernel_dim_qk(p), static_cast<int>(p.v.head_dim));
}

size_t shared_bytes(const AttentionPrefillParams& p, const Plan& plan) {
  const int64_t groups = plan.groups_per_block, k_slots = plan.k_is_shared ? 1 : groups, v_slots = groups + 1 - k_slots;
  const int dim_qk = static_cast<int>(p.k.head_dim), dim_vo = static_cast<int>(p.v.head_dim);
  const bool quantized = has_8_bits(p);
  const int64_t stage = k_slots * tile_bytes(dim_qk, quantized) + v_slots * tile_bytes(dim_vo, quantized);
  const int64_t staged = quantized ? kTileKeys * (k_slots * dim_qk + v_slots * dim_vo) : 0;
  const int64_t queries = groups * plan.warps_per_group * warp_rows(p) * dim_qk * 2;
  return static_cast<size_t>(queries + stage * (plan.two_stages ? 2 : 1) + staged);
}

// False where a group has more Q heads than a block has rows.
bool make_plan(const AttentionPrefillParams& p, const Context& context, Plan* plan) {
  const int num_groups = static_cast<int>(std::max(p.k.num_heads, p.v.num_heads));
  const int num_shared = static_cast<int>(std::min(p.k.num_heads, p.v.num_heads));
  const int q_len = static_cast<int>(p.q_len), rows_of_warp = warp_rows(p);
  plan->k_is_shared = p.k.num_heads <= p.v.num_heads;
  plan->q_heads_per_group = static_cast<int>(p.num_q_heads) / num_groups;
  plan->score = score_scale_of(p);
  plan->window = window_of(p);
  plan->negate = p.sm_scale < 0;

  // All groups of a shared head, if that many warps and tiles fit; then as many rows as fit, two
  // stages if they fit too.
  const auto fits = [&](int groups, int warps) {
    plan->groups_per_block = groups, plan->warps_per_group = warps;
    for (const bool two_stages : {true, false}) {
      plan->two_stages = two_stages;
      if (shared_bytes(p, *plan) <= context.max_shared_bytes) return true;
    }
    return false;
  };
  int groups = num_groups / num_shared;
  while (num_groups / num_shared % groups != 0 || groups > kMaxWarps || (groups > 1 && !fits(groups, 1))) --groups;
  const int wanted = (plan->q_heads_per_group * q_len + rows_of_warp - 1) / rows_of_warp;
  int warps = std::min(kMaxWarps / groups, std::max(wanted, 1));
  while (warps > 1 && !fits(groups, warps)) --warps;
  plan->num_units = num_groups / groups;
  // Fewer rows a block where there would be fewer blocks than multiprocessors.
  const auto tiles = [&] {
    plan->tile_queries = warps * rows_of_warp / plan->q_heads_per_group;
    return plan->tile_queries > 0 ? plan->num_tiles = (q_len + plan->tile_queries - 1) / plan->tile_queries : 0;
  };
  while (warps > 1 && warps / 2 * rows_of_warp >= plan->q_heads_per_group &&
         tiles() * plan->num_units * p.batch_size < context.num_multiprocessors) {
    warps /= 2;
  }
  return fits(groups, warps) && tiles() > 0;
}

template <typename T, int kDimQk, int kDimVo, bool kQuantized>
void run(const AttentionPrefillParams& p, const Plan& plan, Context& context) {
  LaunchShape shape;
  shape.grid[0] = static_cast<unsigned>(plan.num_units * plan.num_tiles * p.batch_size);
  shape.threads = static_cast<unsigned>(plan.groups_per_block * plan.warps_per_group * 32);
  shape.shared_bytes = shared_bytes(p, plan);
  launch("attention_prefill", attention_prefill_kernel<T, kDimQk, kDimVo, kQuantized>, shape, context.stream, p, plan,
         context.finding);
}

template <typename T, int kDimVo>
void run_qk(const AttentionPrefillParams& p, const Plan& plan, Context& context) {
  if (has_8_bits(p)) return run<T, 0, kDimVo, true>(p, plan, context);
  if (kernel_dim_qk(p) == kDimVo) return run<T, kDimVo, kDimVo, false>(p, plan, context);
  run<T, 0, kDimVo, false>(p, plan, context);
}

template <typename T>
void run_sizes(const AttentionPrefillParams& p, const Plan& plan, Context& context) {
  switch (p.v.head_dim) {
    case 32: return run_qk<T, 32>(p, plan, context);
    case 64: return run_qk<T, 64>(p, plan, context);
    case 96: return run_qk<T, 96>(p, plan, context);
    case 128: return run_qk<T, 128>(p, plan, context);
    default: return run_qk<T, 256>(p, plan, context);
  }
}

}  // namespace

void attention_prefill(const AttentionPrefillParams& p, Context& context) {
  if (p.batch_size == 0 || p.q_len == 0) return;
  Plan plan = {};
  if (!takes(p) || !make_plan(p, context, &plan)) return attention_plain_prefill(p, context);
  if (p.q_dtype == DType::bf16) {
    run_sizes<bf16>(p, plan, context);
  } else {
    run_sizes<f16>(p, plan, context);
  }
}

}  // namespace diffqkv::cuda
