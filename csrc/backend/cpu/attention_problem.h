// What prefill and decode have in common: the tensors, the head counts, and what follows from them.
#pragma once

#include "backend/cpu/attention_cache.h"
#include "backend/cpu/kernels.h"

namespace diffqkv::cpu::DIFFQKV_ISA {
namespace {

constexpr int64_t kScoreRows = 32;  // rows of S at a time
constexpr float kInfinity = __builtin_inff();
constexpr double kLn2 = 0.693147180559945309417232, kLog2E = 1.44269504088896340735992;

struct Problem {
  const char* q;
  Cache k, v;
  char* out;
  float* lse;
  const int32_t* kv_lens;
  DType q_dtype, out_dtype;
  int64_t num_batches, num_queries;  // num_queries per batch; q and out are [batch][query][head][dim]
  int64_t kv_len, num_q_heads, num_k_heads, num_v_heads, head_dim_qk, head_dim_vo;
  int64_t stride_lse_batch, stride_lse_query, stride_lse_head;
  bool causal;
  bool kv_lens_per_query;  // kv_lens is [num_queries], of one batch; else [num_batches]
  // Derived.
  float scale_log2;  // >= 0
  float q_factor;    // the sign of sm_scale, or 0: raw scores then rank as the scaled ones do
  bool bf16_scores, bf16_values, amx;
  bool byte_values;     // few rows meet V in i8 by AMX int8
  bool lift_k, lift_v;  // i8 or f8e4m3, which becomes bf16 before a bf16 product
  bool sum_d;  // d is summed apart from O: for lse where P is rounded to bf16, and where P has V's scales in it
  int64_t q_heads_per_k_head, q_heads_per_v_head;
  int64_t ldq, num_v_panels, ldo;  // elements; ldo = 16 * num_v_panels, d stands in column head_dim_vo
  int64_t stride_k_panel, stride_v_panel;
  int64_t block;  // keys at a time

