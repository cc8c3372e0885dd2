// Attention of one query per sequence over its cache: out = softmax(sm_scale q K^T) V, on tensor
// cores. Q has a 16-bit type; K and V have the same type or 8 bits. Bound by memory: each byte of K
// and V is read once, and little else is read.
//
// Work split. A unit is the query heads that share K and V heads with each other: 8, with 1 K head
// and 4 V heads, for 32/4/16. A unit with more query heads than a block has room for is split. A
// block is one unit of one sequence, and one split of its keys. Each of its 4 warps processes every
// fourth tile of keys, through a ring of slots of its own, so the main loop has no barrier. Slots are
// filled from pages by bulk copies, if the GPU has them, else by cp.async: 80 or 64 KiB per block are
// in flight with 16-bit types. For each tile:
//
//   S^T = K Q^T      for each K head, by m16n8k16: 16 keys by 8 query heads
//   P^T = 2^((S^T - m) |sm_scale| log2(e))   with the running max m of the columns; rounded, then
//                    moved by movmatrix to the other fragment
//   O^T += V^T P^T   for each V head. All heads share the accumulator: the products of 8 query
//                    heads are computed, and those of query heads that do not read this K or V
//                    head are dropped
//
// Then the warps merge. If there are several splits, each block writes O, m and d to scratch
// memory, and the last block of a unit to arrive merges them: there is no second launch. Splits are
// even over the keys that kv_lens and the window give. The first split starts at the tile of the
// first key that the query sees.
//
// A tile is kKeys keys. It comes in pieces: one K or V head of its keys, at most kSlotDims dims of
// it (of K of 8 bits 128); first all K heads, then all V heads. A slot has a piece in panels, as pages
// have it (kv_page.h), so a panel of a page is copied as it is. A piece of 64 or 128 dims of 16 bits
// fills a slot of 4 KiB, so one ring serves all head counts and sizes. If all pieces are half as
// large, as of 8 bits, slots are 2 KiB and twice as many.
//
// Fragments are those of device/mma.h. Of each 8 query heads a lane has lane % 4 * 2 and the next
// (index i, or i % 2, of the arrays of Attention); of each 16 keys or dims it has lane / 4 and
// lane / 4 + 8.
//
// K and V of 8 bits are widened in registers, and their scales multiply scores and weights. The
// order of dims does not matter in the sum of a score or among the rows of O^T, which makes
// widening cheap: of the four elements that ldmatrix gives a lane as a word, 0 and 2 become one
// word of a fragment, and 1 and 3 another. So of 16 dims of K, those at 4t, 4t + 2 and 4t + 1,
// 4t + 3 are where 16-bit types have 2t, 2t + 1 and 2t + 8, 2t + 9. Q has them in the same order
// (store_query). Of 16 dims of O, the rows g and g + 8 are 2g and 2g + 1.
#include <device/async.h>
#include <device/bulk.h>
#include <device/mma.h>
#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>

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

constexpr int kWarps = 4, kThreads = kWarps * kWarpSize;
constexpr int kSlots = 5, kSlotBytes = 4096, kRingBytes = kSlots * kSlotBytes;
constexpr int kSmallSlotBytes = kSlotBytes / 2, kBarriers = kRingBytes / kSmallSlotBytes;  // of a warp's ring

__host__ __device__ __forceinline__ constexpr int slot_dims(int head_dim_vo) { return head_dim_vo <= 64 ? 64 : 128; }
__host__ __device__ __forceinline__ constexpr int tile_keys(int head_dim_vo) {
  return kSlotBytes / 2 / slot_dims(head_dim_vo);
}

constexpr int kMaxSplits = 256;
// With fewer keys, what a split leaves to merge would be too much beside what it reads.
constexpr int kMinSplitKeys = 256, kMinScaledSplitKeys = 512;

__host__ __device__ __forceinline__ constexpr int query_pitch(int head_dim_qk) { return head_dim_qk * 2 + 16; }
// Blocks of many query heads have room for this many times 8; more would not fit the registers.
__host__ __device__ __forceinline__ constexpr int most_tiles(int head_dim_vo, bool scaled) {
  return head_dim_vo <= 128 && !scaled ? 4 : 2;
}

struct Plan {
  int q_heads_per_k_head, q_heads_per_v_head;
  int group_heads;        // query heads that share K and V heads
  int unit_heads, parts;  // of a group
  int num_units;          // of a sequence
  int num_splits, min_split_keys, tile_keys;
  int page_shift;                      // log2(page_tokens)
  int64_t k_batch_rows, v_batch_rows;  // from sequence to sequence, where they are contiguous
  ScoreScale score;
  int window;
  bool negate;         // sm_scale is negative
  float* o_accum;      // [unit][split][unit_heads][head_dim_vo], not divided
  Words4* sums_accum;  // [unit][split][unit_heads]: m, d, divisor
  uint32_t* arrived;   // [unit]: splits that are done; 0 before and after
};

// Values that all lanes of a warp have are taken from one lane: the compiler then knows that they are
// the same, keeps them in uniform registers, and sees that branches on them do not diverge.
__device__ __forceinline__ int same_in_warp(int x) { return __shfl_sync(kAllLanes, x, 0); }
template <typename T>
__device__ __forceinline__ T* same_in_warp(T* p) {
  const Words2 words = bit_cast<Words2>(p);
  return bit_cast<T*>(Words2{{__shfl_sync(kAllLanes, words.w[0], 0), __shfl_sync(kAllLanes, words.w[1], 0)}});
}

// Which heads a block has, and which keys.
struct Unit {
  int64_t batch;
  int first_head, num_heads;                                 // of Q, in the sequence
  int first_k_head, num_k_heads, first_v_head, num_v_heads;  // that those read
  int index, split_idx, used_splits;                         // index: of all units of all sequences
  int begin_key, first_key, end_key;  // of the split; begin_key: where the tile of first_key starts
};

__device__ __forceinline__ int batch_of(const Plan& plan) {
  return static_cast<int>(blockIdx.x) / plan.num_units / plan.num_splits;
}

__device__ __forceinline__ Unit find_unit(const AttentionDecodeParams& p, const Plan& plan, Finding* finding) {
  Unit unit;
  const int block = blockIdx.x, part = block % plan.num_units, rest = block / plan.num_units;
  const int group = part / plan.parts, first = part % plan.parts * plan.unit_heads;
  unit.split_idx = rest % plan.num_splits;
  unit.batch = batch_of(plan);
  unit.index = static_cast<int>(unit.batch) * plan.num_units + part;
  unit.first_head = group * plan.group_heads + first;
  unit.num_heads = plan.group_heads - first < plan.unit_heads ? plan.group_heads - first : plan.unit_heads;
  const int last_head = unit.first_head + unit.num_heads - 1;
  unit.first_k_head = unit.first_head / plan.q_heads_per_k_head;
  unit.first_v_head = unit.first_head / plan.q_heads_per_v_head;
  unit.num_k_heads = last_head / plan.q_heads_per_k_head - unit.first_k_head + 1;
  unit.num_v_heads = last_head / plan.q_heads_per_v_head - unit.first_v_head + 1;

  int kv_len = static_cast<int>(p.kv_len);
  if (p.kv_lens != nullptr) {
    const int given = same_in_warp(ld_global(p.kv_lens + unit.batch));
    if ((given < 0 || given > kv_len) && part == 0 && unit.split_idx == 0 && threadIdx.x == 0) {
      report(finding, Finding::kv_len, static_cast<int>(unit.batch), given, kv_len);
    }
    kv_len = given < 0 ? 0 : given < kv_len ? given : kv_len;
  }
  const int seen_from = kv_len > plan.window ? kv_len - plan.window : 0;
  const int start = seen_from & -plan.tile_keys, span = kv_len - start;
  int keys = span / plan.num_splits + (span % plan.num_splits != 0);
  if (keys < plan.min_split_keys) keys = plan.min_split_keys;
  keys = (keys + plan.tile_keys - 1) / plan.tile_keys * plan.tile_keys;  // a tile is in one page
  unit.used_splits = span / keys + (span % keys != 0 || span == 0);
  unit.begin_key = unit.split_idx < unit.used_splits ? start + unit.split_idx * keys : kv_len;
  unit.first_key = unit.begin_key > seen_from ? unit.begin_key : seen_from;
  unit.end_key = kv_len - unit.begin_key < keys ? kv_len : unit.begin_key + keys;
  return unit;
}

