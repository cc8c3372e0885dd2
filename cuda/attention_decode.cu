// Attention of one query per sequence over its cache: out = softmax(sm_scale q K^T) V. Bound by memory: every K and V byte
// is read once, and little else is.
//
// Work split: a block is (sequence, unit of query heads, KV split). A unit is the query heads, at most 8, that share K and V
// heads: for 32/4/16 heads 8 query heads, 1 K head and 4 V heads. Each of the block's 4 warps takes every fourth 16 keys,
// with a ring of cp.async slots of its own (16 keys of one K or V head a slot), so that the main loop has no barrier:
//
//   S^T = K Q^T     16 keys by 8 query heads, m16n8k16, K by ldmatrix, Q^T in registers; for each K head its columns
//   P^T             online softmax down the columns, in base 2; rounded to 16 bits, to the other fragment by movmatrix
//   O_j^T += V_j^T P^T   for each V head j, V^T by ldmatrix.trans. Columns of query heads that do not belong to j are
//                   computed and dropped: they fill the 8 columns that the instruction has, and since nothing is masked
//                   by zeros, a NaN or infinity in one V head stays there.
//
// Then the warps merge, and, where there are several splits, the last block of a unit to arrive merges those: there is no
// second launch. The divisor is the sum of P as rounded, so that V = 1 gives 1; lse is of P as it was.
#include <algorithm>

#include "attention_decode_merge.h"
#include "device/async.h"
#include "device/finding.h"
#include "device/mma.h"

namespace diffqkv::DIFFQKV_DEVICE_NS {
namespace {

constexpr int kTileKeys = 16;

// Slots of a warp's ring: 80 KiB a block, so that two blocks fit an SM of 164 KiB; 96 KiB for heads of 256.
constexpr int slot_bytes(int head_dim_qk, int head_dim_vo) {
  return kTileKeys * 2 * (head_dim_qk > head_dim_vo ? head_dim_qk : head_dim_vo);
}
constexpr int num_slots(int head_dim_qk, int head_dim_vo) {
  const int fit = 80 * 1024 / (kDecodeWarps * slot_bytes(head_dim_qk, head_dim_vo));
  return fit < 3 ? 3 : fit > 16 ? 16 : fit;
}

// Chunks of 16 bytes in a row of `dims` elements are swizzled so that neither 8 rows at one column nor 8 chunks of a copy
// meet in a bank: rows that are a multiple of 128 bytes by row % 8, the others by row / 2 % 4.
DIFFQKV_DEVICE int swizzled(int row, int chunk, int dims) {
  return row * dims * 2 + ((chunk ^ (dims % 64 == 0 ? row & 7 : row >> 1 & 3)) << 4);
}

// Copies keys first_key to first_key + 15 of one head into a slot, zeros for those from end_key on.
template <typename T, int kDims>
DIFFQKV_DEVICE void copy_slot(unsigned char* slot, const T* head, int64_t stride, int first_key, int end_key) {
  constexpr int kChunks = kDims / 8;
  DIFFQKV_UNROLL
  for (int pass = 0; pass < kTileKeys * kChunks / kWarpSize; ++pass) {
    const int index = pass * kWarpSize + lane_index(), row = index / kChunks, chunk = index % kChunks;
    const bool valid = first_key + row < end_key;
    cp_async_16(slot + swizzled(row, chunk, kDims), valid ? head + (first_key + row) * stride + chunk * 8 : head,
                valid ? 16 : 0);
  }
}

// One warp's walk over its tiles of keys. kVHeads: room for V heads.
template <typename T, int kDimsQk, int kDimsVo, int kVHeads>
struct Warp {
  static constexpr int kSlots = num_slots(kDimsQk, kDimsVo), kSlotBytes = slot_bytes(kDimsQk, kDimsVo);

  const DecodeParams& p;
  unsigned char* ring;
  const T *k, *v;  // the unit's first head in the sequence's cache
  int end_key, num_tiles, first_tile;
  uint32_t q[kDimsQk / 16][2];  // Q^T by fragments
  float o[kVHeads][kDimsVo / 16][4];
  float m[2], d[2], rounded[2];  // of this lane's two query heads; the sums over this lane's keys
  int next_tile, next_part, next_slot, slot;

  DIFFQKV_DEVICE explicit Warp(const DecodeParams& params) : p(params) {}

