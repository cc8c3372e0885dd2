// Draws tokens: repetition penalty, temperature, top-k, top-p, min-p, one uniform number (ops.h). A block a row: each step
// needs the whole vocabulary's answer to the one before. Logits become keys, whole numbers in the order of the logits;
// no step sorts. Both filters keep what comes before a border in the order of falling logits and rising tokens, and find
// it in two steps: the border's key, by narrowing a range of keys (find_border), then the border among equal keys, by
// narrowing a range of tokens (find_place), which is how the draw finds its token, too. What neither filter can keep
// leaves first, by a bound that costs one pass, so that the searches run over few. Sums are f64, their order fixed.
// Bound by latency: three to five passes over the vocabulary; without top-k, by exp of all of it in f64.
#include <algorithm>
#include <cmath>
#include <limits>

#include "finding.h"
#include "kernels.h"
#include "launch.h"
#include "reductions.h"

namespace diffqkv::cuda {
namespace {

constexpr int kMaxThreads = 1024, kParts = 32;
constexpr int kBatch = 4;  // loads under way at once in a thread
constexpr uint32_t kNanKey = 0xffffffffu, kMinusInfinityKey = 0x007fffffu;
static_assert(kMaxThreads / kWarpSize <= kParts && kParts == kWarpSize);

// Of a row.
struct Scratch {
  uint32_t* keys;         // [vocab_size]
  double* weights;        // [vocab_size], of the candidates
  uint32_t* listed_keys;  // [vocab_size], of the candidates where not all are
  uint32_t* listed_tokens;
};

struct Shared {
  double partial[3][kParts];
  uint32_t key[kParts], index[kParts];
  uint32_t largest[kMaxThreads];  // of what each thread saw
  uint32_t bad_history;           // ~index of the first entry outside the vocabulary, or 0
};

// Keys of equal logits are equal, -0 and 0 too. NaN is above all.
__host__ __device__ __forceinline__ uint32_t key_of(float logit) {
  if (logit != logit) return kNanKey;
  const uint32_t bits = logit == 0.0f ? 0u : bit_cast<uint32_t>(logit);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
__host__ __device__ __forceinline__ float logit_of(uint32_t key) {
  return bit_cast<float>(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

// Also where the largest logit is +inf: those that equal it weigh 1, all others 0.
__device__ __forceinline__ double weight_of(uint32_t key, uint32_t largest, double temperature) {
  if (key == largest) return 1.0;
  return exp((static_cast<double>(logit_of(key)) - static_cast<double>(logit_of(largest))) / temperature);
}

// Philox-4x32-10: J. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011. The first 53 of 128 bits
// make a float64 in [0, 1).
__device__ __forceinline__ double philox_uniform(uint64_t seed, uint64_t step) {
  uint32_t c0 = static_cast<uint32_t>(step), c1 = static_cast<uint32_t>(step >> 32), c2 = 0, c3 = 0;
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53} * c0, b = uint64_t{0xCD9E8D57} * c2;
    c0 = static_cast<uint32_t>(b >> 32) ^ c1 ^ k0;
    c1 = static_cast<uint32_t>(b);
    c2 = static_cast<uint32_t>(a >> 32) ^ c3 ^ k1;
    c3 = static_cast<uint32_t>(a);
    k0 += 0x9E3779B9;
    k1 += 0xBB67AE85;
  }
  return static_cast<double>((uint64_t{c0} << 21) | (c1 >> 11)) * 0x1p-53;
}

__device__ __forceinline__ uint32_t count_bits(uint32_t x) {
  x -= x >> 1 & 0x55555555u;
  x = (x & 0x33333333u) + (x >> 2 & 0x33333333u);
  return ((x + (x >> 4)) & 0x0f0f0f0fu) * 0x01010101u >> 24;
}

// use(i, value(i)) for this thread's share of 0 to count - 1, i rising.
template <typename Value, typename Use>
__device__ __forceinline__ void for_each(uint32_t count, const Value& value, const Use& use) {
  const uint32_t step = blockDim.x;
  for (uint32_t first = threadIdx.x; first < count; first += kBatch * step) {
    decltype(value(0u)) x[kBatch] = {};
#pragma unroll
    for (int j = 0; j < kBatch; ++j)
      if (first + j * step < count) x[j] = value(first + j * step);
#pragma unroll
    for (int j = 0; j < kBatch; ++j)
      if (first + j * step < count) use(first + j * step, x[j]);
  }
}

// Every thread gets the sums, the same bits. What was written to memory before is seen after.
template <int kCount>
__device__ __forceinline__ void block_sum(double (&x)[kCount], Shared* shared) {
  const int lane = lane_index(), num_warps = static_cast<int>(blockDim.x) / kWarpSize;
#pragma unroll
  for (int j = 0; j < kCount; ++j) {
    x[j] = warp_sum(x[j]);
    if (lane == 0) st_shared(&shared->partial[j][warp_index()], x[j]);
  }
  __syncthreads();
#pragma unroll
  for (int j = 0; j < kCount; ++j) x[j] = warp_sum(lane < num_warps ? ld_shared(&shared->partial[j][lane]) : 0.0);
  __syncthreads();
}

struct Best {
  uint32_t key, index;
};
// The largest key, of equals the lowest index.
__device__ __forceinline__ Best warp_best(Best best) {
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) {
    const Best other = {__shfl_xor_sync(kAllLanes, best.key, mask), __shfl_xor_sync(kAllLanes, best.index, mask)};
    if (other.key > best.key || (other.key == best.key && other.index < best.index)) best = other;
  }
  return best;
}
__device__ __forceinline__ Best block_best(Best best, Shared* shared) {
  const int lane = lane_index(), warp = warp_index();
  best = warp_best(best);
  if (lane == 0) {
    st_shared(&shared->key[warp], best.key);
    st_shared(&shared->index[warp], best.index);
  }
  __syncthreads();
  best = {0, 0};
  if (lane < static_cast<int>(blockDim.x) / kWarpSize)
    best = {ld_shared(&shared->key[lane]), ld_shared(&shared->index[lane])};
  best = warp_best(best);
  __syncthreads();
  return best;
}

// The largest key in [lowest, highest] such that reached(sum of measure(i) over those with key(i) from it on); `lowest`
// where there is none. No key may be above `highest`. A pass takes a quarter of the range.
struct Border {
  uint32_t key;
  double above;  // the sum over larger keys
};
template <typename Key, typename Measure, typename Reached>
__device__ __forceinline__ Border find_border(uint32_t count, uint32_t lowest, uint32_t highest, const Key& key,
                                              const Measure& measure, const Reached& reached, Shared* shared) {
  double above = 0;
  while (lowest < highest) {
    const uint64_t width = highest - lowest;
    const uint32_t pivots[3] = {lowest + static_cast<uint32_t>((width + 3) / 4),
                                lowest + static_cast<uint32_t>((2 * width + 3) / 4),
                                lowest + static_cast<uint32_t>((3 * width + 3) / 4)};
    double sums[3] = {};
    for_each(count, key, [&](uint32_t i, uint32_t k) {
      if (k < pivots[0] || k > highest) return;
      const double x = measure(i);
      sums[0] += x;
      if (k >= pivots[1]) sums[1] += x;
      if (k >= pivots[2]) sums[2] += x;
    });
    block_sum(sums, shared);
    if (reached(above + sums[2])) {
      lowest = pivots[2];
    } else if (reached(above + sums[1])) {
      lowest = pivots[1], highest = pivots[2] - 1, above += sums[2];
    } else if (reached(above + sums[0])) {
      lowest = pivots[0], highest = pivots[1] - 1, above += sums[1];
    } else {
      highest = pivots[0] - 1, above += sums[0];
    }
  }
  return {lowest, above};
}

// The first i with measure(i) > 0 where reached(start + measure(0) + ... + measure(i)); the last with measure(i) > 0 where
// there is none. A pass takes one of 32 parts; the last pass adds one by one.
template <typename Measure, typename Reached>
__device__ __forceinline__ uint32_t find_place(uint32_t count, double start, const Measure& measure,
                                               const Reached& reached, Shared* shared) {
  const int num_warps = static_cast<int>(blockDim.x) / kWarpSize;
  uint32_t begin = 0, end = count;
  while (end - begin > 1) {
    const uint32_t part = (end - begin + kParts - 1) / kParts;
    for (int j = warp_index(); j < kParts; j += num_warps) {
      const uint32_t from = begin + j * part, to = from + part < end ? from + part : end;
      double x = 0;
      for (uint32_t i = from + lane_index(); i < to; i += kWarpSize) x += measure(i);
      x = warp_sum(x);
      if (lane_index() == 0) st_shared(&shared->partial[0][j], x);
    }
    __syncthreads();
    int chosen = 0;
    double sum = start;
    for (int j = 0; j < kParts; ++j) {
      const double x = ld_shared(&shared->partial[0][j]);
      if (!(x > 0)) continue;
      chosen = j;
      start = sum;
      sum += x;
      if (reached(sum)) break;
    }
    __syncthreads();
    begin += chosen * part;
    end = begin + part < end ? begin + part : end;
  }
  return begin;
}

// Lists the tokens whose key is `cut` or more, in their order; how many there are. Each warp has a stretch of the
// vocabulary: it counts, then it writes.
__device__ __forceinline__ uint32_t list_candidates(const Scratch& s, uint32_t count, uint32_t cut, Shared* shared) {
  constexpr uint32_t kStep = kBatch * kWarpSize;
  const uint32_t warp = warp_index(), num_warps = static_cast<int>(blockDim.x) / kWarpSize;
  const uint32_t lane = lane_index(), lanes_below = (1u << lane) - 1;
  const uint32_t stretch = ((count + num_warps - 1) / num_warps + kStep - 1) / kStep * kStep;
  const uint64_t first = uint64_t{warp} * stretch;
  const uint64_t last = first + stretch < count ? first + stretch : count;
  uint32_t at = 0, total = 0;
  for (const bool writes : {false, true}) {
    for (uint64_t from = first; from < last; from += kStep) {
      uint32_t keys[kBatch] = {};
#pragma unroll
      for (int j = 0; j < kBatch; ++j)
        if (from + j * kWarpSize + lane < last) keys[j] = ld_global(s.keys + from + j * kWarpSize + lane);
#pragma unroll
      for (int j = 0; j < kBatch; ++j) {
        const uint32_t in = __ballot_sync(kAllLanes, keys[j] >= cut);
        if (writes && (in >> lane & 1)) {
          const uint32_t to = at + count_bits(in & lanes_below);
          st_global(s.listed_keys + to, keys[j]);
          st_global(s.listed_tokens + to, static_cast<uint32_t>(from) + j * kWarpSize + lane);
        }
        at += count_bits(in);
      }
    }
    if (writes) break;
    if (lane == 0) st_shared(&shared->index[warp], at);
    __syncthreads();
    at = 0;
    for (uint32_t j = 0; j < num_warps; ++j) {
      const uint32_t counted = ld_shared(&shared->index[j]);
      if (j < warp) at += counted;
      total += counted;
    }
  }
  __syncthreads();
  return total;
}

__device__ __forceinline__ SampleRow load_row(const SampleRow* from) {
  SampleRow row;
  row.history = ld_global(&from->history);
  row.history_len = ld_global(&from->history_len);
  row.seed = ld_global(&from->seed);
  row.step = ld_global(&from->step);
  row.top_k = ld_global(&from->top_k);
  row.temperature = ld_global(&from->temperature);
  row.top_p = ld_global(&from->top_p);
  row.min_p = ld_global(&from->min_p);
  row.repetition_penalty = ld_global(&from->repetition_penalty);
  row.draws = ld_global(&from->draws);
  return row;
}

// Keys of all logits, after the penalty. It is worked out from the logit, so that a token that occurs often, even in
// several threads at once, gets it once.
// Tokens of the history that are outside the vocabulary are reported and passed over.
__device__ __forceinline__ void make_keys(const float* logits, uint32_t vocab_size, const SampleRow& row,
                                          const Scratch& s, Finding* finding, Shared* shared) {
  if (threadIdx.x == 0) st_shared(&shared->bad_history, 0u);
  for_each(
      vocab_size, [&](uint32_t i) { return ld_global(logits + i); },
      [&](uint32_t i, float logit) { st_global(s.keys + i, key_of(logit)); });
  __syncthreads();
  for (int64_t i = threadIdx.x; i < row.history_len; i += blockDim.x) {
    const int32_t token = ld_global(row.history + i);
    if (token < 0 || static_cast<uint32_t>(token) >= vocab_size) {
      atomicMax(&shared->bad_history, ~static_cast<uint32_t>(i));
    } else if (row.repetition_penalty != 1) {
      // An atomic, as several threads may have the same token.
      const float logit = ld_global(logits + token);
      const float penalized = logit > 0 ? logit / row.repetition_penalty : logit * row.repetition_penalty;
      atomicCAS(s.keys + token, key_of(logit), key_of(penalized));
    }
  }
  __syncthreads();
  const uint32_t bad = ld_shared(&shared->bad_history);
  if (bad != 0 && threadIdx.x == 0) {
    report(finding, Finding::token, static_cast<int>(~bad), ld_global(row.history + ~bad),
           static_cast<int>(vocab_size));
  }
}

// A key that all of the `wanted` largest reach: that many threads have seen one that does.
__device__ __forceinline__ uint32_t cut_for_top_k(int64_t wanted, uint32_t largest, Shared* shared) {
  if (wanted > blockDim.x) return 0;
  return find_border(
             blockDim.x, 0, largest, [&](uint32_t i) { return ld_shared(&shared->largest[i]); },
             [](uint32_t) { return 1.0; }, [&](double sum) { return sum >= static_cast<double>(wanted); }, shared)
      .key;
}

// A key that all reach which top-p and min-p can leave. All tokens that weigh less than (1 - top_p) / (2 vocab_size) have
// less than half of the mass that top-p drops; the other half is more than sums are wrong by.
__device__ __forceinline__ uint32_t cut_for_weights(const SampleRow& row, uint32_t vocab_size, uint32_t largest) {
  double least = row.top_p < 1 ? (1.0 - row.top_p) / (2.0 * static_cast<double>(vocab_size)) : 0.0;
  if (row.min_p > least) least = row.min_p;
  if (least == 0) return 0;
  const double top = logit_of(largest);
  if (top == infinity()) return largest;
  // Twice down by more than rounding: of exp, which makes 1 of what is close to it, and to f32.
  const double logit = top + static_cast<double>(row.temperature) * (log(least) - 1e-6);
  return key_of(static_cast<float>(logit - 1e-6 * (fabs(logit) + fabs(top)) - 1e-44));
}

__global__ void __launch_bounds__(kMaxThreads, 1) sample_kernel(SampleParams p, Scratch all, Finding* finding) {
  Shared* shared = reinterpret_cast<Shared*>(dynamic_shared());
  const uint32_t vocab_size = static_cast<uint32_t>(p.vocab_size);
  const int64_t first = static_cast<int64_t>(blockIdx.x) * p.vocab_size;
  const SampleRow row = load_row(p.rows + blockIdx.x);
  if (row.draws == 0) return;
  const Scratch s = {all.keys + first, all.weights + first, all.listed_keys + first, all.listed_tokens + first};
  make_keys(p.logits + first, vocab_size, row, s, finding, shared);
  const auto key_of_token = [&](uint32_t i) { return ld_global(s.keys + i); };
  Best best = {0, 0};
  for_each(vocab_size, key_of_token, [&](uint32_t i, uint32_t key) {
    if (key > best.key) best = {key, i};
  });
  st_shared(&shared->largest[threadIdx.x], best.key);
  best = block_best(best, shared);
  const bool has_nan = best.key == kNanKey, has_none = best.key == kMinusInfinityKey;
  const int32_t token = static_cast<int32_t>(best.index);
  if (threadIdx.x == 0)
    st_global(p.out_invalid + blockIdx.x, has_nan ? 1 + token : has_none ? SampleParams::kNoLogit : 0);
  if (has_nan || has_none || row.temperature == 0) {
    if (threadIdx.x == 0) st_global(p.out_tokens + blockIdx.x, has_nan || has_none ? 0 : token);
    return;
  }

  const uint32_t largest = best.key;
  const double temperature = row.temperature;
  const bool has_top_k = row.top_k > 0 && row.top_k < p.vocab_size, has_top_p = row.top_p < 1;
  const uint32_t cut =
      has_top_k ? cut_for_top_k(row.top_k, largest, shared) : cut_for_weights(row, vocab_size, largest);
  const bool listed = cut > kMinusInfinityKey;
  const uint32_t count = listed ? list_candidates(s, vocab_size, cut, shared) : vocab_size;
  const uint32_t* keys = listed ? s.listed_keys : s.keys;
  const auto key = [&](uint32_t i) { return ld_global(keys + i); };
  const auto weight = [&](uint32_t i) { return ld_global(s.weights + i); };

  // The last that is kept: in key, and of its equals in place.
  uint32_t border_key = 0, border_place = count;
  const auto is_kept = [&](uint32_t i, uint32_t k) { return k > border_key || (k == border_key && i <= border_place); };
  if (has_top_k) {
    const auto reached = [&](double sum) { return sum >= static_cast<double>(row.top_k); };
    const Border border = find_border(
        count, cut, largest, key, [](uint32_t) { return 1.0; }, reached, shared);
    border_key = border.key;
    border_place = find_place(
        count, border.above, [&](uint32_t i) { return key(i) == border_key ? 1.0 : 0.0; }, reached, shared);
  }

  // What is dropped weighs 0 from here on. min-p is relative to the largest probability, whose token weighs 1.
  const double min_p = row.min_p;
  double mass[1] = {};
  for_each(count, key, [&](uint32_t i, uint32_t k) {
    double x = is_kept(i, k) ? weight_of(k, largest, temperature) : 0.0;
    if (!has_top_p && x < min_p) x = 0;
    st_global(s.weights + i, x);
    mass[0] += x;
  });
  if (has_top_p) {
    if (listed && !has_top_k) {  // of those that are not listed, too
      mass[0] = 0;
      for_each(vocab_size, key_of_token, [&](uint32_t, uint32_t k) { mass[0] += weight_of(k, largest, temperature); });
    }
    block_sum(mass, shared);
    const double wanted = static_cast<double>(row.top_p) * mass[0];
    const auto reached = [&](double sum) { return sum >= wanted; };
    const Border border = find_border(count, cut, largest, key, weight, reached, shared);
    border_key = border.key;
    border_place = find_place(
        count, border.above, [&](uint32_t i) { return key(i) == border_key ? weight(i) : 0.0; }, reached, shared);
    mass[0] = 0;
    for_each(count, key, [&](uint32_t i, uint32_t k) {
      double x = weight(i);
      if (!is_kept(i, k) || x < min_p) x = 0;
      st_global(s.weights + i, x);
      mass[0] += x;
    });
  }
  block_sum(mass, shared);
  const double drawn = philox_uniform(row.seed, row.step) * mass[0];
  const uint32_t place = find_place(
      count, 0, weight, [&](double sum) { return sum > drawn; }, shared);
  if (threadIdx.x == 0)
    st_global(p.out_tokens + blockIdx.x, static_cast<int32_t>(listed ? ld_global(s.listed_tokens + place) : place));
}

}  // namespace

void sample(const SampleParams& p, Context& context) {
  if (p.vocab_size < 1 || p.vocab_size >= std::numeric_limits<int32_t>::max()) {
    fail(ErrorCode::invalid_argument, "sample: a vocabulary of %lld; it must have from 1 to %d tokens",
         static_cast<long long>(p.vocab_size), std::numeric_limits<int32_t>::max() - 1);
  }
  if (p.num_rows == 0) return;
  const size_t vocab_size = static_cast<size_t>(p.vocab_size), count = static_cast<size_t>(p.num_rows) * vocab_size;
  Scratch s;
  s.weights = static_cast<double*>(context.scratch(count * (sizeof(double) + 3 * sizeof(uint32_t))));
  s.keys = reinterpret_cast<uint32_t*>(s.weights + count);
  s.listed_keys = s.keys + count;
  s.listed_tokens = s.listed_keys + count;
  // A small vocabulary needs fewer threads, whose barriers cost less: eight tokens a thread.
  const size_t warps = (vocab_size + 8 * kWarpSize - 1) / (8 * kWarpSize);
  LaunchShape shape;
  shape.grid[0] = static_cast<unsigned>(p.num_rows);
  shape.threads = static_cast<unsigned>(std::min<size_t>(warps * kWarpSize, kMaxThreads));
  shape.shared_bytes = sizeof(Shared);
  launch("sample", sample_kernel, shape, context.stream, p, s, context.finding);
}

}  // namespace diffqkv::cuda
