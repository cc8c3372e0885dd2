#include "reference.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace diffqkv::cuda {
namespace {

constexpr int kThreads = 128;

__device__ __forceinline__ int64_t output_index() { return static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; }

// A thread for each of `count` outputs.
template <typename Params>
void run_over(int64_t count, void (*kernel)(Params), const Params& params, Context& context) {
  if (count <= 0) return;
  LaunchShape shape;
  shape.grid[0] = static_cast<unsigned>((count + kThreads - 1) / kThreads);
  shape.threads = kThreads;
  launch("reference", kernel, shape, context.stream, params);
}

// ---- embed, rms_norm, silu_mul, rope.

__global__ void __launch_bounds__(kThreads, 1) embed_element(EmbedParams p) {
  const int64_t i = output_index();
  if (i >= p.num_tokens * p.hidden_size) return;
  const int64_t token = ld_global(p.tokens + i / p.hidden_size);
  store_any(p.out, p.out_dtype, i, load_any(p.table, p.table_dtype, token * p.hidden_size + i % p.hidden_size));
}

__global__ void __launch_bounds__(kThreads, 1) add_residual_element(RmsNormParams p) {
  const int64_t i = output_index();
  if (i >= p.num_tokens * p.hidden_size) return;
  store_any(p.residual, p.residual_dtype, i, load_any(p.residual, p.residual_dtype, i) + load_any(p.x, p.x_dtype, i));
}

struct NormParams {
  RmsNormParams p;
  float* factors;  // [num_tokens]
};

__device__ __forceinline__ float norm_input(const RmsNormParams& p, int64_t i) {
  return p.residual ? load_any(p.residual, p.residual_dtype, i) : load_any(p.x, p.x_dtype, i);
}

__global__ void __launch_bounds__(kThreads, 1) norm_factor_row(NormParams n) {
  const int64_t t = output_index();
  if (t >= n.p.num_tokens) return;
  float sum = 0;
  for (int64_t d = 0; d < n.p.hidden_size; ++d) {
    const float h = norm_input(n.p, t * n.p.hidden_size + d);
    sum += h * h;
  }
  st_global(n.factors + t, 1.0f / sqrtf(sum / static_cast<float>(n.p.hidden_size) + n.p.eps));
}

__global__ void __launch_bounds__(kThreads, 1) norm_element(NormParams n) {
  const RmsNormParams& p = n.p;
  const int64_t i = output_index();
  if (i >= p.num_tokens * p.hidden_size) return;
  const float weight = load_any(p.weight, p.weight_dtype, i % p.hidden_size);
  store_any(p.out, p.out_dtype, i, norm_input(p, i) * ld_global(n.factors + i / p.hidden_size) * weight);
}

__device__ __forceinline__ float plain_silu(float x) { return x / (1.0f + expf(-x)); }

__global__ void __launch_bounds__(kThreads, 1) silu_mul_element(SiluMulParams p) {
  const int64_t i = output_index();
  if (i >= p.count) return;
  store_any(p.out, p.dtype, i, plain_silu(load_any(p.gate, p.dtype, i)) * load_any(p.up, p.dtype, i));
}

struct Pair {
  float low, high;  // elements d and d + head_dim / 2 of a head
};

// x: the first element of the head.
__device__ __forceinline__ Pair rotated_pair(const void* x, DType dtype, int64_t first, int64_t head_dim, int64_t d,
                                             int position, const double* inv_freq) {
  const float low = load_any(x, dtype, first + d), high = load_any(x, dtype, first + d + head_dim / 2);
  const double angle = position * ld_global(inv_freq + d);
  const float c = static_cast<float>(cos(angle)), s = static_cast<float>(sin(angle));
  return {low * c - high * s, high * c + low * s};
}

__global__ void __launch_bounds__(kThreads, 1) rope_pair(RopeParams p) {
  const int64_t half = p.head_dim / 2, i = output_index();
  if (i >= p.num_tokens * p.num_heads * half) return;
  const int64_t row = i / half, d = i % half, first = row * p.head_dim;
  const Pair pair =
      rotated_pair(p.x, p.dtype, first, p.head_dim, d, ld_global(p.positions + row / p.num_heads), p.inv_freq);
  store_any(p.out, p.dtype, first + d, pair.low);
  store_any(p.out, p.dtype, first + d + half, pair.high);
}

// ---- matmul, augmented_q.

__device__ __forceinline__ float dot(const void* x, DType x_dtype, const void* weight, DType weight_dtype,
                                     int64_t x_first, int64_t weight_first, int64_t count) {
  float sum = 0;
  for (int64_t i = 0; i < count; ++i)
    sum += load_any(x, x_dtype, x_first + i) * load_any(weight, weight_dtype, weight_first + i);
  return sum;
}

__global__ void __launch_bounds__(kThreads, 1) matmul_element(MatmulParams p) {
  const int64_t i = output_index();
  if (i >= p.num_tokens * p.out_features) return;
  const int64_t t = i / p.out_features, row = i % p.out_features;
  const float before = p.accumulate ? ld_global(static_cast<const float*>(p.out) + i) : 0.0f;
  store_any(
      p.out, p.out_dtype, i,
      before + dot(p.x, p.x_dtype, p.weight, p.weight_dtype, t * p.in_features, row * p.in_features, p.in_features));
}

struct GatedParams {
  AugmentedQParams p;
  float* h;  // [num_tokens, inner_size]
};

__global__ void __launch_bounds__(kThreads, 1) gated_element(GatedParams g) {
  const AugmentedQParams& p = g.p;
  const int64_t i = output_index();
  if (i >= p.num_tokens * p.inner_size) return;
  const int64_t x_first = i / p.inner_size * p.in_features, row_first = i % p.inner_size * p.in_features;
  const float gate = dot(p.x, p.x_dtype, p.gate, p.weight_dtype, x_first, row_first, p.in_features);
  const float up = dot(p.x, p.x_dtype, p.up, p.weight_dtype, x_first, row_first, p.in_features);
  st_global(g.h + i, plain_silu(gate) * up);
}

// ---- The cache.

struct Row {
  unsigned char* elements;
  bf16* scale;  // if the type has one
};

__device__ __forceinline__ int64_t element_bytes(DType dtype) {
  return is_quantized(dtype) ? 1 : dtype == DType::f32 ? 4 : 2;
}

__device__ __forceinline__ Row cache_row(void* page, int64_t offset, DType dtype, int64_t page_tokens, int64_t token,
                                         int64_t num_heads, int64_t head, int64_t dim) {
  const int64_t row = token % page_tokens * num_heads + head, bytes = dim * element_bytes(dtype);
  unsigned char* const layer = static_cast<unsigned char*>(page) + offset;
  return {layer + row * bytes, reinterpret_cast<bf16*>(layer + page_tokens * num_heads * bytes) + row};
}

__device__ __forceinline__ KvPage page_of(const KvPage* table, int64_t token, int64_t page_tokens) {
  const KvPage* const page = table + token / page_tokens;
  return {ld_global(&page->k), ld_global(&page->v)};
}

__device__ __forceinline__ float load_code(const void* data, DType dtype, int64_t i) {
  if (dtype == DType::i8) return to_float(ld_global(static_cast<const i8*>(data) + i));
  if (dtype == DType::f8e4m3) return to_float(ld_global(static_cast<const f8e4m3*>(data) + i));
  return load_any(data, dtype, i);
}

// value(d) as codes and a scale, by the definition in ops.h.
template <typename Value>
__device__ __forceinline__ void quantize_plainly(int64_t dim, DType dtype, const Value& value, void* codes,
                                                 bf16* scale) {
  float top = 0;
  bool finite = true;
  for (int64_t d = 0; d < dim; ++d) {
    const float magnitude = fabsf(value(d));
    finite = finite && magnitude < infinity();
    top = fmaxf(top, magnitude);
  }
  const bool zero = top < 0x1p-100f;
  const uint32_t up = bit_cast<uint32_t>(top / (dtype == DType::i8 ? 127.0f : 448.0f)) + 0xffffu;  // away from zero
  const bf16 factor = {static_cast<uint16_t>(!finite ? 0x7fc0u : zero ? 0u : up >> 16)};
  st_global(scale, factor);
  for (int64_t d = 0; d < dim; ++d) {
    const float x = finite && !zero ? value(d) / to_float(factor) : 0.0f;
    if (dtype == DType::i8) {
      st_global(static_cast<i8*>(codes) + d, i8{static_cast<int8_t>(rintf(x))});
    } else {
      st_global(static_cast<f8e4m3*>(codes) + d, to_f8e4m3(x));
    }
  }
}

template <typename Value>
__device__ __forceinline__ void write_cache_row(int64_t dim, DType dtype, const Value& value, const Row& row) {
  if (is_quantized(dtype)) return quantize_plainly(dim, dtype, value, row.elements, row.scale);
  for (int64_t d = 0; d < dim; ++d) store_any(row.elements, dtype, d, value(d));
}

__device__ __forceinline__ float key_element(const KvAppendParams& p, int64_t token, int64_t head, int64_t d) {
  const int64_t dim = p.head_dim_qk, half = dim / 2, first = (token * p.num_k_heads + head) * dim;
  if (!p.inv_freq) return load_any(p.k, p.k_dtype, first + d);
  const Pair pair =
      rotated_pair(p.k, p.k_dtype, first, dim, d < half ? d : d - half, ld_global(p.positions + token), p.inv_freq);
  return d < half ? pair.low : pair.high;
}

// One row of K or V of a new token.
__global__ void __launch_bounds__(kThreads, 1) kv_append_row(KvAppendParams p) {
  const int64_t heads = p.num_k_heads + p.num_v_heads, i = output_index();
  if (i >= p.num_tokens * heads) return;
  const int64_t token = i / heads, head = i % heads, position = ld_global(p.positions + token);
  const KvPage page =
      page_of(ld_global(p.pages + (p.sequences ? ld_global(p.sequences + token) : 0)), position, p.page_tokens);
  if (head < p.num_k_heads) {
    const Row row = cache_row(page.k, p.k_page_offset, p.k_cache_dtype, p.page_tokens, position, p.num_k_heads, head,
                              p.head_dim_qk);
    const auto value = [&](int64_t d) { return key_element(p, token, head, d); };
    write_cache_row(p.head_dim_qk, p.k_cache_dtype, value, row);
  } else {
    const int64_t v_head = head - p.num_k_heads, first = (token * p.num_v_heads + v_head) * p.head_dim_vo;
    const Row row = cache_row(page.v, p.v_page_offset, p.v_cache_dtype, p.page_tokens, position, p.num_v_heads, v_head,
                              p.head_dim_vo);
    const auto value = [&](int64_t d) { return load_any(p.v, p.v_dtype, first + d); };
    write_cache_row(p.head_dim_vo, p.v_cache_dtype, value, row);
  }
}

struct RotatedKeysParams {
  KvAppendParams p;
  float* out;
};

__global__ void __launch_bounds__(kThreads, 1) rotated_key_element(RotatedKeysParams r) {
  const int64_t dim = r.p.head_dim_qk, i = output_index();
  if (i >= r.p.num_tokens * r.p.num_k_heads * dim) return;
  const int64_t row = i / dim;
  st_global(r.out + i, key_element(r.p, row / r.p.num_k_heads, row % r.p.num_k_heads, i % dim));
}

__global__ void __launch_bounds__(kThreads, 1) kv_gather_element(KvGatherParams p) {
  const int64_t i = output_index(), row = i / p.head_dim, key = row / p.num_k_heads;
  if (key >= p.num_keys) return;
  const Row from = cache_row(page_of(p.pages, key, p.page_tokens).k, p.k_page_offset, p.cache_dtype, p.page_tokens, key,
                             p.num_k_heads, row % p.num_k_heads, p.head_dim);
  const float x = load_code(from.elements, p.cache_dtype, i % p.head_dim);
  store_any(p.out, p.out_dtype, i, is_quantized(p.cache_dtype) ? x * load_float(from.scale) : x);
}

__global__ void __launch_bounds__(kThreads, 1) quantize_row_of(QuantizeParams p) {
  const int64_t row = output_index(), first = row * p.head_dim;
  if (row >= p.num_rows) return;
  const auto value = [&](int64_t d) { return load_any(p.x, p.x_dtype, first + d); };
  quantize_plainly(p.head_dim, p.out_dtype, value, static_cast<unsigned char*>(p.out) + first,
                   static_cast<bf16*>(p.scales) + row);
}

// ---- Attention: the scores, which of them count, their sums, and the output, in four kernels.

struct CacheSide {
  const void* data;
  const bf16* scales;
  DType dtype;
  int64_t batch_stride, heads, dim, page_offset;
};

struct AttentionParams {
  const void* q;
  void* out;
  float* lse;
  const int32_t* kv_lens;
  DType q_dtype;
  CacheSide k, v;
  const KvPage* const* pages;
  bool pages_shared, causal, renormalize;
  int64_t batch, q_len, kv_len, heads, page_tokens, top_k;
  float sm_scale;
  float* scores;   // [rows, kv_len], rows: [batch, q_len, heads]; -inf for a key that the query does not see
  uint8_t* kept;   // the same shape: whether V's row enters the sum
  float* maximum;  // [rows]
  float* divisor;  // [rows]
};

// Element d of a K or V row.
__device__ __forceinline__ float cache_element(const AttentionParams& p, const CacheSide& side, bool is_k,
                                               int64_t batch, int64_t token, int64_t head, int64_t d) {
  if (p.pages) {
    const KvPage page = page_of(ld_global(p.pages + (p.pages_shared ? 0 : batch)), token, p.page_tokens);
    const Row row = cache_row(is_k ? page.k : page.v, side.page_offset, side.dtype, p.page_tokens, token, side.heads,
                              head, side.dim);
    const float x = load_code(row.elements, side.dtype, d);
    return is_quantized(side.dtype) ? x * load_float(row.scale) : x;
  }
  const int64_t row = batch * (side.batch_stride / side.dim) + token * side.heads + head;
  const float x = load_code(side.data, side.dtype, row * side.dim + d);
  return is_quantized(side.dtype) ? x * load_float(side.scales + row) : x;
}

__device__ __forceinline__ int64_t keys_of(const AttentionParams& p, int64_t batch) {
  return p.kv_lens ? ld_global(p.kv_lens + batch) : p.kv_len;
}

__global__ void __launch_bounds__(kThreads, 1) attention_score(AttentionParams p) {
  const int64_t i = output_index(), row = i / p.kv_len, key = i % p.kv_len;
  if (row >= p.batch * p.q_len * p.heads) return;
  const int64_t head = row % p.heads, query = row / p.heads % p.q_len, batch = row / p.heads / p.q_len;
  const int64_t num_keys = keys_of(p, batch), end = p.causal ? num_keys - p.q_len + query + 1 : num_keys;
  float sum = 0;
  for (int64_t d = 0; key < end && d < p.k.dim; ++d) {
    sum += load_any(p.q, p.q_dtype, row * p.k.dim + d) *
           cache_element(p, p.k, true, batch, key, head * p.k.heads / p.heads, d);
  }
  st_global(p.scores + i, key < end ? sum * p.sm_scale : -infinity());
}

// Whether fewer than top_k keys have a higher score, or the same one and come first.
__global__ void __launch_bounds__(kThreads, 1) attention_keep(AttentionParams p) {
  const int64_t i = output_index(), row = i / p.kv_len, key = i % p.kv_len;
  if (row >= p.batch * p.q_len * p.heads) return;
  const float score = ld_global(p.scores + i);
  int64_t before = 0;
  for (int64_t j = 0; j < p.kv_len; ++j) {
    const float other = ld_global(p.scores + row * p.kv_len + j);
    before += other > score || (other == score && j < key) ? 1 : 0;
  }
  st_global(p.kept + i, static_cast<uint8_t>(before < p.top_k ? 1 : 0));
}

__global__ void __launch_bounds__(kThreads, 1) attention_sums(AttentionParams p) {
  const int64_t row = output_index();
  if (row >= p.batch * p.q_len * p.heads) return;
  const float* const scores = p.scores + row * p.kv_len;
  float top = -infinity();
  for (int64_t j = 0; j < p.kv_len; ++j) top = fmaxf(top, ld_global(scores + j));
  float all = 0, kept = 0;
  for (int64_t j = 0; top > -infinity() && j < p.kv_len; ++j) {
    const float weight = expf(ld_global(scores + j) - top);
    all += weight;
    if (p.top_k == 0 || ld_global(p.kept + row * p.kv_len + j) != 0) kept += weight;
  }
  st_global(p.maximum + row, top);
  st_global(p.divisor + row, p.renormalize ? kept : all);
  if (!p.lse) return;
  const int64_t head = row % p.heads, query = row / p.heads % p.q_len, batch = row / p.heads / p.q_len;
  st_global(p.lse + (batch * p.heads + head) * p.q_len + query, top > -infinity() ? top + logf(all) : top);
}

__global__ void __launch_bounds__(kThreads, 1) attention_element(AttentionParams p) {
  const int64_t i = output_index(), row = i / p.v.dim, d = i % p.v.dim;
  if (row >= p.batch * p.q_len * p.heads) return;
  const int64_t head = row % p.heads, batch = row / p.heads / p.q_len;
  const float top = ld_global(p.maximum + row);
  float sum = 0;
  for (int64_t j = 0; top > -infinity() && j < p.kv_len; ++j) {
    const float score = ld_global(p.scores + row * p.kv_len + j);
    if (score == -infinity() || (p.top_k > 0 && ld_global(p.kept + row * p.kv_len + j) == 0)) continue;
    sum += expf(score - top) * cache_element(p, p.v, false, batch, j, head * p.v.heads / p.heads, d);
  }
  store_any(p.out, p.q_dtype, i, top > -infinity() ? sum / ld_global(p.divisor + row) : 0.0f);
}

// Of prefill or decode.
template <typename Params>
AttentionParams attention_of(const Params& a) {
  AttentionParams p = {};
  p.q = a.q;
  p.out = a.out;
  p.lse = a.lse;
  p.kv_lens = a.kv_lens;
  p.q_dtype = a.q_dtype;
  p.k = {a.k,
         static_cast<const bf16*>(a.k_scales),
         a.k_dtype,
         a.stride_k_batch,
         a.num_k_heads,
         a.head_dim_qk,
         a.k_page_offset};
  p.v = {a.v,
         static_cast<const bf16*>(a.v_scales),
         a.v_dtype,
         a.stride_v_batch,
         a.num_v_heads,
         a.head_dim_vo,
         a.v_page_offset};
  p.pages = a.pages;
  p.pages_shared = a.pages_shared;
  p.batch = a.batch_size;
  p.q_len = 1;
  p.kv_len = a.kv_len;
  p.heads = a.num_q_heads;
  p.page_tokens = a.page_tokens;
  p.sm_scale = a.sm_scale;
  return p;
}

void run_attention(AttentionParams p, Context& context) {
  const int64_t rows = p.batch * p.q_len * p.heads;
  if (rows == 0) return;
  const size_t pairs = static_cast<size_t>(rows * p.kv_len);
  p.scores = static_cast<float*>(context.scratch(pairs * sizeof(float)));
  p.kept = static_cast<uint8_t*>(context.scratch(pairs));
  p.maximum = static_cast<float*>(context.scratch(static_cast<size_t>(rows) * sizeof(float)));
  p.divisor = static_cast<float*>(context.scratch(static_cast<size_t>(rows) * sizeof(float)));
  run_over(rows * p.kv_len, attention_score, p, context);
  if (p.top_k > 0) run_over(rows * p.kv_len, attention_keep, p, context);
  run_over(rows, attention_sums, p, context);
  run_over(rows * p.v.dim, attention_element, p, context);
}

// ---- Sampling, on the host.

// Philox-4x32-10 (Salmon et al., SC 2011), keyed by `seed` at counter `step`: the first 53 bits as a number in [0, 1).
double uniform(uint64_t seed, uint64_t step) {
  uint32_t counter[4] = {static_cast<uint32_t>(step), static_cast<uint32_t>(step >> 32), 0, 0};
  uint32_t key[2] = {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)};
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xd2511f53} * counter[0], b = uint64_t{0xcd9e8d57} * counter[2];
    const uint32_t next[4] = {static_cast<uint32_t>(b >> 32) ^ counter[1] ^ key[0], static_cast<uint32_t>(b),
                              static_cast<uint32_t>(a >> 32) ^ counter[3] ^ key[1], static_cast<uint32_t>(a)};
    std::copy(next, next + 4, counter);
    key[0] += 0x9e3779b9u;
    key[1] += 0xbb67ae85u;
  }
  return static_cast<double>((uint64_t{counter[0]} << 32 | counter[1]) >> 11) * 0x1p-53;
}