// ---- The stream of K and V

// What the elements of K or V are.
enum class Format { wide, i8, f8e4m3 };  // wide: the 16-bit type of Q

// K or V of a sequence. Contiguous: `rows` and `scales` are those of key 0. Paged: they are offsets
// from a page's start.
struct KeyRows {
  uint64_t rows;    // address of the unit's first head
  uint64_t scales;  // address of its scale; unused by formats without scales
  int stride;       // contiguous: bytes from row to row
  int head_bytes;   // from head to head
  int scale_stride, scale_head_stride;
};

// K and V of a tile. Contiguous: addresses of its first key. Paged: of the page, and the tile's first
// token in it.
struct TileRows {
  const unsigned char *k, *v;
  int token;
};

template <bool kPaged>
struct Cache {
  KeyRows k, v;
  const KvPage* table;
  int page_shift;  // log2(page_tokens), at least a tile

  // What rows() needs to have from memory; loaded early.
  __device__ __forceinline__ KvPage page(int key) const {
    return kPaged ? load_page(table + (key >> page_shift)) : KvPage{};
  }
  __device__ __forceinline__ static KvPage same_in_warp(const KvPage& page) {
    return kPaged ? KvPage{cuda::same_in_warp(page.k), cuda::same_in_warp(page.v)} : KvPage{};
  }
  __device__ __forceinline__ int token(int key) const { return kPaged ? key & ((1 << page_shift) - 1) : key; }
  __device__ __forceinline__ TileRows rows(int key, const KvPage& page) const {
    const int64_t row = kPaged ? 0 : key;
    return {reinterpret_cast<const unsigned char*>(reinterpret_cast<uint64_t>(page.k) + k.rows + row * k.stride),
            reinterpret_cast<const unsigned char*>(reinterpret_cast<uint64_t>(page.v) + v.rows + row * v.stride),
            kPaged ? token(key) : 0};
  }
  __device__ __forceinline__ const bf16* k_scales(int key, const KvPage& page) const {
    return reinterpret_cast<const bf16*>(reinterpret_cast<uint64_t>(page.k) + k.scales) +
           static_cast<int64_t>(token(key)) * k.scale_stride;
  }
  __device__ __forceinline__ const bf16* v_scales(int key, const KvPage& page) const {
    return reinterpret_cast<const bf16*>(reinterpret_cast<uint64_t>(page.v) + v.scales) +
           static_cast<int64_t>(token(key)) * v.scale_stride;
  }
};

// kScaled: K or V, or both, are of 8 bits, as the formats say; else both are wide. Pages are read by
// bulk copies if the GPU has them.
template <int kDimVo, bool kScaled, bool kPaged>
class PieceStream {
 public:
  static constexpr int kSlotDims = slot_dims(kDimVo), kKeys = tile_keys(kDimVo), kKeyTiles = kKeys / 16;
  static constexpr int kValueDims = kDimVo < kSlotDims ? kDimVo : kSlotDims, kValuePieces = kDimVo / kValueDims;

  __device__ __forceinline__ static bool is_bulk() { return kPaged && has_bulk_copies(); }
  // Most dims of a piece of K.
  __device__ __forceinline__ static constexpr int key_dims(bool is_wide) { return is_wide ? kSlotDims : 128; }

  // For one warp of the block. barriers: kBarriers, used by bulk copies.
  __device__ __forceinline__ PieceStream(const Unit& unit, int warp, const Cache<kPaged>& cache, int dim_qk,
                                         Format k_format, Format v_format, unsigned char* ring, uint64_t* barriers)
      : cache_(cache),
        dim_qk_(dim_qk),
        num_k_heads_(unit.num_k_heads),
        num_heads_(unit.num_k_heads + unit.num_v_heads),
        first_key_(unit.first_key),
        num_keys_(unit.end_key - unit.first_key),
        k_is_wide_(!kScaled || k_format == Format::wide),
        v_is_wide_(!kScaled || v_format == Format::wide),
        small_slots_(kScaled && !k_is_wide_ && !v_is_wide_ && (kKeys == 16 || dim_qk <= 64)),
        ring_(ring),
        barriers_(barriers),
        key_(unit.begin_key - unit.first_key + warp * kKeys) {
    if (key_ < num_keys_) next_page_ = cache_.page(first_key_ + key_);
    start_tile();
    if (is_bulk()) {
      if (lane_index() < kBarriers) {
        mbarrier_init(barriers_ + lane_index(), 1);
        fence_proxy_async();
      }
      __syncwarp();
    }
#pragma unroll 1  // copy_next() is long
    for (int i = 0; i < (small_slots_ ? 2 * kSlots : kSlots) - 1; ++i) copy_next();
  }

  // A piece in its slot. The ring comes first in the sum: all else but the slot is known before the
  // loop over the keys.
  struct Piece {
    unsigned char* ring;
    int slot;
    __device__ __forceinline__ unsigned char* at(int place) const { return ring + place + slot; }
  };

  // The next piece, there for all lanes. What take() gave before is then no longer: its slot takes
  // the next copy.
  __device__ __forceinline__ Piece take() {
    if (is_bulk()) return take_bulk();
    if (kScaled && small_slots_) {
      cp_async_wait_group<2 * kSlots - 2>();
    } else {
      cp_async_wait_group<kSlots - 2>();
    }
    __syncwarp();
    const Piece piece = {ring_, take_};
    take_ = next_slot(take_);
    copy_next();
    return piece;
  }

  // A bulk copy has all keys of a tile, and rows that are not seen may be anything, as NaN. For K that
  // does not matter. In a piece of V they become zeros.
  __device__ __forceinline__ void clear_unseen(const Piece& piece, int first, int num_keys) {
    if (!is_bulk() || (first >= 0 && first + kKeys <= num_keys)) return;
    const int element = v_is_wide_ ? 2 : 1, row_bytes = kValueDims * element;
    unsigned char* panel = piece.at(0);
#pragma unroll 1
    for (int at = 0; at < row_bytes;) {
      const int width = kv_panel(row_bytes, at).width;
#pragma unroll 1
      for (int byte = lane_index() * 16; byte < kKeys * width; byte += kWarpSize * 16) {
        if (static_cast<unsigned>(first + byte / width) < static_cast<unsigned>(num_keys)) continue;
        st_shared(reinterpret_cast<Words4*>(panel + byte), Words4{});
      }
      panel += kKeys * width, at += width;
    }
    fence_proxy_async();  // before the slot's next copy
    __syncwarp();
  }

 private:
  // Every slot has a copy under way while the warp waits for the first.
  __device__ __forceinline__ Piece take_bulk() {
    __syncwarp();  // all lanes have read the piece before
    copy_next();
    const Piece piece = {ring_, take_};
    uint64_t* const barrier = barrier_of(take_);
    while (!mbarrier_try_wait_parity(barrier, parity_)) {}
    take_ = next_slot(take_);
    parity_ ^= take_ == 0;
    return piece;
  }

  __device__ __forceinline__ uint64_t* barrier_of(unsigned slot) const { return barriers_ + slot / kSmallSlotBytes; }
  __device__ __forceinline__ int next_slot(int at) const {
    const int next = at + (kScaled && small_slots_ ? kSlotBytes / 2 : kSlotBytes);
    return next == kRingBytes ? 0 : next;
  }

