// Writes rope(k[t]) and v[t] to the page and row of positions[t] in the cache of sequences[t], and
// rotates the queries, in one launch. The first blocks have a token each, the others a query token
// each. The threads of a token take first V, then K. If the cache has scales, a warp quantizes a
// row at a time. Else they take the elements of V, eight at once if rows are aligned to 16 bytes,
// and the pairs of dims of K. Bound by memory, and at one token by the time of a launch.
#include "finding.h"
#include "kv_page.h"
#include "quantize_row.h"
#include "rotary.h"

namespace diffqkv::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / kWarpSize;
constexpr int kVector = 8;  // elements at once

// The rows of a token, of one K or V head each. value(row, d): one element.
template <typename Value>
__device__ __forceinline__ void quantize_rows(int num_rows, int dim, DType dtype, const KvRows& to,
                                              const Value& value) {
  for (int row = warp_index(); row < num_rows; row += kWarps) {
    const auto element = [&](int d) { return value(row, d); };
    if (dtype == DType::i8) {
      quantize_row(dim, element, reinterpret_cast<i8*>(to.elements) + row * dim, to.scales + row);
    } else {
      quantize_row(dim, element, reinterpret_cast<f8e4m3*>(to.elements) + row * dim, to.scales + row);
    }
  }
}

// out[i] = x[from + i] for i < count.
template <int kElements>
__device__ __forceinline__ void copy_elements(const void* x, DType x_dtype, int64_t from, void* out, DType out_dtype,
                                              int count) {
  for (int i = static_cast<int>(threadIdx.x) * kElements; i < count; i += kThreads * kElements) {
    float values[kElements];
    load_any(x, x_dtype, from + i, values);
    store_any(out, out_dtype, i, values);
  }
}

template <int kElements>
__global__ void __launch_bounds__(kThreads, 4)
    kv_append_kernel(KvAppendParams p, int k_element_bytes, int v_element_bytes, Finding* finding) {
  if (blockIdx.x >= p.num_tokens) return rotate_token(p.q, static_cast<int>(blockIdx.x - p.num_tokens), finding);
  const int t = blockIdx.x, position = ld_global(p.positions + t), limit = static_cast<int>(p.max_kv_len);
  if (position < 0 || position >= limit) {  // nothing is written there
    if (threadIdx.x == 0) report(finding, Finding::position, t, position, limit);
    return;
  }
  const int num_k_heads = static_cast<int>(p.k_cache.num_heads), num_v_heads = static_cast<int>(p.v_cache.num_heads);
  const int dim_qk = static_cast<int>(p.k_cache.head_dim), dim_vo = static_cast<int>(p.v_cache.head_dim);
  const int page_tokens = static_cast<int>(p.page_tokens), token = position % page_tokens;
  const KvPage* const pages = ld_global(p.pages + (p.sequences ? ld_global(p.sequences + t) : 0));
  const KvPage page = load_page(pages + position / page_tokens);

  const KvRows v =
      rows_in_page(page.v, p.v_cache.page_offset, token, page_tokens, num_v_heads, dim_vo * v_element_bytes);
  const int64_t v_from = static_cast<int64_t>(t) * num_v_heads * dim_vo;
  if (is_quantized(p.v_cache.dtype)) {
    quantize_rows(num_v_heads, dim_vo, p.v_cache.dtype, v,
                  [&](int row, int d) { return load_any(p.v, p.v_dtype, v_from + row * dim_vo + d); });
  } else {
    copy_elements<kElements>(p.v, p.v_dtype, v_from, v.elements, p.v_cache.dtype, num_v_heads * dim_vo);
  }

  const KvRows k =
      rows_in_page(page.k, p.k_cache.page_offset, token, page_tokens, num_k_heads, dim_qk * k_element_bytes);
  const int64_t k_from = static_cast<int64_t>(t) * num_k_heads * dim_qk;
  if (is_quantized(p.k_cache.dtype)) {
    quantize_rows(num_k_heads, dim_qk, p.k_cache.dtype, k, [&](int row, int d) {
      const int64_t head = k_from + row * dim_qk;
      return p.inv_freq ? rotated(p.k, p.k_dtype, head, dim_qk, d, position, p.inv_freq, p.rope_scale)
                        : load_any(p.k, p.k_dtype, head + d);
    });
  } else if (p.inv_freq) {
    rotate_heads(p.k, p.k_dtype, k_from, k.elements, p.k_cache.dtype, 0, num_k_heads, dim_qk, position, p.inv_freq,
                 p.rope_scale);
  } else {
    copy_elements<1>(p.k, p.k_dtype, k_from, k.elements, p.k_cache.dtype, num_k_heads * dim_qk);
  }
}

}  // namespace

void kv_append(const KvAppendParams& p, Context& context) {
  check_float_types("kv_append", {{"k", p.k_dtype}, {"v", p.v_dtype}});
  check_cache_types("kv_append", {{"k_cache", p.k_cache.dtype}, {"v_cache", p.v_cache.dtype}});
  if (p.q.num_tokens > 0) check_float_types("kv_append", {{"q", p.q.dtype}});
  if (p.num_tokens <= 0) return rope(p.q, context);
  LaunchShape shape;
  shape.grid[0] = static_cast<unsigned>(p.num_tokens + p.q.num_tokens);
  shape.threads = kThreads;
  const bool vectors = p.v_cache.num_heads * p.v_cache.head_dim % kVector == 0 && is_aligned<uint32_t, 4>(p.v);
  launch("kv_append", vectors ? kv_append_kernel<kVector> : kv_append_kernel<1>, shape, context.stream, p,
         static_cast<int>(dtype_size(p.k_cache.dtype)), static_cast<int>(dtype_size(p.v_cache.dtype)), context.finding);
}

}  // namespace diffqkv::cuda
