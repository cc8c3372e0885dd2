// Attention of one query per sequence over its cache: out = softmax(sm_scale q K^T) V, on tensor cores, for 16-bit
// types. Bound by memory: each byte of K and V is read once, and little else is.
//
// Work split. A unit is the query heads that share K and V heads with each other: 8, with 1 K head and 4 V heads, for
// 32/4/16. More than a block has room for are split. A block is one unit of one sequence, and one split of its keys.
// Each of its 4 warps takes every fourth tile of keys, through a ring of cp.async slots of its own, so that the main
// loop has no barrier; 64 KiB a block are under way. For each tile (attention_decode_tile.h):
//
//   S^T = K Q^T      for each K head, by m16n8k16: 16 keys by 8 query heads
//   P^T = 2^(S^T sm_scale log2(e) - m)   with the running max m of the columns; rounded, and by movmatrix to the other
//                    fragment
//   O^T += V^T P^T   for each V head. All heads share the accumulator: products of 8 query heads are formed, and those
//                    of query heads that do not read this K or V head are dropped
//
// Then the warps merge. Where there are several splits, each leaves O, m and d in scratch memory, and the last block of
// a unit to arrive merges those: there is no second launch. Splits are even over what kv_lens says.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "attention_decode_tile.h"
#include "device/finding.h"
#include "kernels.h"

namespace diffqkv::DIFFQKV_DEVICE_NS {
namespace {

constexpr int kMaxSplits = 256;
constexpr int kMinSplitKeys = 256;  // below, what a split leaves to merge would be too much beside what it reads

struct Plan {
  int q_heads_per_k_head, q_heads_per_v_head;
  int group_heads;        // query heads that share K and V heads
  int unit_heads, parts;  // of a group
  int num_units;          // of a sequence
  int num_splits, min_split_keys;
  float scale_log2;    // sm_scale * log2(e)
  float* o_accum;      // [unit][split][unit_heads][head_dim_vo], not divided
  Words4* sums_accum;  // [unit][split][unit_heads]: m, d, divisor
  uint32_t* arrived;   // [unit]: splits that are done; 0 before and after
};

DIFFQKV_HOST_DEVICE constexpr int query_pitch(int head_dim_qk) { return head_dim_qk * 2 + 16; }
// Blocks of many query heads have room for this many times 8.
DIFFQKV_HOST_DEVICE constexpr int most_tiles(int head_dim_vo) { return head_dim_vo <= 128 ? 4 : 2; }

DIFFQKV_DEVICE Unit find_unit(const AttentionDecodeParams& p, const Plan& plan, Finding* finding) {
  Unit unit;
  const int part = block_x() % plan.num_units, rest = block_x() / plan.num_units;
  const int group = part / plan.parts, first = part % plan.parts * plan.unit_heads;
  unit.split_idx = rest % plan.num_splits;
  unit.batch = rest / plan.num_splits;
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
    const int given = load(p.kv_lens + unit.batch);
    if ((given < 0 || given > kv_len) && part == 0 && unit.split_idx == 0 && thread_index() == 0) {
      report(finding, Finding::kv_len, static_cast<int>(unit.batch), given, kv_len);
    }
    kv_len = given < 0 ? 0 : given < kv_len ? given : kv_len;
  }
  int keys = kv_len / plan.num_splits + (kv_len % plan.num_splits != 0);
  if (keys < plan.min_split_keys) keys = plan.min_split_keys;
  unit.used_splits = kv_len / keys + (kv_len % keys != 0 || kv_len == 0);
  unit.begin_key = unit.split_idx < unit.used_splits ? unit.split_idx * keys : kv_len;
  unit.end_key = kv_len - unit.begin_key < keys ? kv_len : unit.begin_key + keys;
  return unit;
}

// 4 dims of O of one query head, and its sums, merged from parts.
struct Merged {
  SoftmaxState state = SoftmaxState::empty();
  float divisor = 0, o[4] = {};