  // The page of the tile after this one is asked for now, and there when its turn comes.
  __device__ __forceinline__ void start_tile() {
    if (key_ >= num_keys_) return;
    const TileRows rows = cache_.rows(first_key_ + key_, cache_.same_in_warp(next_page_));
    head_rows_ = rows.k, token_ = rows.token;
    v_ = rows.v + (kPaged ? token_ * value_width(v_is_wide_) : 0);
    const int next_key = key_ + kWarps * kKeys;
    if (next_key < num_keys_) next_page_ = cache_.page(first_key_ + next_key);
  }

  // One copy group each time, empty past the end.
  __device__ __forceinline__ void copy_next() {
    if (key_ < num_keys_) {
      if (head_ < num_k_heads_) {
        const int element = k_is_wide_ ? 2 : 1, left = dim_qk_ - dim_, most = key_dims(k_is_wide_);
        copy_piece(dim_qk_ * element, dim_ * element, (left < most ? left : most) * element, 0, cache_.k.stride);
        dim_ = left <= most ? 0 : dim_ + most;
        if (dim_ == 0) {
          head_rows_ += cache_.k.head_bytes;
          if (++head_ == num_k_heads_) head_rows_ = v_;
        }
      } else {
        const int first = kValuePieces == 1 ? 0 : dim_;
        if (v_is_wide_) {
          copy_piece(kDimVo * 2, first * 2, kValueDims * 2, value_width(true), cache_.v.stride);
        } else {
          copy_piece(kDimVo, first, kValueDims, value_width(false), cache_.v.stride);
        }
        if (kValuePieces > 1) dim_ = dim_ > 0 ? 0 : kValueDims;
        if (dim_ == 0) {
          head_rows_ += cache_.v.head_bytes;
          if (++head_ == num_heads_) {
            head_ = 0, key_ += kWarps * kKeys;
            start_tile();
          }
        }
      }
    }
    if (!is_bulk()) cp_async_commit_group();
    fill_ = next_slot(fill_);
  }

  // Of the first panel of V.
  __device__ __forceinline__ static constexpr int value_width(bool is_wide) {
    return kv_panel(kDimVo * (is_wide ? 2 : 1), 0).width;
  }

  // `bytes` of each key's row_bytes, from `first` on, in panels, into slot fill_. Without bulk copies
  // zeros for keys that are not seen. Paged: head_rows_ is that of a head, plus token_ times `added`.
  __device__ __forceinline__ void copy_piece(int row_bytes, int first, int bytes, int added, int stride) const {
    unsigned char* slot = ring_ + fill_;
    if (is_bulk()) {
      // One panel or two.
      const int width = kv_panel(row_bytes, first).width, rest = bytes - width;
      if (lane_index() == 0) {
        uint64_t* const barrier = barrier_of(fill_);
        const unsigned char* const from = head_rows_ + (first << cache_.page_shift);
        mbarrier_arrive_expect_tx(barrier, kKeys * bytes);
        cp_async_bulk(slot, from + token_ * (width - added), kKeys * width, barrier);
        if (rest > 0) {
          cp_async_bulk(slot + kKeys * width, from + (width << cache_.page_shift) + token_ * (rest - added),
                        kKeys * rest, barrier);
        }
      }
      return;
    }
#pragma unroll 1
    for (int at = first; at < first + bytes;) {
      const int width = kv_panel(row_bytes, at).width;
      if (width == 128) {
        copy_panel<128>(slot, at, added, stride);
      } else if (width == 64) {
        copy_panel<64>(slot, at, added, stride);
      } else {
        copy_panel<32>(slot, at, added, stride);
      }
      slot += kKeys * width, at += width;
    }
  }

  // 512 bytes at a time. A page has a panel as the slot has it.
  template <int kWidth>
  __device__ __forceinline__ void copy_panel(unsigned char* slot, int first_byte, int added, int stride) const {
    constexpr int kLanes = kWidth / 16, kRows = kWarpSize / kLanes;
    const int row = lane_index() / kLanes;
    unsigned char* const to = slot + lane_index() * 16;
    const auto is_seen = [&](int pass) {
      return static_cast<unsigned>(key_ + pass * kRows + row) < static_cast<unsigned>(num_keys_);
    };
    if (kPaged) {
      const unsigned char* const from =
          head_rows_ + (first_byte << cache_.page_shift) + token_ * (kWidth - added) + lane_index() * 16;
#pragma unroll
      for (int pass = 0; pass < kKeys / kRows; ++pass) {
        cp_async_cg(to + pass * 512, from + pass * 512, is_seen(pass) ? 16 : 0);
      }
    } else {
      const unsigned char* from = head_rows_ + first_byte + static_cast<int64_t>(row) * stride;
#pragma unroll
      for (int pass = 0; pass < kKeys / kRows; ++pass, from += static_cast<int64_t>(kRows) * stride) {
        const int chunk = lane_index() % kLanes ^ panel_swizzle(kWidth, pass * kRows + row);
        cp_async_cg(to + pass * 512, is_seen(pass) ? from + chunk * 16 : head_rows_, is_seen(pass) ? 16 : 0);
      }
    }
  }

  Cache<kPaged> cache_;
  int dim_qk_, num_k_heads_, num_heads_;
  int first_key_, num_keys_;  // that are seen
  bool k_is_wide_, v_is_wide_;
  bool small_slots_;  // no piece needs more than half a slot
  unsigned char* ring_;
  uint64_t* barriers_;            // [kBarriers]: that of a slot at its first byte / kSmallSlotBytes
  int key_, head_ = 0, dim_ = 0;  // of the next copy; key_ counts from first_key_; V heads follow K heads
  KvPage next_page_ = {};
  const unsigned char *head_rows_ = nullptr, *v_ = nullptr;  // of the next copy's head; of the tile
  int token_ = 0;                                            // of the tile, in its page
  int fill_ = 0, take_ = 0;                                  // slots, as bytes of the ring
  int parity_ = 0;                                           // of the phase of take_'s slot
};

// K or V of a unit from its first head on: addresses if contiguous, else offsets from a page's start.
template <bool kPaged>
__device__ __forceinline__ KeyRows find_rows(const KvView& kv, int64_t first_row, int first_head, int64_t page_tokens) {
  const int element_bytes = kv.dtype == DType::bf16 || kv.dtype == DType::f16 ? 2 : 1;
  const int num_heads = static_cast<int>(kv.num_heads);
  KeyRows r;
  if (kPaged) {
    const KvHeadLayout layout(kv.head_dim, element_bytes, page_tokens);
    const uint64_t layer = static_cast<uint64_t>(kv.page_offset);
    r.rows = layer + static_cast<uint64_t>(first_head * layout.bytes());
    r.scales = layer + static_cast<uint64_t>(num_heads * layout.bytes() + first_head * layout.page_tokens * 2);
    r.stride = 0, r.head_bytes = layout.bytes();
    r.scale_stride = 1, r.scale_head_stride = layout.page_tokens;
  } else {
    r.head_bytes = static_cast<int>(kv.head_dim) * element_bytes;
    r.stride = num_heads * r.head_bytes;
    r.rows =
        reinterpret_cast<uint64_t>(kv.data) + static_cast<uint64_t>(first_row * r.stride + first_head * r.head_bytes);
    r.scales = reinterpret_cast<uint64_t>(kv.scales) + static_cast<uint64_t>((first_row * num_heads + first_head) * 2);
    r.scale_stride = num_heads, r.scale_head_stride = 1;
  }
  return r;
}

template <bool kPaged>
__device__ __forceinline__ Cache<kPaged> find_cache(const AttentionDecodeParams& p, const Plan& plan, const Unit& unit,
                                                    const KvPage* table) {
  return {find_rows<kPaged>(p.k, unit.batch * plan.k_batch_rows, unit.first_k_head, p.page_tokens),
          find_rows<kPaged>(p.v, unit.batch * plan.v_batch_rows, unit.first_v_head, p.page_tokens), table,
          plan.page_shift};
}

__device__ __forceinline__ Format format_of(DType dtype) {
  return dtype == DType::i8 ? Format::i8 : dtype == DType::f8e4m3 ? Format::f8e4m3 : Format::wide;
}

