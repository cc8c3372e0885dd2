// out[t, :] = scale * table[tokens[t], :]. Split by tokens. Bound by memory: one row is read and one
// written per token.
#include "backend/cpu/isa_kernels.h"
#include "backend/cpu/parallel.h"
#include "backend/cpu/simd.h"
#include "backend/error.h"

namespace diffqkv::cpu::DIFFQKV_ISA {
namespace {

template <typename Out, typename Table>
void embed_rows(const EmbedParams& p, int64_t begin, int64_t end) {
  const int64_t n = p.hidden_size;
  for (int64_t t = begin; t < end; ++t) {
    const Table* row = static_cast<const Table*>(p.table) + p.tokens[t] * n;
    Out* out = static_cast<Out*>(p.out) + t * n;
    int64_t i = 0;
    if (p.scale == 1) {
      for (; i + kLanes <= n; i += kLanes) store(out + i, load(row + i));
      if (i < n) store_n(out + i, load_n(row + i, n - i), n - i);
    } else {
      for (; i + kLanes <= n; i += kLanes) store(out + i, load(row + i) * p.scale);
      if (i < n) store_n(out + i, load_n(row + i, n - i) * p.scale, n - i);
    }
  }
}

}  // namespace

void embed(const EmbedParams& p, Arena&) {
  require_compute_type("embed: table", p.table_dtype);
  require_compute_type("embed: out", p.out_dtype);
  for (int64_t t = 0; t < p.num_tokens; ++t) {
    if (p.tokens[t] < 0 || p.tokens[t] >= p.vocab_size) {
      fail(ErrorCode::invalid_argument, "embed: tokens[%lld] is %d; it must be from 0 to %lld",
           static_cast<long long>(t), p.tokens[t], static_cast<long long>(p.vocab_size - 1));
    }
  }
  visit(p.table_dtype, [&](auto table_tag) {
    visit(p.out_dtype, [&](auto out_tag) {
      parallel_ranges(p.num_tokens, 1, p.num_tokens * p.hidden_size, [&](int64_t begin, int64_t end) {
        embed_rows<decltype(out_tag), decltype(table_tag)>(p, begin, end);
      });
    });
  });
}

}  // namespace diffqkv::cpu::DIFFQKV_ISA