  template <int kParts>
  DIFFQKV_DEVICE void add(const Words4 (&sums)[kParts], const Words4 (&parts)[kParts]) {
    float top = state.m;
    DIFFQKV_UNROLL
    for (int i = 0; i < kParts; ++i) top = fmaxf(top, bit_cast<float>(sums[i].w[0]));
    const float own = factor(state.m, top);
    state.m = top, state.d *= own, divisor *= own;
    DIFFQKV_UNROLL
    for (int d = 0; d < 4; ++d) o[d] *= own;
    DIFFQKV_UNROLL
    for (int i = 0; i < kParts; ++i) {
      const float other = factor(bit_cast<float>(sums[i].w[0]), top);
      state.d = fused_multiply_add(bit_cast<float>(sums[i].w[1]), other, state.d);
      divisor = fused_multiply_add(bit_cast<float>(sums[i].w[2]), other, divisor);
      DIFFQKV_UNROLL
      for (int d = 0; d < 4; ++d) o[d] = fused_multiply_add(bit_cast<float>(parts[i].w[d]), other, o[d]);
    }
  }
  // A part without a score above -inf has d = 0 and o = 0, or NaN, which is to stay.
  DIFFQKV_DEVICE static float factor(float m, float top) { return m > -infinity() ? exp2_fast(m - top) : 1.0f; }

