// Selective V (paper, B.2) for one query per sequence: the softmax of all scores, but only the V rows of the k highest
// of each query head are read. Bound by memory: each byte of K is read once for up to 16 query heads, and of V only
// what counts.
//
// attention_selective_scores: a block is a unit (the query heads that share a K head) of one sequence, and one split of
// its keys. Its 8 warps take every eighth tile of keys through rings of cp.async slots, S^T = K Q^T by tensor cores,
// and the scores stay in shared memory (attention_selective_keys.h). Then a warp takes a query head at a time: m and d
// of all its scores, and its own k best, exactly (attention_selective_top.h), which go to scratch memory in the order
// of the keys.
//
// attention_selective_values: a block is one query head of one sequence. It merges m and d, finds the k best of the
// splits' candidates, and gathers their V rows, 16 bytes a lane, many rows under way. Every sum has a fixed order.
#include <algorithm>
#include <bit>
#include <cmath>

#include "attention_selective_keys.h"
#include "attention_selective_top.h"
#include "attention_selective_values.h"
#include "element_types.h"
#include "kernels.h"

namespace diffqkv::cuda {
namespace {

constexpr int kMinSplitKeys = 256;  // below, what a split leaves to merge would be too much beside what it reads
constexpr size_t kMaxScratchBytes = size_t{128} << 20;

struct ScoresShared {
  Segment segments[kMaxSegments];
  unsigned char rings[kRingBytes];
  // Then Q and the scores.
};

// m and d of a query head's scores, and its candidates. kCount: of scores a lane has room for.
template <int kCount>
__device__ __forceinline__ void select_candidates(const Plan& plan, const float* scores, int first_key, int num_keys,
                                                  int64_t row, const Keys& keys, int split) {
  const int lane = lane_index();
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
      if (ordered[i] != 0) d += weight_of(ordered_score(ordered[i]), top, plan.scale_log2);
    }
  }
  d = warp_sum(d);
  if (lane == 0) {
    st_global(plan.sums + row * plan.num_splits + split, Words2{{bit_cast<uint32_t>(top), bit_cast<uint32_t>(d)}});
  }
  Kept kept;
  if (num_keys > plan.top_k) kept = keep_best(ordered, static_cast<uint32_t>(plan.top_k));
  const int64_t slot = row * plan.row_slots + static_cast<int64_t>(split) * smaller(plan.top_k, keys.per_split);
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
  const int begin_key = split * keys.per_split, end_key = keys.end(split);
  const int k_head = unit / plan.parts, first = unit % plan.parts * plan.unit_heads;
  const int first_head = k_head * plan.q_heads_per_k_head + first;
  const int num_heads = smaller(plan.unit_heads, plan.q_heads_per_k_head - first);

  const int dim = static_cast<int>(p.head_dim_qk), pitch = Tile::query_pitch(dim);
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
  const auto cache = CacheHead<K>::of_k(p, plan.page_shift, batch, k_head);
  const int first_segment = cache.segment_of(begin_key);
  const int num_segments = cache.segment_of(end_key - 1) - first_segment + 1;
  for (int i = threadIdx.x; i < num_segments; i += kThreads) {
    st_shared(&shared->segments[i], cache.segment(first_segment + i));
  }
  __syncthreads();
  Stream stream(cache, shared->segments, dim, begin_key, end_key, shared->rings + warp * kSlots * kSlotBytes);
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
        plan, scores + head * plan.score_pitch, begin_key, end_key - begin_key,
        static_cast<int64_t>(sequence) * p.num_q_heads + first_head + head, keys, split);
  }
}

