// Writes rope(k[t]) and v[t] to row positions[t] of the caches of their sequence, quantized if the
// cache is. Split by tokens. Bound by memory. Then rotates the queries.
#include "backend/cpu/attention/kv_view.h"
#include "backend/cpu/isa_kernels.h"
#include "backend/cpu/kv_cache/quantize_row.h"
#include "backend/cpu/parallel.h"
#include "backend/cpu/rowwise/rotary.h"

namespace diffqkv::cpu::DIFFQKV_ISA {
namespace {

constexpr int64_t kMaxRotatedDim = 1024;  // of a head that is quantized after RoPE, and is on the stack in between

// Where the elements and scales of a token are stored, for one layer.
struct Slot {
  char* elements;
  bf16* scales;
};

DIFFQKV_INLINE Slot find_slot(const KvAppendParams& p, int64_t t, KvTensor tensor) {
  const KvView& cache = tensor == KvTensor::v ? p.v_cache : p.k_cache;
  const int64_t position = p.positions[t];
  const int64_t token = position % p.page_tokens;
  const KvPage& page = p.pages[p.sequences ? p.sequences[t] : 0][position / p.page_tokens];
  char* layer = static_cast<char*>(tensor == KvTensor::v ? page.v : page.k) + cache.page_offset;
  return {layer + page_elements_bytes(cache, token),
          reinterpret_cast<bf16*>(layer + page_elements_bytes(cache, p.page_tokens)) + token * cache.num_heads};
}

template <typename Cache, typename X>
DIFFQKV_INLINE void copy_row(const X* x, Cache* out, int64_t n) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(out + i, load(x + i));
  if (i < n) store_n(out + i, load_n(x + i, n - i), n - i);
}

// The heads of one token, not rotated.
template <typename Cache, typename X>
DIFFQKV_INLINE void write_heads(const X* x, const Slot& slot, int64_t num_heads, int64_t head_dim) {
  Cache* out = reinterpret_cast<Cache*>(slot.elements);
  if constexpr (sizeof(Cache) > 1) {
    copy_row(x, out, num_heads * head_dim);
  } else {
    for (int64_t h = 0; h < num_heads; ++h)
      quantize_row(x + h * head_dim, out + h * head_dim, slot.scales + h, head_dim);
  }
}

template <typename Cache, typename X>
DIFFQKV_INLINE void write_rotated_heads(const KvAppendParams& p, const X* x, Slot slot, int32_t position) {
  Cache* out = reinterpret_cast<Cache*>(slot.elements);
  const int64_t num_heads = p.k_cache.num_heads, head_dim = p.k_cache.head_dim;
  if constexpr (sizeof(Cache) > 1) {
    rotate_heads(x, out, position, p.inv_freq, p.rope_scale, num_heads, head_dim);
  } else {
    float rotated[kMaxRotatedDim];
    for (int64_t at = 0; at < num_heads * head_dim; at += head_dim) {
      rotate_heads(x + at, rotated, position, p.inv_freq, p.rope_scale, 1, head_dim);
      quantize_row(rotated, out + at, slot.scales++, head_dim);
    }
  }
}

// Writes K or V of tokens [begin, end).
void append(const KvAppendParams& p, KvTensor tensor, int64_t begin, int64_t end) {
  const bool is_v = tensor == KvTensor::v;
  const KvView& cache = is_v ? p.v_cache : p.k_cache;
  visit(is_v ? p.v_dtype : p.k_dtype, [&](auto tag) {
    visit_cache(cache.dtype, [&](auto cache_tag) {
      for (int64_t t = begin; t < end; ++t) {
        const auto* x = static_cast<const decltype(tag)*>(is_v ? p.v : p.k) + t * cache.num_heads * cache.head_dim;
        const Slot slot = find_slot(p, t, tensor);
        if (!is_v && p.inv_freq) {
          write_rotated_heads<decltype(cache_tag)>(p, x, slot, p.positions[t]);
        } else {
          write_heads<decltype(cache_tag)>(x, slot, cache.num_heads, cache.head_dim);
        }
      }
    });
  });
}

}  // namespace

void kv_append(const KvAppendParams& p, Arena& arena) {
  check_page_tokens("kv_append", p.page_tokens);
  if (p.inv_freq && dtype_is_scaled(p.k_cache.dtype) && p.k_cache.head_dim > kMaxRotatedDim) {
    fail(ErrorCode::invalid_argument, "kv_append: headDimQk is %lld; it must be at most %lld for K of type %s",
         static_cast<long long>(p.k_cache.head_dim), static_cast<long long>(kMaxRotatedDim),
         dtype_name(p.k_cache.dtype));
  }
  require_compute_type("kv_append: k", p.k_dtype);
  require_compute_type("kv_append: v", p.v_dtype);
  require_cache_type("kv_append: the K cache", p.k_cache.dtype);
  require_cache_type("kv_append: the V cache", p.v_cache.dtype);
  for (int64_t t = 0; t < p.num_tokens; ++t) {
    if (p.positions[t] < 0 || p.positions[t] >= p.max_kv_len) {
      fail(ErrorCode::invalid_argument, "kv_append: positions[%lld] is %d; it must be from 0 to %lld",
           static_cast<long long>(t), p.positions[t], static_cast<long long>(p.max_kv_len - 1));
    }
    if (p.sequences && p.sequences[t] < 0) {
      fail(ErrorCode::invalid_argument, "kv_append: sequences[%lld] is %d; it must be at least 0",
           static_cast<long long>(t), p.sequences[t]);
    }
  }
  const int64_t token_size = p.k_cache.num_heads * p.k_cache.head_dim + p.v_cache.num_heads * p.v_cache.head_dim;
  parallel_ranges(p.num_tokens, 1, p.num_tokens * token_size, [&](int64_t begin, int64_t end) {
    append(p, KvTensor::k, begin, end);
    append(p, KvTensor::v, begin, end);
  });
  rope(p.q, arena);
}

}  // namespace diffqkv::cpu::DIFFQKV_ISA
