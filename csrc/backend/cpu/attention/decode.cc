// Attention of one query per sequence over its cache. Bound by memory.
//
// Dense: a work item is (sequence, split of the keys) with all query heads, so that it reads
// contiguous memory, and each byte of K and V once, for any head counts. Splits keep every core
// busy at batch 1; a cache that is too short for them is shared by heads, which needs no merge.
// tile.h has the loops, schedule.h the merge.
//
// Sequences that share one cache (both batch strides are 0) are queries of one tile, as in prefill,
// each with its own kv_len.
//
// Selective V: the same items over K only. For each query head, an item leaves its best k
// candidates and max and sum of the softmax. Then the best k of all splits are found, and only
// their V rows are read.
#include "backend/cpu/attention/top_k.h"
#include "backend/cpu/isa_kernels.h"

namespace diffqkv::cpu::DIFFQKV_ISA {
namespace {

constexpr int64_t kMinSplitKeys = 512;  // merging a shorter split costs more than it saves
// Multiplications of a cache whose heads are shared among threads: with fewer, one thread is as fast.
constexpr int64_t kMinSharedWork = 131072;
constexpr int64_t kMaxSplits = 4096;
constexpr int64_t kTileElements = 1024 * 64;
constexpr int64_t kSelectionBytes = int64_t{8} << 20;  // candidates of a tile's rows

// The result of one split for one row: this struct, the scores of the candidates, their keys.
struct SplitSelection {
  float m, d;
  int64_t count;
};

int64_t split_selection_bytes(int64_t keys_per_split, int64_t k) {
  return static_cast<int64_t>(sizeof(SplitSelection)) + 8 * min_of(keys_per_split, k);
}

// Finds the best k of keys [begin, end) for each row of the tile.
void select_keys(const Problem& p, Tile& t, int64_t begin, int64_t end, int64_t k, Selection* selections,
                 const Candidates& c, bool prefetch) {
  load_queries(p, t);
  for (int64_t row = 0; row < t.num_rows; ++row) selections[row] = {-kInfinity, 0, -kInfinity, 0};
  const int64_t capacity = Selection::capacity(k);
  int64_t n = 0;
  for (int64_t key = begin; key < end; key += n) {
    n = p.block_keys(key, end);
    if (!sees_any(p, t, key, n)) continue;
    Prefetch next;
    if (prefetch) next = prefetch_block(p, t, key + n, end, PrefetchOf::keys);
    score_block(p, t, key, n, next, [&](int64_t row, const float* s, KeyRange seen, int64_t) DIFFQKV_LAMBDA {
      const int64_t count = seen.end;
      if (count == 0) return;
      Selection& selection = selections[row];
      const float top = max_score(s, count);
      if (top > selection.m) {
        selection.d *= selection.m > -kInfinity ? weight_of(p, selection.m, top) : 1;
        selection.m = top;
      }
      selection.add_weights(s, count, Weight(p, selection.m > -kInfinity ? selection.m : 0));
      selection.insert({c.scores + row * capacity, c.keys + row * capacity}, k, s, count, key);
    });
  }
}

// The second pass: scratch memory of one thread, and the layout of the results of the first pass.
struct SelectionMerge {
  int64_t k, split_bytes;
  bool renormalize;
  Candidates candidates;
  float* weights;
  float* o;
};

// The second pass for one row: merges its splits, reads the selected V rows, writes out and lse.
void finish_selection(const Problem& p, const Tile& t, int64_t row, const char* splits, int64_t num_splits,
                      const SelectionMerge& merge) {
  const Candidates& c = merge.candidates;
  float m = -kInfinity;
  float d = 0;
  int64_t count = 0;
  const auto split = [&](int64_t s) DIFFQKV_LAMBDA {
    return reinterpret_cast<const SplitSelection*>(splits + s * merge.split_bytes);
  };
  for (int64_t s = 0; s < num_splits; ++s) m = split(s)->m > m ? split(s)->m : m;
  for (int64_t s = 0; s < num_splits; ++s) {
    d += split(s)->d * (split(s)->m > -kInfinity ? weight_of(p, split(s)->m, m) : 1);
    const int64_t n = split(s)->count;
    const uint32_t* scores = reinterpret_cast<const uint32_t*>(split(s) + 1);
    __builtin_memcpy(c.scores + count, scores, static_cast<size_t>(4 * n));
    __builtin_memcpy(c.keys + count, scores + n, static_cast<size_t>(4 * n));
    count += n;
  }
  if (count > merge.k) {
    keep_best(c, count, merge.k);
    count = merge.k;
  }
  const Weight weight(p, m > -kInfinity ? m : 0);
  float* weights = merge.weights;
  for (int64_t i = 0; i < count; ++i) weights[i] = ordered_score(c.scores[i]);
  for (int64_t i = 0; i < round_up(count, kLanes); i += kLanes) {
    store(weights + i, weight(load(weights + i)));
  }
  float selected = 0;  // summed in the order in which o is summed, so that V = 1 gives exactly 1
  for (int64_t i = 0; i < count; ++i) selected += weights[i];
  const int64_t query = t.first_query + row % t.num_queries;
  const int64_t head = t.first_head + row / t.num_queries;
  visit_cache(p.v.dtype, [&](auto type) DIFFQKV_LAMBDA {
    gather_values<decltype(type)>(p.v, t.batch, head / p.q_heads_per_v_head, c.keys, weights, count, p.v.head_dim,
                                  merge.o);
  });
  finish_row(p, t.batch, query, head, merge.o, merge.renormalize ? selected : d, m, d);
}

void run_selective(const Problem& p, const Plan& plan, const AttentionDecodeParams& params, Arena& arena) {
  const int num_threads = omp_get_max_threads();
  const int64_t k = params.top_k;
  const int64_t tile_rows = plan.unit_heads * plan.tile_queries;
  const int64_t all_tiles = num_tiles(p, plan);
  const int64_t capacity = Selection::capacity(k);
  const int64_t split_keys = max_of(ceil_div(p.kv_len, plan.num_splits), 2 * plan.min_split_keys) + 2 * p.block;
  const int64_t split_bytes = split_selection_bytes(split_keys, k);
  const int64_t row_bytes = split_bytes * plan.num_splits;
  Tile size = {};
  const int64_t tile_bytes = size.lay_out(p, nullptr, plan.tile_queries, plan.unit_heads);
  const int64_t merge_count = row_bytes / 8;  // not less than the candidates of all splits together
  // Scratch memory of the first pass: the tile, Selections, candidates. Of the second: merged
  // candidates, weights, o.
  const int64_t first_bytes =
      round_up(tile_rows * static_cast<int64_t>(sizeof(Selection)), 64) + tile_rows * capacity * 8;
  const int64_t second_bytes = 2 * round_up(merge_count * 4, 64) + round_up(k + kLanes, kPanel) * 4 + p.ldo * 4;
  const int64_t scratch_bytes = tile_bytes + round_up(max_of(first_bytes, second_bytes), 4096);
  char* scratch = static_cast<char*>(arena.get(kSlotAttention, static_cast<size_t>(num_threads * scratch_bytes)));
  const int64_t tiles_at_once = min_of(all_tiles, max_of(1, kPartialBytes / (tile_rows * row_bytes)));
  char* partials =
      static_cast<char*>(arena.get(kSlotPartials, static_cast<size_t>(tiles_at_once * tile_rows * row_bytes)));
#pragma omp parallel num_threads(all_tiles* plan.num_splits > 1 ? num_threads : 1)
  {
    char* own = scratch + omp_get_thread_num() * scratch_bytes;
    Tile t = {};
    t.lay_out(p, own, plan.tile_queries, plan.unit_heads);
    own += tile_bytes;
    Selection* selections = reinterpret_cast<Selection*>(own);
    Candidates found;   // first pass
    Candidates merged;  // second pass
    found.scores = reinterpret_cast<uint32_t*>(own + round_up(tile_rows * static_cast<int64_t>(sizeof(Selection)), 64));
    found.keys = found.scores + tile_rows * capacity;
    merged.scores = reinterpret_cast<uint32_t*>(own);
    merged.keys = merged.scores + round_up(merge_count, 16);
    float* weights = reinterpret_cast<float*>(merged.keys + round_up(merge_count, 16));
    float* o = weights + round_up(k + kLanes, kPanel);
    const SelectionMerge merge = {k, split_bytes, params.renormalize, merged, weights, o};
    const AmxScope amx(p.amx);
    for (int64_t first = 0; first < all_tiles; first += tiles_at_once) {
      const int64_t tiles = min_of(tiles_at_once, all_tiles - first);
#pragma omp for schedule(dynamic, 1)
      for (int64_t item = 0; item < tiles * plan.num_splits; ++item) {
        set_tile(p, plan, first + item / plan.num_splits, t);
        const int64_t splits = num_splits(plan, t);
        const int64_t split = item % plan.num_splits;
        if (split >= splits) continue;
        const KeyRange keys = split_range(p, t, splits, split);
        select_keys(p, t, keys.begin, keys.end, k, selections, found, plan.prefetch);
        for (int64_t row = 0; row < t.num_rows; ++row) {
          Selection& selection = selections[row];
          const Candidates c = {found.scores + row * capacity, found.keys + row * capacity};
          selection.shrink(c, k);
          char* part = partials + (item / plan.num_splits * tile_rows + row) * row_bytes + split * split_bytes;
          *reinterpret_cast<SplitSelection*>(part) = {selection.m, selection.d, selection.count};
          part += sizeof(SplitSelection);
          __builtin_memcpy(part, c.scores, static_cast<size_t>(4 * selection.count));
          __builtin_memcpy(part + 4 * selection.count, c.keys, static_cast<size_t>(4 * selection.count));
        }
      }
#pragma omp for schedule(dynamic, 1)
      for (int64_t item = 0; item < tiles * tile_rows; ++item) {
        const int64_t row = item % tile_rows;
        set_tile(p, plan, first + item / tile_rows, t);
        const int64_t splits = num_splits(plan, t);
        if (row >= t.num_rows || splits == 0) continue;
        finish_selection(p, t, row, partials + item * row_bytes, splits, merge);
      }
    }
  }
}

// The query heads of a tile so that each query has num_units tiles, or as few more, or as many
// fewer, as the groups of K heads and V heads allow.
int64_t heads_for(const Problem& p, int64_t num_units) {
  const int64_t unit = unit_heads(p);
  const int64_t most = p.num_q_heads / unit;
  int64_t units = min_of(num_units, most);
  while (most % units != 0) ++units;
  return p.num_q_heads / units;
}

enum class Values { dense, selective };

// Also sets p.block.
Plan make_plan(Problem& p, const AttentionDecodeParams& params, int64_t longest, Values values) {
  const bool selective = values == Values::selective;
  const int64_t num_threads = omp_get_max_threads();
  const int64_t wanted_items = 4 * num_threads;
  const int64_t k = params.top_k;
  Plan plan = {};
  plan.unit_heads = p.num_q_heads;
  plan.tile_queries = max_of(1, kTileElements / (p.num_q_heads * max_of(p.k.head_dim, p.v.head_dim)));
  if (selective)
    plan.tile_queries =
        min_of(plan.tile_queries, max_of(1, kSelectionBytes / (p.num_q_heads * Selection::capacity(k) * 8)));
  plan.tile_queries = min_of(plan.tile_queries, max_of(1, p.num_queries / wanted_items));
  // If each sequence has its own cache, it is split once per thread, because an item starts with
  // nothing prefetched. The number of splits must not depend on other sequences, so that a sequence
  // gets the same bits alone and in a batch. Queries that share a cache get more items, for
  // balance.
  const int64_t splits = p.num_queries == 1 ? num_threads : ceil_div(wanted_items, num_tiles(p, plan));
  plan.num_splits = params.num_splits > 0 ? min_of(params.num_splits, kMaxSplits) : splits;
  plan.min_split_keys = params.num_splits > 0 ? 1 : kMinSplitKeys;
  plan.num_splits = max_of(1, min_of(plan.num_splits, longest / plan.min_split_keys));
  plan.most_keys = longest;
  // If the cache is read once, short blocks limit how much is prefetched, and how many pages the
  // rows of one head span.
  plan.prefetch = plan.tile_queries == 1;
  p.block = !plan.prefetch ? kBlock : selective ? 64 : 32;
  if (plan.prefetch && params.pages) p.block = min_of(p.block, params.page_tokens);
  // AMX decode decides by tile whether fixed point is precise enough, so a tile must not depend on
  // the number of sequences.
  const int64_t work = longest * p.num_q_heads * (p.k.head_dim + p.v.head_dim);
  if (plan.num_splits == 1 && work >= kMinSharedWork && !p.amx) {
    plan.unit_heads = heads_for(p, ceil_div(num_threads, num_tiles(p, plan)));
  }
  return plan;
}

}  // namespace

void attention_decode(const AttentionDecodeParams& params, Arena& arena) {
  if (params.batch_size == 0) return;
  Problem p = make_problem(params);
  const bool shared = params.batch_size > 1 &&
                      (params.pages ? params.pages_shared : params.k.batch_stride == 0 && params.v.batch_stride == 0);
  p.num_batches = shared ? 1 : params.batch_size;
  p.num_queries = shared ? params.batch_size : 1;
  p.kv_lens_per_query = shared;
  p.stride_lse_head = 1;
  p.stride_lse_batch = params.num_q_heads;
  p.stride_lse_query = params.num_q_heads;
  // The largest and the smallest number of keys that a query sees.
  const int64_t most = p.window > 0 ? p.window : p.kv_len;
  int64_t longest = p.kv_lens ? 0 : min_of(p.kv_len, most);
  int64_t shortest = longest;
  if (p.kv_lens) shortest = most;
  for (int64_t b = 0; p.kv_lens && b < params.batch_size; ++b) {
    longest = max_of(longest, min_of(p.kv_lens[b], most));
    shortest = min_of(shortest, p.kv_lens[b]);
  }
  // If a sequence has at most k keys, selective V is dense attention, and is computed as that.
  const int64_t k = params.top_k;
  if (k > 0 && k < longest) {
    Plan plan = make_plan(p, params, longest, Values::selective);
    plan.fewest_keys = k + 1;
    run_selective(p, plan, params, arena);
    if (shortest > k) return;
  }
  Plan plan = make_plan(p, params, k > 0 ? min_of(longest, k) : longest, Values::dense);
  run(p, plan, arena);
}

}  // namespace diffqkv::cpu::DIFFQKV_ISA