// ---- Scores, softmax and output of one warp

// Where 8 elements of Q lie, of those at 16 bytes each: as K of 8 bits asks for.
__device__ __forceinline__ void store_query(unsigned char* row, int chunk, const Words4& q) {
  const auto low = [](uint32_t a, uint32_t b) { return (a & 0xffffu) | b << 16; };
  const auto high = [](uint32_t a, uint32_t b) { return a >> 16 | (b & 0xffff0000u); };
  Words2* const to = reinterpret_cast<Words2*>(row + chunk / 2 * 32 + chunk % 2 * 8);
  st_shared(to, Words2{{low(q.w[0], q.w[1]), low(q.w[2], q.w[3])}});
  st_shared(to + 2, Words2{{high(q.w[0], q.w[1]), high(q.w[2], q.w[3])}});
}

template <typename T>
__device__ __forceinline__ WidenedBytes widen(Format format, const uint32_t (&words)[4]) {
  return format == Format::i8 ? widen_i8<T>(words) : widen_f8e4m3<T>(words);
}

// What merging reads: rows of head_dim_vo elements of o, then m, d and the divisor; 16 bytes past a
// multiple of 128, so that the lanes that store them fall on different banks.
__host__ __device__ __forceinline__ constexpr int row_floats(int head_dim_vo) { return head_dim_vo + 4; }

// kTiles times 8 query heads; kScaled as in PieceStream.
template <typename T, int kDimVo, int kTiles, bool kScaled, bool kPaged>
struct Attention {
  using Pieces = PieceStream<kDimVo, kScaled, kPaged>;
  using Piece = typename Pieces::Piece;
  static constexpr int kKeys = Pieces::kKeys, kKeyTiles = Pieces::kKeyTiles, kDimTiles = kDimVo / 16,
                       kSlotDims = Pieces::kSlotDims;
  // P times V's scales may be below what f16 can hold, though its sum matters: each tile has a unit
  // of its own then.
  static constexpr bool kUnits = kScaled && __is_same(T, f16);

  float s[kTiles][kKeyTiles][4];     // S^T, then P^T
  uint32_t p[kTiles][kKeyTiles][2];  // P^T as it is multiplied
  float p_unit[kTiles][2];           // and in which unit: 1, but for f16 times V's scales
  float o[kTiles][kDimTiles][4];     // O^T
  SoftmaxState state[kTiles][2];     // d: this lane's keys alone, of P before it is rounded; for lse
  float divisor[kTiles][2];          // the sum of the rounded P, by the same products with ones: V = 1 gives exactly 1;
                                     // not where V has scales: then it is d

  __device__ __forceinline__ Attention() {
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) state[n][i] = SoftmaxState::empty(), divisor[n][i] = 0;
#pragma unroll
      for (int i = 0; i < kDimTiles * 4; ++i) o[n][i / 4][i % 4] = 0;
    }
  }

  __device__ __forceinline__ void clear_scores() {
#pragma unroll
    for (int i = 0; i < kTiles * kKeyTiles * 4; ++i) s[i / (kKeyTiles * 4)][i / 4 % kKeyTiles][i % 4] = 0;
  }

  // The query heads that read one K or V head, as columns of the tiles: `count` from `first` on,
  // which may be below 0.
  struct Readers {
    int first, count;
    __device__ __forceinline__ bool has(int n, int i) const {
      return static_cast<unsigned>(n * 8 + lane_index() % 4 * 2 + i - first) < static_cast<unsigned>(count);
    }
    __device__ __forceinline__ bool any(int n) const {
      return kTiles == 1 || (first < n * 8 + 8 && first + count > n * 8);
    }
  };

  // S^T += K Q^T for a piece of a K head, in the columns of the query heads that read it: the
  // products of all 8 are formed, and those of the others dropped. queries: this lane's chunk of
  // the piece's first dims, see query_chunk.
  __device__ __forceinline__ void add_scores(const Piece& piece, Format format, int dims, const unsigned char* queries,
                                             int query_pitch, Readers readers) {
#pragma unroll
    for (int i = 0; i < kTiles * kKeyTiles; ++i) {
      const int n = i / kKeyTiles, tile = i % kKeyTiles;
      if (!readers.any(n)) continue;
      float(&sum)[4] = s[n][tile];
      float c[4] = {sum[0], sum[1], sum[2], sum[3]};
      const auto add_32_dims = [&](int pair, int row_dims) {
        const int row = tile * 16 + lane_index() % 16, column = lane_index() / 16;
        uint32_t low[4], high[4], b[4];
        ldmatrix_x4(b, queries + n * 8 * query_pitch + pair * 64);
        if (!kScaled || format == Format::wide) {
          ldmatrix_x4(low, piece.at(place_in_panels(row_dims * 2, kKeys, row, (pair * 4 + column) * 16)));
          ldmatrix_x4(high, piece.at(place_in_panels(row_dims * 2, kKeys, row, (pair * 4 + column + 2) * 16)));
        } else {
          ldmatrix_x4(low, piece.at(place_in_panels(row_dims, kKeys, row, (pair * 2 + column) * 16)));
          const WidenedBytes wide = widen<T>(format, low);
#pragma unroll
          for (int j = 0; j < 2; ++j) {
            low[j] = wide.even[j], low[j + 2] = wide.odd[j];
            high[j] = wide.even[j + 2], high[j + 2] = wide.odd[j + 2];
          }
        }
        mma_m16n8k16<T>(c, low, {b[0], b[1]});
        mma_m16n8k16<T>(c, high, {b[2], b[3]});
      };
      if (kTiles == 1 && dims == kSlotDims) {  // with more tiles it would not fit the registers
#pragma unroll
        for (int pair = 0; pair < kSlotDims / 32; ++pair) add_32_dims(pair, kSlotDims);
      } else {
        for (int pair = 0; pair < dims / 32; ++pair) add_32_dims(pair, dims);
      }
#pragma unroll
      for (int j = 0; j < 4; ++j) sum[j] = readers.has(n, j % 2) ? c[j] : sum[j];
    }
  }
  // Rows of Q are query_pitch apart, an odd number of chunks, so that 8 of them fall on different
  // banks.
  __device__ __forceinline__ static int query_chunk(int query_pitch) {
    return lane_index() % 8 * query_pitch + lane_index() / 8 * 16;
  }

  // The K head of this lane's two columns of the n-th 8 query heads, a byte each, then the V heads;
  // counted in the unit. Columns past the last query head have its heads.
  __device__ __forceinline__ static uint32_t column_heads(int n, int num_heads, Readers k_readers, Readers v_readers) {
    uint32_t heads = 0;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int own = n * 8 + lane_index() % 4 * 2 + i, column = own < num_heads ? own : num_heads - 1;
      heads |= static_cast<uint32_t>((column - k_readers.first) / k_readers.count) << 8 * i;
      heads |= static_cast<uint32_t>((column - v_readers.first) / v_readers.count) << (16 + 8 * i);
    }
    return heads;
  }

  // The scales of a lane's keys and two columns.
  struct Scales {
    bf16 k[2][kKeyTiles * 2], v[2][kKeyTiles * 2];
  };
  // The keys of a tile that are seen: the first is key `first` of those that are seen in the split,
  // and may be negative; num_keys: how many these are.
  struct Seen {
    int first, num_keys;
    __device__ __forceinline__ bool has(int key) const {
      return static_cast<unsigned>(first + key) < static_cast<unsigned>(num_keys);
    }
  };
  // Of a tile's first key and the unit's first head.
  struct TileScales {
    const bf16 *k, *v;
  };
  // Of the tile's keys that are seen; heads: column_heads. Two columns of one head make one load.
  __device__ __forceinline__ static Scales load_scales(const TileScales& rows, const Cache<kPaged>& cache,
                                                       Format k_format, Format v_format, uint32_t heads,
                                                       const Seen& seen) {
    constexpr bf16 kOne = {0x3f80};
    Scales scales;
#pragma unroll
    for (int half = 0; half < kKeyTiles * 2; ++half) {
      const int key = half * 8 + lane_index() / 4;
      const auto load_pair = [&](bf16(&first), bf16(&second), bool scaled, const bf16* tile, const KeyRows& strides,
                                 uint32_t pair) {
        first = second = kOne;
        if (!scaled || !seen.has(key)) return;
        const bf16* const row = tile + key * strides.scale_stride;
        const int heads_of[2] = {static_cast<int>(pair & 0xffu), static_cast<int>(pair >> 8 & 0xffu)};
        first = second = ld_global(row + heads_of[0] * strides.scale_head_stride);
        if (heads_of[1] != heads_of[0]) second = ld_global(row + heads_of[1] * strides.scale_head_stride);
      };
      load_pair(scales.k[0][half], scales.k[1][half], k_format != Format::wide, rows.k, cache.k, heads);
      load_pair(scales.v[0][half], scales.v[1][half], v_format != Format::wide, rows.v, cache.v, heads >> 16);
    }
    return scales;
  }

  // A loop that moves the registers on by 2 each time. Unrolled, it would not fit the registers, and
  // without a cap it is skipped.
  __device__ __forceinline__ static void cap(float (&scores)[kKeyTiles][4], float cap_factor) {
    constexpr int kPairs = kKeyTiles * 2;
#pragma unroll 1
    for (int turn = 0; turn < kPairs; ++turn) {
      constexpr Reciprocal kReciprocal = Reciprocal::approximate;
      const float capped[2] = {cap_score<kReciprocal>(scores[0][0], cap_factor),
                               cap_score<kReciprocal>(scores[0][1], cap_factor)};
#pragma unroll
      for (int i = 0; i < kPairs * 2; ++i) {
        const int next = i + 2;
        scores[i / 4][i % 4] = next < kPairs * 2 ? scores[next / 4 % kKeyTiles][next % 4] : capped[i % 2];
      }
    }
  }

  // P from S, of the tile's keys that are seen; first: the scales of the first 8 query heads,
  // load(n): of the n-th.
  template <typename Load>
  __device__ __forceinline__ void add_weights(const Seen& seen, const ScoreScale& score_scale, Format v_format,
                                              const Scales& first, const Load& load) {
    const float scale_log2 = score_scale.scale_log2;
    constexpr uint32_t kOnes = __is_same(T, bf16) ? 0x3f803f80u : 0x3c003c00u;
    const uint32_t ones[4] = {kOnes, kOnes, kOnes, kOnes};
    const int row = lane_index() / 4;
    const bool v_is_wide = !kScaled || v_format == Format::wide;
    Scales scales = first;
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      Scales next = scales;
      if (kScaled && n + 1 < kTiles) next = load(n + 1);
      if (kScaled) {
#pragma unroll
        for (int i = 0; i < kKeyTiles * 4; ++i) s[n][i / 4][i % 4] *= to_float(scales.k[i % 2][i / 2]);
      }
      if (score_scale.cap_factor != 0.0f) cap(s[n], score_scale.cap_factor);
      float factor[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float top = -infinity();
#pragma unroll
        for (int half = 0; half < kKeyTiles * 2; ++half) {
          const float score = s[n][half / 2][half % 2 * 2 + i];
          if (seen.has(half * 8 + row)) top = fmaxf(top, score);  // passes over NaN
        }
#pragma unroll
        for (int mask = 4; mask < kWarpSize; mask *= 2) top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, mask));
        factor[i] = state[n][i].raise(top, scale_log2);
