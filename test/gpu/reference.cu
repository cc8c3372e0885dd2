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

// ---- embed, rms_norm, gated_activation, rope.

__global__ void __launch_bounds__(kThreads, 1) embed_element(EmbedParams p) {
  const int64_t i = output_index();
  if (i >= p.num_tokens * p.hidden_size) return;
  const int64_t token = ld_global(p.tokens + i / p.hidden_size);
  const float x = load_any(p.table, p.table_dtype, token * p.hidden_size + i % p.hidden_size);
  store_any(p.out, p.out_dtype, i, x * p.scale);
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
  const float before = p.accumulate ? load_any(p.out, p.out_dtype, i) : 0.0f;
  store_any(p.out, p.out_dtype, i, before + norm_input(p, i) * ld_global(n.factors + i / p.hidden_size) * weight);
}

__device__ __forceinline__ float plain_activation(Activation activation, float x) {
  const double y = x;
  switch (activation) {
    case Activation::silu: return x / (1.0f + expf(-x));
    case Activation::gelu: return static_cast<float>(y / 2 * erfc(-y / sqrt(2.0)));
    case Activation::gelu_tanh:
      return static_cast<float>(y / (1 + exp(-2 * 0.79788456080286535588 * (y + 0.044715 * y * y * y))));
    case Activation::relu: return fmaxf(x, 0.0f);
    default: return fmaxf(x, 0.0f) * fmaxf(x, 0.0f);
  }
}

__global__ void __launch_bounds__(kThreads, 1) gated_activation_element(GatedActivationParams p) {
  const int64_t i = output_index();
  if (i >= p.count) return;
  const float up = load_any(p.up, p.dtype, i);
  store_any(
      p.out, p.dtype, i,
      p.gate ? plain_activation(p.activation, load_any(p.gate, p.dtype, i)) * up : plain_activation(p.activation, up));
}

__global__ void __launch_bounds__(kThreads, 1) add_bias_element(AddBiasParams p) {
  const int64_t i = output_index();
  if (i >= p.num_tokens * p.num_features) return;
  store_any(p.out, p.dtype, i, load_any(p.x, p.dtype, i) + ld_global(p.bias + i % p.num_features));
}

__global__ void __launch_bounds__(kThreads, 1) softcap_element(SoftcapParams p) {
  const int64_t i = output_index();
  if (i >= p.count) return;
  st_global(p.out + i, p.cap * static_cast<float>(tanh(static_cast<double>(ld_global(p.x + i)) / p.cap)));
}

struct Pair {
  float low, high;  // elements d and d + head_dim / 2 of a head
};

// x: the first element of the head.
__device__ __forceinline__ Pair rotated_pair(const void* x, DType dtype, int64_t first, int64_t head_dim, int64_t d,
                                             int position, const double* inv_freq, float scale) {
  const float low = load_any(x, dtype, first + d), high = load_any(x, dtype, first + d + head_dim / 2);
  const double frequency = ld_global(inv_freq + d), angle = position * frequency;
  if (frequency == 0) return {low, high};
  const float c = scale * static_cast<float>(cos(angle)), s = scale * static_cast<float>(sin(angle));
  return {low * c - high * s, high * c + low * s};
}

__global__ void __launch_bounds__(kThreads, 1) rope_pair(RopeParams p) {
  const int64_t half = p.head_dim / 2, i = output_index();
  if (i >= p.num_tokens * p.num_heads * half) return;
  const int64_t row = i / half, d = i % half, first = row * p.head_dim;
  const Pair pair =
      rotated_pair(p.x, p.dtype, first, p.head_dim, d, ld_global(p.positions + row / p.num_heads), p.inv_freq, p.scale);
  store_any(p.out, p.dtype, first + d, pair.low);
  store_any(p.out, p.dtype, first + d + half, pair.high);
}

// ---- matmul, gated_mlp.

__device__ __forceinline__ float weight_element(const WeightView& weight, int64_t row, int64_t i, int64_t columns) {
  if (weight.group_size == 0) return load_any(weight.data, weight.dtype, row * columns + i);
  const int64_t padded = (columns + 31) / 32 * 32, groups = (columns + weight.group_size - 1) / weight.group_size;
  const float scale = load_any(weight.scales, weight.scale_dtype, row * groups + i / weight.group_size);
  if (weight.dtype == DType::i8) return scale * load_float(static_cast<const i8*>(weight.data) + row * padded + i);
  const uint32_t word = ld_global(static_cast<const uint32_t*>(weight.data) + (row * padded + i) / 8);
  return scale * static_cast<float>(static_cast<int>(word >> (16 * (i % 2) + 4 * (i % 8 / 2)) & 15) - 8);
}

