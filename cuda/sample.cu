// Draws tokens: repetition penalty, biases, mask, temperature, top-k, top-p, min-p, one uniform number (ops.h). Logits
// become keys, whole numbers in the order of the logits. Nothing is sorted but what is left at the end.
//
// Several blocks read a row, once. A warp takes 256 tokens, a piece: it writes their largest key and, if all tokens can be
// drawn, the sum of their weights; each of its lanes writes the largest key of its 8 tokens. The last block of the row to
// arrive draws:
//
// - greedy: the largest of the pieces' keys;
// - all tokens: the piece by the pieces' sums, then the token in the piece;
// - else it finds a key that all kept tokens reach, from the largest keys of pieces or of lanes: k of these reach it, or
//   such whose weights make up top_p, or min_p itself. It lists the tokens that reach the key, reading only the lanes that
//   do, and applies the filters to the list: up to 1024 are sorted by counting; else the border of each filter is found by
//   narrowing a range of keys (find_border), then a range of tokens among equal keys (find_place).
//
// Weights are f32, sums of weights are integers. So no order of summation matters, and a result depends on neither the
// grid nor the order of threads. Bound by latency: one pass over the vocabulary by all blocks, then reads of a fraction of
// it by one block. If a filter keeps many thousands of tokens, that block makes some 15 passes over them.
#include <device/numbers.h>

#include <algorithm>
#include <bit>
#include <limits>

#include "finding.h"
#include "kernels.h"
#include "launch.h"
#include "reductions.h"