  DIFFQKV_DEVICE int key_of(int tile) const { return (first_tile + tile * kDecodeWarps) * kTileKeys; }

  // Begins the copy of the next part of the next tile, or closes an empty group where there is none.
  DIFFQKV_DEVICE void copy_next() {
    if (next_tile < num_tiles) {
      unsigned char* to = ring + next_slot * kSlotBytes;
      const int key = key_of(next_tile);
      if constexpr (kDimsQk == kDimsVo) {
        const bool is_k = next_part < p.k_heads;
        copy_slot<T, kDimsQk>(to, is_k ? k + next_part * kDimsQk : v + (next_part - p.k_heads) * kDimsVo,
                              is_k ? p.stride_k_token : p.stride_v_token, key, end_key);
      } else if (next_part < p.k_heads) {
        copy_slot<T, kDimsQk>(to, k + next_part * kDimsQk, p.stride_k_token, key, end_key);
      } else {
        copy_slot<T, kDimsVo>(to, v + (next_part - p.k_heads) * kDimsVo, p.stride_v_token, key, end_key);
      }
      if (++next_part == p.k_heads + p.v_heads) next_part = 0, ++next_tile;
      next_slot = next_slot + 1 == kSlots ? 0 : next_slot + 1;
    }
    cp_async_commit();
  }
  // The oldest slot, when it has landed for all lanes.
  DIFFQKV_DEVICE const unsigned char* take() {
    cp_async_wait<kSlots - 1>();
    sync_warp();
    return ring + slot * kSlotBytes;
  }
  // That slot has been read by all lanes: it takes the next copy.
  DIFFQKV_DEVICE void release() {
    sync_warp();
    slot = slot + 1 == kSlots ? 0 : slot + 1;
    copy_next();
  }

  DIFFQKV_DEVICE void start(const T* queries, const T* k_cache, const T* v_cache, unsigned char* own_ring) {
    ring = own_ring, k = k_cache, v = v_cache;
    next_tile = next_part = next_slot = slot = 0;
    DIFFQKV_UNROLL
    for (int i = 0; i < kSlots; ++i) copy_next();
    const int head = lane_index() / 4, pair = lane_index() % 4 * 2;
    const T* row = queries + head * kDimsQk + pair;
    DIFFQKV_UNROLL
    for (int step = 0; step < kDimsQk / 16; ++step) {
      DIFFQKV_UNROLL
      for (int i = 0; i < 2; ++i)
        q[step][i] = head < p.unit_heads ? load(reinterpret_cast<const uint32_t*>(row + step * 16 + i * 8)) : 0;
    }
    DIFFQKV_UNROLL
    for (int i = 0; i < 2; ++i) m[i] = -infinity(), d[i] = rounded[i] = 0;
    DIFFQKV_UNROLL
    for (int j = 0; j < kVHeads; ++j) {
      DIFFQKV_UNROLL
      for (int tile = 0; tile < kDimsVo / 16; ++tile) {
        DIFFQKV_UNROLL
        for (int i = 0; i < 4; ++i) o[j][tile][i] = 0;
      }
    }
  }

  // S^T: s[0], s[1] of key lane / 4, s[2], s[3] of key lane / 4 + 8; query heads lane % 4 * 2 and the next.
  DIFFQKV_DEVICE void scores(float (&s)[4]) {
    const int row = lane_index() % 16, half = lane_index() / 16;
    DIFFQKV_UNROLL
    for (int i = 0; i < 4; ++i) s[i] = 0;
    for (int head = 0; head < p.k_heads; ++head) {
      const unsigned char* tile = take();
      float c[4] = {0, 0, 0, 0};
      DIFFQKV_UNROLL
      for (int step = 0; step < kDimsQk / 16; ++step) {
        uint32_t a[4];
        ldmatrix_x4(a, tile + swizzled(row, step * 2 + half, kDimsQk));
        mma_m16n8k16<T>(c, a, q[step]);
      }
      release();
      DIFFQKV_UNROLL
      for (int i = 0; i < 4; ++i) {
        const int column = lane_index() % 4 * 2 + i % 2;
        if (column / p.q_heads_per_k_head == head) s[i] = c[i];
      }
    }
  }

