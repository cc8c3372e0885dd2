// Attention of any head size up to 576 and any mix of types: out = softmax(sm_scale q K^T) V, in f32, without tensor
// cores; and selective V, where only the V rows of the k highest scores enter the sum. For what the kernels of the other
// attention_*.cu do not take: simple and right rather than fast.
//
// Work split. A block is one query of one Q head. Its warps take the keys in turns of kKeysAtOnce, the lanes of a warp the
// dims of a key, and the scores go to scratch memory. Then scores become weights, 2^((score - max) scale); the difference
// comes first, since it is exact where large scores are, which score * scale is not. Then a thread owns one dim of V, of
// 256 at a time. If there are fewer, it owns one of several groups of keys, which are merged in order. Each thread sums the
// weights as it sums the products: with V = 1 the two are equal, and their quotient is 1. Every sum has a fixed order.
//
// Selective V finds the k-th highest score exactly, a byte at a time from the top, by a histogram of unsigned integers
// that order as the scores do, then moves the chosen scores and their keys, in the order of the keys, to the front.
//
// Bound by the L2: nothing of K or V is shared between blocks but what the caches hold.
#include <algorithm>
#include <cmath>

#include "attention_selective_top.h"
#include "backend/error.h"
#include "element_types.h"
#include "finding.h"
#include "kernels.h"
#include "kv_page.h"
#include "reductions.h"
#include "soft_cap.h"

namespace diffqkv::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpSize;
constexpr int kMaxHeadDim = 576;  // of the latent vectors of MLA
constexpr int kKeysAtOnce = 4;
constexpr int kPartialKeys = 32;  // summed by themselves first, which keeps long sums precise
constexpr size_t kMaxScratchBytes = size_t{256} << 20;
static_assert(kThreads == kBins);

struct PlainParams {
  AttentionPrefillParams a;
  int64_t top_k;  // 0: all
  bool renormalize;
  int64_t first_row;    // of (batch, query, Q head) in this launch
  float* scratch;       // per row: kv_len scores, then the keys of the chosen, if any
  int64_t scratch_row;  // words per row
  ScoreScale score;
  int window;
  bool negate;  // sm_scale is negative
  Finding* finding;
};

// Shared memory.
struct Shared {
  float q[kMaxHeadDim];
  float sums[2][kThreads];  // products and weights, by thread
  float warps[kWarps];      // one number of each warp
  BinSearch search;
  uint32_t warp_counts[2][kWarps];  // of two chunks in turn
};

// One row of the problem, as all threads of its block see it.
struct Row {
  int batch, query, head;
  int first_key, num_keys;  // that it sees

  __device__ __forceinline__ explicit Row(const PlainParams& p) {
    const AttentionPrefillParams& a = p.a;
    const int64_t row = p.first_row + blockIdx.x;
    const int64_t position = row / a.num_q_heads;
    head = static_cast<int>(row % a.num_q_heads);
    batch = static_cast<int>(position / a.q_len);
    query = static_cast<int>(position % a.q_len);
    int kv_len = static_cast<int>(a.kv_len);
    if (a.kv_lens) {
      const int given = ld_global(a.kv_lens + batch);
      if ((given < 0 || given > kv_len) && head == 0 && query == 0 && threadIdx.x == 0) {
        report(p.finding, Finding::kv_len, batch, given, kv_len);
      }
      kv_len = given < 0 ? 0 : given < kv_len ? given : kv_len;
    }
    num_keys = a.causal ? kv_len - static_cast<int>(a.q_len) + 1 + query : kv_len;
    if (num_keys < 0) num_keys = 0;
    first_key = num_keys > p.window ? num_keys - p.window : 0;
    num_keys -= first_key;
  }
};

// Calls f with a value of the element type of K or V.
template <typename F>
__device__ __forceinline__ void visit_in_kernel(DType dtype, const F& f) {
  switch (dtype) {
    case DType::bf16: return f(bf16{});
    case DType::f16: return f(f16{});
    case DType::i8: return f(i8{});
    case DType::f8e4m3: return f(f8e4m3{});
    default: return f(float{});
  }
}

// The rows of K or V that a query head reads, one a key from Row::first_key on, in a tensor or in the pages of the sequence.
template <typename T, bool kIsV>
struct CacheRows {
  const T* elements;
  const bf16* scales;
  const KvPage* pages;
  KvHeadLayout layout;
  int num_heads, head, dim, first_key;
  int64_t page_offset, first_row;  // first_row: of the sequence, in a tensor

