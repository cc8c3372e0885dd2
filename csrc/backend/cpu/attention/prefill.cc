// Attention of many queries: out = softmax(sm_scale Q K^T) V, causal or not, with the tiles of
// FlashAttention.
//
// A work item is (sequence, unit of query heads, tile of queries). Tiles that see most keys come
// first, with dynamic scheduling. If there are fewer items than threads (few queries on a long
// cache), the keys are split as in decode. Each item packs every block of K and V once for all of
// its rows (512 of 64 dims, 1,024 with AMX), so that packing is a few percent of the time and memory
// does not grow with kv_len. Blocks that no query of a tile sees are skipped. Blocks on the diagonal
// are cut to the visible keys. With a window, the first block starts at the first key that a query of
// the tile sees.
//
// Bound by arithmetic: by exp as much as by the products, if those use AMX.
#include "backend/cpu/attention/schedule.h"
#include "backend/cpu/isa_kernels.h"

namespace diffqkv::cpu::DIFFQKV_ISA {
namespace {

// Elements of O in a tile, which with Q, P and the panels fits a 1 MB L2. AMX multiplies so fast that
// packing would be felt with fewer.
constexpr int64_t kTileElements = 512 * 64;
constexpr int64_t kAmxTileElements = 1024 * 64;
constexpr int64_t kMinSplitKeys = 512;

}  // namespace

void attention_prefill(const AttentionPrefillParams& params, Arena& arena) {
  if (params.batch_size == 0 || params.q_len == 0) return;
  Problem p = make_problem(params);
  p.num_batches = params.batch_size;
  p.num_queries = params.q_len;
  p.causal = params.causal;
  p.stride_lse_batch = params.num_q_heads * params.q_len;
  p.stride_lse_head = params.q_len;
  p.stride_lse_query = 1;

  const int64_t wanted_items = 4 * omp_get_max_threads();
  Plan plan = {};
  plan.unit_heads = unit_heads(p);
  const int64_t tile_elements = p.amx ? kAmxTileElements : kTileElements;
  plan.tile_queries = max_of(tile_elements / (plan.unit_heads * max_of(p.k.head_dim, p.v.head_dim)) / 32 * 32, 32);
  while (plan.tile_queries > 32 && num_tiles(p, plan) < wanted_items) plan.tile_queries = plan.tile_queries / 64 * 32;
  plan.tile_queries = min_of(plan.tile_queries, p.num_queries);
  const int64_t most_keys = p.window > 0 ? min_of(p.kv_len, p.window + plan.tile_queries) : p.kv_len;
  plan.num_splits = max_of(1, min_of(wanted_items / num_tiles(p, plan), most_keys / kMinSplitKeys));
  if (num_tiles(p, plan) >= omp_get_max_threads()) plan.num_splits = 1;
  plan.min_split_keys = kMinSplitKeys;
  plan.most_keys = p.kv_len;
  plan.prefetch = false;
  run(p, plan, arena);
}

}  // namespace diffqkv::cpu::DIFFQKV_ISA
