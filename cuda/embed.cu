// out[t, :] = scale * table[tokens[t], :]. A block a token, a thread 16 bytes of the table where rows are aligned to them. Bound by
// memory: one row read and one written a token. A token outside the vocabulary is reported, and its row becomes 0.
#include "element_types.h"
#include "finding.h"

namespace diffqkv::cuda {
namespace {

constexpr int kThreads = 128;

template <typename Table, typename Out, int kElements>
__global__ void __launch_bounds__(kThreads, 8) embed_kernel(EmbedParams p, Finding* finding) {
  wait_for_previous_kernel();
  start_next_kernel();
  using TableVector = Elements<Table, kElements>;
  using OutVector = Elements<Out, kElements>;
  const int t = blockIdx.x;
  const int token = ld_global(p.tokens + t), vocab_size = static_cast<int>(p.vocab_size);
  const bool known = token >= 0 && token < vocab_size;
  if (!known && threadIdx.x == 0) report(finding, Finding::token, t, token, vocab_size);
  const Table* row = static_cast<const Table*>(p.table) + (known ? token : 0) * p.hidden_size;
  Out* out = static_cast<Out*>(p.out) + t * p.hidden_size;
  for (int64_t i = static_cast<int>(threadIdx.x) * kElements; i < p.hidden_size; i += kThreads * kElements) {
    OutVector result = {};
    if (known) {
      const TableVector x = ld_global(reinterpret_cast<const TableVector*>(row + i));
#pragma unroll
      for (int j = 0; j < kElements; ++j) {
        const float value = to_float(x.v[j]);
        result.v[j] = from_float<Out>(p.scale == 1.0f ? value : value * p.scale);
      }
    }
    st_global(reinterpret_cast<OutVector*>(out + i), result);
  }
}

}  // namespace

void embed(const EmbedParams& p, Context& context) {
  check_float_types("embed", {{"table", p.table_dtype}, {"out", p.out_dtype}});
  if (p.num_tokens <= 0 || p.hidden_size <= 0) return;
  LaunchShape shape;
  shape.waits = true;
  shape.grid[0] = static_cast<unsigned>(p.num_tokens);
  shape.threads = kThreads;
  visit_float(p.table_dtype, [&](auto table) {
    visit_float(p.out_dtype, [&](auto out) {
      using Table = decltype(table);
      using Out = decltype(out);
      // 8 bytes of the smaller type are at most 16 of the larger.
      constexpr int kElements = 8 / (sizeof(Table) < sizeof(Out) ? sizeof(Table) : sizeof(Out));
      const bool vectors =
          p.hidden_size % kElements == 0 && is_aligned<Table, kElements>(p.table) && is_aligned<Out, kElements>(p.out);
      vectors ? launch("embed", embed_kernel<Table, Out, kElements>, shape, context.stream, p, context.finding)
              : launch("embed", embed_kernel<Table, Out, 1>, shape, context.stream, p, context.finding);
    });
  });
}

}  // namespace diffqkv::cuda