template <typename T>
std::vector<T> download(const T* data, int64_t count) {
  std::vector<T> values(static_cast<size_t>(count));
  if (count > 0)
    check_cuda(cudaMemcpy(values.data(), data, values.size() * sizeof(T), cudaMemcpyDeviceToHost), "download");
  return values;
}

// test/operators/reference_sampling.ts in C++.
int32_t sampled_token(const SampleParams& p) {
  const std::vector<float> given = download(p.logits, p.vocab_size);
  std::vector<double> logits(given.begin(), given.end());
  const double penalty = static_cast<double>(p.repetition_penalty);
  std::vector<int32_t> history = download(p.history, p.history_len);
  std::sort(history.begin(), history.end());
  history.erase(std::unique(history.begin(), history.end()), history.end());
  for (const int32_t token : history) {
    double& logit = logits[static_cast<size_t>(token)];
    logit = static_cast<double>(static_cast<float>(logit > 0 ? logit / penalty : logit * penalty));
  }
  std::vector<int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  const auto logit_of = [&](int32_t token) { return logits[static_cast<size_t>(token)]; };
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return logit_of(a) > logit_of(b); });
  const double top = logit_of(order[0]);
  if (p.temperature == 0) return order[0];
  if (p.top_k > 0 && p.top_k < p.vocab_size) order.resize(static_cast<size_t>(p.top_k));
  const auto weight = [&](int32_t token) {
    return std::exp((logit_of(token) - top) / static_cast<double>(p.temperature));
  };
  if (p.top_p < 1) {
    double all = 0, sum = 0;
    for (const int32_t token : order) all += weight(token);
    size_t kept = 0;
    while (kept < order.size() && sum < static_cast<double>(p.top_p) * all) sum += weight(order[kept++]);
    order.resize(std::max<size_t>(kept, 1));
  }
  std::erase_if(order, [&](int32_t token) { return weight(token) < static_cast<double>(p.min_p); });
  std::sort(order.begin(), order.end());
  double mass = 0, sum = 0;
  for (const int32_t token : order) mass += weight(token);
  const double drawn = uniform(p.seed, p.step) * mass;
  for (const int32_t token : order) {
    sum += weight(token);
    if (sum > drawn) return token;
  }
  return order.back();
}

