// Calls of attention_prefill and attention_decode over contiguous and paged caches.
#include <algorithm>
#include <cstring>
#include <limits>
#include <stdexcept>

#include "calls/plain.h"

namespace diffqkv::cuda {
namespace {

PoolShape pools_of(const AttentionCase& c) {
  std::vector<int32_t> lengths = c.lengths;
  if (c.shared_cache) lengths = {static_cast<int32_t>(c.kv_len)};
  return {c.types.k, c.types.v, c.heads, c.dims, c.page_tokens, lengths, c.window > 0 ? c.window + c.q_len - 1 : 0};
}

void add_contiguous(Call& call, const AttentionCase& c, int64_t caches, Rows k, Rows v) {
  if (c.distinct_keys > 0) {
    const size_t row_bytes = count_of({c.heads.k, c.dims.qk}) * dtype_size(c.types.k);
    const size_t rows = count_of({caches, c.kv_len}), distinct = static_cast<size_t>(c.distinct_keys);
    std::vector<uint8_t> bytes = k.elements.values();
    for (size_t j = distinct; j < rows; ++j)
      std::memcpy(&bytes[j * row_bytes], &bytes[j % distinct * row_bytes], row_bytes);
    k.elements.upload(bytes);
  }
  add_memory(call, "k", c.types.k, std::move(k.elements));
  add_memory(call, "v", c.types.v, std::move(v.elements));
  if (is_quantized(c.types.k)) add_memory(call, "k_scales", DType::bf16, std::move(k.scales));
  if (is_quantized(c.types.v)) add_memory(call, "v_scales", DType::bf16, std::move(v.scales));
}

// What prefill and decode have in common.
AttentionParams attention_params(Call& call, const AttentionCase& c) {
  const int64_t batch = c.lengths.empty() ? c.batch : static_cast<int64_t>(c.lengths.size());
  const int64_t caches = c.shared_cache ? 1 : batch;
  AttentionParams p;
  p.q_dtype = c.types.q;
  p.out_dtype = c.types.q;
  p.k.dtype = c.types.k;
  p.v.dtype = c.types.v;
  p.batch_size = batch;
  p.kv_len = c.kv_len;
  p.num_q_heads = c.heads.q;
  p.k.num_heads = c.heads.k;
  p.v.num_heads = c.heads.v;
  p.k.head_dim = c.dims.qk;
  p.v.head_dim = c.dims.vo;
  // Scores of standard deviation 1.5: a few keys matter, so that a wrong one shows.
  p.sm_scale = 150 / std::sqrt(static_cast<float>(c.dims.qk));
  p.window = c.window;
  p.softcap = c.softcap;

  const size_t rows = count_of({batch, c.q_len, c.heads.q});
  p.out = add_output(call, "out", c.types.q, rows * count_of({c.dims.vo}), Comparison::values, c.dims.vo,
                     coarsest({c.types.q, c.types.k, c.types.v}));
  p.lse = reinterpret_cast<float*>(add_output(call, "lse", DType::f32, rows, Comparison::lse));
  p.q = add_random(call, "q", c.types.q, rows * count_of({c.dims.qk}), 0.1f, 1);
  if (!c.lengths.empty()) p.kv_lens = add_integers(call, "kv_lens", c.lengths);
  Rows k = random_rows(c.types.k, count_of({caches, c.kv_len, c.heads.k}), c.dims.qk, 2);
  Rows v = random_rows(c.types.v, count_of({caches, c.kv_len, c.heads.v}), c.dims.vo, 3);
  if (c.page_tokens > 0) {
    p.pages = add_pools(call, pools_of(c), c.kv_len, &k, &v);
    p.pages_shared = c.shared_cache;
    p.page_tokens = c.page_tokens;
    p.k.page_offset = kKPageOffset;
    p.v.page_offset = kVPageOffset;
    return p;
  }
  add_contiguous(call, c, caches, std::move(k), std::move(v));
  p.k.data = call.tensor("k").memory.data();
  p.v.data = call.tensor("v").memory.data();
  if (is_quantized(c.types.k)) p.k.scales = call.tensor("k_scales").memory.data();
  if (is_quantized(c.types.v)) p.v.scales = call.tensor("v_scales").memory.data();
  if (!c.shared_cache) {
    p.k.batch_stride = c.kv_len * c.heads.k * c.dims.qk;
    p.v.batch_stride = c.kv_len * c.heads.v * c.dims.vo;
  }
  return p;
}

AttentionDecodeParams decode_params(Call& call, const AttentionCase& c) {
  AttentionDecodeParams p{attention_params(call, c)};
  p.num_splits = c.num_splits;
  p.top_k = c.top_k;
  p.renormalize = c.renormalize;
  return p;
}

void only_selective(const AttentionDecodeParams& p, Context& context) {
  if (!attention_selective(p, context)) throw std::runtime_error("attention_selective does not support the call");
}

}  // namespace

Call decode_call(const AttentionCase& c) {
  Call call;
  set_operator(call, attention_decode, decode_params(call, c));
  return call;
}

Call selective_call(const AttentionCase& c) {
  Call call;
  set_operator(call, only_selective, decode_params(call, c));
  return call;
}

Call prefill_call(const AttentionCase& c) {
  Call call;
  AttentionPrefillParams p{attention_params(call, c)};
  p.q_len = c.q_len;
  p.causal = c.causal;
  set_operator(call, attention_prefill, p);
  return call;
}

// ---- Plain kernels: the scores, which of them count, their sums, and the output, in four kernels.

namespace {

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
    const float x = load_code(row.at(d), kv.dtype, 0);
    return is_quantized(kv.dtype) ? x * load_float(row.scale) : x;
  }
  const int64_t row = batch * (kv.batch_stride / kv.head_dim) + token * kv.num_heads + head;
  const float x = load_code(kv.data, kv.dtype, row * kv.head_dim + d);
  return is_quantized(kv.dtype) ? x * load_float(static_cast<const bf16*>(kv.scales) + row) : x;
}

