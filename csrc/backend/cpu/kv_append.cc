// k_cache[positions[t]] = rope(k[t]), v_cache[positions[t]] = v[t]. Split by tokens. Bound by memory.
#include "backend/cpu/isa_kernels.h"
#include "backend/cpu/parallel.h"
#include "backend/cpu/rotary.h"
#include "backend/cpu/simd.h"
#include "backend/error.h"

namespace diffqkv::cpu::DIFFQKV_ISA {
namespace {

template <typename Cache, typename K>
void append_k(const KvAppendParams& p, int64_t begin, int64_t end) {
  const int64_t token_size = p.num_k_heads * p.head_dim_qk;
  for (int64_t t = begin; t < end; ++t) {
    rotate_heads(static_cast<const K*>(p.k) + t * token_size,
                 static_cast<Cache*>(p.k_cache) + p.positions[t] * token_size, p.positions[t], p.inv_freq,
                 p.num_k_heads, p.head_dim_qk);
  }
}

template <typename Cache, typename V>
void append_v(const KvAppendParams& p, int64_t begin, int64_t end) {
  const int64_t n = p.num_v_heads * p.head_dim_vo;
  for (int64_t t = begin; t < end; ++t) {
    const V* v = static_cast<const V*>(p.v) + t * n;
    Cache* out = static_cast<Cache*>(p.v_cache) + p.positions[t] * n;
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) store(out + i, load(v + i));
    if (i < n) store_n(out + i, load_n(v + i, n - i), n - i);
  }
}

void append(const KvAppendParams& p, int64_t begin, int64_t end) {
  visit(p.k_dtype, [&](auto k) {
    visit(p.k_cache_dtype, [&](auto cache) { append_k<decltype(cache), decltype(k)>(p, begin, end); });
  });
  visit(p.v_dtype, [&](auto v) {
    visit(p.v_cache_dtype, [&](auto cache) { append_v<decltype(cache), decltype(v)>(p, begin, end); });
  });
}

}  // namespace

void kv_append(const KvAppendParams& p) {
  if (p.head_dim_qk % 2 != 0) {
    fail(ErrorCode::invalid_argument, "kv_append: head_dim_qk %lld is odd, but RoPE rotates dims in pairs",
         static_cast<long long>(p.head_dim_qk));
  }
  for (const DType dtype : {p.k_dtype, p.v_dtype, p.k_cache_dtype, p.v_cache_dtype}) {
    if (!visit(dtype, [](auto) {})) {
      fail(ErrorCode::invalid_argument, "kv_append: a tensor of type %s; f32, f16 and bf16 are known",
           dtype_name(dtype));
    }
  }
  for (int64_t t = 0; t < p.num_tokens; ++t) {
    if (p.positions[t] < 0 || p.positions[t] >= p.max_kv_len) {
      fail(ErrorCode::invalid_argument, "kv_append: position %d of token %lld is outside the cache, [0, %lld)",
           p.positions[t], static_cast<long long>(t), static_cast<long long>(p.max_kv_len));
    }
  }
  const int64_t token_size = p.num_k_heads * p.head_dim_qk + p.num_v_heads * p.head_dim_vo;
  parallel_ranges(p.num_tokens, 1, p.num_tokens * token_size,
                  [&](int64_t begin, int64_t end) { append(p, begin, end); });
}

}  // namespace diffqkv::cpu::DIFFQKV_ISA