  __device__ __forceinline__ CacheRows(const AttentionPrefillParams& a, const Row& row)
      : layout(kIsV ? a.v.head_dim : a.k.head_dim, sizeof(T), a.page_tokens) {
    const KvView& kv = kIsV ? a.v : a.k;
    elements = static_cast<const T*>(kv.data);
    scales = static_cast<const bf16*>(kv.scales);
    pages = a.pages ? ld_global(a.pages + (a.pages_shared ? 0 : row.batch)) : nullptr;
    num_heads = static_cast<int>(kv.num_heads);
    head = static_cast<int>(row.head * num_heads / a.num_q_heads);
    dim = static_cast<int>(kv.head_dim);
    page_offset = kv.page_offset;
    first_key = row.first_key;
    first_row = row.batch * (kv.batch_stride / dim);
  }

  struct At {
    const T* elements;  // of the row, or of its head in a page
    float scale;
    int token = 0;  // in the page
  };
  __device__ __forceinline__ At operator[](int index) const {
    constexpr bool kScaled = sizeof(T) == 1;
    const int key = first_key + index;
    if (!pages) {
      const int64_t row = first_row + static_cast<int64_t>(key) * num_heads + head;
      return {elements + row * dim, kScaled ? load_float(scales + row) : 1.0f};
    }
    const KvPage page = load_page(pages + key / layout.page_tokens);
    const int token = key % layout.page_tokens;
    const KvHead in_page = head_in_page(kIsV ? page.v : page.k, page_offset, layout, head, num_heads);
    return {reinterpret_cast<const T*>(in_page.elements), kScaled ? load_float(in_page.scales + token) : 1.0f, token};
  }
  __device__ __forceinline__ float element(const At& at, int d) const {
    const int byte = d * static_cast<int>(sizeof(T));
    return load_float(at.elements + (pages ? layout.place(at.token, byte) : byte) / static_cast<int>(sizeof(T)));
  }
};

// scores[j] = q . K[j], negated where the scale is, so that the largest is the highest score. Returns the largest, or NaN
// where a score is NaN. Ends with a barrier.
template <typename K>
__device__ __forceinline__ float write_scores(const PlainParams& p, const Row& row, float* scores, Shared* shared) {
  const AttentionPrefillParams& a = p.a;
  const int dim = static_cast<int>(a.k.head_dim), lane = lane_index(), warp = warp_index();
  const int64_t q_row = ((static_cast<int64_t>(row.batch) * a.q_len + row.query) * a.num_q_heads + row.head) * dim;
  for (int d = threadIdx.x; d < dim; d += kThreads) {
    const float x = load_any(a.q, a.q_dtype, q_row + d);
    st_shared(&shared->q[d], p.negate ? -x : x);
  }
  __syncthreads();
  const CacheRows<K, false> k(a, row);
  float top = -infinity();
  for (int first = warp * kKeysAtOnce; first < row.num_keys; first += kWarps * kKeysAtOnce) {
    typename CacheRows<K, false>::At keys[kKeysAtOnce];
#pragma unroll
    for (int n = 0; n < kKeysAtOnce; ++n) keys[n] = k[first + n < row.num_keys ? first + n : first];
    float dots[kKeysAtOnce] = {};
    for (int d = lane; d < dim; d += kWarpSize) {
      const float q = ld_shared(&shared->q[d]);
#pragma unroll
      for (int n = 0; n < kKeysAtOnce; ++n) dots[n] = __fmaf_rn(q, k.element(keys[n], d), dots[n]);
    }
#pragma unroll
    for (int n = 0; n < kKeysAtOnce; ++n) {
      const float dot = warp_sum(dots[n]) * keys[n].scale;
      const float scaled = dot * p.score.scale;  // NaN where the scale is 0 and the dot product infinite
      const float score = scaled == scaled ? dot : scaled;
      top = larger(top, score);
      if (lane == n && first + n < row.num_keys) st_global(scores + first + n, score);
    }
  }
  if (lane == 0) st_shared(&shared->warps[warp], top);
  __syncthreads();
  for (int i = 0; i < kWarps; ++i) top = larger(top, ld_shared(&shared->warps[i]));
  __syncthreads();
  return top;
}

// The sum of all weights, in every thread. Ends with a barrier.
__device__ __forceinline__ float sum_weights(const float* scores, int num_keys, float top, float scale_log2,
                                             Shared* shared) {
  float sum = 0.0f;
  for (int j = threadIdx.x; j < num_keys; j += kThreads) sum += weight_of(ld_global(scores + j), top, scale_log2);
  sum = warp_sum(sum);
  if (lane_index() == 0) st_shared(&shared->warps[warp_index()], sum);
  __syncthreads();
  sum = 0.0f;
  for (int i = 0; i < kWarps; ++i) sum += ld_shared(&shared->warps[i]);
  __syncthreads();
  return sum;
}