  // Of query head `row` of all sequences.
  template <typename T, int kDimVo>
  DIFFQKV_DEVICE void finish(const AttentionDecodeParams& p, int64_t row, int dim) const {
    const float inverse = divisor == 0.0f ? 0.0f : reciprocal(divisor);
    const Words2 words = {{pack2<T>(o[0] * inverse, o[1] * inverse), pack2<T>(o[2] * inverse, o[3] * inverse)}};
    store(reinterpret_cast<Words2*>(static_cast<T*>(p.out) + row * kDimVo + dim), words);
    if (dim == 0 && p.lse != nullptr) store(p.lse + row, state.lse());
  }
};

// The splits of a unit, by the last of its blocks.
template <typename T, int kDimVo>
DIFFQKV_DEVICE void merge_splits(const AttentionDecodeParams& p, const Plan& plan, const Unit& unit) {
  constexpr int kAtOnce = 8;  // loads under way
  const int64_t first_row = static_cast<int64_t>(unit.index) * plan.num_splits * plan.unit_heads;
  for (int item = thread_index(); item < unit.num_heads * (kDimVo / 4); item += kThreads) {
    const int head = item / (kDimVo / 4), dim = item % (kDimVo / 4) * 4;
    const float* const o = plan.o_accum + (first_row + head) * kDimVo + dim;
    const Words4* const sums = plan.sums_accum + first_row + head;
    Merged merged;
    for (int split = 0; split < unit.used_splits; split += kAtOnce) {
      Words4 part_sums[kAtOnce], parts[kAtOnce];
      DIFFQKV_UNROLL
      for (int i = 0; i < kAtOnce; ++i) {
        part_sums[i] = {{bit_cast<uint32_t>(-infinity()), 0u, 0u, 0u}}, parts[i] = {};
        if (split + i < unit.used_splits) {
          const int64_t row = static_cast<int64_t>(split + i) * plan.unit_heads;
          part_sums[i] = load(sums + row);
          parts[i] = load(reinterpret_cast<const Words4*>(o + row * kDimVo));
        }
      }
      merged.add(part_sums, parts);
    }
    merged.template finish<T, kDimVo>(p, unit.batch * p.num_q_heads + unit.first_head + head, dim);
  }
}

// The warps' rows lie in shared memory, with a barrier behind them.
template <typename T, int kDimVo, int kTiles>
DIFFQKV_DEVICE void merge_warps(const AttentionDecodeParams& p, const Plan& plan, const Unit& unit, const float* rows) {
  constexpr int kRowFloats = Attention<T, kDimVo, kTiles>::kRowFloats;
  const int64_t first_row = (static_cast<int64_t>(unit.index) * plan.num_splits + unit.split_idx) * plan.unit_heads;
  for (int item = thread_index(); item < unit.num_heads * (kDimVo / 4); item += kThreads) {
    const int head = item / (kDimVo / 4), dim = item % (kDimVo / 4) * 4;
    Words4 sums[kWarps], parts[kWarps];
    DIFFQKV_UNROLL
    for (int warp = 0; warp < kWarps; ++warp) {
      const float* const row = rows + (warp * kTiles * 8 + head) * kRowFloats;
      sums[warp] = load_shared(reinterpret_cast<const Words4*>(row + kDimVo));
      parts[warp] = load_shared(reinterpret_cast<const Words4*>(row + dim));
    }
    Merged merged;
    merged.add(sums, parts);
    if (unit.used_splits == 1) {
      merged.template finish<T, kDimVo>(p, unit.batch * p.num_q_heads + unit.first_head + head, dim);
      continue;
    }
    const Words4 words = {{bit_cast<uint32_t>(merged.o[0]), bit_cast<uint32_t>(merged.o[1]),
                           bit_cast<uint32_t>(merged.o[2]), bit_cast<uint32_t>(merged.o[3])}};
    store(reinterpret_cast<Words4*>(plan.o_accum + (first_row + head) * kDimVo + dim), words);
    if (dim == 0) {
      const Words4 merged_sums = {{bit_cast<uint32_t>(merged.state.m), bit_cast<uint32_t>(merged.state.d),
                                   bit_cast<uint32_t>(merged.divisor), 0u}};
      store(plan.sums_accum + first_row + head, merged_sums);
    }
  }
}

// kTiles: room for that many times 8 query heads.
template <typename T, int kDimVo, int kTiles>
DIFFQKV_KERNEL(kThreads, 1)
attention_decode_kernel(AttentionDecodeParams p, Plan plan, Finding* finding) {
  using Pieces = PieceStream<T, kDimVo>;
  const Unit unit = find_unit(p, plan, finding);
  if (unit.split_idx >= unit.used_splits) return;
  const int dim_qk = static_cast<int>(p.head_dim_qk), pitch = query_pitch(dim_qk);
  const int warp = thread_index() / kWarpSize;

  // Q, with rows of zeros past the unit's last head.
  unsigned char* const queries = dynamic_shared();
  unsigned char* const rings = queries + kTiles * 8 * pitch;
  const T* const q = static_cast<const T*>(p.q) + (unit.batch * p.num_q_heads + unit.first_head) * dim_qk;
  for (int i = thread_index(); i < kTiles * dim_qk; i += kThreads) {
    const int row = i / (dim_qk / 8), chunk = i % (dim_qk / 8);
    const bool valid = row < unit.num_heads;
    cp_async_16(queries + row * pitch + chunk * 16, valid ? q + row * dim_qk + chunk * 8 : q, valid ? 16 : 0);
  }
  cp_async_commit();

  Pieces pieces(unit, static_cast<const T*>(p.k) + unit.batch * p.stride_k_batch + unit.first_k_head * dim_qk,
                static_cast<const T*>(p.v) + unit.batch * p.stride_v_batch + unit.first_v_head * kDimVo,
                static_cast<int>(p.num_k_heads) * dim_qk, static_cast<int>(p.num_v_heads) * kDimVo, dim_qk,
                rings + warp * kSlots * kSlotBytes);
  Attention<T, kDimVo, kTiles> attention;
  cp_async_wait<kSlots - 1>();
  sync_block();  // Q is there

  const unsigned char* const query_chunk = queries + attention.query_chunk(pitch);
  using Readers = typename Attention<T, kDimVo, kTiles>::Readers;
  const int first_k_reader = unit.first_k_head * plan.q_heads_per_k_head - unit.first_head;
  const int first_v_reader = unit.first_v_head * plan.q_heads_per_v_head - unit.first_head;
  for (int key = unit.begin_key + warp * Pieces::kKeys; key < unit.end_key; key += kWarps * Pieces::kKeys) {
    attention.clear_scores();
    Readers k_readers = {first_k_reader, plan.q_heads_per_k_head};
    for (int head = 0; head < unit.num_k_heads; ++head, k_readers.first += k_readers.count) {
      for (int dim = 0; dim < dim_qk; dim += Pieces::kSlotDims) {
        const int dims = dim_qk - dim < Pieces::kSlotDims ? dim_qk - dim : Pieces::kSlotDims;
        attention.add_scores(pieces.take(), dims, query_chunk + dim * 2, pitch, k_readers);
      }
    }
    attention.add_weights(unit.end_key - key, plan.scale_log2);
    Readers v_readers = {first_v_reader, plan.q_heads_per_v_head};
    for (int head = 0; head < unit.num_v_heads; ++head, v_readers.first += v_readers.count) {
      attention.template add_values<0>(pieces.take(), v_readers);
      if constexpr (Pieces::kValuePieces == 2) {
        attention.template add_values<Pieces::kValueDims>(pieces.take(), v_readers);
      }
    }
  }

  sync_block();  // the rings become the place of the merge
  float* const rows = reinterpret_cast<float*>(rings);
  attention.store_rows(rows + warp * kTiles * 8 * attention.kRowFloats);
  sync_block();
  merge_warps<T, kDimVo, kTiles>(p, plan, unit, rows);
  if (unit.used_splits == 1) return;

  fence_device();
  sync_block();
  uint32_t* const is_last = reinterpret_cast<uint32_t*>(queries);
  if (thread_index() == 0) {
    const uint32_t before = atomic_add(plan.arrived + unit.index, 1u);
    store_shared(is_last, before + 1 == static_cast<uint32_t>(unit.used_splits) ? 1u : 0u);
  }
  sync_block();
  if (load_shared(is_last) == 0) return;
  if (thread_index() == 0) store(plan.arrived + unit.index, 0u);
  fence_device();
  merge_splits<T, kDimVo>(p, plan, unit);
}

// Whether the kernel can take the call: one 16-bit type, head sizes that it is made for, rows that start at 16 bytes.
bool takes(const AttentionDecodeParams& p) {
  const auto aligned = [](const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; };
  const auto size = [](int64_t dim) { return dim == 32 || dim == 64 || dim == 96 || dim == 128 || dim == 256; };
  return (p.q_dtype == DType::bf16 || p.q_dtype == DType::f16) && p.k_dtype == p.q_dtype && p.v_dtype == p.q_dtype &&
         p.out_dtype == p.q_dtype && p.selective_top_k == 0 && size(p.head_dim_qk) && size(p.head_dim_vo) &&
         p.num_q_heads % p.num_k_heads == 0 && p.num_q_heads % p.num_v_heads == 0 && aligned(p.q) && aligned(p.k) &&
         aligned(p.v) && aligned(p.out) && p.stride_k_batch % 8 == 0 && p.stride_v_batch % 8 == 0;
}

// The fewest splits that keep the multiprocessors nearly as busy as any number would: each is one more part to merge.
int choose_splits(const AttentionDecodeParams& p, int64_t num_blocks, int num_multiprocessors) {
  if (p.num_splits > 0)
    return static_cast<int>(std::min<int64_t>({p.num_splits, kMaxSplits, std::max<int64_t>(p.kv_len, 1)}));
  const int most = static_cast<int>(std::clamp<int64_t>((p.kv_len + kMinSplitKeys - 1) / kMinSplitKeys, 1, kMaxSplits));
  const auto busy = [&](int splits) {
    const double waves = static_cast<double>(num_blocks * splits) / num_multiprocessors;
    return waves / std::ceil(waves);
  };
  double best = 0;
  for (int splits = 1; splits <= most; ++splits) best = std::max(best, busy(splits));
  int splits = 1;
  while (busy(splits) < 0.9 * best) ++splits;
  return splits;
}

Plan make_plan(const AttentionDecodeParams& p, Context& context) {
  Plan plan = {};
  plan.q_heads_per_k_head = static_cast<int>(p.num_q_heads / p.num_k_heads);
  plan.q_heads_per_v_head = static_cast<int>(p.num_q_heads / p.num_v_heads);
  plan.group_heads = std::lcm(plan.q_heads_per_k_head, plan.q_heads_per_v_head);
  const int room = 8 * most_tiles(static_cast<int>(p.head_dim_vo));
  plan.parts = (plan.group_heads + room - 1) / room;
  plan.unit_heads = (plan.group_heads + plan.parts - 1) / plan.parts;
  plan.parts = (plan.group_heads + plan.unit_heads - 1) / plan.unit_heads;
  plan.num_units = static_cast<int>(p.num_q_heads) / plan.group_heads * plan.parts;
  plan.scale_log2 = p.sm_scale * 1.44269504088896341f;
  const int64_t num_units = p.batch_size * plan.num_units;
  plan.num_splits = choose_splits(p, num_units, context.num_multiprocessors);
  plan.min_split_keys = p.num_splits > 0 ? 1 : kMinSplitKeys;
  if (plan.num_splits > 1) {
    const size_t rows = static_cast<size_t>(num_units) * plan.num_splits * plan.unit_heads;
    const size_t o_bytes = rows * static_cast<size_t>(p.head_dim_vo) * sizeof(float);
    unsigned char* const scratch = static_cast<unsigned char*>(context.scratch(o_bytes + rows * sizeof(Words4)));
    plan.o_accum = reinterpret_cast<float*>(scratch);
    plan.sums_accum = reinterpret_cast<Words4*>(scratch + o_bytes);
    plan.arrived = context.zeroed_words(static_cast<size_t>(num_units));
  }
  return plan;
}

template <typename T, int kDimVo, int kTiles>
void run(const AttentionDecodeParams& p, const Plan& plan, Context& context) {
  static_assert(kWarps * kTiles * 8 * Attention<T, kDimVo, kTiles>::kRowFloats * 4 <= kWarps * kSlots * kSlotBytes);
  LaunchShape shape;
  shape.grid[0] = static_cast<unsigned>(p.batch_size * plan.num_splits * plan.num_units);
  shape.threads = kThreads;
  shape.shared_bytes =
      static_cast<size_t>(kTiles * 8 * query_pitch(static_cast<int>(p.head_dim_qk)) + kWarps * kSlots * kSlotBytes);
  launch("attention_decode", attention_decode_kernel<T, kDimVo, kTiles>, shape, context.stream, p, plan,
         context.finding);
}

template <typename T, int kDimVo>
void run_tiles(const AttentionDecodeParams& p, const Plan& plan, Context& context) {
  if (plan.unit_heads <= 8) {
    run<T, kDimVo, 1>(p, plan, context);
  } else {
    run<T, kDimVo, most_tiles(kDimVo)>(p, plan, context);
  }
}

template <typename T>
void run_sizes(const AttentionDecodeParams& p, const Plan& plan, Context& context) {
  switch (p.head_dim_vo) {
    case 32: return run_tiles<T, 32>(p, plan, context);
    case 64: return run_tiles<T, 64>(p, plan, context);
    case 96: return run_tiles<T, 96>(p, plan, context);
    case 128: return run_tiles<T, 128>(p, plan, context);
    default: return run_tiles<T, 256>(p, plan, context);
  }
}

}  // namespace

void attention_decode(const AttentionDecodeParams& p, Context& context) {
  if (p.batch_size <= 0) return;
  if (!takes(p)) return attention_plain_decode(p, context);
  const Plan plan = make_plan(p, context);
  if (p.q_dtype == DType::bf16) {
    run_sizes<bf16>(p, plan, context);
  } else {
    run_sizes<f16>(p, plan, context);
  }
}

}  // namespace diffqkv::DIFFQKV_DEVICE_NS
