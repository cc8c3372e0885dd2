// Attention of one query per sequence over its cache: out = softmax(sm_scale q K^T) V, on tensor cores, for 16-bit
// types. Bound by memory: each byte of K and V is read once, and little else is.
//
// Work split. A unit is the query heads that share K and V heads with each other: 8, with 1 K head and 4 V heads, for
// 32/4/16. More than a block has room for are split. A block is one unit of one sequence, and one split of its keys.
// Each of its 4 warps takes every fourth tile of keys, through a ring of cp.async slots of its own, so that the main
// loop has no barrier; up to 64 KiB a block are under way, in 16 bits. For each tile (attention_decode_tile.h):
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
#include <bit>
#include <cmath>
#include <numeric>

#include "attention_decode_tile.h"
#include "element_types.h"
#include "finding.h"
#include "kernels.h"

namespace diffqkv::cuda {
namespace {

constexpr int kMaxSplits = 256;
constexpr int kMinSplitKeys = 256;  // below, what a split leaves to merge would be too much beside what it reads

__host__ __device__ __forceinline__ constexpr int query_pitch(int head_dim_qk) { return head_dim_qk * 2 + 16; }
// Blocks of many query heads have room for this many times 8; more would not fit the registers.
__host__ __device__ __forceinline__ constexpr int most_tiles(int head_dim_vo, bool scaled) {
  return head_dim_vo <= 128 && !scaled ? 4 : 2;
}

__device__ __forceinline__ Unit find_unit(const AttentionDecodeParams& p, const Plan& plan, Finding* finding) {
  Unit unit;
  const int block = blockIdx.x, part = block % plan.num_units, rest = block / plan.num_units;
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
    const int given = ld_global(p.kv_lens + unit.batch);
    if ((given < 0 || given > kv_len) && part == 0 && unit.split_idx == 0 && threadIdx.x == 0) {
      report(finding, Finding::kv_len, static_cast<int>(unit.batch), given, kv_len);
    }
    kv_len = given < 0 ? 0 : given < kv_len ? given : kv_len;
  }
  int keys = kv_len / plan.num_splits + (kv_len % plan.num_splits != 0);
  if (keys < plan.min_split_keys) keys = plan.min_split_keys;
  keys = (keys + plan.tile_keys - 1) / plan.tile_keys * plan.tile_keys;  // a tile lies in one page
  unit.used_splits = kv_len / keys + (kv_len % keys != 0 || kv_len == 0);
  unit.begin_key = unit.split_idx < unit.used_splits ? unit.split_idx * keys : kv_len;
  unit.end_key = kv_len - unit.begin_key < keys ? kv_len : unit.begin_key + keys;
  return unit;
}

// The caches of a unit: addresses where they are contiguous, else offsets from the starts of pages.
__device__ __forceinline__ KeyRows find_rows(const void* data, const void* scales, int64_t first_row, DType dtype,
                                             int first_head, int64_t num_heads, int64_t head_size, int64_t page_tokens,
                                             int64_t page_offset) {
  const int64_t row = num_heads * head_size, element = dtype == DType::bf16 || dtype == DType::f16 ? 2 : 1;
  KeyRows r;
  r.rows = page_tokens > 0 ? static_cast<uint64_t>(page_offset) : reinterpret_cast<uint64_t>(data);
  r.scales = page_tokens > 0 ? r.rows + static_cast<uint64_t>(page_tokens * row * element)
                             : reinterpret_cast<uint64_t>(scales) + static_cast<uint64_t>(first_row * num_heads * 2);
  if (page_tokens == 0) r.rows += static_cast<uint64_t>(first_row * row * element);
  r.rows += static_cast<uint64_t>(first_head * head_size * element);
  r.scales += static_cast<uint64_t>(first_head) * 2;
  r.stride = static_cast<int>(row * element);
  r.num_heads = static_cast<int>(num_heads);
  return r;
}

__device__ __forceinline__ Cache find_cache(const AttentionDecodeParams& p, const Plan& plan, const Unit& unit) {
  const int64_t page_tokens = p.pages ? p.page_tokens : 0;
  return {find_rows(p.k, p.k_scales, unit.batch * plan.k_batch_rows, p.k_dtype, unit.first_k_head, p.num_k_heads,
                    p.head_dim_qk, page_tokens, p.k_page_offset),
          find_rows(p.v, p.v_scales, unit.batch * plan.v_batch_rows, p.v_dtype, unit.first_v_head, p.num_v_heads,
                    p.head_dim_vo, page_tokens, p.v_page_offset),
          p.pages ? ld_global(p.pages + (p.pages_shared ? 0 : unit.batch)) : nullptr, plan.page_shift};
}

__device__ __forceinline__ Format format_of(DType dtype) {
  return dtype == DType::i8 ? Format::i8 : dtype == DType::f8e4m3 ? Format::f8e4m3 : Format::wide;
}

// kTiles: room for that many times 8 query heads. kScaled: K or V, or both, are of 8 bits.
template <typename T, int kDimVo, int kTiles, bool kScaled>
__global__ void __launch_bounds__(kThreads, 1)
    attention_decode_kernel(AttentionDecodeParams p, Plan plan, Finding* finding) {
  using Pieces = PieceStream<kDimVo, kScaled>;
  using Warp = Attention<T, kDimVo, kTiles, kScaled>;
  const Unit unit = find_unit(p, plan, finding);
  if (unit.split_idx >= unit.used_splits) return;
  const int dim_qk = static_cast<int>(p.head_dim_qk), pitch = query_pitch(dim_qk);
  const int warp = warp_index();
  const Format k_format = kScaled ? format_of(p.k_dtype) : Format::wide;
  const Format v_format = kScaled ? format_of(p.v_dtype) : Format::wide;

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
      store_query(queries + row * pitch, chunk, valid ? ld_global(reinterpret_cast<const Words4*>(from)) : Words4{});
    }
  }
  cp_async_commit_group();

  const Cache cache = find_cache(p, plan, unit);
  Pieces pieces(unit, cache, dim_qk, k_format, v_format, rings + warp * kRingBytes);
  Warp attention;
  cp_async_wait_group<kSlots - 1>();
  __syncthreads();  // Q is there

  const unsigned char* const query_chunk = queries + attention.query_chunk(pitch);
  using Readers = typename Warp::Readers;
  const Readers first_k_readers = {unit.first_k_head * plan.q_heads_per_k_head - unit.first_head,
                                   plan.q_heads_per_k_head};
  const Readers first_v_readers = {unit.first_v_head * plan.q_heads_per_v_head - unit.first_head,
                                   plan.q_heads_per_v_head};
  uint32_t column_heads[kTiles] = {};
  TileRows tile = {};
  const auto load_scales = [&](int n, int key) {
    return Warp::load_scales(tile, cache, k_format, v_format, column_heads[n], unit.end_key - key);
  };
  typename Warp::Scales scales = {};  // of the first 8 query heads: asked for one tile ahead
  const auto start_tile = [&](int key) {
    if (!kScaled || key >= unit.end_key) return;
    tile = cache.rows(key, cache.page(key));
    scales = load_scales(0, key);
  };
  if constexpr (kScaled) {
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      column_heads[n] = Warp::column_heads(n, unit.num_heads, first_k_readers, first_v_readers);
    }
  }

  const int first_key = unit.begin_key + warp * Pieces::kKeys;
  start_tile(first_key);