#pragma unroll
        for (int half = 0; half < kKeyTiles * 2; ++half) {
          float& x = s[n][half / 2][half % 2 * 2 + i];
          x = seen.has(half * 8 + row) ? state[n][i].weight(x, scale_log2) : 0.0f;
          state[n][i].d += x;
          if (kScaled) x *= to_float(scales.v[i][half]);
        }
        p_unit[n][i] = 1.0f;
        if (kUnits && !v_is_wide) rescale(n, i);
      }
      if (__ballot_sync(kAllLanes, factor[0] != 1.0f || factor[1] != 1.0f) != 0) {
        divisor[n][0] *= factor[0], divisor[n][1] *= factor[1];
#pragma unroll
        for (int i = 0; i < kDimTiles * 4; ++i) o[n][i / 4][i % 4] *= factor[i % 2];
      }
      float sum[4] = {divisor[n][0], divisor[n][1], 0.0f, 0.0f};
#pragma unroll
      for (int tile = 0; tile < kKeyTiles; ++tile) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          p[n][tile][half] = movmatrix_trans(cvt_rn_x2<T>(s[n][tile][half * 2], s[n][tile][half * 2 + 1]));
        }
        if (v_is_wide) mma_m16n8k16<T>(sum, ones, p[n][tile]);
      }
      divisor[n][0] = sum[0], divisor[n][1] = sum[1];
      scales = next;
    }
  }

  // Divides a column's weights of the tile by the power of two of the largest.
  __device__ __forceinline__ void rescale(int n, int i) {
    float top = 0.0f;
#pragma unroll
    for (int half = 0; half < kKeyTiles * 2; ++half) top = fmaxf(top, s[n][half / 2][half % 2 * 2 + i]);
#pragma unroll
    for (int mask = 4; mask < kWarpSize; mask *= 2) top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, mask));
    constexpr uint32_t kOne = 0x3f800000u, kExponent = 0x7f800000u;
    const uint32_t exponent = bit_cast<uint32_t>(top) & kExponent;
    const bool normal = exponent > 0 && exponent < 0x7f000000u;
    p_unit[n][i] = bit_cast<float>(normal ? exponent : kOne);
    const float inverse = bit_cast<float>(normal ? 2 * kOne - exponent : kOne);
#pragma unroll
    for (int half = 0; half < kKeyTiles * 2; ++half) s[n][half / 2][half % 2 * 2 + i] *= inverse;
  }

  // O^T += V^T P^T for a piece of a V head, from dim kFirstDim on, likewise in its own columns
  // alone. As the others' products are dropped, and not multiplied by zeros, a NaN or infinity
  // stays with the query heads that read it.
  template <int kFirstDim>
  __device__ __forceinline__ void add_values(const Piece& piece, Format format, Readers readers) {
    constexpr int kSteps = kScaled ? 2 : 1;  // of 16 dims, loaded together
#pragma unroll
    for (int first = 0; first < Pieces::kValueDims / 16; first += kSteps) {
      uint32_t a[kSteps][kKeyTiles][4];
#pragma unroll
      for (int tile = 0; tile < kKeyTiles; ++tile) {
        if (!kScaled || format == Format::wide) {
          const int row = tile * 16 + lane_index() / 16 * 8 + lane_index() % 8, column = lane_index() / 8 % 2;
#pragma unroll
          for (int step = 0; step < kSteps; ++step) {
            ldmatrix_x4_trans(a[step][tile], piece.at(place_in_panels(Pieces::kValueDims * 2, kKeys, row,
                                                                      ((first + step) * 2 + column) * 16)));
          }
        } else {
          const int row = tile * 16 + lane_index() % 16, column = lane_index() / 16;
          uint32_t words[4];
          ldmatrix_x4_trans(words, piece.at(place_in_panels(Pieces::kValueDims, kKeys, row, (first + column) * 16)));
          const WidenedBytes wide = widen<T>(format, words);
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            a[i / 2 % kSteps][tile][i % 2 * 2] = wide.even[i], a[i / 2 % kSteps][tile][i % 2 * 2 + 1] = wide.odd[i];
          }
        }
      }
#pragma unroll
      for (int i = 0; i < kSteps * kTiles; ++i) {
        const int step = i / kTiles, n = i % kTiles;
        if (!readers.any(n)) continue;
        float(&sum)[4] = o[n][kFirstDim / 16 + first + step];
        float c[4] = {};
#pragma unroll
        for (int j = 0; j < 4; ++j) c[j] = kUnits ? 0.0f : sum[j];
#pragma unroll
        for (int tile = 0; tile < kKeyTiles; ++tile) mma_m16n8k16<T>(c, a[step][tile], p[n][tile]);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          if (kUnits) c[j] = __fmaf_rn(c[j], p_unit[n][j % 2], sum[j]);
          sum[j] = readers.has(n, j % 2) ? c[j] : sum[j];
        }
      }
    }
  }

  // For merging.
  __device__ __forceinline__ void store_rows(float* rows, Format v_format) {
    const bool v_is_wide = !kScaled || v_format == Format::wide;
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float* const row = rows + (n * 8 + lane_index() % 4 * 2 + i) * row_floats(kDimVo);
#pragma unroll
        for (int tile = 0; tile < kDimTiles; ++tile) {
          const float low = o[n][tile][i], high = o[n][tile][i + 2];
          if (v_is_wide) {
            st_shared(row + tile * 16 + lane_index() / 4, low);
            st_shared(row + tile * 16 + lane_index() / 4 + 8, high);
          } else {
            const Words2 words = {{bit_cast<uint32_t>(low), bit_cast<uint32_t>(high)}};
            st_shared(reinterpret_cast<Words2*>(row + tile * 16) + lane_index() / 4, words);
          }
        }
        float d = state[n][i].d;
#pragma unroll
        for (int mask = 4; mask < kWarpSize; mask *= 2) d += __shfl_xor_sync(kAllLanes, d, mask);
        if (lane_index() < 4) {
          const Words4 sums = {{bit_cast<uint32_t>(state[n][i].m), bit_cast<uint32_t>(d),
                                bit_cast<uint32_t>(v_is_wide ? divisor[n][i] : d), 0u}};
          st_shared(reinterpret_cast<Words4*>(row + kDimVo), sums);
        }
      }
    }
  }
};