  // From S^T to the fragment of P^T. `keys`: how many of the tile's keys there are.
  DIFFQKV_DEVICE void softmax(float (&s)[4], int keys, uint32_t (&b)[2]) {
    const bool seen[2] = {lane_index() / 4 < keys, lane_index() / 4 + 8 < keys};
    float factor[2];
    DIFFQKV_UNROLL
    for (int i = 0; i < 2; ++i) {
      float top = -infinity();
      if (seen[0]) top = max_number(top, s[i] * p.scale_log2);
      if (seen[1]) top = max_number(top, s[i + 2] * p.scale_log2);
      DIFFQKV_UNROLL
      for (int mask = 4; mask < 32; mask *= 2) top = max_number(top, shuffle_xor(top, mask));
      factor[i] = 1;
      if (top > m[i]) {
        factor[i] = m[i] > -infinity() ? exp2_fast(m[i] - top) : 0.0f;
        m[i] = top, d[i] *= factor[i], rounded[i] *= factor[i];
      }
    }
    // While no score is above -inf the accumulators are 0, or NaN, which is to stay: both through a factor of 1.
    if (ballot(factor[0] != 1 || factor[1] != 1)) rescale(factor);
    DIFFQKV_UNROLL
    for (int half = 0; half < 2; ++half) {
      float x[2];
      DIFFQKV_UNROLL
      for (int i = 0; i < 2; ++i) {
        const float base = m[i] > -infinity() ? m[i] : 0.0f;
        x[i] = seen[half] ? exp2_fast(fused_multiply_add(s[2 * half + i], p.scale_log2, -base)) : 0.0f;
        d[i] += x[i];
      }
      const uint32_t word = pack2<T>(x[0], x[1]);
      rounded[0] += unpack_low<T>(word), rounded[1] += unpack_high<T>(word);
      b[half] = movmatrix_trans(word);
    }
  }

  DIFFQKV_DEVICE void rescale(const float (&factor)[2]) {
    DIFFQKV_UNROLL
    for (int j = 0; j < kVHeads; ++j) {
      DIFFQKV_UNROLL
      for (int tile = 0; tile < kDimsVo / 16; ++tile) {
        DIFFQKV_UNROLL
        for (int i = 0; i < 4; ++i) o[j][tile][i] *= factor[i % 2];
      }
    }
  }

  DIFFQKV_DEVICE void values(const uint32_t (&b)[2]) {
    const int row = lane_index() % 8 + lane_index() / 16 * 8, half = lane_index() / 8 % 2;
    DIFFQKV_UNROLL
    for (int j = 0; j < kVHeads; ++j) {
      if (j >= p.v_heads) break;
      const unsigned char* tile = take();
      DIFFQKV_UNROLL
      for (int step = 0; step < kDimsVo / 16; ++step) {
        uint32_t a[4];
        ldmatrix_x4_trans(a, tile + swizzled(row, step * 2 + half, kDimsVo));
        mma_m16n8k16<T>(o[j][step], a, b);
      }
      release();
    }
  }

  DIFFQKV_DEVICE void run() {
    for (int tile = 0; tile < num_tiles; ++tile) {
      float s[4];
      uint32_t b[2];
      scores(s);
      softmax(s, end_key - key_of(tile), b);
      values(b);
    }
  }