#pragma unroll 1
  for (int key = first_key; key < unit.end_key; key += kWarps * Pieces::kKeys) {
    attention.clear_scores();
    Readers k_readers = first_k_readers;
#pragma unroll 1
    for (int head = 0; head < unit.num_k_heads; ++head, k_readers.first += k_readers.count) {
#pragma unroll 1
      for (int dim = 0; dim < dim_qk; dim += Pieces::kSlotDims) {
        const int dims = dim_qk - dim < Pieces::kSlotDims ? dim_qk - dim : Pieces::kSlotDims;
        attention.add_scores(pieces.take(), k_format, dims, query_chunk + dim * 2, pitch, k_readers);
      }
    }
    attention.add_weights(unit.end_key - key, plan.scale_log2, v_format, scales,
                          [&](int n) { return load_scales(n, key); });
    start_tile(key + kWarps * Pieces::kKeys);
    Readers v_readers = first_v_readers;
#pragma unroll 1
    for (int head = 0; head < unit.num_v_heads; ++head, v_readers.first += v_readers.count) {
      attention.template add_values<0>(pieces.take(), v_format, v_readers);
      if constexpr (Pieces::kValuePieces == 2) {
        attention.template add_values<Pieces::kValueDims>(pieces.take(), v_format, v_readers);
      }
    }
  }

  __syncthreads();  // the rings become the place of the merge
  float* const rows = reinterpret_cast<float*>(rings);
  attention.store_rows(rows + warp * kTiles * 8 * row_floats(kDimVo), v_format);
  __syncthreads();
  merge_warps<T, kDimVo, kTiles>(p, plan, unit, rows);
  if (unit.used_splits == 1) return;

  // The last block of the unit merges. One thread's fences stand for the block: the first is behind a barrier, so that it
  // covers what all threads stored, and the second is before one, so that what it acquires holds for all threads.
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