// ---- Merging of warps and splits

// 4 dims of O of one query head, and its sums, merged from parts.
struct Merged {
  SoftmaxState state = SoftmaxState::empty();
  float divisor = 0, o[4] = {};

  template <int kParts>
  __device__ __forceinline__ void add(const Words4 (&sums)[kParts], const Words4 (&parts)[kParts], float scale_log2) {
    float top = state.m;
#pragma unroll
    for (int i = 0; i < kParts; ++i) top = fmaxf(top, bit_cast<float>(sums[i].w[0]));
    const float own = SoftmaxState::factor(state.m, top, scale_log2);
    state.m = top, state.d *= own, divisor *= own;
#pragma unroll
    for (int d = 0; d < 4; ++d) o[d] *= own;
#pragma unroll
    for (int i = 0; i < kParts; ++i) {
      const float other = SoftmaxState::factor(bit_cast<float>(sums[i].w[0]), top, scale_log2);
      state.d = __fmaf_rn(bit_cast<float>(sums[i].w[1]), other, state.d);
      divisor = __fmaf_rn(bit_cast<float>(sums[i].w[2]), other, divisor);
#pragma unroll
      for (int d = 0; d < 4; ++d) o[d] = __fmaf_rn(bit_cast<float>(parts[i].w[d]), other, o[d]);
    }
  }

  // Of query head `row` of all sequences.
  template <typename T, int kDimVo>
  __device__ __forceinline__ void finish(const AttentionDecodeParams& p, float scale, int64_t row, int dim,
                                         bool has_keys) {
    // The largest score has the weight 1, so with keys d is 0 only if all scores are -inf, because
    // the products overflowed. Their softmax is NaN.
    if (has_keys && state.d == 0.0f) state.d = divisor = bit_cast<float>(0x7fc00000u);
    const float inverse = divisor == 0.0f ? 0.0f : __frcp_rn(divisor);
    const Words2 words = {{cvt_rn_x2<T>(o[0] * inverse, o[1] * inverse), cvt_rn_x2<T>(o[2] * inverse, o[3] * inverse)}};
    st_global(reinterpret_cast<Words2*>(static_cast<T*>(p.out) + row * kDimVo + dim), words);
    if (dim == 0 && p.lse != nullptr) st_global(p.lse + row, state.lse(scale));
  }
};

// The splits of a unit, by the last of its blocks.
template <typename T, int kDimVo>
__device__ __forceinline__ void merge_splits(const AttentionDecodeParams& p, const Plan& plan, const Unit& unit) {
  constexpr int kAtOnce = 8;  // loads under way
  const int64_t first_row = static_cast<int64_t>(unit.index) * plan.num_splits * plan.unit_heads;
  for (int item = threadIdx.x; item < unit.num_heads * (kDimVo / 4); item += kThreads) {
    const int head = item / (kDimVo / 4), dim = item % (kDimVo / 4) * 4;
    const float* const o = plan.o_accum + (first_row + head) * kDimVo + dim;
    const Words4* const sums = plan.sums_accum + first_row + head;
    Merged merged;
    for (int split = 0; split < unit.used_splits; split += kAtOnce) {
      Words4 part_sums[kAtOnce], parts[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        part_sums[i] = {{bit_cast<uint32_t>(-infinity()), 0u, 0u, 0u}}, parts[i] = {};
        if (split + i < unit.used_splits) {
          const int64_t row = static_cast<int64_t>(split + i) * plan.unit_heads;
          part_sums[i] = ld_global(sums + row);
          parts[i] = ld_global(reinterpret_cast<const Words4*>(o + row * kDimVo));
        }
      }
      merged.add(part_sums, parts, plan.score.scale_log2);
    }
    merged.template finish<T, kDimVo>(p, plan.score.scale, unit.batch * p.num_q_heads + unit.first_head + head, dim,
                                      true);
  }
}

// The warps' rows lie in shared memory, with a barrier behind them.
template <typename T, int kDimVo, int kTiles>
__device__ __forceinline__ void merge_warps(const AttentionDecodeParams& p, const Plan& plan, const Unit& unit,
                                            const float* rows) {
  constexpr int kRowFloats = row_floats(kDimVo);
  const int64_t first_row = (static_cast<int64_t>(unit.index) * plan.num_splits + unit.split_idx) * plan.unit_heads;
  for (int item = threadIdx.x; item < unit.num_heads * (kDimVo / 4); item += kThreads) {
    const int head = item / (kDimVo / 4), dim = item % (kDimVo / 4) * 4;
    Words4 sums[kWarps], parts[kWarps];
#pragma unroll
    for (int warp = 0; warp < kWarps; ++warp) {
      const float* const row = rows + (warp * kTiles * 8 + head) * kRowFloats;
      sums[warp] = ld_shared(reinterpret_cast<const Words4*>(row + kDimVo));
      parts[warp] = ld_shared(reinterpret_cast<const Words4*>(row + dim));
    }
    Merged merged;
    merged.add(sums, parts, plan.score.scale_log2);
    if (unit.used_splits == 1) {
      merged.template finish<T, kDimVo>(p, plan.score.scale, unit.batch * p.num_q_heads + unit.first_head + head, dim,
                                        unit.end_key > 0);
      continue;
    }
    const Words4 words = {{bit_cast<uint32_t>(merged.o[0]), bit_cast<uint32_t>(merged.o[1]),
                           bit_cast<uint32_t>(merged.o[2]), bit_cast<uint32_t>(merged.o[3])}};
    st_global(reinterpret_cast<Words4*>(plan.o_accum + (first_row + head) * kDimVo + dim), words);
    if (dim == 0) {
      const Words4 merged_sums = {{bit_cast<uint32_t>(merged.state.m), bit_cast<uint32_t>(merged.state.d),
                                   bit_cast<uint32_t>(merged.divisor), 0u}};
      st_global(plan.sums_accum + first_row + head, merged_sums);
    }
  }
}

// ---- The kernel