  // Leaves the warp's part for the merge: o by rows of query heads, and each one's m, d and sum of the rounded P.
  DIFFQKV_DEVICE void leave(float* o_part, float* stats) {
    DIFFQKV_UNROLL
    for (int i = 0; i < 2; ++i) {
      DIFFQKV_UNROLL
      for (int mask = 4; mask < 32; mask *= 2) {
        d[i] += shuffle_xor(d[i], mask);
        rounded[i] += shuffle_xor(rounded[i], mask);
      }
      const int head = lane_index() % 4 * 2 + i;
      if (lane_index() < 4) {
        store_shared(stats + head, m[i]);
        store_shared(stats + 8 + head, d[i]);
        store_shared(stats + 16 + head, rounded[i]);
      }
      DIFFQKV_UNROLL
      for (int j = 0; j < kVHeads; ++j) {
        if (head >= p.unit_heads || head / p.q_heads_per_v_head != j) continue;
        DIFFQKV_UNROLL
        for (int tile = 0; tile < kDimsVo / 16; ++tile) {
          float* at = o_part + head * part_stride(kDimsVo) + tile * 16 + lane_index() / 4;
          store_shared(at, o[j][tile][i]);
          store_shared(at + 8, o[j][tile][i + 2]);
        }
      }
    }
  }
};

template <typename T, int kDimsQk, int kDimsVo, int kVHeads>
DIFFQKV_KERNEL(kDecodeWarps * 32, 2)
attention_decode_kernel(DecodeParams p) {
  using OneWarp = Warp<T, kDimsQk, kDimsVo, kVHeads>;
  const DecodeBlock block(p);
  const int warp_index = thread_index() / 32;
  unsigned char* shared = dynamic_shared();
  {
    OneWarp warp(p);
    warp.end_key = block.end_key;
    warp.first_tile = block.first_key / kTileKeys + warp_index;
    const int tiles = (block.end_key + kTileKeys - 1) / kTileKeys - warp.first_tile;
    warp.num_tiles = tiles <= 0 ? 0 : (tiles + kDecodeWarps - 1) / kDecodeWarps;
    const int first_head = block.unit * p.unit_heads;
    warp.start(static_cast<const T*>(p.q) + (block.batch * p.num_q_heads + first_head) * kDimsQk,
               static_cast<const T*>(p.k) + block.batch * p.stride_k_batch +
                   first_head / p.q_heads_per_k_head_in_all * kDimsQk,
               static_cast<const T*>(p.v) + block.batch * p.stride_v_batch +
                   first_head / p.q_heads_per_v_head_in_all * kDimsVo,
               shared + warp_index * OneWarp::kSlots * OneWarp::kSlotBytes);
    warp.run();
    cp_async_wait<0>();
    sync_block();  // the rings become the place of the merge
    float* o_parts = reinterpret_cast<float*>(shared);
    warp.leave(o_parts + warp_index * 8 * part_stride(kDimsVo), decode_stats(shared, kDimsVo) + warp_index * 24);
  }
  sync_block();
  merge_block<T, kDimsVo>(p, block, shared);
}

// The largest number of query heads, at most 8, that takes whole K and V heads, or parts of one, and V heads enough for
// `max_v_heads`.
int choose_unit_heads(const AttentionDecodeParams& p, int max_v_heads) {
  const int64_t per_k = p.num_q_heads / p.num_k_heads, per_v = p.num_q_heads / p.num_v_heads;
  // No more than share something: whole groups of both.
  int64_t a = per_k, b = per_v;
  while (b) {
    const int64_t rest = a % b;
    a = b, b = rest;
  }
  const int64_t whole = per_k / a * per_v;
  for (int64_t unit = std::min<int64_t>(8, whole); unit > 1; --unit) {
    if (whole % unit == 0 && (unit % per_k == 0 || per_k % unit == 0) && (unit % per_v == 0 || per_v % unit == 0) &&
        unit / per_v <= max_v_heads)
      return static_cast<int>(unit);
  }
  return 1;
}

// Few enough blocks to run at once, many enough to fill the card, each with keys enough to be worth its merge.
int64_t choose_splits(const AttentionDecodeParams& p, int64_t units, const Context& context) {
  const int64_t most = std::max<int64_t>(1, (p.kv_len + kTileKeys - 1) / kTileKeys);
  if (p.num_splits > 0) return std::min(p.num_splits, most);
  constexpr int64_t kOverheadKeys = 192;  // what a block costs besides its keys, in keys
  const int64_t at_once = 2 * int64_t{context.num_multiprocessors};
  int64_t best = 1, best_cost = INT64_MAX;
  for (int64_t splits = 1; splits <= std::min<int64_t>(most, 256); ++splits) {
    const int64_t waves = (units * splits + at_once - 1) / at_once;
    const int64_t cost = waves * ((p.kv_len + splits - 1) / splits + kOverheadKeys);
    if (cost < best_cost) best = splits, best_cost = cost;
  }
  return best;
}

template <typename T, int kDimsQk, int kDimsVo, int kVHeads>
void launch_decode(DecodeParams p, int64_t blocks, Context& context) {
  LaunchShape shape;
  shape.grid[0] = static_cast<unsigned>(blocks);
  shape.threads = kDecodeWarps * 32;
  const size_t ring = size_t{kDecodeWarps} * num_slots(kDimsQk, kDimsVo) * slot_bytes(kDimsQk, kDimsVo);
  shape.shared_bytes = std::max(ring, merge_bytes(kDimsVo));
  launch("attention_decode", attention_decode_kernel<T, kDimsQk, kDimsVo, kVHeads>, shape, context.stream, p);
}

// Calls f with the size as a constant; false where there is no kernel for it.
template <typename F>
bool visit_dims(int64_t dims, const F& f) {
  switch (dims) {
    case 32: f(std::integral_constant<int, 32>{}); return true;
    case 64: f(std::integral_constant<int, 64>{}); return true;
    case 96: f(std::integral_constant<int, 96>{}); return true;
    case 128: f(std::integral_constant<int, 128>{}); return true;
    case 256: f(std::integral_constant<int, 256>{}); return true;
    default: return false;
  }
}

bool has_kernel(const AttentionDecodeParams& p) {
  const auto known = [](int64_t dims) { return visit_dims(dims, [](auto) {}); };
  const bool one_type = p.q_dtype == p.k_dtype && p.q_dtype == p.v_dtype && p.q_dtype == p.out_dtype;
  const auto aligned = [](const void* data, int64_t stride) {  // for copies of 16 bytes
    return reinterpret_cast<uintptr_t>(data) % 16 == 0 && stride % 8 == 0;
  };
  return one_type && (p.q_dtype == DType::bf16 || p.q_dtype == DType::f16) && known(p.head_dim_qk) &&
         known(p.head_dim_vo) && aligned(p.q, 0) && aligned(p.k, p.stride_k_batch) && aligned(p.v, p.stride_v_batch);
}

}  // namespace

void attention_decode(const AttentionDecodeParams& params, Context& context) {
  if (params.batch_size <= 0) return;
  if (params.selective_top_k > 0 || !has_kernel(params)) return attention_plain_decode(params, context);
  const int max_v_heads = params.head_dim_vo > 128 ? 2 : 4;
  DecodeParams p = {};
  p.q = params.q, p.k = params.k, p.v = params.v, p.out = params.out, p.lse = params.lse, p.kv_lens = params.kv_lens;
  p.finding = context.finding;
  p.stride_k_batch = params.stride_k_batch, p.stride_v_batch = params.stride_v_batch;
  p.stride_k_token = params.num_k_heads * params.head_dim_qk;
  p.stride_v_token = params.num_v_heads * params.head_dim_vo;
  p.kv_len = static_cast<int>(params.kv_len);
  p.scale_log2 = static_cast<float>(static_cast<double>(params.sm_scale) * 1.4426950408889634);
  p.num_q_heads = static_cast<int>(params.num_q_heads);
  p.q_heads_per_k_head_in_all = static_cast<int>(params.num_q_heads / params.num_k_heads);
  p.q_heads_per_v_head_in_all = static_cast<int>(params.num_q_heads / params.num_v_heads);
  p.unit_heads = choose_unit_heads(params, max_v_heads);
  p.q_heads_per_k_head = std::min(p.unit_heads, p.q_heads_per_k_head_in_all);
  p.q_heads_per_v_head = std::min(p.unit_heads, p.q_heads_per_v_head_in_all);
  p.k_heads = p.unit_heads / p.q_heads_per_k_head, p.v_heads = p.unit_heads / p.q_heads_per_v_head;
  p.num_units = p.num_q_heads / p.unit_heads;
  const int64_t units = params.batch_size * p.num_units;
  p.num_splits = static_cast<int>(choose_splits(params, units, context));
  if (p.num_splits > 1) {
    const int64_t rows = params.batch_size * params.num_q_heads * p.num_splits;
    p.o_accum =
        static_cast<float*>(context.scratch(static_cast<size_t>(rows * (params.head_dim_vo + 3)) * sizeof(float)));
    p.stats_accum = p.o_accum + rows * params.head_dim_vo;
    p.arrived = context.zeroed_words(static_cast<size_t>(units));
  }
  visit_dims(params.head_dim_qk, [&](auto qk) {
    visit_dims(params.head_dim_vo, [&](auto vo) {
      constexpr int kDimsQk = decltype(qk)::value, kDimsVo = decltype(vo)::value, kVHeads = kDimsVo > 128 ? 2 : 4;
      const auto with_type = [&](auto type) {
        using T = decltype(type);
        if constexpr (kDimsQk == kDimsVo) {
          if (p.v_heads == 1) return launch_decode<T, kDimsQk, kDimsVo, 1>(p, units * p.num_splits, context);
        }
        launch_decode<T, kDimsQk, kDimsVo, kVHeads>(p, units * p.num_splits, context);
      };
      params.q_dtype == DType::bf16 ? with_type(bf16{}) : with_type(f16{});
    });
  });
}

}  // namespace diffqkv::DIFFQKV_DEVICE_NS