// ---- By operator.

void run(const EmbedParams& p, Context& context) { run_over(p.num_tokens * p.hidden_size, embed_element, p, context); }

void run(const RmsNormParams& p, Context& context) {
  const int64_t count = p.num_tokens * p.hidden_size;
  const size_t bytes = static_cast<size_t>(p.num_tokens) * sizeof(float);
  const NormParams n = {p, static_cast<float*>(context.scratch(bytes))};
  if (p.residual) run_over(count, add_residual_element, p, context);
  run_over(p.num_tokens, norm_factor_row, n, context);
  run_over(count, norm_element, n, context);
}

void run(const SiluMulParams& p, Context& context) { run_over(p.count, silu_mul_element, p, context); }

void run(const RopeParams& p, Context& context) {
  run_over(p.num_tokens * p.num_heads * (p.head_dim / 2), rope_pair, p, context);
}

void run(const MatmulParams& p, Context& context) {
  run_over(p.num_tokens * p.out_features, matmul_element, p, context);
}

void run(const AugmentedQParams& p, Context& context) {
  const int64_t count = p.num_tokens * p.inner_size;
  const GatedParams g = {p, static_cast<float*>(context.scratch(static_cast<size_t>(count) * sizeof(float)))};
  run_over(count, gated_element, g, context);
  MatmulParams down;
  down.x = g.h;
  down.weight = p.down;
  down.out = p.out;
  down.weight_dtype = p.weight_dtype;
  down.out_dtype = p.out_dtype;
  down.num_tokens = p.num_tokens;
  down.in_features = p.inner_size;
  down.out_features = p.out_features;
  down.accumulate = p.accumulate;
  run(down, context);
}