__device__ __forceinline__ float rounded_to(DType dtype, float x) {
  switch (dtype) {
    case DType::bf16: return to_float(from_float<bf16>(x));
    case DType::f16: return to_float(from_float<f16>(x));
    default: return x;
  }
}

// Weights are rounded to the type `rounding`.
__device__ __forceinline__ float dot(const void* x, DType x_dtype, const WeightView& weight, DType rounding,
                                     int64_t x_first, int64_t row, int64_t count) {
  float sum = 0;
  for (int64_t i = 0; i < count; ++i)
    sum += load_any(x, x_dtype, x_first + i) * rounded_to(rounding, weight_element(weight, row, i, count));
  return sum;
}

// Of i8 and i4 weights: with more than 16 tokens of a 16-bit type, to that type.
DType rounding_of(const WeightView& weight, DType x, int64_t num_tokens) {
  return weight.group_size > 0 && num_tokens > 16 ? x : DType::f32;
}

struct ProductParams {
  MatmulParams p;
  DType rounding;
};

__global__ void __launch_bounds__(kThreads, 1) matmul_element(ProductParams product) {
  const MatmulParams& p = product.p;
  const int64_t i = output_index();
  if (i >= p.num_tokens * p.out_features) return;
  const int64_t t = i / p.out_features, row = i % p.out_features;
  const float before = p.accumulate ? ld_global(static_cast<const float*>(p.out) + i) : 0.0f;
  store_any(p.out, p.out_dtype, i,
            before + dot(p.x, p.x_dtype, p.weight, product.rounding, t * p.in_features, row, p.in_features));
}

struct GatedParams {
  GatedMlpParams p;
  float* h;  // [num_tokens, inner_size]
  DType rounding;
};

__global__ void __launch_bounds__(kThreads, 1) gated_element(GatedParams g) {
  const GatedMlpParams& p = g.p;
  const int64_t i = output_index();
  if (i >= p.num_tokens * p.inner_size) return;
  const int64_t x_first = i / p.inner_size * p.in_features, row = i % p.inner_size;
  const float gate = p.gate.data ? dot(p.x, p.x_dtype, p.gate, g.rounding, x_first, row, p.in_features) : 0.0f;
  const float up = dot(p.x, p.x_dtype, p.up, g.rounding, x_first, row, p.in_features);
  st_global(g.h + i, p.gate.data ? plain_activation(p.activation, gate) * up : plain_activation(p.activation, up));
}

// ---- The cache.

struct Row {
  unsigned char* elements;
  bf16* scale;  // if the type has one
};

__device__ __forceinline__ int64_t element_bytes(DType dtype) {
  return is_quantized(dtype) ? 1 : dtype == DType::f32 ? 4 : 2;
}

// page: the start of the page in K's or V's pool.
__device__ __forceinline__ Row cache_row(void* page, const KvView& kv, int64_t page_tokens, int64_t token,
                                         int64_t head) {
  const int64_t row = token % page_tokens * kv.num_heads + head, bytes = kv.head_dim * element_bytes(kv.dtype);
  unsigned char* const layer = static_cast<unsigned char*>(page) + kv.page_offset;
  return {layer + row * bytes, reinterpret_cast<bf16*>(layer + page_tokens * kv.num_heads * bytes) + row};
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
  const int64_t dim = p.k_cache.head_dim, half = dim / 2, first = (token * p.k_cache.num_heads + head) * dim;
  if (!p.inv_freq) return load_any(p.k, p.k_dtype, first + d);
  const Pair pair = rotated_pair(p.k, p.k_dtype, first, dim, d < half ? d : d - half, ld_global(p.positions + token),
                                 p.inv_freq, p.rope_scale);
  return d < half ? pair.low : pair.high;
}

