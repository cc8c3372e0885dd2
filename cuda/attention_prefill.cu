// Attention of many queries: out = softmax(sm_scale Q K^T) V, on tensor cores, as FlashAttention-2 does it, for a 16-bit type,
// and for K, V or both of 8 bits.
//
// Work split. A group is the Q heads that share both a K head and a V head. A block is one tile of query positions of one
// sequence, for all groups that share one K head (or one V head, where V has fewer heads), so that a tile of K or V is read
// once for all heads that use it. A group's rows are its Q heads times the tile's positions, head after head; a warp owns
// 32 rows of one group (16 at head_dim_vo 256), whose scores, softmax and output stay in its registers. For 32/4/16 x 64, a
// block of 8 warps is 32 positions x 8 Q heads; 4 groups of 2 Q heads share a tile of K and have a tile of V each.
//
// K and V come in tiles of 32 keys by cp.async: two stages of both where shared memory suffices, else one of each, V under
// way during Q K^T and the next K during P V. Rows of shared memory are swizzled: no bank conflicts. Keys that no query
// of the tile sees are not read. Blocks with most keys start first, sequence by sequence, for the L2's sake.
//
// 8-bit elements are widened on the way, once a block, and multiplied as they are; scores are multiplied by the scale of K,
// and P by that of V before it is rounded.
//
// Bound by arithmetic: 2 * (head_dim_qk + head_dim_vo) FLOPs a key and row, and one exp2 on a unit that does 16 a clock.
#include <algorithm>
#include <cmath>

#include "attention_prefill_cache.h"
#include "finding.h"
#include "kernels.h"