__device__ __forceinline__ int64_t keys_of(const AttentionParams& a, int64_t batch) {
  return a.kv_lens ? ld_global(a.kv_lens + batch) : a.kv_len;
}

__global__ void __launch_bounds__(kPlainThreads, 1) attention_score(ReferenceParams p) {
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
__global__ void __launch_bounds__(kPlainThreads, 1) attention_keep(ReferenceParams p) {
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

__global__ void __launch_bounds__(kPlainThreads, 1) attention_sums(ReferenceParams p) {
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

__global__ void __launch_bounds__(kPlainThreads, 1) attention_element(ReferenceParams p) {
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

}  // namespace

void reference(const AttentionPrefillParams& a, Context& context) {
  ReferenceParams p = {};
  p.a = a;
  p.q_len = a.q_len;
  p.causal = a.causal;
  run_attention(p, context);
}

void reference(const AttentionDecodeParams& a, Context& context) {
  ReferenceParams p = {};
  p.a = a;
  p.q_len = 1;
  p.top_k = a.top_k;
  p.renormalize = a.top_k > 0 && a.renormalize;
  run_attention(p, context);
}

// ---- Calls of small shapes.

std::vector<PagedCase> paged_decode_cases() {
  return {
      {"bf16, 32/4/16 x 64",
       {.heads = {32, 4, 16},
        .dims = {64, 64},
        .kv_len = 200,
        .lengths = {200, 0, 65},
        .page_tokens = 64,
        .num_splits = 2}},
      {"f16, 8/8/8 x 128, pages of 32",
       {.types = same(kF16),
        .heads = {8, 8, 8},
        .dims = {128, 128},
        .kv_len = 100,
        .lengths = {100, 33},
        .page_tokens = 32}},
      {"bf16, 6/6/1 x 64/32, pages of 128",
       {.heads = {6, 6, 1}, .dims = {64, 32}, .kv_len = 130, .lengths = {130}, .page_tokens = 128}},
      {"V in i8, 32/4/16 x 64",
       {.types = {kBf16, kBf16, kI8},
        .heads = {32, 4, 16},
        .dims = {64, 64},
        .kv_len = 200,
        .lengths = {200, 0, 65},
        .page_tokens = 64,
        .num_splits = 2}},
      {"V in f8e4m3, 12/3/6 x 64/256",
       {.types = {kBf16, kBf16, kF8},
        .heads = {12, 3, 6},
        .dims = {64, 256},
        .kv_len = 90,
        .lengths = {90, 33},
        .page_tokens = 64,
        .num_splits = 2}},
      {"K in i8, 12/1/2 x 32/96",
       {.types = {kBf16, kI8, kBf16},
        .heads = {12, 1, 2},
        .dims = {32, 96},
        .kv_len = 100,
        .lengths = {100},
        .page_tokens = 32,
        .num_splits = 3}},
      {"K in f8e4m3, 8/1/2 x 256/32",
       {.types = {kF16, kF8, kF16},
        .heads = {8, 1, 2},
        .dims = {256, 32},
        .kv_len = 150,
        .lengths = {150, 7},
        .page_tokens = 128,
        .num_splits = 2}},
      {"both in i8, 32/4/16 x 64",
       {.types = {kBf16, kI8, kI8},
        .heads = {32, 4, 16},
        .dims = {64, 64},
        .kv_len = 200,
        .lengths = {200, 0, 65},
        .page_tokens = 64,
        .num_splits = 2}},
      {"f8e4m3 and i8, 32/1/4 x 128",
       {.types = {kF16, kF8, kI8},
        .heads = {32, 1, 4},
        .dims = {128, 128},
        .kv_len = 100,
        .lengths = {100, 64},
        .page_tokens = 64,
        .num_splits = 2}},
      {"i8 and f8e4m3, 8/8/8 x 96/64",
       {.types = {kBf16, kI8, kF8},
        .heads = {8, 8, 8},
        .dims = {96, 64},
        .kv_len = 129,
        .lengths = {129},
        .page_tokens = 64}},
      {"f32 and i8",
       {.types = {kF32, kF32, kI8},
        .heads = {8, 2, 4},
        .dims = {64, 64},
        .kv_len = 100,
        .lengths = {100, 3},
        .page_tokens = 64}},
      {"f16 in bf16, heads of 10",
       {.types = {kBf16, kF16, kBf16},
        .heads = {8, 2, 4},
        .dims = {10, 10},
        .kv_len = 70,
        .lengths = {70},
        .page_tokens = 32}},
      {"top 10",
       {.types = {kBf16, kI8, kBf16},
        .heads = {8, 2, 4},
        .dims = {64, 64},
        .kv_len = 200,
        .lengths = {200, 65},
        .page_tokens = 64,
        .top_k = 10}},
      {"window of 70",
       {.heads = {32, 4, 16},
        .dims = {64, 64},
        .kv_len = 200,
        .lengths = {200, 0, 65},
        .page_tokens = 32,
        .num_splits = 2,
        .window = 70}},
      {"window of 70, top 10, capped",
       {.types = {kF16, kI8, kF8},
        .heads = {8, 2, 4},
        .dims = {64, 64},
        .kv_len = 200,
        .lengths = {200, 65},
        .page_tokens = 32,
        .top_k = 10,
        .window = 70,
        .softcap = 2}},
      {"window of 33 of any types, capped",
       {.types = {kF32, kF16, kI8},
        .heads = {6, 3, 2},
        .dims = {40, 64},
        .kv_len = 120,
        .lengths = {120, 17},
        .page_tokens = 32,
        .window = 33,
        .softcap = 2}},
  };
}

std::vector<PagedCase> paged_prefill_cases() {
  const AttentionCase sigma = {
      .heads = {32, 4, 16}, .dims = {64, 64}, .kv_len = 70, .lengths = {70, 40}, .page_tokens = 64, .q_len = 9};
  AttentionCase v_in_i8 = sigma;
  v_in_i8.types = {kBf16, kBf16, kI8};
  AttentionCase two_stages = sigma;  // of tiles, each
  two_stages.types = {kF16, kF8, kI8};
  two_stages.heads = {8, 2, 4};
  two_stages.dims = {128, 128};
  AttentionCase one_stage = two_stages;
  one_stage.types = {kF16, kI8, kF8};
  one_stage.dims = {64, 256};
  one_stage.page_tokens = 128;
  AttentionCase window = sigma;
  window.kv_len = 170;
  window.lengths = {170, 40};
  window.window = 50;
  AttentionCase capped = two_stages;
  capped.kv_len = 170;
  capped.lengths = {170, 40};
  capped.window = 65;
  capped.softcap = 2;
  return {{"bf16 on bf16 and bf16", sigma},    {"bf16 on bf16 and i8", v_in_i8}, {"f16 on f8e4m3 and i8", two_stages},
          {"f16 on i8 and f8e4m3", one_stage}, {"window of 50", window},         {"window of 65, capped", capped}};
}

namespace {

// The same attention on a contiguous cache.
AttentionCase contiguous(AttentionCase c) {
  c.page_tokens = 0;
  return c;
}

// As a session's prompt with selective V, and a session's chunk, have it.
const AttentionCase kSharedCache = {.heads = {8, 2, 4},
                                    .dims = {64, 64},
                                    .kv_len = 100,
                                    .lengths = {98, 99, 100},
                                    .page_tokens = 64,
                                    .shared_cache = true};

void add_decode(OperatorCalls* calls) {
  const auto decode = [&](const std::string& name, const AttentionCase& c) {
    calls->seeded.add("decode attention" + name, decode_call, c);
  };
  const auto selective = [&](const std::string& name, const AttentionCase& c) {
    calls->seeded.add("selective V, " + name, selective_call, c);
  };
  decode(" 32/4/16 x 64", {.heads = {32, 4, 16}, .dims = {64, 64}, .kv_len = 300, .num_splits = 3});
  decode(" 8/8/8 x 128", {.types = same(kF16), .heads = {8, 8, 8}, .dims = {128, 128}, .kv_len = 200, .num_splits = 2});
  decode(" 6/6/1 x 32/128", {.heads = {6, 6, 1}, .dims = {32, 128}, .kv_len = 130});
  decode(", ragged", {.heads = {12, 3, 6}, .dims = {64, 64}, .kv_len = 90, .lengths = {90, 0, 33}, .num_splits = 2});
  decode(" x 256", {.heads = {8, 2, 4}, .dims = {256, 256}, .kv_len = 100, .num_splits = 2});
  decode(", f32", {.types = same(kF32), .heads = {8, 2, 4}, .dims = {64, 64}, .kv_len = 100});
  decode(", top 10", {.heads = {8, 2, 4}, .dims = {64, 64}, .kv_len = 300, .top_k = 10});
  decode(", capped", {.heads = {8, 2, 4}, .dims = {64, 64}, .kv_len = 130, .num_splits = 2, .softcap = 2});
  decode(" 32/1/1 x 64", {.heads = {32, 1, 1}, .dims = {64, 64}, .kv_len = 150, .num_splits = 3});
  decode(" 32/1/4 x 128", {.heads = {32, 1, 4}, .dims = {128, 128}, .kv_len = 150, .num_splits = 2});
  selective("32/4/16 x 64", {.heads = {32, 4, 16}, .dims = {64, 64}, .kv_len = 300, .num_splits = 3, .top_k = 20});
  selective("32/1/4 x 128/96, all but one", {.types = same(kF16),
                                             .heads = {32, 1, 4},
                                             .dims = {128, 96},
                                             .kv_len = 150,
                                             .num_splits = 2,
                                             .top_k = 149,
                                             .renormalize = true});
  selective("8/8/8 x 32, all", {.heads = {8, 8, 8}, .dims = {32, 32}, .kv_len = 90, .top_k = 100});
  selective("equal scores",
            {.heads = {8, 2, 4}, .dims = {64, 64}, .kv_len = 700, .distinct_keys = 3, .num_splits = 2, .top_k = 300});
  selective("ragged", {.types = same(kF16),
                       .heads = {12, 3, 6},
                       .dims = {64, 32},
                       .kv_len = 130,
                       .lengths = {130, 0, 33},
                       .num_splits = 2,
                       .top_k = 10,
                       .renormalize = true});
  selective("one cache for all", {.heads = {8, 2, 4},
                                  .dims = {64, 64},
                                  .kv_len = 100,
                                  .lengths = {98, 99, 100},
                                  .shared_cache = true,
                                  .top_k = 60});
  selective("x 256", {.heads = {8, 2, 4}, .dims = {256, 256}, .kv_len = 100, .top_k = 30});
  for (const PagedCase& c : paged_decode_cases()) {
    decode(", paged, " + c.name, c.attention);
    calls->small.add("decode attention, contiguous, " + c.name, decode_call, contiguous(c.attention));
  }
  AttentionCase shared = kSharedCache;
  calls->small.add("decode attention, paged, one cache for all", decode_call, shared);
  shared.top_k = 20;
  calls->small.add("decode attention, paged, one cache for all, top 20", decode_call, shared);
}

void add_prefill(OperatorCalls* calls) {
  const auto prefill = [&](const std::string& name, const AttentionCase& c) {
    calls->seeded.add("prefill attention" + name, prefill_call, c);
  };
  prefill(" 32/4/16 x 64", {.heads = {32, 4, 16}, .dims = {64, 64}, .kv_len = 70, .q_len = 20});
  prefill(" 8/8/8 x 128", {.types = same(kF16), .heads = {8, 8, 8}, .dims = {128, 128}, .kv_len = 70, .q_len = 30});
  prefill(" 6/6/1 x 32/128", {.heads = {6, 6, 1}, .dims = {32, 128}, .kv_len = 40, .q_len = 20, .causal = false});
  prefill(", ragged", {.heads = {12, 3, 6}, .dims = {64, 64}, .kv_len = 40, .lengths = {40, 0, 17}, .q_len = 9});
  prefill(", capped", {.heads = {8, 2, 4}, .dims = {64, 64}, .kv_len = 70, .q_len = 20, .softcap = 2});
  prefill(" x 256", {.heads = {8, 2, 4}, .dims = {256, 256}, .kv_len = 50, .q_len = 20});
  prefill(", f32", {.types = same(kF32), .heads = {8, 2, 4}, .dims = {64, 64}, .kv_len = 30, .q_len = 9});
  prefill(" 12/4/6, plain", {.heads = {12, 4, 6}, .dims = {80, 64}, .kv_len = 30, .q_len = 9});
  for (const PagedCase& c : paged_prefill_cases()) {
    prefill(", paged, " + c.name, c.attention);
    calls->small.add("prefill attention, contiguous, " + c.name, prefill_call, contiguous(c.attention));
  }
  AttentionCase shared = kSharedCache;
  shared.lengths = {100};
  shared.q_len = 20;
  calls->small.add("prefill attention, paged, one cache for all", prefill_call, shared);
}

// ---- At the shapes of Sigma.

void add_sigma_decode(const Sigma& model, CallList* calls) {
  const auto decode = [&](const std::string& name, const AttentionCase& c) {
    calls->add(model.name + "decode attention, " + name, decode_call, c);
  };
  const AttentionCase paged = {.heads = kSigmaHeads,
                               .dims = {model.head_dim, model.head_dim},
                               .kv_len = 4096,
                               .lengths = {4096},
                               .page_tokens = 64};
  decode("4k", paged);
  AttentionCase c = paged;
  c.page_tokens = 0;
  decode("4k, contiguous", c);
  c = paged;
  c.heads = kStandardHeads;
  decode("4k, 32/16/16", c);
  c = paged;
  c.types = same(kF16);
  decode("4k, f16", c);
  c.types = {kBf16, kBf16, kI8};
  decode("4k, V in i8", c);
  c.types = {kBf16, kI8, kI8};
  decode("4k, K and V in i8", c);
  c.types = {kBf16, kF8, kF8};
  decode("4k, K and V in f8e4m3", c);
  c = paged;
  c.lengths = {4096, 1, 4095, 63, 2000, 65, 3000, 0};
  decode("batch 8, ragged", c);
  c = paged;
  c.top_k = 100;
  decode("4k, top 100", c);
  c = paged;
  c.kv_len = 32768;
  c.lengths = {32768};
  decode("32k", c);
  c.top_k = 1000;
  decode("32k, top 1000", c);
  c = paged;
  c.kv_len = 131072;
  c.lengths = {131072};
  decode("128k", c);
}

void add_sigma_prefill(const Sigma& model, CallList* calls) {
  const auto prefill = [&](const std::string& name, const AttentionCase& c) {
    calls->add(model.name + "prefill attention, " + name, prefill_call, c);
  };
  const AttentionCase paged = {.heads = kSigmaHeads,
                               .dims = {model.head_dim, model.head_dim},
                               .kv_len = 4096,
                               .lengths = {4096},
                               .page_tokens = 64,
                               .q_len = 512};
  prefill("512 on 4k", paged);
  AttentionCase c = paged;
  c.types = same(kF16);
  prefill("512 on 4k, f16", c);
  c.types = {kBf16, kI8, kI8};
  prefill("512 on 4k, K and V in i8", c);
  c.types = {kBf16, kF8, kF8};
  prefill("512 on 4k, K and V in f8e4m3", c);
  c = paged;
  c.kv_len = 512;
  c.lengths = {512};
  prefill("512 on 512", c);
  c = paged;
  c.page_tokens = 0;
  c.kv_len = 2048;
  c.lengths = {2048};
  c.q_len = 2048;
  prefill("2k on 2k, contiguous", c);
}

// ---- From PTX: for each instantiation of a kernel, calls that differ in all that the kernel looks at.

constexpr int64_t kHeadDims[] = {32, 64, 96, 128, 256};
// So little shared memory that prefill has one stage of tiles.
constexpr PlannedGpu kTightGpu = {6, 48 * 1024};

// What a call has besides.
struct Twist {
  bool non_finite = false;   // NaN and infinities in K and V
  bool bad_lengths = false;  // kv_lens outside of the cache
  bool without_lse = false;
  bool negative_scale = false;
  bool large_scores = false;  // of order 1e9, which prefill computes in its own way
};

// Every so often an element becomes infinite or NaN.
void spoil(Tensor* tensor) {
  std::vector<uint8_t> bytes = tensor->memory.values();
  const size_t size = dtype_size(tensor->dtype);
  const float values[] = {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN(),
                          -std::numeric_limits<float>::infinity()};
  for (size_t i = 0; i < bytes.size() / size; i += 1009)
    if (tensor->dtype != kI8) convert_from_f32(tensor->dtype, &bytes[i * size], &values[i % 3], 1);
  tensor->memory.upload(bytes);
}

template <typename Params>
Call twisted(Call call, const Twist& twist, void (*launcher)(const Params&, Context&)) {
  return changed(std::move(call), launcher, [&](Call& c, Params& p) {
    for (Tensor& tensor : c.tensors) {
      const bool is_kv = (tensor.name[0] == 'k' || tensor.name[0] == 'v') && tensor.name != "kv_lens";
      if (twist.non_finite && is_kv) spoil(&tensor);
    }
    if (twist.bad_lengths) {  // of one sequence: which of two is reported would depend on the order of blocks
      std::vector<int32_t> lengths(static_cast<size_t>(p.batch_size), static_cast<int32_t>(p.kv_len));
      lengths[0] = p.v.head_dim % 64 == 0 ? -3 : lengths[0] + 5;
      p.kv_lens = add_integers(c, "bad kv_lens", lengths);
    }
    if (twist.without_lse) p.lse = nullptr;
    if (twist.negative_scale) p.sm_scale = -p.sm_scale;
    if (twist.large_scores) p.sm_scale *= 1e9f;
  });
}

std::string name_of(const char* what, const AttentionCase& c, const Twist& twist) {
  std::string name = std::string(what) + ", " + text_of(c.types.q) + " on " + text_of(c.types.k) + " and " +
                     text_of(c.types.v) + ", " + std::to_string(c.heads.q) + "/" + std::to_string(c.heads.k) + "/" +
                     std::to_string(c.heads.v) + " x " + std::to_string(c.dims.qk) + "/" + std::to_string(c.dims.vo) +
                     ", " + std::to_string(c.kv_len) + " keys";
  if (c.page_tokens) name += ", pages of " + std::to_string(c.page_tokens);
  if (twist.non_finite) name += ", not finite";
  if (twist.bad_lengths) name += ", bad lengths";
  if (twist.negative_scale) name += ", negative scale";
  if (twist.large_scores) name += ", large scores";
  if (c.window) name += ", window " + std::to_string(c.window);
  if (c.softcap > 0) name += ", capped";
  return name;
}

// Types of K and V of which one is of 8 bits, or both.
Types scaled_types(DType q, int i) {
  const Types types[] = {{q, kI8, kF8}, {q, q, kI8}, {q, kF8, q}, {q, kF8, kI8}, {q, kI8, q}, {q, q, kF8}};
  return types[i % 6];
}

// attention_decode_kernel<T, kDimVo, kTiles, kScaled>: kTiles is 1 for up to 8 query heads a unit.
void add_ptx_decode(CallList* calls) {
  struct Variant {
    int64_t kv_len;
    std::vector<int32_t> lengths;
    int64_t page_tokens, num_splits;
    Heads few, many;
    Twist twist = {};
    bool shared_cache = false;
    int64_t window = 0;
    float softcap = 0;
  };
  const std::vector<Variant> variants = {
      {75, {75, 33}, 64, 2, {8, 2, 4}, {12, 1, 2}},
      {200, {}, 0, 1, {8, 8, 8}, {32, 1, 4}, {.negative_scale = true}},
      {200, {200, 0, 65}, 128, 0, {32, 4, 16}, {10, 1, 10}, {.non_finite = true}},
      {130, {130, 97}, 0, 5, {6, 6, 1}, {24, 2, 1}, {.without_lse = true}, true},
      {600, {600}, 64, 2, {4, 1, 4}, {40, 1, 5}, {.large_scores = true}},
      {90, {90, 90}, 64, 2, {8, 1, 2}, {32, 1, 1}, {.bad_lengths = true}},
      {200, {200, 33}, 64, 2, {8, 2, 4}, {12, 1, 2}, {}, false, 70, 2},
      {100, {100, 33}, 0, 2, {8, 2, 4}, {12, 1, 2}},
      {150, {150, 0, 65}, 0, 0, {32, 4, 16}, {10, 1, 10}, {.non_finite = true}},
      {500, {500}, 0, 2, {4, 1, 4}, {40, 1, 5}, {.large_scores = true}},
      {180, {180, 33}, 0, 2, {8, 2, 4}, {12, 1, 2}, {}, false, 70, 2},
      {190, {190, 90}, 64, 1, {8, 8, 8}, {32, 1, 4}, {.negative_scale = true}},
  };
  int i = 0;
  for (const DType q : {kBf16, kF16}) {
    for (const int64_t dim : kHeadDims) {
      for (const bool many : {false, true}) {
        for (const bool scaled : {false, true}) {
          for (size_t v = 0; v < variants.size(); ++v) {
            const Variant& variant = variants[v];
            AttentionCase c;
            c.types = scaled ? scaled_types(q, static_cast<int>(v) + i / 6) : same(q);
            c.heads = many ? variant.many : variant.few;
            c.dims = {v % 2 == 0 ? kHeadDims[static_cast<size_t>(i) % 5] : dim, dim};
            c.kv_len = variant.kv_len;
            c.lengths = variant.lengths;
            c.page_tokens = variant.page_tokens;
            c.num_splits = variant.num_splits;
            c.shared_cache = variant.shared_cache;
            c.window = variant.window;
            c.softcap = variant.softcap;
            ++i;
            const Twist twist = variant.twist;
            calls
                ->add(name_of("decode attention", c, twist),
                      [=] { return twisted(decode_call(c), twist, attention_decode); })
                .is_rejected = twist.bad_lengths;
          }
        }
      }
    }
  }
}

// attention_prefill_kernel<T, kDimQk, kDimVo, kQuantized>: kDimQk is that of both sizes where they are equal, else 0.
void add_ptx_prefill(CallList* calls) {
  struct Variant {
    int64_t q_len, kv_len;
    std::vector<int32_t> lengths;
    int64_t page_tokens;
    Heads heads;
    bool causal = true;
    Twist twist = {};
    PlannedGpu gpu = kSmallGpu;
    int64_t window = 0;
    float softcap = 0;
  };
  const std::vector<Variant> variants = {
      {9, 70, {70}, 64, {8, 2, 4}},
      {20, 150, {150, 0, 65}, 128, {4, 4, 2}, true, {.large_scores = true}, kLargeGpu},
      {5, 40, {}, 0, {8, 8, 8}, false, {.negative_scale = true}},
      {33, 130, {130, 21}, 64, {6, 6, 1}, true, {.non_finite = true}},
      {12, 70, {70}, 0, {2, 1, 1}, false, {.non_finite = true, .without_lse = true}, kLargeGpu},
      {9, 70, {70, 70}, 64, {8, 2, 4}, true, {.bad_lengths = true}},
      {12, 70, {70}, 64, {8, 2, 4}, true, {.non_finite = true}, kTightGpu},
      {20, 150, {150, 33}, 64, {8, 2, 4}, true, {.non_finite = true}, kSmallGpu, 40, 2},
  };
  int i = 0;
  for (const DType q : {kBf16, kF16}) {
    for (const int64_t dim : kHeadDims) {
      for (const int kind : {0, 1, 2}) {
        for (size_t v = 0; v < variants.size(); ++v) {
          const Variant& variant = variants[v];
          AttentionCase c;
          c.types = kind == 2 ? scaled_types(q, static_cast<int>(v) + i / 6) : same(q);
          c.heads = variant.heads;
          const int64_t other = kHeadDims[static_cast<size_t>(i) % 5];
          c.dims = {kind == 1 ? (other == dim ? (dim == 64 ? 32 : 64) : other) : dim, dim};
          c.q_len = variant.q_len;
          c.kv_len = variant.kv_len;
          c.lengths = variant.lengths;
          c.page_tokens = variant.page_tokens;
          c.causal = variant.causal;
          c.window = variant.window;
          c.softcap = variant.softcap;
          ++i;
          const Twist twist = variant.twist;
          calls
              ->add(
                  name_of("prefill attention", c, twist),
                  [=] { return twisted(prefill_call(c), twist, attention_prefill); }, variant.gpu)
              .is_rejected = twist.bad_lengths;
        }
      }
    }
  }
}

// attention_selective_scores_kernel<T, K, kTiles>: 1 for up to 8 query heads for a K head, else 2; and
// attention_selective_values_kernel<V>.
void add_ptx_selective(CallList* calls) {
  struct Variant {
    int64_t kv_len;
    std::vector<int32_t> lengths;
    int64_t page_tokens, num_splits, top_k;
    Heads few, many;
    int64_t distinct_keys = 0;
    bool renormalize = false;
    Twist twist = {};
    int64_t window = 0;
    float softcap = 0;
  };
  const std::vector<Variant> variants = {
      {90, {90}, 64, 2, 10, {8, 2, 4}, {12, 1, 4}},
      {300, {}, 0, 3, 60, {8, 8, 8}, {16, 1, 2}, 0, true},
      {700, {700, 0, 33}, 0, 0, 300, {8, 1, 2}, {32, 2, 4}, 3},
      {200, {200, 65}, 128, 0, 40, {6, 6, 1}, {12, 1, 12}, 0, false, {.non_finite = true, .without_lse = true}},
      {3000, {}, 0, 2, 2300, {2, 1, 1}, {10, 1, 1}},
      {100, {100, 100}, 64, 1, 200, {8, 2, 4}, {12, 1, 4}, 0, false, {.bad_lengths = true}},
      {300, {300, 65}, 32, 2, 40, {8, 2, 4}, {12, 1, 4}, 0, false, {}, 150, 2},
  };
  int i = 0;
  for (const DType q : {kBf16, kF16}) {
    for (const DType k : {q, kI8, kF8}) {
      for (const bool many : {false, true}) {
        for (const Variant& variant : variants) {
          const DType v_types[] = {kI8, kF8, kF32, kF16, kBf16};
          AttentionCase c;
          c.types = {q, k, v_types[i % 5]};
          c.heads = many ? variant.many : variant.few;
          c.dims = {i % 3 == 0 ? 128 : i % 3 == 1 ? 64 : 48, i % 4 == 0 ? 256 : 64};
          c.kv_len = variant.kv_len;
          c.lengths = variant.lengths;
          c.page_tokens = variant.page_tokens;
          c.num_splits = variant.num_splits;
          c.top_k = variant.top_k;
          c.distinct_keys = variant.distinct_keys;
          c.renormalize = variant.renormalize;
          c.window = variant.window;
          c.softcap = variant.softcap;
          ++i;
          const Twist twist = variant.twist;
          calls
              ->add(name_of("selective V", c, twist), [=] { return twisted(selective_call(c), twist, only_selective); })
              .is_rejected = twist.bad_lengths;
        }
      }
    }
  }
}

// attention_plain_kernel, for prefill and decode: any types and sizes.
void add_plain(CallList* calls) {
  struct Variant {
    Types types;
    Dims dims;
    int64_t page_tokens, top_k;
    Twist twist = {};
    int64_t window = 0;
    float softcap = 0;
  };
  const std::vector<Variant> variants = {
      {{kF32, kF16, kI8}, {64, 64}, 64, 0},        {{kBf16, kF32, kF8}, {10, 33}, 0, 0, {.non_finite = true}},
      {{kF16, kI8, kF32}, {80, 250}, 64, 7},       {{kF32, kF8, kBf16}, {64, 12}, 0, 20, {.without_lse = true}},
      {{kF32, kBf16, kF16}, {256, 256}, 0, 0},     {{kBf16, kI8, kI8}, {20, 20}, 32, 0, {.bad_lengths = true}},
      {{kF32, kF32, kI8}, {64, 64}, 32, 0, {}, 9}, {{kBf16, kF16, kF32}, {20, 64}, 0, 7, {}, 0, 2},
  };
  for (const Variant& variant : variants) {
    AttentionCase c;
    c.types = variant.types;
    c.heads = {6, 3, 2};
    c.dims = variant.dims;
    c.kv_len = 50;
    const Twist twist = variant.twist;
    c.lengths = twist.bad_lengths ? std::vector<int32_t>{50, 50} : std::vector<int32_t>{50, 0, 17};
    c.page_tokens = variant.page_tokens;
    c.window = variant.window;
    c.softcap = variant.softcap;
    AttentionCase prefill = c;
    prefill.q_len = 4;
    calls
        ->add(name_of("plain prefill attention", c, twist),
              [=] { return twisted(prefill_call(prefill), twist, attention_plain_prefill); })
        .is_rejected = twist.bad_lengths;
    c.top_k = variant.top_k;
    c.renormalize = variant.top_k == 20;
    calls
        ->add(name_of("plain decode attention", c, twist),
              [=] { return twisted(decode_call(c), twist, attention_plain_decode); })
        .is_rejected = twist.bad_lengths;
  }
}

}  // namespace

OperatorCalls attention_decode_calls() {
  OperatorCalls calls;
  add_decode(&calls);
  for (const Sigma& model : kSigmas) add_sigma_decode(model, &calls.sigma);
  add_ptx_decode(&calls.ptx);
  add_ptx_selective(&calls.ptx);
  add_plain(&calls.ptx);
  return calls;
}

OperatorCalls attention_prefill_calls() {
  OperatorCalls calls;
  add_prefill(&calls);
  for (const Sigma& model : kSigmas) add_sigma_prefill(model, &calls.sigma);
  add_ptx_prefill(&calls.ptx);
  return calls;
}

}  // namespace diffqkv::cuda