// One row of K or V of a new token.
__global__ void __launch_bounds__(kThreads, 1) kv_append_row(KvAppendParams p) {
  const int64_t heads = p.k_cache.num_heads + p.v_cache.num_heads, i = output_index();
  if (i >= p.num_tokens * heads) return;
  const int64_t token = i / heads, head = i % heads, position = ld_global(p.positions + token);
  const KvPage page =
      page_of(ld_global(p.pages + (p.sequences ? ld_global(p.sequences + token) : 0)), position, p.page_tokens);
  if (head < p.k_cache.num_heads) {
    const Row row = cache_row(page.k, p.k_cache, p.page_tokens, position, head);
    const auto value = [&](int64_t d) { return key_element(p, token, head, d); };
    write_cache_row(p.k_cache.head_dim, p.k_cache.dtype, value, row);
  } else {
    const int64_t v_head = head - p.k_cache.num_heads,
                  first = (token * p.v_cache.num_heads + v_head) * p.v_cache.head_dim;
    const Row row = cache_row(page.v, p.v_cache, p.page_tokens, position, v_head);
    const auto value = [&](int64_t d) { return load_any(p.v, p.v_dtype, first + d); };
    write_cache_row(p.v_cache.head_dim, p.v_cache.dtype, value, row);
  }
}

struct RotatedKeysParams {
  KvAppendParams p;
  float* out;
};

__global__ void __launch_bounds__(kThreads, 1) rotated_key_element(RotatedKeysParams r) {
  const int64_t dim = r.p.k_cache.head_dim, i = output_index();
  if (i >= r.p.num_tokens * r.p.k_cache.num_heads * dim) return;
  const int64_t row = i / dim;
  st_global(r.out + i, key_element(r.p, row / r.p.k_cache.num_heads, row % r.p.k_cache.num_heads, i % dim));
}

__global__ void __launch_bounds__(kThreads, 1) kv_gather_element(KvGatherParams p) {
  const int64_t i = output_index(), row = i / p.k.head_dim, key = row / p.k.num_heads;
  if (key >= p.num_keys) return;
  const Row from = cache_row(page_of(p.pages, key, p.page_tokens).k, p.k, p.page_tokens, key, row % p.k.num_heads);
  const float x = load_code(from.elements, p.k.dtype, i % p.k.head_dim);
  store_any(p.out, p.out_dtype, i, is_quantized(p.k.dtype) ? x * load_float(from.scale) : x);
}

__global__ void __launch_bounds__(kThreads, 1) quantize_row_of(QuantizeParams p) {
  const int64_t row = output_index(), first = row * p.head_dim;
  if (row >= p.num_rows) return;
  const auto value = [&](int64_t d) { return load_any(p.x, p.x_dtype, first + d); };
  quantize_plainly(p.head_dim, p.out_dtype, value, static_cast<unsigned char*>(p.out) + first,
                   static_cast<bf16*>(p.scales) + row);
}

// One group of a weight. Sums over a group are formed as the definition allows only in one order that gives its bits: 16
// partial sums of every 16th element, then halved.
struct QuantizeGroupParams {
  QuantizeWeightParams p;
  int64_t row_bytes, row_groups;
};

struct WeightGroup {
  float w[128];
  int count;  // a multiple of 32
  float low, high;

  __device__ __forceinline__ float integer(int i, float inverse) const {
    const float scaled = w[i] * inverse;
    const float clamped = scaled < low ? low : scaled > high ? high : scaled;
    return (clamped + 12582912.0f) - 12582912.0f;
  }
  template <typename Term>
  __device__ __forceinline__ float sum(const Term& term) const {
    float parts[16] = {};
    for (int i = 0; i < count; ++i) parts[i % 16] = term(i, parts[i % 16]);
    for (int half = 8; half > 0; half /= 2) {
      for (int i = 0; i < half; ++i) parts[i] += parts[i + half];
    }
    return parts[0];
  }
};