void run(const KvAppendParams& p, Context& context) {
  run_over(p.num_tokens * (p.num_k_heads + p.num_v_heads), kv_append_row, p, context);
}

void run(const KvGatherParams& p, Context& context) {
  run_over(p.num_keys * p.num_k_heads * p.head_dim, kv_gather_element, p, context);
}

void run(const QuantizeParams& p, Context& context) { run_over(p.num_rows, quantize_row_of, p, context); }

void run(const AttentionPrefillParams& a, Context& context) {
  AttentionParams p = attention_of(a);
  p.q_len = a.q_len;
  p.causal = a.causal;
  run_attention(p, context);
}

void run(const AttentionDecodeParams& a, Context& context) {
  AttentionParams p = attention_of(a);
  p.top_k = a.selective_top_k;
  p.renormalize = a.selective_top_k > 0 && a.renormalize;
  run_attention(p, context);
}

void run(const SampleParams& p, Context&) {
  const int32_t token = sampled_token(p);
  check_cuda(cudaMemcpy(p.out_token, &token, sizeof(token), cudaMemcpyHostToDevice), "upload");
}

}  // namespace

void reference(const OperatorParams& params, Context& context) {
  std::visit([&](const auto& p) { run(p, context); }, params);
  check_cuda(cudaStreamSynchronize(context.stream), "reference");
}

std::vector<float> rotated_keys(const KvAppendParams& p, Context& context) {
  const int64_t count = p.num_tokens * p.num_k_heads * p.head_dim_qk;
  const RotatedKeysParams r = {p, static_cast<float*>(context.scratch(static_cast<size_t>(count) * sizeof(float)))};
  run_over(count, rotated_key_element, r, context);
  check_cuda(cudaStreamSynchronize(context.stream), "reference");
  return download(r.out, count);
}

}  // namespace diffqkv::cuda