// Moves the k < num_keys highest scores to the front, in the order of their keys, which go to `keys`. Ends with a barrier.
__device__ __forceinline__ void keep_highest(float* scores, uint32_t* keys, int num_keys, uint32_t k, bool all_equal,
                                             Shared* shared) {
  const auto order = [=](float score) { return all_equal ? 0u : order_score(score); };
  const Kept kept =
      keep_best([=](int j) { return order(ld_global(scores + j)); }, num_keys, k, 0u, ~0u, &shared->search);
  const int lane = lane_index(), warp = warp_index();
  const uint32_t lanes_before = (1u << lane) - 1;
  uint32_t higher_before = 0, equal_before = 0;  // in the chunks before
  for (int first = 0; first < num_keys; first += kThreads) {
    const int j = first + threadIdx.x;
    const float score = j < num_keys ? ld_global(scores + j) : 0.0f;
    const uint32_t ordered = order(score);
    const bool higher = j < num_keys && ordered > kept.bound, equal = j < num_keys && ordered == kept.bound;
    const uint32_t higher_lanes = __ballot_sync(kAllLanes, higher), equal_lanes = __ballot_sync(kAllLanes, equal);
    uint32_t* const counts = shared->warp_counts[first / kThreads % 2];
    if (lane == 0) st_shared(&counts[warp], count_bits(higher_lanes) << 16 | count_bits(equal_lanes));
    __syncthreads();  // all have read their scores, so the front may be written
    uint32_t own_higher = higher_before + count_bits(higher_lanes & lanes_before);
    uint32_t own_equal = equal_before + count_bits(equal_lanes & lanes_before);
    for (int i = 0; i < kWarps; ++i) {
      const uint32_t count = ld_shared(&counts[i]);
      higher_before += count >> 16, equal_before += count & 0xffffu;
      if (i < warp) own_higher += count >> 16, own_equal += count & 0xffffu;
    }
    if (higher || (equal && own_equal < kept.num_equal)) {
      const uint32_t to = own_higher + (own_equal < kept.num_equal ? own_equal : kept.num_equal);
      st_global(scores + to, score);
      st_global(keys + to, static_cast<uint32_t>(j));
    }
  }
  __syncthreads();
}

// Where all of a row is one value.
__device__ __forceinline__ void write_row(const PlainParams& p, const Row& row, float out, float lse) {
  const AttentionPrefillParams& a = p.a;
  const int64_t out_row = (p.first_row + blockIdx.x) * a.v.head_dim;
  for (int d = threadIdx.x; d < a.v.head_dim; d += kThreads) store_any(a.out, a.out_dtype, out_row + d, out);
  if (a.lse && threadIdx.x == 0) {
    st_global(a.lse + (static_cast<int64_t>(row.batch) * a.num_q_heads + row.head) * a.q_len + row.query, lse);
  }
}

// Sums of weights[j] V[key][d], and of the weights, over the partial sums of `group`; key: j, or keys[j] where given.
struct Sums {
  float products, weights;
};
template <typename V>
__device__ __forceinline__ Sums sum_values(const PlainParams& p, const Row& row, const float* weights,
                                           const uint32_t* keys, int num_rows, int group, int num_groups, int d) {
  const CacheRows<V, true> v(p.a, row);
  Sums sums = {};
  for (int first = group * kPartialKeys; first < num_rows; first += num_groups * kPartialKeys) {
    const int end = first + kPartialKeys < num_rows ? first + kPartialKeys : num_rows;
    Sums some = {};
    for (int j = first; j < end; ++j) {
      const float weight = ld_global(weights + j);
      if (p.top_k > 0 && weight == 0.0f) continue;  // 0 times infinity is not to be seen then
      const auto value = v[keys ? static_cast<int>(ld_global(keys + j)) : j];
      some.products = __fmaf_rn(weight * value.scale, v.element(value, d), some.products);
      some.weights += weight;
    }
    sums.products += some.products, sums.weights += some.weights;
  }
  return sums;
}