__global__ void __launch_bounds__(kThreads, 1) quantize_weight_group(QuantizeGroupParams g) {
  const QuantizeWeightParams& p = g.p;
  const int64_t index = output_index(), row = index / g.row_groups, first = index % g.row_groups * p.group_size;
  if (row >= p.out_features) return;
  const bool is_i4 = p.dtype == DType::i4;
  WeightGroup group = {};
  group.low = is_i4 ? -8.0f : -128.0f;
  group.high = is_i4 ? 7.0f : 127.0f;
  const int64_t rest = p.in_features - first < p.group_size ? p.in_features - first : p.group_size;
  group.count = static_cast<int>((rest + 31) / 32 * 32);
  float most = 0, least = 0;
  bool finite = true;
  for (int i = 0; i < rest; ++i) {
    const float w = load_any(p.weight, p.weight_dtype, row * p.in_features + first + i);
    group.w[i] = w;
    finite = finite && w - w == 0;
    most = w > most ? w : most;
    least = w < least ? w : least;
  }
  const bool zero = !finite || (most < 0x1p-100f && -least < 0x1p-100f);
  bf16 best = {static_cast<uint16_t>(finite ? 0 : 0x7fc0)};
  float inverse = 0;
  if (!zero) {
    const float largest = most > -least ? most : least, factor = 1.0f / largest;
    for (int i = 0; i < group.count; ++i) group.w[i] *= factor;
    float least_error = infinity();
    const auto try_scale = [&](float relative) {
      const bf16 scale = from_float<bf16>(relative * largest);
      const float rounded = to_float(scale) * factor, one_over = 1.0f / rounded;
      const float error = group.sum([&](int i, float before) {
        const float off = __fmaf_rn(-group.integer(i, one_over), rounded, group.w[i]);
        return __fmaf_rn(off, off, before);
      });
      if (!(error < least_error)) return;
      least_error = error;
      best = scale;
      inverse = one_over;
    };
    try_scale(1.0f / group.high);
    for (int i = 0; i < (is_i4 ? 12 : 5); ++i) {
      try_scale(__fmaf_rn(is_i4 ? 0.03f : 0.005f, static_cast<float>(i), is_i4 ? 0.79f : 0.99f) / group.low);
    }
    for (int round = 0; round < 2; ++round) {
      const float by = inverse;
      const float wq = group.sum([&](int i, float s) { return __fmaf_rn(group.w[i], group.integer(i, by), s); });
      const float qq =
          group.sum([&](int i, float s) { return __fmaf_rn(group.integer(i, by), group.integer(i, by), s); });
      try_scale(wq / qq);
    }
  }
  st_global(static_cast<bf16*>(p.scales) + index, best);
  unsigned char* const to = static_cast<unsigned char*>(p.data) + row * g.row_bytes;
  for (int i = 0; i < group.count; i += 8) {
    uint32_t word = 0;
    for (int j = 0; j < 8; ++j) {
      const int q = zero ? 0 : static_cast<int>(group.integer(i + j, inverse));
      if (is_i4) {
        word |= static_cast<uint32_t>(q + 8) << (16 * (j % 2) + 4 * (j / 2));
      } else {
        st_global(reinterpret_cast<i8*>(to) + first + i + j, i8{static_cast<int8_t>(q)});
      }
    }
    if (is_i4) st_global(reinterpret_cast<uint32_t*>(to) + (first + i) / 8, word);
  }
}

// ---- Attention: the scores, which of them count, their sums, and the output, in four kernels.

struct ReferenceParams {
  AttentionParams a;
  int64_t q_len, top_k;
  bool causal, renormalize;
  float* scores;   // [rows, kv_len], rows: [batch, q_len, heads]; -inf for a key that the query does not see
  uint8_t* kept;   // the same shape: whether V's row enters the sum
  float* maximum;  // [rows]
  float* divisor;  // [rows]
};

// Element d of the K or V row that query head `q_head` reads.
__device__ __forceinline__ float cache_element(const AttentionParams& a, KvTensor tensor, int64_t batch, int64_t token,
                                               int64_t q_head, int64_t d) {
  const bool is_v = tensor == KvTensor::v;
  const KvView& kv = is_v ? a.v : a.k;
  const int64_t head = q_head * kv.num_heads / a.num_q_heads;
  if (a.pages) {
    const KvPage page = page_of(ld_global(a.pages + (a.pages_shared ? 0 : batch)), token, a.page_tokens);
    const Row row = cache_row(is_v ? page.v : page.k, kv, a.page_tokens, token, head);
    const float x = load_code(row.elements, kv.dtype, d);
    return is_quantized(kv.dtype) ? x * load_float(row.scale) : x;
  }
  const int64_t row = batch * (kv.batch_stride / kv.head_dim) + token * kv.num_heads + head;
  const float x = load_code(kv.data, kv.dtype, row * kv.head_dim + d);
  return is_quantized(kv.dtype) ? x * load_float(static_cast<const bf16*>(kv.scales) + row) : x;
}