  DIFFQKV_INLINE int64_t num_visible_keys(int64_t batch, int64_t query) const {
    const int64_t index = kv_lens_per_query ? query : batch;
    const int64_t len = kv_lens ? kv_lens[index] : kv_len;
    return causal ? max_of(0, len - (num_queries - 1 - query)) : len;
  }
};

template <typename Params>
Cache make_cache(const Params& p, bool values) {
  Cache r = {};
  r.dtype = values ? p.v_dtype : p.k_dtype;
  if (!visit_cache(r.dtype, [](auto) DIFFQKV_LAMBDA {})) {
    fail(ErrorCode::invalid_argument, "attention takes %s of type f32, f16, bf16, i8 and f8e4m3, not %s",
         values ? "v" : "k", dtype_name(r.dtype));
  }
  r.data = static_cast<const char*>(values ? p.v : p.k);
  r.scales = static_cast<const char*>(values ? p.v_scales : p.k_scales);
  r.pages = p.pages, r.values = values, r.pages_shared = p.pages_shared;
  r.scaled = is_scaled(r.dtype);
  r.num_heads = values ? p.num_v_heads : p.num_k_heads;
  const int64_t head_dim = values ? p.head_dim_vo : p.head_dim_qk, element = static_cast<int64_t>(dtype_size(r.dtype));
  r.head_bytes = head_dim * element, r.token_bytes = r.num_heads * r.head_bytes;
  r.stride_batch = (values ? p.stride_v_batch : p.stride_k_batch) * element;
  r.stride_scales_batch = r.stride_batch / r.head_bytes * 2;
  if (p.pages) {
    check_page_tokens("attention", p.page_tokens);
    r.page_shift = __builtin_ctzll(static_cast<unsigned long long>(p.page_tokens));
    r.page_offset = values ? p.v_page_offset : p.k_page_offset;
    r.page_scales_offset = page_elements_bytes(r.dtype, p.page_tokens, r.num_heads, head_dim);
  } else if (r.scaled && !r.scales && p.batch_size * p.kv_len > 0) {
    fail(ErrorCode::invalid_argument, "attention: %s of type %s needs its scales", values ? "v" : "k",
         dtype_name(r.dtype));
  }
  return r;
}

// Everything but the fields that prefill and decode set differently. Throws on kv_lens and types, before any thread starts.
template <typename Params>
Problem make_problem(const Params& p) {
  Problem r = {};
  for (const DType dtype : {p.q_dtype, p.out_dtype}) {
    if (!visit(dtype, [](auto) DIFFQKV_LAMBDA {})) {
      fail(ErrorCode::invalid_argument, "attention takes q and out of type f32, f16 and bf16, not %s",
           dtype_name(dtype));
    }
  }
  for (int64_t b = 0; p.kv_lens && b < p.batch_size; ++b) {
    if (p.kv_lens[b] < 0 || p.kv_lens[b] > p.kv_len) {
      fail(ErrorCode::invalid_argument, "kv_lens[%lld] is %d, but it must lie in [0, %lld], the kv_len of k and v",
           static_cast<long long>(b), p.kv_lens[b], static_cast<long long>(p.kv_len));
    }
  }
  r.q = static_cast<const char*>(p.q), r.k = make_cache(p, false), r.v = make_cache(p, true);
  r.out = static_cast<char*>(p.out), r.lse = p.lse, r.kv_lens = p.kv_lens;
  r.q_dtype = p.q_dtype, r.out_dtype = p.out_dtype;
  r.kv_len = p.kv_len, r.num_q_heads = p.num_q_heads, r.num_k_heads = p.num_k_heads, r.num_v_heads = p.num_v_heads;
  r.head_dim_qk = p.head_dim_qk, r.head_dim_vo = p.head_dim_vo;
  r.q_factor = p.sm_scale < 0 ? -1 : p.sm_scale == 0 ? 0 : 1;
  r.scale_log2 = static_cast<float>(__builtin_fabs(static_cast<double>(p.sm_scale)) * kLog2E);
  // bf16 products only where both factors are bf16 or exact in it; P is rounded to bf16 only where out is.
  r.bf16_scores = kHasBf16Gemm && p.q_dtype == DType::bf16 && (p.k_dtype == DType::bf16 || r.k.scaled);
  r.bf16_values = kHasBf16Gemm && p.out_dtype == DType::bf16 && (p.v_dtype == DType::bf16 || r.v.scaled);
#if defined(__AVX512BF16__)
  r.amx = (r.bf16_scores || r.bf16_values) && use_amx();
  r.byte_values =
      r.amx && r.bf16_values && p.v_dtype == DType::i8 && p.head_dim_vo % 64 == 0 && __builtin_cpu_supports("amx-int8");
#endif
  r.lift_k = r.bf16_scores && r.k.scaled, r.lift_v = r.bf16_values && r.v.scaled;
  r.sum_d = r.v.scaled || (r.bf16_values && r.lse);
  r.q_heads_per_k_head = p.num_q_heads / p.num_k_heads, r.q_heads_per_v_head = p.num_q_heads / p.num_v_heads;
  r.ldq = r.bf16_scores ? round_up(p.head_dim_qk, kPairStep) : p.head_dim_qk;
  r.stride_k_panel = r.bf16_scores ? r.ldq / 2 * kPanel : round_up(p.head_dim_qk, kPanel) * kPanel;
  r.num_v_panels = p.head_dim_vo / kPanel + 1;
  r.ldo = r.num_v_panels * kPanel;
  r.stride_v_panel = r.bf16_values ? kBlock / 2 * kPanel : kBlock * kPanel;
  r.block = kBlock;
  return r;
}

// The smallest number of query heads that holds whole groups of K heads and of V heads.
DIFFQKV_INLINE int64_t unit_heads(const Problem& p) {
  int64_t a = p.q_heads_per_k_head, b = p.q_heads_per_v_head;
  while (b) {
    const int64_t rest = a % b;
    a = b, b = rest;
  }
  return p.q_heads_per_k_head / a * p.q_heads_per_v_head;
}

}  // namespace
}  // namespace diffqkv::cpu::DIFFQKV_ISA