// kTiles: room for that many times 8 query heads. kScaled: K or V, or both, are of 8 bits.
template <typename T, int kDimVo, int kTiles, bool kScaled, bool kPaged>
__global__ void __launch_bounds__(kThreads, 1)
    attention_decode_kernel(AttentionDecodeParams p, Plan plan, Finding* finding) {
  wait_for_previous_kernel();
  start_next_kernel();
  using Pieces = PieceStream<kDimVo, kScaled, kPaged>;
  using Warp = Attention<T, kDimVo, kTiles, kScaled, kPaged>;
  // Under way while find_unit() waits for kv_lens.
  const KvPage* const table = kPaged ? ld_global(p.pages + (p.pages_shared ? 0 : batch_of(plan))) : nullptr;
  const Unit unit = find_unit(p, plan, finding);
  if (unit.split_idx >= unit.used_splits) return;
  const int dim_qk = static_cast<int>(p.k.head_dim), pitch = query_pitch(dim_qk);
  const int warp = same_in_warp(warp_index());
  const Format k_format = kScaled ? format_of(p.k.dtype) : Format::wide;
  const Format v_format = kScaled ? format_of(p.v.dtype) : Format::wide;

  // Q, with rows of zeros past the unit's last head.
  unsigned char* const queries = dynamic_shared();
  unsigned char* const rings = queries + kTiles * 8 * pitch;
  const T* const q = static_cast<const T*>(p.q) + (unit.batch * p.num_q_heads + unit.first_head) * dim_qk;
  for (int i = threadIdx.x; i < kTiles * dim_qk; i += kThreads) {
    const int row = i / (dim_qk / 8), chunk = i % (dim_qk / 8);
    const bool valid = row < unit.num_heads;
    const T* const from = valid ? q + row * dim_qk + chunk * 8 : q;
    if (k_format == Format::wide) {
      cp_async_cg(queries + row * pitch + chunk * 16, from, valid ? 16 : 0);
    } else {
      Words4 words = valid ? ld_global(reinterpret_cast<const Words4*>(from)) : Words4{};
      if (plan.negate) words = negated(words);
      store_query(queries + row * pitch, chunk, words);
    }
  }
  cp_async_commit_group();

  const Cache<kPaged> cache = find_cache<kPaged>(p, plan, unit, table);
  uint64_t* const barriers = reinterpret_cast<uint64_t*>(rings + kWarps * kRingBytes);
  Pieces pieces(unit, warp, cache, dim_qk, k_format, v_format, rings + warp * kRingBytes, barriers + warp * kBarriers);
  Warp attention;
  if (pieces.is_bulk()) {
    cp_async_wait_group<0>();
  } else {
    cp_async_wait_group<kSlots - 1>();
  }
  if (plan.negate && k_format == Format::wide) {  // each thread its own copies
    for (int i = threadIdx.x; i < kTiles * dim_qk; i += kThreads) {
      Words4* const at = reinterpret_cast<Words4*>(queries + i / (dim_qk / 8) * pitch + i % (dim_qk / 8) * 16);
      st_shared(at, negated(ld_shared(at)));
    }
  }
  __syncthreads();  // Q is there

  const unsigned char* const query_chunk = queries + attention.query_chunk(pitch);
  using Readers = typename Warp::Readers;
  const Readers first_k_readers = {unit.first_k_head * plan.q_heads_per_k_head - unit.first_head,
                                   plan.q_heads_per_k_head};
  const Readers first_v_readers = {unit.first_v_head * plan.q_heads_per_v_head - unit.first_head,
                                   plan.q_heads_per_v_head};
  uint32_t column_heads[kTiles] = {};
  typename Warp::TileScales tile = {};
  const auto seen_of = [&](int key) {
    return typename Warp::Seen{key - unit.first_key, unit.end_key - unit.first_key};
  };
  const auto load_scales = [&](int n, int key) {
    return Warp::load_scales(tile, cache, k_format, v_format, column_heads[n], seen_of(key));
  };
  typename Warp::Scales scales = {};  // of the first 8 query heads: asked for one tile ahead
  const auto start_tile = [&](int key) {
    if (!kScaled || key >= unit.end_key) return;
    const KvPage page = cache.page(key);
    tile = {cache.k_scales(key, page), cache.v_scales(key, page)};
    scales = load_scales(0, key);
  };
  if constexpr (kScaled) {
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      column_heads[n] = Warp::column_heads(n, unit.num_heads, first_k_readers, first_v_readers);
    }
  }

  const int most_dims = Pieces::key_dims(k_format == Format::wide);  // of a piece of K
  const int warp_key = unit.begin_key + warp * Pieces::kKeys;
  start_tile(warp_key);
#pragma unroll 1
  for (int key = warp_key; key < unit.end_key; key += kWarps * Pieces::kKeys) {
    attention.clear_scores();
    Readers k_readers = first_k_readers;
#pragma unroll 1
    for (int head = 0; head < unit.num_k_heads; ++head, k_readers.first += k_readers.count) {
#pragma unroll 1
      for (int dim = 0; dim < dim_qk; dim += most_dims) {
        const int dims = dim_qk - dim < most_dims ? dim_qk - dim : most_dims;
        attention.add_scores(pieces.take(), k_format, dims, query_chunk + dim * 2, pitch, k_readers);
      }
    }
    attention.add_weights(seen_of(key), plan.score, v_format, scales, [&](int n) { return load_scales(n, key); });
    start_tile(key + kWarps * Pieces::kKeys);
    Readers v_readers = first_v_readers;
#pragma unroll 1
    for (int head = 0; head < unit.num_v_heads; ++head, v_readers.first += v_readers.count) {
      const auto take_values = [&] {
        const typename Pieces::Piece piece = pieces.take();
        pieces.clear_unseen(piece, seen_of(key).first, seen_of(key).num_keys);
        return piece;
      };
      attention.template add_values<0>(take_values(), v_format, v_readers);
      if constexpr (Pieces::kValuePieces == 2) {
        attention.template add_values<Pieces::kValueDims>(take_values(), v_format, v_readers);
      }
    }
  }

  __syncthreads();  // the rings become the place of the merge
  float* const rows = reinterpret_cast<float*>(rings);
  attention.store_rows(rows + warp * kTiles * 8 * row_floats(kDimVo), v_format);
  __syncthreads();
  merge_warps<T, kDimVo, kTiles>(p, plan, unit, rows);
  if (unit.used_splits == 1) return;

  // The last block of the unit merges. One thread's fences stand for the block: the first is behind
  // a barrier, so that it covers what all threads stored, and the second is before one, so that
  // what it acquires holds for all threads.
  __syncthreads();
  uint32_t* const is_last = reinterpret_cast<uint32_t*>(queries);
  if (threadIdx.x == 0) {
    __threadfence();
    const uint32_t before = atomicAdd(plan.arrived + unit.index, 1u);
    __threadfence();
    const bool last = before + 1 == static_cast<uint32_t>(unit.used_splits);
    if (last) st_global(plan.arrived + unit.index, 0u);
    st_shared(is_last, last ? 1u : 0u);
  }
  __syncthreads();
  if (ld_shared(is_last) == 0) return;
  merge_splits<T, kDimVo>(p, plan, unit);
}

// ---- The launch

// Whether the kernel can take the call: Q and out of one 16-bit type, K and V of that or of 8 bits,
// head sizes that it is made for, rows that start at 16 bytes, tiles that lie in one page.
bool takes(const AttentionDecodeParams& p) {
  const auto aligned = [](const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; };
  const auto size = [](int64_t dim) { return dim == 32 || dim == 64 || dim == 96 || dim == 128 || dim == 256; };
  const auto fits = [&](const KvView& kv) {
    if ((kv.dtype != p.q_dtype && !is_quantized(kv.dtype)) || !size(kv.head_dim) || p.num_q_heads % kv.num_heads != 0)
      return false;
    if (p.pages) return kv.page_offset % 16 == 0;
    return aligned(kv.data) && kv.batch_stride % (kv.num_heads * kv.head_dim) == 0;
  };
  if ((p.q_dtype != DType::bf16 && p.q_dtype != DType::f16) || p.out_dtype != p.q_dtype || !aligned(p.q) ||
      !aligned(p.out) || !fits(p.k) || !fits(p.v)) {
    return false;
  }
  return !p.pages || (p.page_tokens >= tile_keys(static_cast<int>(p.v.head_dim)) &&
                      std::has_single_bit(static_cast<uint64_t>(p.page_tokens)));
}