__device__ __forceinline__ int64_t keys_of(const AttentionParams& a, int64_t batch) {
  return a.kv_lens ? ld_global(a.kv_lens + batch) : a.kv_len;
}

__global__ void __launch_bounds__(kThreads, 1) attention_score(ReferenceParams p) {
  const int64_t i = output_index(), row = i / p.a.kv_len, key = i % p.a.kv_len;
  if (row >= p.a.batch_size * p.q_len * p.a.num_q_heads) return;
  const int64_t head = row % p.a.num_q_heads, query = row / p.a.num_q_heads % p.q_len,
                batch = row / p.a.num_q_heads / p.q_len;
  const int64_t num_keys = keys_of(p.a, batch), end = p.causal ? num_keys - p.q_len + query + 1 : num_keys;
  const bool seen = key < end && (p.a.window == 0 || key >= end - p.a.window);
  float sum = 0;
  for (int64_t d = 0; seen && d < p.a.k.head_dim; ++d) {
    sum +=
        load_any(p.a.q, p.a.q_dtype, row * p.a.k.head_dim + d) * cache_element(p.a, KvTensor::k, batch, key, head, d);
  }
  float score = sum * p.a.sm_scale;
  if (p.a.softcap > 0) score = p.a.softcap * tanhf(score / p.a.softcap);
  st_global(p.scores + i, seen ? score : -infinity());
}

// Whether fewer than top_k keys have a higher score, or the same one and come first.
__global__ void __launch_bounds__(kThreads, 1) attention_keep(ReferenceParams p) {
  const int64_t i = output_index(), row = i / p.a.kv_len, key = i % p.a.kv_len;
  if (row >= p.a.batch_size * p.q_len * p.a.num_q_heads) return;
  const float score = ld_global(p.scores + i);
  int64_t before = 0;
  for (int64_t j = 0; j < p.a.kv_len; ++j) {
    const float other = ld_global(p.scores + row * p.a.kv_len + j);
    before += other > score || (other == score && j < key) ? 1 : 0;
  }
  st_global(p.kept + i, static_cast<uint8_t>(before < p.top_k ? 1 : 0));
}

__global__ void __launch_bounds__(kThreads, 1) attention_sums(ReferenceParams p) {
  const int64_t row = output_index();
  if (row >= p.a.batch_size * p.q_len * p.a.num_q_heads) return;
  const float* const scores = p.scores + row * p.a.kv_len;
  float top = -infinity();
  for (int64_t j = 0; j < p.a.kv_len; ++j) top = fmaxf(top, ld_global(scores + j));
  float all = 0, kept = 0;
  for (int64_t j = 0; top > -infinity() && j < p.a.kv_len; ++j) {
    const float weight = expf(ld_global(scores + j) - top);
    all += weight;
    if (p.top_k == 0 || ld_global(p.kept + row * p.a.kv_len + j) != 0) kept += weight;
  }
  st_global(p.maximum + row, top);
  st_global(p.divisor + row, p.renormalize ? kept : all);
  if (!p.a.lse) return;
  const int64_t head = row % p.a.num_q_heads, query = row / p.a.num_q_heads % p.q_len,
                batch = row / p.a.num_q_heads / p.q_len;
  st_global(p.a.lse + (batch * p.a.num_q_heads + head) * p.q_len + query, top > -infinity() ? top + logf(all) : top);
}

__global__ void __launch_bounds__(kThreads, 1) attention_element(ReferenceParams p) {
  const int64_t i = output_index(), row = i / p.a.v.head_dim, d = i % p.a.v.head_dim;
  if (row >= p.a.batch_size * p.q_len * p.a.num_q_heads) return;
  const int64_t head = row % p.a.num_q_heads, batch = row / p.a.num_q_heads / p.q_len;
  const float top = ld_global(p.maximum + row);
  float sum = 0;
  for (int64_t j = 0; top > -infinity() && j < p.a.kv_len; ++j) {
    const float score = ld_global(p.scores + row * p.a.kv_len + j);
    if (score == -infinity() || (p.top_k > 0 && ld_global(p.kept + row * p.a.kv_len + j) == 0)) continue;
    sum += expf(score - top) * cache_element(p.a, KvTensor::v, batch, j, head, d);
  }
  store_any(p.a.out, p.a.q_dtype, i, top > -infinity() ? sum / ld_global(p.divisor + row) : 0.0f);
}

