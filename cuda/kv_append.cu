// k_cache[positions[t]] = rope(k[t]), v_cache[positions[t]] = v[t], in one launch. A block a token: its threads take first
// the elements of V, eight at once where rows are aligned to 16 bytes, then the pairs of dims of K. Bound by memory, and at one token by the time of a launch.
#include "device/finding.h"
#include "rotary.h"

namespace diffqkv::DIFFQKV_DEVICE_NS {
namespace {

constexpr int kThreads = 256;
constexpr int kVector = 8;  // elements of V at once

template <int kElements>
DIFFQKV_KERNEL(kThreads, 4)
kv_append_kernel(KvAppendParams p, Finding* finding) {
  const int t = block_x(), position = load(p.positions + t), limit = static_cast<int>(p.max_kv_len);
  if (position < 0 || position >= limit) {  // nothing is written there
    if (thread_index() == 0) report(finding, Finding::position, t, position, limit);
    return;
  }
  const int64_t k_size = p.num_k_heads * p.head_dim_qk, v_size = p.num_v_heads * p.head_dim_vo;
  for (int64_t i = thread_index() * kElements; i < v_size; i += kThreads * kElements) {
    float x[kElements];
    load_any(p.v, p.v_dtype, t * v_size + i, x);
    store_any(p.v_cache, p.v_cache_dtype, position * v_size + i, x);
  }
  rotate_heads(p.k, p.k_dtype, t * k_size, p.k_cache, p.k_cache_dtype, position * k_size,
               static_cast<int>(p.num_k_heads), static_cast<int>(p.head_dim_qk), position, p.inv_freq);
}

}  // namespace

void kv_append(const KvAppendParams& p, Context& context) {
  if (p.head_dim_qk % 2 != 0) {
    fail(ErrorCode::invalid_argument, "kv_append: head_dim_qk %lld is odd, but RoPE rotates dims in pairs",
         static_cast<long long>(p.head_dim_qk));
  }
  check_float_types("kv_append",
                    {{"k", p.k_dtype}, {"v", p.v_dtype}, {"k_cache", p.k_cache_dtype}, {"v_cache", p.v_cache_dtype}});
  if (p.num_tokens <= 0) return;
  LaunchShape shape;
  shape.grid[0] = static_cast<unsigned>(p.num_tokens);
  shape.threads = kThreads;
  const bool vectors = p.num_v_heads * p.head_dim_vo % kVector == 0 && is_aligned<uint32_t, 4>(p.v) &&
                       is_aligned<uint32_t, 4>(p.v_cache);
  launch("kv_append", vectors ? kv_append_kernel<kVector> : kv_append_kernel<1>, shape, context.stream, p,
         context.finding);
}

}  // namespace diffqkv::DIFFQKV_DEVICE_NS