namespace diffqkv::cuda {
namespace {

constexpr int kMaxWarps = 8;

struct Plan {
  int groups_per_block, q_heads_per_group, warps_per_group;
  int num_units;  // blocks that one tile of positions takes: the K (or V) heads, more where a block can't hold all groups
  int num_tiles, tile_queries;
  bool k_is_shared;  // one tile of K and one of V for each group; else the other way round
  bool two_stages;
  float scale_log2;  // |sm_scale| * log2(e)
  bool negate;       // sm_scale is negative
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

// kDimQk 0: any head_dim_qk. kQuantized: K or V has 8 bits, or both have; else both are of type T.
template <typename T, int kDimQk, int kDimVo, bool kQuantized>
__global__ void __launch_bounds__(kMaxWarps * 32, 1)
    attention_prefill_kernel(AttentionPrefillParams p, Plan plan, Finding* finding) {
  constexpr int kRowTiles = row_tiles(kDimQk, kDimVo), kWarpRows = 16 * kRowTiles;
  // Q's fragments, where registers suffice; else they are read again for each tile of keys.
  constexpr bool kKeepQueries = kDimQk > 0 && kDimQk <= 64 && kDimVo <= 64;
  constexpr int kKeptSteps = kKeepQueries ? kDimQk / 16 : 1;
  const int dim_qk = kDimQk > 0 ? kDimQk : static_cast<int>(p.head_dim_qk);
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
  const int k_head = first_head / static_cast<int>(p.num_q_heads / p.num_k_heads);
  const int v_head = first_head / static_cast<int>(p.num_q_heads / p.num_v_heads);
  TileFiller<T, false, kQuantized> k(
      CacheHead<false, kQuantized>(p, batch, k_head), end_key, plan.k_is_shared ? warp : worker,
      plan.k_is_shared ? num_warps : plan.warps_per_group, staged + k_slot * kTileKeys * dim_qk);
  TileFiller<T, true, kQuantized> v(
      CacheHead<true, kQuantized>(p, batch, v_head), end_key, plan.k_is_shared ? worker : warp,
      plan.k_is_shared ? plan.warps_per_group : num_warps, staged + kTileKeys * (k_slots * dim_qk + v_slot * kDimVo));
  const auto fill_k = [&](int first_key) {
    k.fill(k_tiles + (plan.two_stages ? first_key / kTileKeys % 2 * stage_bytes : 0), first_key, dim_qk);
  };
  const auto fill_v = [&](int first_key) {
    v.fill(v_tiles + (plan.two_stages ? first_key / kTileKeys % 2 * stage_bytes : 0), first_key, kDimVo);
  };
  if (end_key > 0) {
    k.begin(dim_qk), v.begin(kDimVo);
    if constexpr (!kQuantized) {
      fill_k(0);
      if (plan.two_stages) fill_v(0);
    }
  }
  cp_async_commit_group();

  cp_async_wait_group<1>();
  if (plan.negate) {  // so that the largest product is the largest score; each lane's own copies
    const Walk walk(dim_qk, 2);
    for (int r = walk.row; r < kWarpRows; r += 1 << walk.rows_log2) {
      for (int chunk = walk.chunk; chunk < dim_qk / 8; chunk += walk.chunks) {
        Words4* at = reinterpret_cast<Words4*>(q_tile + r * dim_qk * 2 + ((chunk ^ swizzle(r, dim_qk)) << 4));
        Words4 words = ld_shared(at);
#pragma unroll
        for (int i = 0; i < 4; ++i) words.w[i] ^= 0x80008000u;
        st_shared(at, words);
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
  for (int first_key = kQuantized ? -kTileKeys : 0; first_key < end_key; first_key += kTileKeys) {
    const int next_key = first_key + kTileKeys;
    const int stage = plan.two_stages ? first_key / kTileKeys % 2 * stage_bytes : 0;
    cp_async_wait_group<0>();
    __syncthreads();  // the tile is there, and nobody is at the one before any more
    if (plan.two_stages && next_key < end_key) fill_k(next_key);
    const int key_of_v = plan.two_stages ? next_key : first_key;
    if (key_of_v >= 0 && key_of_v < end_key) fill_v(key_of_v);
    cp_async_commit_group();

    // S = Q K^T: per fragment of K, 16 keys (8 and 8) by two chunks.
    Scores<kRowTiles> scores = {};
    const bool sees = first_key >= 0 && first_key < warp_most;
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
    }
    if (!plan.two_stages) {
      cp_async_wait_group<0>();
      __syncthreads();  // V is there, and nobody is at K any more
      if (next_key < end_key) fill_k(next_key);
      cp_async_commit_group();
    }
    if (!sees) continue;

    const bool masked = next_key > warp_least;
    int seen[kRowTiles][2];
#pragma unroll
    for (int i = 0; i < 2 * kRowTiles; ++i) seen[i / 2][i % 2] = visible[i / 2][i % 2] - first_key;
    if (masked) scores.mask(seen);
    float factor[kRowTiles][2];
    bool raised = softmax.raise(scores, plan.scale_log2, factor);
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
      weights = softmax.template scaled_weights<T>(scores, plan.scale_log2, v_scales, seen);
    } else {
      weights = softmax.template weights<T>(scores, plan.scale_log2);
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
      if (kQuantized && is_quantized(p.v_dtype)) {  // the sum of P without the scales of V
        sum.divisor[m][2 * h] = softmax.sum(m, h) * __frcp_rn(v_power);
      }
      sum.store_row(m, h, static_cast<T*>(p.out) + ((first_row + row.query) * p.num_q_heads + head) * kDimVo,
                    row.valid);
      if (p.lse) {
        const float lse = softmax.lse(m, h);
        if (lane % 4 == 0 && row.valid) st_global(p.lse + (batch * p.num_q_heads + head) * q_len + row.query, lse);
      }
    }
  }
}

// Whether the kernel can take the call: one 16-bit type, but for K and V of 8 bits, head counts that nest, rows that start
// at 16 bytes. And a scale that scores of -inf can be multiplied by, as those of masked keys are.
bool takes(const AttentionPrefillParams& p) {
  const auto aligned = [](const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; };
  const auto size = [](int64_t dim) { return dim == 32 || dim == 64 || dim == 96 || dim == 128 || dim == 256; };
  const auto cache_type = [&](DType dtype) { return dtype == p.q_dtype || is_quantized(dtype); };
  const auto cache_aligned = [&](const void* data, int64_t stride, DType dtype) {
    return aligned(data) && stride * static_cast<int64_t>(dtype_size(dtype)) % 16 == 0;
  };
  return (p.q_dtype == DType::bf16 || p.q_dtype == DType::f16) && p.out_dtype == p.q_dtype && cache_type(p.k_dtype) &&
         cache_type(p.v_dtype) && size(p.head_dim_qk) && size(p.head_dim_vo) && p.num_q_heads % p.num_k_heads == 0 &&
         p.num_q_heads % p.num_v_heads == 0 &&
         (p.num_k_heads % p.num_v_heads == 0 || p.num_v_heads % p.num_k_heads == 0) && std::isnormal(p.sm_scale) &&
         aligned(p.q) && aligned(p.out) &&
         (p.pages ? p.page_tokens % kTileKeys == 0
                  : cache_aligned(p.k, p.stride_k_batch, p.k_dtype) && cache_aligned(p.v, p.stride_v_batch, p.v_dtype));
}

bool has_8_bits(const AttentionPrefillParams& p) { return is_quantized(p.k_dtype) || is_quantized(p.v_dtype); }

// What the kernel that takes the call is compiled for: 0 is any.
int kernel_dim_qk(const AttentionPrefillParams& p) {
  return !has_8_bits(p) && p.head_dim_qk == p.head_dim_vo ? static_cast<int>(p.head_dim_qk) : 0;
}

int warp_rows(const AttentionPrefillParams& p) {
  return 16 * row_tiles(kernel_dim_qk(p), static_cast<int>(p.head_dim_vo));
}

size_t shared_bytes(const AttentionPrefillParams& p, const Plan& plan) {
  const int64_t groups = plan.groups_per_block, k_slots = plan.k_is_shared ? 1 : groups, v_slots = groups + 1 - k_slots;
  const int dim_qk = static_cast<int>(p.head_dim_qk), dim_vo = static_cast<int>(p.head_dim_vo);
  const bool quantized = has_8_bits(p);
  const int64_t stage = k_slots * tile_bytes(dim_qk, quantized) + v_slots * tile_bytes(dim_vo, quantized);
  const int64_t staged = quantized ? kTileKeys * (k_slots * dim_qk + v_slots * dim_vo) : 0;
  const int64_t queries = groups * plan.warps_per_group * warp_rows(p) * dim_qk * 2;
  return static_cast<size_t>(queries + stage * (plan.two_stages ? 2 : 1) + staged);
}

// False where a group has more Q heads than a block has rows.
bool make_plan(const AttentionPrefillParams& p, const Context& context, Plan* plan) {
  const int num_groups = static_cast<int>(std::max(p.num_k_heads, p.num_v_heads));
  const int num_shared = static_cast<int>(std::min(p.num_k_heads, p.num_v_heads));
  const int q_len = static_cast<int>(p.q_len), rows_of_warp = warp_rows(p);
  plan->k_is_shared = p.num_k_heads <= p.num_v_heads;
  plan->q_heads_per_group = static_cast<int>(p.num_q_heads) / num_groups;
  plan->scale_log2 = std::fabs(p.sm_scale) * 1.44269504088896341f;
  plan->negate = p.sm_scale < 0;

  // All groups of a shared head, if that many warps and tiles fit; then as many rows as fit, two stages if they fit too.
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
  switch (p.head_dim_vo) {
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
