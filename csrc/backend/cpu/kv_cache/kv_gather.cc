// out[j] = row j of a sequence's K cache, multiplied by its scale. Split by keys. Bound by memory.
#include "backend/cpu/attention/kv_view.h"
#include "backend/cpu/isa_kernels.h"
#include "backend/cpu/parallel.h"

namespace diffqkv::cpu::DIFFQKV_ISA {
namespace {

template <typename Out, typename T>
void gather_row(const T* from, F32v scale, Out* out, int64_t n) {
  const auto element = [&](F32v x) DIFFQKV_LAMBDA { return sizeof(T) == 1 ? x * scale : x; };
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(out + i, element(load(from + i)));
  if (i < n) store_n(out + i, element(load_n(from + i, n - i)), n - i);
}

template <typename Out, typename T>
void gather(const KvGatherParams& p, int64_t begin, int64_t end) {
  const int64_t elements = page_elements_bytes(p.k, p.page_tokens);
  for (int64_t j = begin; j < end; ++j) {
    const char* page = static_cast<const char*>(p.pages[j / p.page_tokens].k) + p.k.page_offset;
    const int64_t first_head = j % p.page_tokens * p.k.num_heads;
    for (int64_t h = 0; h < p.k.num_heads; ++h) {
      const bf16* scale = reinterpret_cast<const bf16*>(page + elements) + first_head + h;
      gather_row(reinterpret_cast<const T*>(page) + (first_head + h) * p.k.head_dim,
                 sizeof(T) == 1 ? set1(load1(scale)) : F32v{},
                 static_cast<Out*>(p.out) + (j * p.k.num_heads + h) * p.k.head_dim, p.k.head_dim);
    }
  }
}

}  // namespace

void kv_gather(const KvGatherParams& p, Arena&) {
  check_page_tokens("kv_gather", p.page_tokens);
  require_compute_type("kv_gather: out", p.out_dtype);
  require_cache_type("kv_gather: the cache", p.k.dtype);
  visit(p.out_dtype, [&](auto out_tag) {
    visit_cache(p.k.dtype, [&](auto tag) {
      parallel_ranges(p.num_keys, 1, p.num_keys * p.k.num_heads * p.k.head_dim,
                      [&](int64_t begin, int64_t end) { gather<decltype(out_tag), decltype(tag)>(p, begin, end); });
    });
  });
}

}  // namespace diffqkv::cpu::DIFFQKV_ISA