namespace diffqkv::cuda {
namespace {

constexpr int kMaxThreads = 512, kParts = 32;
constexpr int kBatch = 4;  // loads under way at once in a thread
constexpr uint32_t kLaneTokens = 8, kPieceTokens = kLaneTokens * kWarpSize, kPieceWords = kPieceTokens / 32;
constexpr uint32_t kMaxBlockPieces = 512;
constexpr uint32_t kFew = 1024;           // candidates that are sorted
constexpr uint32_t kCutWidth = 1u << 14;  // a range of keys that find_cut does not narrow
constexpr uint32_t kNanKey = 0xffffffffu, kMinusInfinityKey = 0x007fffffu, kNoKey = 0;
static_assert(kMaxThreads / kWarpSize <= kParts && kParts == kWarpSize);

// Of a row.
struct Scratch {
  uint64_t* masses;         // [vocab_size] of candidates, or [num_pieces]
  uint64_t* piece_masses;   // [num_pieces], relative to the largest key of the piece
  uint32_t* piece_keys;     // [num_pieces]: the largest
  uint32_t* piece_tokens;   // [num_pieces]: the first with that key
  uint32_t* lane_keys;      // [num_pieces * 32]: the largest of each 8 tokens
  uint32_t* penalized;      // [num_pieces * 8]: a bit for each token
  uint32_t* listed_keys;    // [vocab_size], of the candidates
  uint32_t* listed_tokens;  // [vocab_size]
};
constexpr size_t kPieceBytes =
    sizeof(uint64_t) + 2 * sizeof(uint32_t) + kWarpSize * sizeof(uint32_t) + kPieceTokens / 8;
constexpr size_t kTokenBytes = sizeof(uint64_t) + 2 * sizeof(uint32_t);

struct Plan {
  Scratch scratch;        // of all rows
  uint32_t* arrived;      // [num_rows]: blocks
  uint32_t num_blocks;    // of a row
  uint32_t num_pieces;    // of a row
  uint32_t block_pieces;  // at most
  int unit_bits;          // a weight of 1 is 2^unit_bits as an integer; the sum of vocab_size such is below 2^63
  bool has_vectors;       // rows start at 16 bytes
};

struct Shared {
  uint64_t mass[kParts];
  float sum[3][kParts];
  uint64_t sums[3][kParts];
  uint32_t key[kParts], index[kParts];
  uint32_t bad_history;  // ~index of the first entry outside the vocabulary, or 0
  uint32_t is_last;
  uint32_t first, last;  // ~index and 1 + index of what few candidates look for
  alignas(16) uint32_t keys[kFew];
  uint32_t tokens[kFew], ranks[kFew], sorted_keys[kFew];
  // then kPieceWords * Plan::block_pieces words of the penalized tokens of the block
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

// 1 / temperature in units of log2, in two parts.
struct Scale {
  float high, low;
};
__device__ __forceinline__ Scale scale_of(float temperature) {
  constexpr float kLog2eHigh = 1.44269502f, kLog2eLow = 1.92596299e-8f;
  const float high = kLog2eHigh / temperature;
  const float rest = __fmaf_rn(-high, temperature, kLog2eHigh) + kLog2eLow;
  return {high, rest / temperature};
}

// exp((logit - largest logit) / temperature) within a relative error of 2^-21; less than 2^-126 is 0. The difference and
// its product with the scale are in two parts, because an error of the exponent of 2 is one of the result. If the largest
// logit is +inf, the tokens that have it weigh 1, and all others weigh 0.
__device__ __forceinline__ float weight_of(uint32_t key, uint32_t largest, const Scale& scale) {
  if (key == largest) return 1.0f;
  const float a = logit_of(key), b = logit_of(largest), difference = a - b;
  const float b_part = difference - a, a_part = difference - b_part;
  const float rest = (a - a_part) + (-b - b_part);
  const float exponent = difference * scale.high;
  if (!(exponent > -150.0f)) return 0.0f;
  const float low = __fmaf_rn(difference, scale.high, -exponent) + __fmaf_rn(difference, scale.low, rest * scale.high);
  const float power = ex2_approx(exponent);
  return __fmaf_rn(power, low * 0.693147181f, power);
}

// weight * 2^bits, rounded down. Weights are 0 or normal numbers up to 1.
__device__ __forceinline__ uint64_t mass_of(float weight, int bits) {
  const uint32_t word = bit_cast<uint32_t>(weight);
  const int shift = static_cast<int>(word >> 23) - 150 + bits;
  const uint64_t mantissa = (word & 0x7fffffu) | 0x800000u;
  return shift >= 0 ? mantissa << shift : mantissa >> (shift > -63 ? -shift : 63);
}
__device__ __forceinline__ uint64_t scaled(uint64_t mass, float weight) {
  return static_cast<uint64_t>(static_cast<double>(mass) * static_cast<double>(weight));
}
// The least sum of weights that is top_p of `total`.
__device__ __forceinline__ uint64_t top_p_mass(const SampleRow& row, uint64_t total) {
  const double wanted = static_cast<double>(row.top_p) * static_cast<double>(total);
  const uint64_t mass = static_cast<uint64_t>(wanted);
  return static_cast<double>(mass) < wanted ? mass + 1 : mass;
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

// The least sum of weights that is more than a random part of `total`.
__device__ __forceinline__ uint64_t drawn_mass(const SampleRow& row, uint64_t total) {
  return static_cast<uint64_t>(philox_uniform(row.seed, row.step) * static_cast<double>(total)) + 1;
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

__device__ __forceinline__ uint64_t shuffle_up(uint64_t x, int delta) {
  const Words2 words = bit_cast<Words2>(x);
  return bit_cast<uint64_t>(
      Words2{{__shfl_up_sync(kAllLanes, words.w[0], delta), __shfl_up_sync(kAllLanes, words.w[1], delta)}});
}

// Every thread gets the sums, the same bits. What was written to memory before is seen after.
template <typename T, int kCount>
__device__ __forceinline__ void block_sum(T (&x)[kCount], T (&partial)[3][kParts]) {
  const int lane = lane_index(), num_warps = static_cast<int>(blockDim.x) / kWarpSize;
#pragma unroll
  for (int j = 0; j < kCount; ++j) {
    x[j] = warp_sum(x[j]);
    if (lane == 0) st_shared(&partial[j][warp_index()], x[j]);
  }
  __syncthreads();
#pragma unroll
  for (int j = 0; j < kCount; ++j) x[j] = warp_sum(lane < num_warps ? ld_shared(&partial[j][lane]) : T{0});
  __syncthreads();
}

struct Scan {
  uint64_t before, total;  // of the threads below, of all
};
// What was written to memory before is seen after.
__device__ __forceinline__ Scan block_scan(uint64_t x, Shared* shared) {
  const int lane = lane_index(), warp = warp_index(), num_warps = static_cast<int>(blockDim.x) / kWarpSize;
  uint64_t sum = x;
#pragma unroll
  for (int delta = 1; delta < kWarpSize; delta *= 2) {
    const uint64_t other = shuffle_up(sum, delta);
    if (lane >= delta) sum += other;
  }
  if (lane == kWarpSize - 1) st_shared(&shared->mass[warp], sum);
  __syncthreads();
  Scan scan = {sum - x, 0};
  for (int j = 0; j < num_warps; ++j) {
    const uint64_t other = ld_shared(&shared->mass[j]);
    if (j < warp) scan.before += other;
    scan.total += other;
  }
  __syncthreads();
  return scan;
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

// A key that the `wanted` largest of keys reach, by their number or another measure: the sum of measure(key) over those from
// it on is at least `wanted`, or it is `lowest`. It is close to the largest such key. A pass takes a quarter of the range.
template <typename Measure>
__device__ __forceinline__ uint32_t find_cut(const uint32_t* keys, uint32_t count, uint32_t lowest, uint32_t highest,
                                             float wanted, const Measure& measure, Shared* shared) {
  while (lowest < highest && highest - lowest >= kCutWidth) {
    const uint32_t quarter = (highest - lowest) / 4;
    const uint32_t pivots[3] = {lowest + quarter, lowest + 2 * quarter, lowest + 3 * quarter};
    float sums[3] = {};
    for_each(
        count, [&](uint32_t i) { return ld_global(keys + i); },
        [&](uint32_t, uint32_t key) {
          if (key < pivots[0]) return;
          const float x = measure(key);
          sums[0] += x;
          if (key >= pivots[1]) sums[1] += x;
          if (key >= pivots[2]) sums[2] += x;
        });
    block_sum(sums, shared->sum);
    if (sums[2] >= wanted) {
      lowest = pivots[2];
    } else if (sums[1] >= wanted) {
      lowest = pivots[1], highest = pivots[2];
    } else if (sums[0] >= wanted) {
      lowest = pivots[0], highest = pivots[1];
    } else {
      highest = pivots[0];
    }
  }
  return lowest;
}

// The largest key in [lowest, highest] such that the sum of measure(i) over those with key(i) from it on is at least
// `wanted`; `lowest` if there is none. No key may be above `highest`. A pass takes a quarter of the range.
struct Border {
  uint32_t key;
  uint64_t above;  // the sum over larger keys
};
template <typename Key, typename Measure>
__device__ __forceinline__ Border find_border(uint32_t count, uint32_t lowest, uint32_t highest, uint64_t wanted,
                                              const Key& key, const Measure& measure, Shared* shared) {
  uint64_t above = 0;
  while (lowest < highest) {
    const uint64_t width = highest - lowest;
    const uint32_t pivots[3] = {lowest + static_cast<uint32_t>((width + 3) / 4),
                                lowest + static_cast<uint32_t>((2 * width + 3) / 4),
                                lowest + static_cast<uint32_t>((3 * width + 3) / 4)};
    uint64_t sums[3] = {};
    for_each(count, key, [&](uint32_t i, uint32_t k) {
      if (k < pivots[0] || k > highest) return;
      const uint64_t x = measure(i);
      sums[0] += x;
      if (k >= pivots[1]) sums[1] += x;
      if (k >= pivots[2]) sums[2] += x;
    });
    block_sum(sums, shared->sums);
    if (above + sums[2] >= wanted) {
      lowest = pivots[2];
    } else if (above + sums[1] >= wanted) {
      lowest = pivots[1], highest = pivots[2] - 1, above += sums[2];
    } else if (above + sums[0] >= wanted) {
      lowest = pivots[0], highest = pivots[1] - 1, above += sums[1];
    } else {
      highest = pivots[0] - 1, above += sums[0];
    }
  }
  return {lowest, above};
}

// The first i with measure(i) > 0 such that start + measure(0) + ... + measure(i) is at least `wanted`; the last with
// measure(i) > 0 if there is none. A pass takes one of 32 parts; the last pass adds one by one.
struct Place {
  uint32_t index;
  uint64_t before;  // start + the sum up to it
};
template <typename Measure>
__device__ __forceinline__ Place find_place(uint32_t count, uint64_t start, uint64_t wanted, const Measure& measure,
                                            Shared* shared) {
  const int num_warps = static_cast<int>(blockDim.x) / kWarpSize;
  uint32_t begin = 0, end = count;
  while (end - begin > 1) {
    const uint32_t part = (end - begin + kParts - 1) / kParts;
    for (int j = warp_index(); j < kParts; j += num_warps) {
      const uint32_t from = begin + j * part, to = from + part < end ? from + part : end;
      uint64_t x = 0;
      for (uint32_t i = from + lane_index(); i < to; i += kWarpSize) x += measure(i);
      x = warp_sum(x);
      if (lane_index() == 0) st_shared(&shared->sums[0][j], x);
    }
    __syncthreads();
    int chosen = 0;
    uint64_t sum = start;
    for (int j = 0; j < kParts; ++j) {
      const uint64_t x = ld_shared(&shared->sums[0][j]);
      if (x == 0) continue;
      chosen = j;
      start = sum;
      sum += x;
      if (sum >= wanted) break;
    }
    __syncthreads();
    begin += chosen * part;
    end = begin + part < end ? begin + part : end;
  }
  return {begin, start};
}

// ---- The pass over the vocabulary.

__device__ __forceinline__ SampleRow load_row(const SampleRow* from) {
  SampleRow row;
  row.history = ld_global(&from->history);
  row.history_len = ld_global(&from->history_len);
  row.biases = ld_global(&from->biases);
  row.num_biases = ld_global(&from->num_biases);
  row.allowed = ld_global(&from->allowed);
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

// What all parts of the kernel know about their row.
struct Row {
  SampleRow settings;
  const float* logits;
  Scratch scratch;
  Scale scale;
  uint32_t vocab_size, num_pieces;
  int unit_bits;
  bool has_penalty, has_vectors;
  bool has_top_k, has_top_p;
  bool has_masses;  // the sums of the weights of all tokens are needed
};

__device__ __forceinline__ Row row_of(const SampleParams& p, const Plan& plan, uint32_t index) {
  Row row;
  row.settings = load_row(p.rows + index);
  row.vocab_size = static_cast<uint32_t>(p.vocab_size);
  row.num_pieces = plan.num_pieces;
  row.unit_bits = plan.unit_bits;
  row.has_vectors = plan.has_vectors;
  const size_t token = size_t{index} * row.vocab_size, piece = size_t{index} * row.num_pieces;
  row.logits = p.logits + token;
  row.scratch.masses = plan.scratch.masses + token;
  row.scratch.piece_masses = plan.scratch.piece_masses + piece;
  row.scratch.piece_keys = plan.scratch.piece_keys + piece;
  row.scratch.piece_tokens = plan.scratch.piece_tokens + piece;
  row.scratch.lane_keys = plan.scratch.lane_keys + piece * kWarpSize;
  row.scratch.penalized = plan.scratch.penalized + piece * kPieceWords;
  row.scratch.listed_keys = plan.scratch.listed_keys + token;
  row.scratch.listed_tokens = plan.scratch.listed_tokens + token;
  const SampleRow& s = row.settings;
  row.scale = scale_of(s.temperature);
  row.has_penalty = s.repetition_penalty != 1 && s.history_len > 0;
  row.has_top_k = s.top_k > 0 && s.top_k < p.vocab_size;
  row.has_top_p = s.top_p < 1;
  row.has_masses = s.temperature != 0 && !row.has_top_k && (row.has_top_p || s.min_p == 0);
  return row;
}

// Sets the bits of the tokens from `first` on, `count` of them, that the history has. Tokens of the history that are outside
// the vocabulary are passed over; the row's first block reports one.
__device__ __forceinline__ void mark_history(const Row& row, uint32_t first, uint32_t count, uint32_t* marks,
                                             Finding* finding, Shared* shared) {
  const SampleRow& s = row.settings;
  for (uint32_t i = threadIdx.x; i < count / 32; i += blockDim.x) st_shared(marks + i, 0u);
  if (threadIdx.x == 0) st_shared(&shared->bad_history, 0u);
  __syncthreads();
  for (int64_t i = threadIdx.x; i < s.history_len; i += blockDim.x) {
    const uint32_t token = static_cast<uint32_t>(ld_global(s.history + i));
    if (token >= row.vocab_size) {
      atomicMax(&shared->bad_history, ~static_cast<uint32_t>(i));
    } else if (token - first < count) {
      uint32_t* const word = marks + (token - first) / 32;
      const uint32_t bit = 1u << token % 32;
      uint32_t expected = 0;
      while (true) {
        const uint32_t seen = atomicCAS(word, expected, expected | bit);
        if (seen == expected || (seen & bit) != 0) break;
        expected = seen;
      }
    }
  }
  __syncthreads();
  const uint32_t bad = ld_shared(&shared->bad_history);
  if (bad != 0 && first == 0 && threadIdx.x == 0) {
    report(finding, Finding::token, static_cast<int>(~bad), ld_global(s.history + ~bad),
           static_cast<int>(row.vocab_size));
  }
}

// Of 8 tokens from `first` on, a multiple of 8.
__device__ __forceinline__ uint32_t marks_of(uint32_t word, uint32_t first) { return word >> first % 32 & 0xff; }

// How many biases are of tokens below `token`.
__device__ __forceinline__ int64_t biases_below(const SampleRow& s, int32_t token) {
  int64_t low = 0, high = s.num_biases;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (ld_global(&s.biases[middle].token) < token) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

// One thread. Biases are in rising order of tokens.
__device__ __forceinline__ void check_biases(const Row& row, Finding* finding) {
  const SampleRow& s = row.settings;
  const int32_t limit = static_cast<int32_t>(row.vocab_size);
  const int64_t bad = ld_global(&s.biases[0].token) < 0 ? 0 : biases_below(s, limit);
  if (bad == s.num_biases) return;
  report(finding, Finding::token, static_cast<int>(bad), ld_global(&s.biases[bad].token), limit);
}

// Adds the biases of 8 tokens from `first` on.
__device__ __forceinline__ void add_biases(const SampleRow& s, uint32_t first, float (&logits)[kLaneTokens]) {
  for (int64_t i = biases_below(s, static_cast<int32_t>(first)); i < s.num_biases; ++i) {
    const uint32_t place = static_cast<uint32_t>(ld_global(&s.biases[i].token)) - first;
    if (place >= kLaneTokens) return;
    const float bias = ld_global(&s.biases[i].bias);
#pragma unroll
    for (uint32_t j = 0; j < kLaneTokens; ++j)
      if (j == place) logits[j] = bias == -infinity() ? bias : logits[j] + bias;
  }
}

// Loads the keys of 8 tokens from `first` on. Tokens with a bit in `penalized` are penalized. A token after the vocabulary
// has kNoKey.
__device__ __forceinline__ void load_keys(const Row& row, uint32_t first, uint32_t penalized,
                                          uint32_t (&keys)[kLaneTokens]) {
  float logits[kLaneTokens] = {};
  if (row.has_vectors && first + kLaneTokens <= row.vocab_size) {
    const Words4 low = ld_global(reinterpret_cast<const Words4*>(row.logits + first));
    const Words4 high = ld_global(reinterpret_cast<const Words4*>(row.logits + first) + 1);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      logits[j] = bit_cast<float>(low.w[j]);
      logits[4 + j] = bit_cast<float>(high.w[j]);
    }
  } else {
#pragma unroll
    for (uint32_t j = 0; j < kLaneTokens; ++j)
      if (first + j < row.vocab_size) logits[j] = ld_global(row.logits + first + j);
  }
  const float penalty = row.settings.repetition_penalty;
#pragma unroll
  for (uint32_t j = 0; j < kLaneTokens; ++j) {
    if (penalized >> j & 1) logits[j] = logits[j] > 0 ? logits[j] / penalty : logits[j] * penalty;
  }
  if (row.settings.num_biases > 0) add_biases(row.settings, first, logits);
  uint32_t allowed = ~0u;
  if (row.settings.allowed != nullptr && first < row.vocab_size)
    allowed = marks_of(ld_global(row.settings.allowed + first / 32), first);
#pragma unroll
  for (uint32_t j = 0; j < kLaneTokens; ++j) {
    const uint32_t key = allowed >> j & 1 ? key_of(logits[j]) : kMinusInfinityKey;
    keys[j] = first + j < row.vocab_size ? key : kNoKey;
  }
}

// One warp.
__device__ __forceinline__ void read_piece(const Row& row, uint32_t piece, uint32_t penalized) {
  const uint32_t first = piece * kPieceTokens + lane_index() * kLaneTokens;
  uint32_t keys[kLaneTokens];
  load_keys(row, first, penalized, keys);
  Best best = {kNoKey, first};
#pragma unroll
  for (uint32_t j = 0; j < kLaneTokens; ++j)
    if (keys[j] > best.key) best = {keys[j], first + j};
  st_global(row.scratch.lane_keys + piece * kWarpSize + lane_index(), best.key);
  best = warp_best(best);
  if (lane_index() == 0) {
    st_global(row.scratch.piece_keys + piece, best.key);
    st_global(row.scratch.piece_tokens + piece, best.index);
  }
  if (!row.has_masses) return;
  uint64_t mass = 0;
#pragma unroll
  for (uint32_t j = 0; j < kLaneTokens; ++j)
    if (keys[j] != kNoKey) mass += mass_of(weight_of(keys[j], best.key, row.scale), row.unit_bits);
  mass = warp_sum(mass);
  if (lane_index() == 0) st_global(row.scratch.piece_masses + piece, mass);
}

__device__ __forceinline__ void read_vocabulary(const Row& row, uint32_t block, const Plan& plan, Finding* finding,
                                                Shared* shared) {
  uint32_t* const marks = reinterpret_cast<uint32_t*>(shared + 1);
  const uint32_t begin = block * plan.block_pieces;
  const uint32_t end = begin + plan.block_pieces < row.num_pieces ? begin + plan.block_pieces : row.num_pieces;
  if (begin >= end) return;
  if (row.settings.history_len > 0)
    mark_history(row, begin * kPieceTokens, (end - begin) * kPieceTokens, marks, finding, shared);
  if (row.has_penalty) {
    for (uint32_t i = threadIdx.x; i < (end - begin) * kPieceWords; i += blockDim.x)
      st_global(row.scratch.penalized + begin * kPieceWords + i, ld_shared(marks + i));
  }
  if (row.settings.num_biases > 0 && block == 0 && threadIdx.x == 0) check_biases(row, finding);
  const uint32_t num_warps = blockDim.x / kWarpSize;
  for (uint32_t piece = begin + warp_index(); piece < end; piece += num_warps) {
    const uint32_t first = lane_index() * kLaneTokens;  // in the piece
    const uint32_t word = row.has_penalty ? ld_shared(marks + (piece - begin) * kPieceWords + first / 32) : 0;
    read_piece(row, piece, marks_of(word, first));
  }
}

// Whether this block is the row's last to arrive, which then sees what the others have written. One thread's fences stand
// for the block, as in attention_decode.cu.
__device__ __forceinline__ bool is_last_to_arrive(uint32_t* arrived, uint32_t num_blocks, Shared* shared) {
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    const bool is_last = atomicAdd(arrived, 1u) + 1 == num_blocks;
    __threadfence();
    if (is_last) st_global(arrived, 0u);
    st_shared(&shared->is_last, is_last ? 1u : 0u);
  }
  __syncthreads();
  return ld_shared(&shared->is_last) != 0;
}

// ---- The last block.

// Keys of 8 tokens from `first` on, a multiple of 8, as read_piece had them.
__device__ __forceinline__ void reload_keys(const Row& row, uint32_t first, uint32_t (&keys)[kLaneTokens]) {
  const uint32_t word = row.has_penalty ? ld_global(row.scratch.penalized + first / 32) : 0;
  load_keys(row, first, marks_of(word, first), keys);
}

// The sum of the weights of all tokens, relative to `largest`. Leaves those of the pieces in Scratch::masses.
__device__ __forceinline__ uint64_t sum_pieces(const Row& row, uint32_t largest, Shared* shared) {
  uint64_t total[1] = {};
  for_each(
      row.num_pieces, [&](uint32_t i) { return ld_global(row.scratch.piece_keys + i); },
      [&](uint32_t i, uint32_t key) {
        const uint64_t mass = scaled(ld_global(row.scratch.piece_masses + i), weight_of(key, largest, row.scale));
        st_global(row.scratch.masses + i, mass);
        total[0] += mass;
      });
  block_sum(total, shared->sums);
  return total[0];
}

// Draws from all tokens, whose weights have the sum `total`.
__device__ __forceinline__ uint32_t draw_from_all(const Row& row, uint32_t largest, uint64_t total, Shared* shared) {
  const uint64_t wanted = drawn_mass(row.settings, total);
  const Place piece = find_place(
      row.num_pieces, 0, wanted, [&](uint32_t i) { return ld_global(row.scratch.masses + i); }, shared);
  // In the piece, weights are relative to its own largest key, as they are in the sum.
  const uint32_t piece_key = ld_global(row.scratch.piece_keys + piece.index), first = piece.index * kPieceTokens;
  const float factor = weight_of(piece_key, largest, row.scale);
  const uint32_t left = row.vocab_size - first;
  for (uint32_t i = threadIdx.x; i < kWarpSize; i += blockDim.x) {
    uint32_t keys[kLaneTokens];
    reload_keys(row, first + i * kLaneTokens, keys);
#pragma unroll
    for (uint32_t j = 0; j < kLaneTokens; ++j) st_shared(&shared->keys[i * kLaneTokens + j], keys[j]);
  }
  __syncthreads();
  const Place place = find_place(
      left < kPieceTokens ? left : kPieceTokens, piece.before, wanted,
      [&](uint32_t i) {
        const uint32_t key = ld_shared(&shared->keys[i]);
        const uint64_t mass = scaled(mass_of(weight_of(key, piece_key, row.scale), row.unit_bits), factor);
        // A piece of little mass may have no token with any, each being rounded down.
        return mass == 0 && key == piece_key ? uint64_t{1} : mass;
      },
      shared);
  return first + place.index;
}

// A key that all tokens reach which top-k can leave.
__device__ __forceinline__ uint32_t cut_for_top_k(const Row& row, uint32_t largest, Shared* shared) {
  const uint32_t num_lanes = row.num_pieces * kWarpSize;
  const auto one = [](uint32_t) { return 1.0f; };
  if (row.settings.top_k <= row.num_pieces / 4)
    return find_cut(row.scratch.piece_keys, row.num_pieces, kNoKey, largest, static_cast<float>(row.settings.top_k),
                    one, shared);
  if (row.settings.top_k <= num_lanes / 4)
    return find_cut(row.scratch.lane_keys, num_lanes, kNoKey, largest, static_cast<float>(row.settings.top_k), one,
                    shared);
  return kNoKey;
}

// A key that all tokens reach which top-p and min-p can leave, if all tokens together weigh `total`. All that weigh less
// than (1 - top_p) total / (2 vocab_size) have less than half of the mass that top-p drops; the other half is more than
// sums are wrong by. If the largest of the pieces or lanes from a key on make up top_p, all that are kept reach it.
__device__ __forceinline__ uint32_t cut_for_weights(const Row& row, uint32_t largest, uint64_t total, Shared* shared) {
  const SampleRow& s = row.settings;
  const float mass =
      row.has_top_p ? static_cast<float>(total) / static_cast<float>(uint64_t{1} << row.unit_bits) : 0.0f;
  float least = row.has_top_p ? (1.0f - s.top_p) / (2.0f * static_cast<float>(row.vocab_size)) * mass : 0.0f;
  if (s.min_p > least) least = s.min_p;
  const float top = logit_of(largest);
  if (top == infinity()) return largest;
  uint32_t lowest = kNoKey;
  if (least > 0) {
    // Twice down by more than rounding: of exp, which makes 1 of what is close to it, and of what follows.
    const float below = s.temperature * (logf(least) - 1e-5f);
    const float logit = top + below;
    const uint32_t key = key_of(logit - 1e-6f * (fabsf(below) + fabsf(top)) - 1e-44f);
    if (key != kNanKey) lowest = key < largest ? key : largest;
  }
  if (!row.has_top_p) return lowest;
  const float wanted = 1.001f * s.top_p * mass;
  const auto weight = [&](uint32_t key) {
    return key == largest ? 1.0f : ex2_approx((logit_of(key) - top) * row.scale.high);
  };
  float sum[1] = {};
  for_each(
      row.num_pieces, [&](uint32_t i) { return ld_global(row.scratch.piece_keys + i); },
      [&](uint32_t, uint32_t key) {
        if (key >= lowest) sum[0] += weight(key);
      });
  block_sum(sum, shared->sum);
  const bool enough = sum[0] >= wanted;
  return find_cut(enough ? row.scratch.piece_keys : row.scratch.lane_keys,
                  enough ? row.num_pieces : row.num_pieces * kWarpSize, lowest, largest, wanted, weight, shared);
}

// Lists the tokens whose key is `cut` or more, in their order, in shared memory if they are few; how many there are. Each
// warp has a stretch of pieces: it counts, then it writes.
__device__ __forceinline__ uint32_t list_candidates(const Row& row, uint32_t cut, Shared* shared) {
  const uint32_t warp = warp_index(), num_warps = blockDim.x / kWarpSize, lane = lane_index();
  const uint32_t stretch = (row.num_pieces + num_warps - 1) / num_warps;
  const uint32_t begin = warp * stretch < row.num_pieces ? warp * stretch : row.num_pieces;
  const uint32_t end = begin + stretch < row.num_pieces ? begin + stretch : row.num_pieces;
  uint32_t at = 0, total = 0;
  for (const bool writes : {false, true}) {
    for (uint32_t batch = begin; batch < end; batch += kBatch) {
      uint32_t lane_keys[kBatch] = {};
#pragma unroll
      for (uint32_t j = 0; j < kBatch; ++j)
        if (batch + j < end) lane_keys[j] = ld_global(row.scratch.lane_keys + (batch + j) * kWarpSize + lane);
#pragma unroll
      for (uint32_t j = 0; j < kBatch; ++j) {
        const bool has_some = lane_keys[j] >= cut;
        if (__ballot_sync(kAllLanes, has_some) == 0) continue;
        const uint32_t first = (batch + j) * kPieceTokens + lane * kLaneTokens;
        uint32_t keys[kLaneTokens] = {}, count = 0;
        if (has_some) {
          reload_keys(row, first, keys);
#pragma unroll
          for (uint32_t i = 0; i < kLaneTokens; ++i) count += keys[i] >= cut ? 1 : 0;
        }
        uint32_t sum = count;
#pragma unroll
        for (int delta = 1; delta < kWarpSize; delta *= 2) {
          const uint32_t other = __shfl_up_sync(kAllLanes, sum, delta);
          if (lane >= static_cast<uint32_t>(delta)) sum += other;
        }
        uint32_t to = at + sum - count;
        at += __shfl_sync(kAllLanes, sum, kWarpSize - 1);
        if (!writes) continue;
#pragma unroll
        for (uint32_t i = 0; i < kLaneTokens; ++i) {
          if (keys[i] < cut) continue;
          if (total <= kFew) {
            st_shared(&shared->keys[to], keys[i]);
            st_shared(&shared->tokens[to], first + i);
          } else {
            st_global(row.scratch.listed_keys + to, keys[i]);
            st_global(row.scratch.listed_tokens + to, first + i);
          }
          ++to;
        }
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

// Counts how many of the candidates come before each, in the order of falling logits and rising tokens.
__device__ __forceinline__ void rank_few(uint32_t count, Shared* shared) {
  for (uint32_t i = count + threadIdx.x; i < (count + 3) / 4 * 4; i += blockDim.x)
    st_shared(&shared->keys[i], uint32_t{kNoKey});
  __syncthreads();
  for (uint32_t i = threadIdx.x; i < count; i += blockDim.x) {
    const uint32_t key = ld_shared(&shared->keys[i]);
    uint32_t rank = 0;
    for (uint32_t j = 0; j < count; j += 4) {
      const Words4 others = ld_shared(reinterpret_cast<const Words4*>(&shared->keys[j]));
#pragma unroll
      for (uint32_t k = 0; k < 4; ++k) rank += others.w[k] > key || (others.w[k] == key && j + k < i) ? 1 : 0;
    }
    st_shared(&shared->ranks[i], rank);
    st_shared(&shared->sorted_keys[rank], key);
  }
  __syncthreads();
}

// The first i with measure(i) > 0 such that measure(0) + ... + measure(i) is at least wanted(the sum of all); the last with
// measure(i) > 0 if there is none.
template <typename Measure, typename Wanted>
__device__ __forceinline__ uint32_t find_few(uint32_t count, const Measure& measure, const Wanted& wanted,
                                             Shared* shared) {
  const uint32_t share = (count + blockDim.x - 1) / blockDim.x, begin = threadIdx.x * share;
  const uint32_t end = begin + share < count ? begin + share : count;
  uint64_t sum = 0;
  for (uint32_t i = begin; i < end; ++i) sum += measure(i);
  if (threadIdx.x == 0) {
    st_shared(&shared->first, 0u);
    st_shared(&shared->last, 0u);
  }
  const Scan scan = block_scan(sum, shared);
  const uint64_t least = wanted(scan.total);
  sum = scan.before;
  for (uint32_t i = begin; i < end; ++i) {
    const uint64_t x = measure(i);
    if (x == 0) continue;
    sum += x;
    atomicMax(&shared->last, i + 1);
    if (sum < least) continue;
    atomicMax(&shared->first, ~i);
    break;
  }
  __syncthreads();
  const uint32_t first = ld_shared(&shared->first), last = ld_shared(&shared->last);
  __syncthreads();
  return first != 0 ? ~first : last - 1;
}

// Draws from `count` candidates in shared memory, all that top-k, top-p and min-p can leave. `total`: the weight of all
// tokens, if there is no top-k.
__device__ __forceinline__ uint32_t draw_from_few(const Row& row, uint32_t count, uint32_t largest, uint64_t total,
                                                  Shared* shared) {
  const SampleRow& s = row.settings;
  const auto weight = [&](uint32_t key) { return weight_of(key, largest, row.scale); };
  uint32_t kept = count;  // the first so many in the order of falling logits
  const bool is_ranked = row.has_top_k || row.has_top_p;
  if (is_ranked) rank_few(count, shared);
  if (row.has_top_k && s.top_k < kept) kept = static_cast<uint32_t>(s.top_k);
  if (row.has_top_p) {
    kept = 1 + find_few(
                   kept, [&](uint32_t i) { return mass_of(weight(ld_shared(&shared->sorted_keys[i])), row.unit_bits); },
                   [&](uint64_t all) { return top_p_mass(s, row.has_top_k ? all : total); }, shared);
  }
  const auto mass = [&](uint32_t i) {
    if (is_ranked && ld_shared(&shared->ranks[i]) >= kept) return uint64_t{0};
    const float x = weight(ld_shared(&shared->keys[i]));
    return x < s.min_p ? uint64_t{0} : mass_of(x, row.unit_bits);
  };
  const uint32_t drawn = find_few(
      count, mass, [&](uint64_t all) { return drawn_mass(s, all); }, shared);
  return ld_shared(&shared->tokens[drawn]);
}

// The same from `count` candidates in scratch memory, whose keys are `cut` or more.
__device__ __forceinline__ uint32_t draw_from_many(const Row& row, uint32_t count, uint32_t cut, uint32_t largest,
                                                   uint64_t total, Shared* shared) {
  const SampleRow& s = row.settings;
  const auto key = [&](uint32_t i) { return ld_global(row.scratch.listed_keys + i); };
  const auto mass = [&](uint32_t i) { return ld_global(row.scratch.masses + i); };
  const auto weight = [&](uint32_t key) { return weight_of(key, largest, row.scale); };

  // The last that is kept: in key, and of its equals in place.
  uint32_t border_key = 0, border_place = count;
  const auto is_kept = [&](uint32_t i, uint32_t k) { return k > border_key || (k == border_key && i <= border_place); };
  if (row.has_top_k) {
    const uint64_t wanted = static_cast<uint64_t>(s.top_k);
    const Border border = find_border(
        count, cut, largest, wanted, key, [](uint32_t) { return uint64_t{1}; }, shared);
    border_key = border.key;
    const auto is_equal = [&](uint32_t i) { return uint64_t{key(i) == border_key ? 1u : 0u}; };
    border_place = find_place(count, border.above, wanted, is_equal, shared).index;
  }

  // What is dropped weighs 0 from here on. min-p is relative to the largest probability, whose token weighs 1.
  const float min_p = s.min_p;
  uint64_t sum[1] = {};
  for_each(count, key, [&](uint32_t i, uint32_t k) {
    const float w = weight(k);
    const uint64_t x = !is_kept(i, k) || (!row.has_top_p && w < min_p) ? 0 : mass_of(w, row.unit_bits);
    st_global(row.scratch.masses + i, x);
    sum[0] += x;
  });
  block_sum(sum, shared->sums);
  if (row.has_top_p) {
    const uint64_t wanted = top_p_mass(s, row.has_top_k ? sum[0] : total);
    const Border border = find_border(count, cut, largest, wanted, key, mass, shared);
    border_key = border.key;
    const auto mass_of_equal = [&](uint32_t i) { return key(i) == border_key ? mass(i) : uint64_t{0}; };
    border_place = find_place(count, border.above, wanted, mass_of_equal, shared).index;
    sum[0] = 0;
    for_each(count, key, [&](uint32_t i, uint32_t k) {
      const uint64_t x = !is_kept(i, k) || weight(k) < min_p ? 0 : mass(i);
      st_global(row.scratch.masses + i, x);
      sum[0] += x;
    });
    block_sum(sum, shared->sums);
  }
  const Place place = find_place(count, 0, drawn_mass(s, sum[0]), mass, shared);
  return ld_global(row.scratch.listed_tokens + place.index);
}

__device__ __forceinline__ uint32_t draw(const Row& row, uint32_t largest, Shared* shared) {
  const uint64_t total = row.has_masses ? sum_pieces(row, largest, shared) : 0;
  if (row.has_masses && !row.has_top_p) return draw_from_all(row, largest, total, shared);
  uint32_t cut = kNoKey;
  if (row.vocab_size > kFew)
    cut = row.has_top_k ? cut_for_top_k(row, largest, shared) : cut_for_weights(row, largest, total, shared);
  if (cut <= kMinusInfinityKey) cut = kMinusInfinityKey + 1;  // what is left out weighs 0
  const uint32_t count = list_candidates(row, cut, shared);
  return count <= kFew ? draw_from_few(row, count, largest, total, shared)
                       : draw_from_many(row, count, cut, largest, total, shared);
}

__global__ void __launch_bounds__(kMaxThreads, 2) sample_kernel(SampleParams p, Plan plan, Finding* finding) {
  wait_for_previous_kernel();
  start_next_kernel();
  Shared* shared = reinterpret_cast<Shared*>(dynamic_shared());
  const uint32_t index = blockIdx.x / plan.num_blocks, block = blockIdx.x % plan.num_blocks;
  const Row row = row_of(p, plan, index);
  if (row.settings.draws == 0) return;
  read_vocabulary(row, block, plan, finding, shared);
  if (!is_last_to_arrive(plan.arrived + index, plan.num_blocks, shared)) return;

  Best best = {kNoKey, 0};
  for_each(
      row.num_pieces, [&](uint32_t i) { return ld_global(row.scratch.piece_keys + i); },
      [&](uint32_t i, uint32_t key) {
        if (key > best.key) best = {key, i};
      });
  best = block_best(best, shared);
  int32_t token = static_cast<int32_t>(ld_global(row.scratch.piece_tokens + best.index)), invalid = 0;
  if (best.key == kNanKey) {
    invalid = 1 + token;
    token = 0;
  } else if (best.key == kMinusInfinityKey) {
    invalid = SampleParams::kNoLogit;
    token = 0;
  } else if (row.settings.temperature != 0) {
    token = static_cast<int32_t>(draw(row, best.key, shared));
  }
  if (threadIdx.x != 0) return;
  st_global(p.out_tokens + index, token);
  st_global(p.out_invalid + index, invalid);
}

Plan plan_of(const SampleParams& p, unsigned threads, Context& context) {
  const size_t vocab_size = static_cast<size_t>(p.vocab_size), num_rows = static_cast<size_t>(p.num_rows);
  const size_t num_pieces = (vocab_size + kPieceTokens - 1) / kPieceTokens;
  Plan plan = {};
  plan.num_pieces = static_cast<uint32_t>(num_pieces);
  // A piece for each warp, if all blocks then run at once, two on a multiprocessor.
  const size_t warps = threads / kWarpSize;
  const size_t most = std::max<size_t>(2 * static_cast<size_t>(context.num_multiprocessors) / num_rows, 1);
  const size_t blocks = std::min((num_pieces + warps - 1) / warps, most);
  plan.block_pieces = static_cast<uint32_t>(std::min<size_t>((num_pieces + blocks - 1) / blocks, kMaxBlockPieces));
  plan.num_blocks = static_cast<uint32_t>((num_pieces + plan.block_pieces - 1) / plan.block_pieces);
  plan.unit_bits = std::min(44, 62 - static_cast<int>(std::bit_width(vocab_size)));
  plan.has_vectors = vocab_size % 4 == 0 && reinterpret_cast<uintptr_t>(p.logits) % sizeof(Words4) == 0;
  const size_t tokens = num_rows * vocab_size, pieces = num_rows * num_pieces;
  Scratch& s = plan.scratch;
  s.masses = static_cast<uint64_t*>(context.scratch(tokens * kTokenBytes + pieces * kPieceBytes));
  s.piece_masses = s.masses + tokens;
  s.piece_keys = reinterpret_cast<uint32_t*>(s.piece_masses + pieces);
  s.piece_tokens = s.piece_keys + pieces;
  s.lane_keys = s.piece_tokens + pieces;
  s.penalized = s.lane_keys + pieces * kWarpSize;
  s.listed_keys = s.penalized + pieces * kPieceWords;
  s.listed_tokens = s.listed_keys + tokens;
  plan.arrived = context.zeroed_words(num_rows);
  return plan;
}

}  // namespace

void sample(const SampleParams& p, Context& context) {
  if (p.vocab_size < 1 || p.vocab_size >= std::numeric_limits<int32_t>::max()) {
    fail(ErrorCode::invalid_argument, "sample: a vocabulary of %lld; it must have from 1 to %d tokens",
         static_cast<long long>(p.vocab_size), std::numeric_limits<int32_t>::max() - 1);
  }
  if (p.num_rows == 0) return;
  // A small vocabulary needs fewer threads, whose barriers cost less.
  const int64_t num_pieces = (p.vocab_size + kPieceTokens - 1) / kPieceTokens;
  LaunchShape shape;
  shape.waits = true;
  shape.threads = static_cast<unsigned>(std::min<int64_t>(num_pieces * kWarpSize, kMaxThreads));
  const Plan plan = plan_of(p, shape.threads, context);
  shape.grid[0] = static_cast<unsigned>(p.num_rows) * plan.num_blocks;
  shape.shared_bytes = sizeof(Shared) + plan.block_pieces * kPieceWords * sizeof(uint32_t);
  launch("sample", sample_kernel, shape, context.stream, p, plan, context.finding);
}

}  // namespace diffqkv::cuda
