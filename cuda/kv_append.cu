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

// K or V of one token in its page.
struct TokenRows {
  void* page;
  const KvView& kv;
  KvHeadLayout layout;
  int element_bytes, token;  // token: in the page

  __device__ __forceinline__ TokenRows(void* k_or_v, const KvView& view, int bytes, int page_tokens, int at)
      : page(k_or_v), kv(view), layout(view.head_dim, bytes, page_tokens), element_bytes(bytes), token(at) {}
  __device__ __forceinline__ KvHead head(int index) const {
    return head_in_page(page, kv.page_offset, layout, index, kv.num_heads);
  }
  // Element d of a head.
  template <typename T>
  __device__ __forceinline__ T* element(const KvHead& head, int d) const {
    return reinterpret_cast<T*>(head.elements + layout.place(token, d * static_cast<int>(sizeof(T))));
  }
  __device__ __forceinline__ unsigned char* element(int head_index, int d) const {
    return head(head_index).elements + layout.place(token, d * element_bytes);
  }
};

// The rows of a token, of one K or V head each. value(row, d): one element.
template <typename Value>
__device__ __forceinline__ void quantize_rows(const TokenRows& to, const Value& value) {
  const int num_rows = static_cast<int>(to.kv.num_heads), dim = static_cast<int>(to.kv.head_dim);
  for (int row = warp_index(); row < num_rows; row += kWarps) {
    const KvHead head = to.head(row);
    const auto element = [&](int d) { return value(row, d); };
    if (to.kv.dtype == DType::i8) {
      quantize_row<i8>(
          dim, element, [&](int d) { return to.element<i8>(head, d); }, head.scales + to.token);
    } else {
      quantize_row<f8e4m3>(
          dim, element, [&](int d) { return to.element<f8e4m3>(head, d); }, head.scales + to.token);
    }
  }
}

// The rows are those of x from element `from` on.
template <int kElements>
__device__ __forceinline__ void copy_elements(const void* x, DType x_dtype, int64_t from, const TokenRows& to) {
  const int dim = static_cast<int>(to.kv.head_dim), count = static_cast<int>(to.kv.num_heads) * dim;
  for (int i = static_cast<int>(threadIdx.x) * kElements; i < count; i += kThreads * kElements) {
    float values[kElements];
    load_any(x, x_dtype, from + i, values);
    store_any(to.element(i / dim, i % dim), to.kv.dtype, 0, values);
  }
}

template <int kElements>
__global__ void __launch_bounds__(kThreads, 4)
    kv_append_kernel(KvAppendParams p, int k_element_bytes, int v_element_bytes, Finding* finding) {
  wait_for_previous_kernel();
  start_next_kernel();
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

  const TokenRows v(page.v, p.v_cache, v_element_bytes, page_tokens, token);
  const int64_t v_from = static_cast<int64_t>(t) * num_v_heads * dim_vo;
  if (is_quantized(p.v_cache.dtype)) {
    quantize_rows(v, [&](int row, int d) { return load_any(p.v, p.v_dtype, v_from + row * dim_vo + d); });
  } else {
    copy_elements<kElements>(p.v, p.v_dtype, v_from, v);
  }

  const TokenRows k(page.k, p.k_cache, k_element_bytes, page_tokens, token);
  const int64_t k_from = static_cast<int64_t>(t) * num_k_heads * dim_qk;
  if (is_quantized(p.k_cache.dtype)) {
    quantize_rows(k, [&](int row, int d) {
      const int64_t head = k_from + row * dim_qk;
      return p.inv_freq ? rotated(p.k, p.k_dtype, head, dim_qk, d, position, p.inv_freq, p.rope_scale)
                        : load_any(p.k, p.k_dtype, head + d);
    });
  } else if (p.inv_freq) {
    rotate_heads(p.k, p.k_dtype, k_from, num_k_heads, dim_qk, position, p.inv_freq, p.rope_scale,
                 [&](int head, int d, float x) { store_any(k.element(head, d), p.k_cache.dtype, 0, x); });
  } else {
    copy_elements<1>(p.k, p.k_dtype, k_from, k);
  }
}

}  // namespace

void kv_append(const KvAppendParams& p, Context& context) {
  check_float_types("kv_append", {{"k", p.k_dtype}, {"v", p.v_dtype}});
  check_cache_types("kv_append", {{"k_cache", p.k_cache.dtype}, {"v_cache", p.v_cache.dtype}});
  if (p.q.num_tokens > 0) check_float_types("kv_append", {{"q", p.q.dtype}});
  if (p.num_tokens <= 0) return rope(p.q, context);
  LaunchShape shape;
  shape.waits = true;
  shape.grid[0] = static_cast<unsigned>(p.num_tokens + p.q.num_tokens);
  shape.threads = kThreads;
  const bool vectors = p.v_cache.head_dim % kVector == 0 && is_aligned<uint32_t, 4>(p.v);
  launch("kv_append", vectors ? kv_append_kernel<kVector> : kv_append_kernel<1>, shape, context.stream, p,
         static_cast<int>(dtype_size(p.k_cache.dtype)), static_cast<int>(dtype_size(p.v_cache.dtype)), context.finding);
}

}  // namespace diffqkv::cuda
