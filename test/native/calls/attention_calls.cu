// Calls of attention over contiguous and paged caches, and their tables.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>

#include "calls/call.h"

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

// ---- Tables.

namespace {

constexpr DType kF32 = DType::f32, kF16 = DType::f16, kBf16 = DType::bf16, kI8 = DType::i8, kF8 = DType::f8e4m3;

NamedCall decode(const std::string& name, const AttentionCase& c) {
  return {"decode attention" + name, [c] { return decode_call(c); }};
}
NamedCall prefill(const std::string& name, const AttentionCase& c) {
  return {"prefill attention" + name, [c] { return prefill_call(c); }};
}
NamedCall selective(const std::string& name, const AttentionCase& c) {
  return {"selective V, " + name, [c] { return selective_call(c); }};
}

}  // namespace

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

std::vector<NamedCall> seeded_attention_calls() {
  std::vector<NamedCall> calls = {
      decode(" 32/4/16 x 64", {.heads = {32, 4, 16}, .dims = {64, 64}, .kv_len = 300, .num_splits = 3}),
      decode(" 8/8/8 x 128",
             {.types = same(kF16), .heads = {8, 8, 8}, .dims = {128, 128}, .kv_len = 200, .num_splits = 2}),
      decode(" 6/6/1 x 32/128", {.heads = {6, 6, 1}, .dims = {32, 128}, .kv_len = 130}),
      decode(", ragged",
             {.heads = {12, 3, 6}, .dims = {64, 64}, .kv_len = 90, .lengths = {90, 0, 33}, .num_splits = 2}),
      decode(" x 256", {.heads = {8, 2, 4}, .dims = {256, 256}, .kv_len = 100, .num_splits = 2}),
      decode(", f32", {.types = same(kF32), .heads = {8, 2, 4}, .dims = {64, 64}, .kv_len = 100}),
      decode(", top 10", {.heads = {8, 2, 4}, .dims = {64, 64}, .kv_len = 300, .top_k = 10}),
      decode(", capped", {.heads = {8, 2, 4}, .dims = {64, 64}, .kv_len = 130, .num_splits = 2, .softcap = 2}),
      decode(" 32/1/1 x 64", {.heads = {32, 1, 1}, .dims = {64, 64}, .kv_len = 150, .num_splits = 3}),
      decode(" 32/1/4 x 128", {.heads = {32, 1, 4}, .dims = {128, 128}, .kv_len = 150, .num_splits = 2}),
      prefill(" 32/4/16 x 64", {.heads = {32, 4, 16}, .dims = {64, 64}, .kv_len = 70, .q_len = 20}),
      prefill(" 8/8/8 x 128", {.types = same(kF16), .heads = {8, 8, 8}, .dims = {128, 128}, .kv_len = 70, .q_len = 30}),
      prefill(" 6/6/1 x 32/128", {.heads = {6, 6, 1}, .dims = {32, 128}, .kv_len = 40, .q_len = 20, .causal = false}),
      prefill(", ragged", {.heads = {12, 3, 6}, .dims = {64, 64}, .kv_len = 40, .lengths = {40, 0, 17}, .q_len = 9}),
      prefill(", capped", {.heads = {8, 2, 4}, .dims = {64, 64}, .kv_len = 70, .q_len = 20, .softcap = 2}),
      prefill(" x 256", {.heads = {8, 2, 4}, .dims = {256, 256}, .kv_len = 50, .q_len = 20}),
      prefill(", f32", {.types = same(kF32), .heads = {8, 2, 4}, .dims = {64, 64}, .kv_len = 30, .q_len = 9}),
      prefill(" 12/4/6, plain", {.heads = {12, 4, 6}, .dims = {80, 64}, .kv_len = 30, .q_len = 9}),
      selective("32/4/16 x 64", {.heads = {32, 4, 16}, .dims = {64, 64}, .kv_len = 300, .num_splits = 3, .top_k = 20}),
      selective("32/1/4 x 128/96, all but one", {.types = same(kF16),
                                                 .heads = {32, 1, 4},
                                                 .dims = {128, 96},
                                                 .kv_len = 150,
                                                 .num_splits = 2,
                                                 .top_k = 149,
                                                 .renormalize = true}),
      selective("8/8/8 x 32, all", {.heads = {8, 8, 8}, .dims = {32, 32}, .kv_len = 90, .top_k = 100}),
      selective(
          "equal scores",
          {.heads = {8, 2, 4}, .dims = {64, 64}, .kv_len = 700, .distinct_keys = 3, .num_splits = 2, .top_k = 300}),
      selective("ragged", {.types = same(kF16),
                           .heads = {12, 3, 6},
                           .dims = {64, 32},
                           .kv_len = 130,
                           .lengths = {130, 0, 33},
                           .num_splits = 2,
                           .top_k = 10,
                           .renormalize = true}),
      selective("one cache for all", {.heads = {8, 2, 4},
                                      .dims = {64, 64},
                                      .kv_len = 100,
                                      .lengths = {98, 99, 100},
                                      .shared_cache = true,
                                      .top_k = 60}),
      selective("x 256", {.heads = {8, 2, 4}, .dims = {256, 256}, .kv_len = 100, .top_k = 30}),
  };
  for (const PagedCase& c : paged_decode_cases()) calls.push_back(decode(", paged, " + c.name, c.attention));
  for (const PagedCase& c : paged_prefill_cases()) calls.push_back(prefill(", paged, " + c.name, c.attention));
  return calls;
}

std::vector<NamedCall> more_attention_calls() {
  const auto contiguous = [](AttentionCase c) {
    c.page_tokens = 0;
    return c;
  };
  std::vector<NamedCall> calls;
  for (const PagedCase& c : paged_decode_cases())
    calls.push_back(decode(", contiguous, " + c.name, contiguous(c.attention)));
  for (const PagedCase& c : paged_prefill_cases())
    calls.push_back(prefill(", contiguous, " + c.name, contiguous(c.attention)));
  // As a session's prompt with selective V, and a session's chunk, have it.
  AttentionCase shared = {.heads = {8, 2, 4},
                          .dims = {64, 64},
                          .kv_len = 100,
                          .lengths = {98, 99, 100},
                          .page_tokens = 64,
                          .shared_cache = true};
  calls.push_back(decode(", paged, one cache for all", shared));
  shared.top_k = 20;
  calls.push_back(decode(", paged, one cache for all, top 20", shared));
  shared.top_k = 0;
  shared.lengths = {100};
  shared.q_len = 20;
  calls.push_back(prefill(", paged, one cache for all", shared));
  return calls;
}

}  // namespace diffqkv::cuda
