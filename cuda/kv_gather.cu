// out[j] = row j of a paged K cache, of all heads, times its scales. A thread takes 8 elements of a row, or one where
// rows don't divide into eights. Bound by memory.
#include "element_types.h"
#include "kv_page.h"

namespace diffqkv::cuda {
namespace {

constexpr int kThreads = 256;

template <typename Cache, int kElements>
__global__ void __launch_bounds__(kThreads, 4) kv_gather_kernel(KvGatherParams p) {
  wait_for_previous_kernel();
  start_next_kernel();
  const int dim = static_cast<int>(p.k.head_dim), num_heads = static_cast<int>(p.k.num_heads);
  const int row_elements = num_heads * dim, page_tokens = static_cast<int>(p.page_tokens);
  const int64_t i = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kElements;
  if (i >= p.num_keys * row_elements) return;
  const int key = static_cast<int>(i / row_elements), element = static_cast<int>(i % row_elements);
  const KvPage page = load_page(p.pages + key / page_tokens);
  const KvHeadLayout layout(dim, sizeof(Cache), page_tokens);
  const int head = element / dim, byte = element % dim * static_cast<int>(sizeof(Cache)), token = key % page_tokens;
  const KvHead rows = head_in_page(page.k, p.k.page_offset, layout, head, num_heads);
  float x[kElements];
  load_elements(reinterpret_cast<const Cache*>(rows.elements + layout.place(token, byte)), x);
  if constexpr (sizeof(Cache) == 1) {
    const float scale = load_float(rows.scales + token);
#pragma unroll
    for (int n = 0; n < kElements; ++n) x[n] *= scale;
  }
  store_any(p.out, p.out_dtype, i, x);
}

}  // namespace

void kv_gather(const KvGatherParams& p, Context& context) {
  check_cache_types("kv_gather", {{"cache", p.k.dtype}});
  check_float_types("kv_gather", {{"out", p.out_dtype}});
  const int64_t count = p.num_keys * p.k.num_heads * p.k.head_dim;
  if (count <= 0) return;
  const bool vectors = p.k.head_dim % 8 == 0 && is_aligned<uint32_t, 4>(p.out);
  LaunchShape shape;
  shape.waits = true;
  shape.grid[0] = static_cast<unsigned>((count / (vectors ? 8 : 1) + kThreads - 1) / kThreads);
  shape.threads = kThreads;
  visit_cache(p.k.dtype, [&](auto cache) {
    using Cache = decltype(cache);
    launch("kv_gather", vectors ? kv_gather_kernel<Cache, 8> : kv_gather_kernel<Cache, 1>, shape, context.stream, p);
  });
}

}  // namespace diffqkv::cuda