void run_attention(ReferenceParams p, Context& context) {
  const int64_t rows = p.a.batch_size * p.q_len * p.a.num_q_heads;
  if (rows == 0) return;
  const size_t pairs = static_cast<size_t>(rows * p.a.kv_len);
  p.scores = static_cast<float*>(context.scratch(pairs * sizeof(float)));
  p.kept = static_cast<uint8_t*>(context.scratch(pairs));
  p.maximum = static_cast<float*>(context.scratch(static_cast<size_t>(rows) * sizeof(float)));
  p.divisor = static_cast<float*>(context.scratch(static_cast<size_t>(rows) * sizeof(float)));
  run_over(rows * p.a.kv_len, attention_score, p, context);
  if (p.top_k > 0) run_over(rows * p.a.kv_len, attention_keep, p, context);
  run_over(rows, attention_sums, p, context);
  run_over(rows * p.a.v.head_dim, attention_element, p, context);
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

void run(const AddBiasParams& p, Context& context) {
  run_over(p.num_tokens * p.num_features, add_bias_element, p, context);
}
void run(const GatedActivationParams& p, Context& context) { run_over(p.count, gated_activation_element, p, context); }

void run(const SoftcapParams& p, Context& context) { run_over(p.count, softcap_element, p, context); }

void run(const RopeParams& p, Context& context) {
  run_over(p.num_tokens * p.num_heads * (p.head_dim / 2), rope_pair, p, context);
}

void run(const MatmulParams& p, Context& context) {
  const ProductParams product = {p, rounding_of(p.weight, p.x_dtype, p.num_tokens)};
  run_over(p.num_tokens * p.out_features, matmul_element, product, context);
}

void run(const GatedMlpParams& p, Context& context) {
  const int64_t count = p.num_tokens * p.inner_size;
  const GatedParams g = {p, static_cast<float*>(context.scratch(static_cast<size_t>(count) * sizeof(float))),
                         rounding_of(p.up, p.x_dtype, p.num_tokens)};
  run_over(count, gated_element, g, context);
  MatmulParams down;
  down.x = g.h;
  down.weight = p.down;
  down.out = p.out;
  down.out_dtype = p.out_dtype;
  down.num_tokens = p.num_tokens;
  down.in_features = p.inner_size;
  down.out_features = p.out_features;
  down.accumulate = p.accumulate;
  const ProductParams product = {down, rounding_of(p.down, p.x_dtype, p.num_tokens)};
  run_over(down.num_tokens * down.out_features, matmul_element, product, context);
}

void run(const KvAppendParams& p, Context& context) {
  run_over(p.num_tokens * (p.k_cache.num_heads + p.v_cache.num_heads), kv_append_row, p, context);
}

void run(const KvGatherParams& p, Context& context) {
  run_over(p.num_keys * p.k.num_heads * p.k.head_dim, kv_gather_element, p, context);
}

void run(const QuantizeParams& p, Context& context) { run_over(p.num_rows, quantize_row_of, p, context); }

void run(const QuantizeWeightParams& p, Context& context) {
  const QuantizeGroupParams g = {p, weight_row_bytes(p.dtype, p.in_features),
                                 weight_row_groups(p.in_features, p.group_size)};
  run_over(p.out_features * g.row_groups, quantize_weight_group, g, context);
}

void run(const AttentionPrefillParams& a, Context& context) {
  ReferenceParams p = {};
  p.a = a;
  p.q_len = a.q_len;
  p.causal = a.causal;
  run_attention(p, context);
}

void run(const AttentionDecodeParams& a, Context& context) {
  ReferenceParams p = {};
  p.a = a;
  p.q_len = 1;
  p.top_k = a.top_k;
  p.renormalize = a.top_k > 0 && a.renormalize;
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
  const int64_t count = p.num_tokens * p.k_cache.num_heads * p.k_cache.head_dim;
  const RotatedKeysParams r = {p, static_cast<float*>(context.scratch(static_cast<size_t>(count) * sizeof(float)))};
  run_over(count, rotated_key_element, r, context);
  check_cuda(cudaStreamSynchronize(context.stream), "reference");
  return download(r.out, count);
}

}  // namespace diffqkv::cuda