// Whether the kernel can take the call: Q and out of one 16-bit type, K and V of that or of 8 bits, head sizes that it is
// made for, rows that start at 16 bytes, tiles that lie in one page.
bool takes(const AttentionDecodeParams& p) {
  const auto aligned = [](const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; };
  const auto size = [](int64_t dim) { return dim == 32 || dim == 64 || dim == 96 || dim == 128 || dim == 256; };
  const auto type = [&](DType dtype) { return dtype == p.q_dtype || is_quantized(dtype); };
  if ((p.q_dtype != DType::bf16 && p.q_dtype != DType::f16) || !type(p.k_dtype) || !type(p.v_dtype) ||
      p.out_dtype != p.q_dtype || !size(p.head_dim_qk) || !size(p.head_dim_vo) || p.num_q_heads % p.num_k_heads != 0 ||
      p.num_q_heads % p.num_v_heads != 0 || !aligned(p.q) || !aligned(p.out)) {
    return false;
  }
  if (p.pages) {
    return p.page_tokens >= tile_keys(static_cast<int>(p.head_dim_vo)) &&
           std::has_single_bit(static_cast<uint64_t>(p.page_tokens)) && p.k_page_offset % 16 == 0 &&
           p.v_page_offset % 16 == 0;
  }
  return aligned(p.k) && aligned(p.v) && p.stride_k_batch % (p.num_k_heads * p.head_dim_qk) == 0 &&
         p.stride_v_batch % (p.num_v_heads * p.head_dim_vo) == 0;
}

bool is_scaled(const AttentionDecodeParams& p) { return is_quantized(p.k_dtype) || is_quantized(p.v_dtype); }

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
  const int room = 8 * most_tiles(static_cast<int>(p.head_dim_vo), is_scaled(p));
  plan.parts = (plan.group_heads + room - 1) / room;
  plan.unit_heads = (plan.group_heads + plan.parts - 1) / plan.parts;
  plan.parts = (plan.group_heads + plan.unit_heads - 1) / plan.unit_heads;
  plan.num_units = static_cast<int>(p.num_q_heads) / plan.group_heads * plan.parts;
  plan.tile_keys = tile_keys(static_cast<int>(p.head_dim_vo));
  plan.page_shift = p.pages ? std::countr_zero(static_cast<uint64_t>(p.page_tokens)) : 0;
  plan.k_batch_rows = p.stride_k_batch / (p.num_k_heads * p.head_dim_qk);
  plan.v_batch_rows = p.stride_v_batch / (p.num_v_heads * p.head_dim_vo);
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

template <typename T, int kDimVo, int kTiles, bool kScaled>
void run(const AttentionDecodeParams& p, const Plan& plan, Context& context) {
  static_assert(kTiles * 8 * row_floats(kDimVo) * 4 <= kRingBytes);
  LaunchShape shape;
  shape.grid[0] = static_cast<unsigned>(p.batch_size * plan.num_splits * plan.num_units);
  shape.threads = kThreads;
  shape.shared_bytes =
      static_cast<size_t>(kTiles * 8 * query_pitch(static_cast<int>(p.head_dim_qk)) + kWarps * kRingBytes);
  launch("attention_decode", attention_decode_kernel<T, kDimVo, kTiles, kScaled>, shape, context.stream, p, plan,
         context.finding);
}

template <typename T, int kDimVo>
void run_tiles(const AttentionDecodeParams& p, const Plan& plan, Context& context) {
  const bool few = plan.unit_heads <= 8;
  if (is_scaled(p)) {
    constexpr int kMost = most_tiles(kDimVo, true);
    few ? run<T, kDimVo, 1, true>(p, plan, context) : run<T, kDimVo, kMost, true>(p, plan, context);
  } else {
    constexpr int kMost = most_tiles(kDimVo, false);
    few ? run<T, kDimVo, 1, false>(p, plan, context) : run<T, kDimVo, kMost, false>(p, plan, context);
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
  if (p.selective_top_k > 0) {
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