template <typename V>
__global__ void __launch_bounds__(kThreads, 2) attention_selective_values_kernel(AttentionDecodeParams p, Plan plan) {
  auto* const shared = reinterpret_cast<ValuesShared*>(dynamic_shared());
  uint32_t* const stage = reinterpret_cast<uint32_t*>(dynamic_shared() + sizeof(*shared));
  const int thread = threadIdx.x, warp = thread / kWarpSize, lane = lane_index();
  const int64_t row = blockIdx.x;
  const int head = static_cast<int>(row % p.num_q_heads);
  const int64_t batch = plan.first_batch + row / p.num_q_heads, out_row = batch * p.num_q_heads + head;
  const int dim = static_cast<int>(p.head_dim_vo);
  const Keys keys(p, plan, batch, nullptr);

  // m and d of all keys, by every warp.
  const Words2* const sums = plan.sums + row * plan.num_splits;
  float top = -infinity(), d = 0;
  for (int i = lane; i < keys.used_splits; i += kWarpSize) top = larger(top, bit_cast<float>(ld_global(sums + i).w[0]));
  top = warp_reduce(top, larger);
  for (int i = lane; i < keys.used_splits; i += kWarpSize) {
    const Words2 part = ld_global(sums + i);
    d += bit_cast<float>(part.w[1]) * weight_of(bit_cast<float>(part.w[0]), top, plan.scale_log2);
  }
  d = warp_sum(d);
  // Without a key 0 and -inf. Else, where there is no largest score, exp(score - m) is NaN at it, and so is every
  // weight.
  if (keys.kv_len == 0 || !(top > -infinity() && top < infinity())) {
    const float nan = bit_cast<float>(0x7fc00000u);
    if (thread < dim) store_any(p.out, p.out_dtype, out_row * dim + thread, keys.kv_len == 0 ? 0.0f : nan);
    if (thread == 0 && p.lse != nullptr) st_global(p.lse + out_row, keys.kv_len == 0 ? -infinity() : nan);
    return;
  }

  const int split_slots = smaller(plan.top_k, keys.per_split), last_split = keys.used_splits - 1;
  const int num_candidates = last_split * split_slots + smaller(plan.top_k, keys.kv_len - last_split * keys.per_split);
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

  // The kept go to the list in the order of their keys, a warp's share of a round at a time, and are gathered when it
  // is full.
  const auto cache = CacheHead<V>::of_v(p, plan.page_shift, batch, head * p.num_v_heads / p.num_q_heads);
  Gather<V> gather(dim);
  float weight_sum = 0;
  int listed = 0;
  const auto gather_list = [&] {
    __syncthreads();
    for (int i = thread; i < listed; i += kThreads) {
      const int j = static_cast<int>(ld_shared(&shared->list.weights[i]));
      const int key = static_cast<int>(ld_global(plan.keys + row * plan.row_slots + j));
      float weight = weight_of(ordered_score(score_of(j)), top, plan.scale_log2);
      weight_sum += weight;
      const Segment segment = cache.segment(cache.segment_of(key));
      if (sizeof(V) == 1 && weight != 0.0f) weight *= cache.scale(segment, key);
      st_shared(&shared->list.rows[i], cache.row(segment, key));
      st_shared(&shared->list.weights[i], bit_cast<uint32_t>(weight));
    }
    __syncthreads();
    gather.add(shared, listed);
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
  if (thread == 0 && p.lse != nullptr) st_global(p.lse + out_row, __fmaf_rn(top, plan.scale, logf(d)));
}

bool aligned(const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; }

// 16-bit Q and out of one type, K of that type or of one byte an element, V of any; head sizes in whole 16 bytes.
bool takes(const AttentionDecodeParams& p) {
  const int64_t v_bytes = static_cast<int64_t>(dtype_size(p.v_dtype));
  return (p.q_dtype == DType::bf16 || p.q_dtype == DType::f16) && p.out_dtype == p.q_dtype &&
         (p.k_dtype == p.q_dtype || is_quantized(p.k_dtype)) && p.selective_top_k > 0 && p.head_dim_qk % 16 == 0 &&
         p.head_dim_qk <= kMaxHeadDim && p.head_dim_vo * v_bytes % 16 == 0 && p.head_dim_vo <= kMaxHeadDim &&
         p.num_q_heads % p.num_k_heads == 0 && p.num_q_heads % p.num_v_heads == 0 && aligned(p.q) &&
         (p.pages != nullptr ||
          (aligned(p.k) && aligned(p.v) && p.stride_k_batch * static_cast<int64_t>(dtype_size(p.k_dtype)) % 16 == 0 &&
           p.stride_v_batch * v_bytes % 16 == 0));
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
  plan.q_heads_per_k_head = static_cast<int>(p.num_q_heads / p.num_k_heads);
  const int most = plan.q_heads_per_k_head <= 8 ? 8 : 16;
  plan.parts = (plan.q_heads_per_k_head + most - 1) / most;
  plan.unit_heads = (plan.q_heads_per_k_head + plan.parts - 1) / plan.parts;
  plan.num_units = static_cast<int>(p.num_k_heads) * plan.parts;
  plan.top_k = static_cast<int>(std::min(p.selective_top_k, p.kv_len));
  plan.page_shift = p.pages != nullptr ? std::countr_zero(static_cast<uint64_t>(p.page_tokens)) : 6;
  plan.scale = std::fabs(p.sm_scale), plan.scale_log2 = plan.scale * 1.44269504088896341f;
  plan.direction = p.sm_scale > 0 ? 1.0f : p.sm_scale < 0 ? -1.0f : p.sm_scale * 0.0f;

  const size_t query_bytes = static_cast<size_t>(most) * (static_cast<size_t>(p.head_dim_qk) * 2 + 32);
  int max_split_keys = kMaxSplitKeys * 8 / most;
  while (scores_shared_bytes(most, query_bytes, max_split_keys) > context.max_shared_bytes) {
    max_split_keys -= kSplitStep;
  }
  plan.score_pitch = max_split_keys + 4;  // so that the lanes that store a tile's scores fall on different banks
  launch.scores_bytes = scores_shared_bytes(most, query_bytes, max_split_keys);

  const auto divide_up = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
  const int64_t blocks = p.batch_size * plan.num_units;
  plan.min_split_keys = p.num_splits > 0 ? 1 : kMinSplitKeys;
  const int64_t wanted = p.num_splits > 0 ? p.num_splits : divide_up(context.num_multiprocessors, blocks);
  plan.num_splits = static_cast<int>(std::max<int64_t>(
      {std::min(wanted, divide_up(p.kv_len, plan.min_split_keys)), divide_up(p.kv_len, max_split_keys), 1}));
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
  switch (p.k_dtype) {
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
    visit_cache(p.v_dtype, [&](auto v) {
      launch("attention_selective_values", attention_selective_values_kernel<decltype(v)>, values, context.stream, p,
             plan);
    });
  }
  return true;
}

}  // namespace diffqkv::cuda
