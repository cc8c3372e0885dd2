// What prefill and decode have in common: the tensors, the head counts, and what follows from them.
#pragma once

#include "backend/cpu/attention_pack.h"
#include "backend/cpu/kernels.h"
#include "backend/error.h"

namespace diffqkv::cpu::DIFFQKV_ISA {
namespace {

constexpr int64_t kBlock = 128;     // most keys in a block
constexpr int64_t kScoreRows = 32;  // rows of S at a time
constexpr float kInfinity = __builtin_inff();
constexpr double kLn2 = 0.693147180559945309417232, kLog2E = 1.44269504088896340735992;

struct Problem {
  const char *q, *k, *v;
  char* out;
  float* lse;
  const int32_t* kv_lens;
  DType q_dtype, k_dtype, v_dtype, out_dtype;
  int64_t num_batches, num_queries;  // num_queries per batch; q and out are [batch][query][head][dim]
  int64_t kv_len, num_q_heads, num_k_heads, num_v_heads, head_dim_qk, head_dim_vo;
  int64_t stride_k_batch, stride_v_batch;  // bytes
  int64_t stride_lse_batch, stride_lse_query, stride_lse_head;
  bool causal;
  bool kv_lens_per_query;  // kv_lens is [num_queries], of one batch; else [num_batches]
  // Derived.
  float scale_log2;  // >= 0
  float q_factor;    // the sign of sm_scale, or 0: raw scores then rank as the scaled ones do
  bool bf16_scores, bf16_values, amx;
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

// Everything but the fields that prefill and decode set differently. Throws on kv_lens and types, before any thread starts.
template <typename Params>
Problem make_problem(const Params& p) {
  Problem r = {};
  for (const DType dtype : {p.q_dtype, p.k_dtype, p.v_dtype, p.out_dtype}) {
    if (dtype != DType::f32 && dtype != DType::f16 && dtype != DType::bf16) {
      fail(ErrorCode::invalid_argument, "attention takes f32, f16 and bf16, not %s; convert the tensor first",
           dtype_name(dtype));
    }
  }
  for (int64_t b = 0; p.kv_lens && b < p.batch_size; ++b) {
    if (p.kv_lens[b] < 0 || p.kv_lens[b] > p.kv_len) {
      fail(ErrorCode::invalid_argument, "kv_lens[%lld] is %d, but it must lie in [0, %lld], the kv_len of k and v",
           static_cast<long long>(b), p.kv_lens[b], static_cast<long long>(p.kv_len));
    }
  }
  r.q = static_cast<const char*>(p.q), r.k = static_cast<const char*>(p.k), r.v = static_cast<const char*>(p.v);
  r.out = static_cast<char*>(p.out), r.lse = p.lse, r.kv_lens = p.kv_lens;
  r.q_dtype = p.q_dtype, r.k_dtype = p.k_dtype, r.v_dtype = p.v_dtype, r.out_dtype = p.out_dtype;
  r.kv_len = p.kv_len, r.num_q_heads = p.num_q_heads, r.num_k_heads = p.num_k_heads, r.num_v_heads = p.num_v_heads;
  r.head_dim_qk = p.head_dim_qk, r.head_dim_vo = p.head_dim_vo;
  r.stride_k_batch = p.stride_k_batch * static_cast<int64_t>(dtype_size(p.k_dtype));
  r.stride_v_batch = p.stride_v_batch * static_cast<int64_t>(dtype_size(p.v_dtype));
  r.q_factor = p.sm_scale < 0 ? -1 : p.sm_scale == 0 ? 0 : 1;
  r.scale_log2 = static_cast<float>(__builtin_fabs(static_cast<double>(p.sm_scale)) * kLog2E);
  // bf16 products only where both factors are bf16 as they come; P is rounded to bf16 only where out is.
  r.bf16_scores = kHasBf16Gemm && p.q_dtype == DType::bf16 && p.k_dtype == DType::bf16;
  r.bf16_values = kHasBf16Gemm && p.v_dtype == DType::bf16 && p.out_dtype == DType::bf16;
#if defined(__AVX512BF16__)
  r.amx = (r.bf16_scores || r.bf16_values) && use_amx();
#endif
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