bool is_scaled(const AttentionDecodeParams& p) { return is_quantized(p.k.dtype) || is_quantized(p.v.dtype); }

int num_tiles(const AttentionDecodeParams& p, const Plan& plan) {
  return plan.unit_heads <= 8 ? 1 : most_tiles(static_cast<int>(p.v.head_dim), is_scaled(p));
}

size_t shared_bytes(int64_t head_dim_qk, int num_tiles) {
  return static_cast<size_t>(num_tiles * 8 * query_pitch(static_cast<int>(head_dim_qk)) + kWarps * kRingBytes +
                             kWarps * kBarriers * static_cast<int>(sizeof(uint64_t)));
}

// A multiprocessor runs two blocks at once if it has the shared memory, with 1 KiB more for each:
// while one computes, the copies of the other are under way. It always has the registers.
static_assert(2 * kThreads * 256 <= 65536);
int blocks_at_once(const Context& context, size_t bytes) {
  constexpr size_t kReserved = 1024;
  const bool has_room = 2 * (bytes + kReserved) <= context.max_shared_bytes + kReserved;
  return context.num_multiprocessors * (has_room ? 2 : 1);
}

// The fewest splits with which `at_once` blocks take at most 1/0.9 of the shortest time, counted in
// tiles: each split is one more part to merge.
int choose_splits(const AttentionDecodeParams& p, int64_t most_keys, int64_t num_units, const Plan& plan, int at_once) {
  if (p.num_splits > 0)
    return static_cast<int>(std::min<int64_t>({p.num_splits, kMaxSplits, std::max<int64_t>(p.kv_len, 1)}));
  const auto ceil_div = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
  const int64_t tiles = std::max<int64_t>(ceil_div(most_keys, plan.tile_keys), 1);
  const auto time = [&](int splits) {
    const int64_t tiles_of_split = ceil_div(tiles, splits), used = ceil_div(tiles, tiles_of_split);
    return ceil_div(num_units * used, at_once) * tiles_of_split;
  };
  const int64_t most = std::clamp<int64_t>(ceil_div(most_keys, plan.min_split_keys), 1, kMaxSplits);
  int64_t best = time(1);
  for (int splits = 2; splits <= most; ++splits) best = std::min(best, time(splits));
  int splits = 1;
  while (9 * time(splits) > 10 * best) ++splits;
  return splits;
}

Plan make_plan(const AttentionDecodeParams& p, Context& context) {
  Plan plan = {};
  plan.q_heads_per_k_head = static_cast<int>(p.num_q_heads / p.k.num_heads);
  plan.q_heads_per_v_head = static_cast<int>(p.num_q_heads / p.v.num_heads);
  plan.group_heads = std::lcm(plan.q_heads_per_k_head, plan.q_heads_per_v_head);
  const int room = 8 * most_tiles(static_cast<int>(p.v.head_dim), is_scaled(p));
  plan.parts = (plan.group_heads + room - 1) / room;
  plan.unit_heads = (plan.group_heads + plan.parts - 1) / plan.parts;
  plan.parts = (plan.group_heads + plan.unit_heads - 1) / plan.unit_heads;
  plan.num_units = static_cast<int>(p.num_q_heads) / plan.group_heads * plan.parts;
  plan.tile_keys = tile_keys(static_cast<int>(p.v.head_dim));
  plan.page_shift = p.pages ? std::countr_zero(static_cast<uint64_t>(p.page_tokens)) : 0;
  plan.k_batch_rows = p.k.batch_stride / (p.k.num_heads * p.k.head_dim);
  plan.v_batch_rows = p.v.batch_stride / (p.v.num_heads * p.v.head_dim);
  plan.score = score_scale_of(p);
  plan.window = window_of(p);
  plan.negate = p.sm_scale < 0;
  const int64_t num_units = p.batch_size * plan.num_units;
  const int64_t most_keys = std::min(p.kv_len, static_cast<int64_t>(plan.window) + plan.tile_keys - 1);
  plan.min_split_keys = p.num_splits > 0 ? 1 : is_scaled(p) ? kMinScaledSplitKeys : kMinSplitKeys;
  const int at_once = blocks_at_once(context, shared_bytes(p.k.head_dim, num_tiles(p, plan)));
  plan.num_splits = choose_splits(p, most_keys, num_units, plan, at_once);
  if (plan.num_splits > 1) {
    const size_t rows = static_cast<size_t>(num_units) * plan.num_splits * plan.unit_heads;
    const size_t o_bytes = rows * static_cast<size_t>(p.v.head_dim) * sizeof(float);
    unsigned char* const scratch = static_cast<unsigned char*>(context.scratch(o_bytes + rows * sizeof(Words4)));
    plan.o_accum = reinterpret_cast<float*>(scratch);
    plan.sums_accum = reinterpret_cast<Words4*>(scratch + o_bytes);
    plan.arrived = context.zeroed_words(static_cast<size_t>(num_units));
  }
  return plan;
}

template <typename T, int kDimVo, int kTiles, bool kScaled, bool kPaged>
void run(const AttentionDecodeParams& p, const Plan& plan, Context& context) {
  static_assert(kTiles * 8 * row_floats(kDimVo) * 4 <= kRingBytes);
  LaunchShape shape;
  shape.waits = true;
  shape.grid[0] = static_cast<unsigned>(p.batch_size * plan.num_splits * plan.num_units);
  shape.threads = kThreads;
  shape.shared_bytes = shared_bytes(p.k.head_dim, kTiles);
  launch("attention_decode", attention_decode_kernel<T, kDimVo, kTiles, kScaled, kPaged>, shape, context.stream, p,
         plan, context.finding);
}

template <typename T, int kDimVo, bool kPaged>
void run_tiles(const AttentionDecodeParams& p, const Plan& plan, Context& context) {
  const bool few = num_tiles(p, plan) == 1;
  if (is_scaled(p)) {
    constexpr int kMost = most_tiles(kDimVo, true);
    few ? run<T, kDimVo, 1, true, kPaged>(p, plan, context) : run<T, kDimVo, kMost, true, kPaged>(p, plan, context);
  } else {
    constexpr int kMost = most_tiles(kDimVo, false);
    few ? run<T, kDimVo, 1, false, kPaged>(p, plan, context) : run<T, kDimVo, kMost, false, kPaged>(p, plan, context);
  }
}

template <typename T, int kDimVo>
void run_caches(const AttentionDecodeParams& p, const Plan& plan, Context& context) {
  p.pages ? run_tiles<T, kDimVo, true>(p, plan, context) : run_tiles<T, kDimVo, false>(p, plan, context);
}

template <typename T>
void run_sizes(const AttentionDecodeParams& p, const Plan& plan, Context& context) {
  switch (p.v.head_dim) {
    case 32: return run_caches<T, 32>(p, plan, context);
    case 64: return run_caches<T, 64>(p, plan, context);
    case 96: return run_caches<T, 96>(p, plan, context);
    case 128: return run_caches<T, 128>(p, plan, context);
    default: return run_caches<T, 256>(p, plan, context);
  }
}

}  // namespace

void attention_decode(const AttentionDecodeParams& p, Context& context) {
  if (p.batch_size <= 0) return;
  if (p.top_k > 0) {
    if (!attention_selective(p, context)) attention_plain_decode(p, context);
    return;
  }
  if (!takes(p)) return attention_plain_decode(p, context);
  const Plan plan = make_plan(p, context);
  if (p.q_dtype == DType::bf16) {
    run_sizes<bf16>(p, plan, context);
  } else {
    run_sizes<f16>(p, plan, context);
  }
}

}  // namespace diffqkv::cuda