__global__ void __launch_bounds__(kThreads, 3) attention_plain_kernel(PlainParams p) {
  const AttentionPrefillParams& a = p.a;
  Shared* const shared = reinterpret_cast<Shared*>(dynamic_shared());
  const Row row(p);
  if (row.num_keys == 0) return write_row(p, row, 0.0f, -infinity());

  float* const scores = p.scratch + blockIdx.x * p.scratch_row;
  float top = 0;
  visit_in_kernel(a.k.dtype, [&](auto k) { top = write_scores<decltype(k)>(p, row, scores, shared); });
  if (p.score.cap_factor != 0.0f) {
    top = cap_score(top, p.score.cap_factor);
    for (int j = threadIdx.x; j < row.num_keys; j += kThreads) {
      st_global(scores + j, cap_score(ld_global(scores + j), p.score.cap_factor));
    }
    __syncthreads();
  }
  // exp(score - max) is NaN at the max, and so are the sum and every weight.
  if (!(top > -infinity() && top < infinity())) {
    const float nan = bit_cast<float>(0x7fc00000u);
    return write_row(p, row, nan, nan);
  }

  const bool selective = p.top_k > 0 && p.top_k < row.num_keys;
  const uint32_t* keys = nullptr;
  int num_rows = row.num_keys;  // of V
  float sum_of_all = 0.0f;
  if (selective) {
    sum_of_all = sum_weights(scores, row.num_keys, top, p.score.scale_log2, shared);
    uint32_t* const chosen = reinterpret_cast<uint32_t*>(scores + a.kv_len);
    num_rows = static_cast<int>(p.top_k);
    keep_highest(scores, chosen, row.num_keys, static_cast<uint32_t>(num_rows), p.score.scale == 0.0f, shared);
    keys = chosen;
  }
  for (int j = threadIdx.x; j < num_rows; j += kThreads) {
    st_global(scores + j, weight_of(ld_global(scores + j), top, p.score.scale_log2));
  }
  __syncthreads();

  const int dim = static_cast<int>(a.v.head_dim), thread = threadIdx.x;
  for (int first = 0; first < dim; first += kThreads) {
    const int width = dim - first < kThreads ? dim - first : kThreads, num_groups = kThreads / width;
    const int group = thread / width, d = first + thread % width;
    Sums sums = {};
    if (group < num_groups) {
      visit_in_kernel(a.v.dtype, [&](auto v) {
        sums = sum_values<decltype(v)>(p, row, scores, keys, num_rows, group, num_groups, d);
      });
    }
    if (first > 0) __syncthreads();  // the sums of the dims before have been read
    st_shared(&shared->sums[0][thread], sums.products);
    st_shared(&shared->sums[1][thread], sums.weights);
    __syncthreads();
    if (group > 0) continue;
    for (int i = 1; i < num_groups; ++i) {
      sums.products += ld_shared(&shared->sums[0][i * width + thread]);
      sums.weights += ld_shared(&shared->sums[1][i * width + thread]);
    }
    const float divisor = selective && !p.renormalize ? sum_of_all : sums.weights;
    store_any(a.out, a.out_dtype, (p.first_row + blockIdx.x) * dim + d, sums.products / divisor);
    if (a.lse && d == 0) {
      st_global(a.lse + (static_cast<int64_t>(row.batch) * a.num_q_heads + row.head) * a.q_len + row.query,
                __fmaf_rn(top, p.score.scale, logf(selective ? sum_of_all : sums.weights)));
    }
  }
}

// Runs the call that p.a, p.top_k and p.renormalize describe.
void run(const char* name, PlainParams& p, Context& context) {
  const AttentionPrefillParams& a = p.a;
  check_float_types(name, {{"q", a.q_dtype}, {"out", a.out_dtype}});
  check_cache_types(name, {{"k", a.k.dtype}, {"v", a.v.dtype}});
  for (const int64_t size : {a.k.head_dim, a.v.head_dim}) {
    if (size < 1 || size > kMaxHeadDim) {
      fail(ErrorCode::invalid_argument, "%s: a head size of %lld; the limit is %d", name, static_cast<long long>(size),
           kMaxHeadDim);
    }
  }
  const int64_t num_rows = a.batch_size * a.q_len * a.num_q_heads;
  if (num_rows == 0) return;
  p.score = score_scale_of(a);
  p.window = window_of(a);
  p.negate = a.sm_scale < 0;
  p.finding = context.finding;
  p.scratch_row = a.kv_len + (p.top_k < a.kv_len ? p.top_k : 0);
  // Rows in groups, for the scratch memory's sake.
  const int64_t row_bytes = std::max<int64_t>(p.scratch_row, 1) * 4;
  const int64_t group = std::clamp<int64_t>(static_cast<int64_t>(kMaxScratchBytes) / row_bytes, 1, num_rows);
  p.scratch = static_cast<float*>(context.scratch(static_cast<size_t>(group * row_bytes)));
  LaunchShape shape;
  shape.threads = kThreads;
  shape.shared_bytes = sizeof(Shared);
  for (; p.first_row < num_rows; p.first_row += group) {
    shape.grid[0] = static_cast<unsigned>(std::min(group, num_rows - p.first_row));
    launch(name, attention_plain_kernel, shape, context.stream, p);
  }
}

}  // namespace

void attention_plain_prefill(const AttentionPrefillParams& p, Context& context) {
  PlainParams plain = {};
  plain.a = p;
  run("attention_prefill", plain, context);
}

void attention_plain_decode(const AttentionDecodeParams& p, Context& context) {
  PlainParams plain = {};
  static_cast<AttentionParams&>(plain.a) = p;
  plain.a.q_len = 1;  // the layouts are the same
  plain.top_k = p.top_k;
  plain.renormalize = p.renormalize;
  run("attention_decode", plain, context);
}

}  // namespace diffqkv::cuda
