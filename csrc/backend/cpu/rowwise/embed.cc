// out[t, :] = table[tokens[t], :]. Split by tokens. Bound by memory: one row read and one written a token.
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
    for (; i + kLanes <= n; i += kLanes) store(out + i, load(row + i));
    if (i < n) store_n(out + i, load_n(row + i, n - i), n - i);
  }
}

}  // namespace

void embed(const EmbedParams& p) {
  for (int64_t t = 0; t < p.num_tokens; ++t) {
    if (p.tokens[t] < 0 || p.tokens[t] >= p.vocab_size) {
      fail(ErrorCode::invalid_argument, "embed: token %d at index %lld is outside the vocabulary [0, %lld)",
           p.tokens[t], static_cast<long long>(t), static_cast<long long>(p.vocab_size));
    }
  }
  const bool known = visit(p.table_dtype, [&](auto table_tag) {
    const bool known_out = visit(p.out_dtype, [&](auto out_tag) {
      parallel_ranges(p.num_tokens, 1, p.num_tokens * p.hidden_size, [&](int64_t begin, int64_t end) {
        embed_rows<decltype(out_tag), decltype(table_tag)>(p, begin, end);
      });
    });
    if (!known_out)
      fail(ErrorCode::invalid_argument, "embed: out of type %s; f32, f16 and bf16 are known", dtype_name(p.out_dtype));
  });
  if (!known)
    fail(ErrorCode::invalid_argument, "embed: table of type %s; f32, f16 and bf16 are known",
         dtype_name(p.table_dtype));
}

}  // namespace diffqkv::cpu::DIFFQKV_ISA
