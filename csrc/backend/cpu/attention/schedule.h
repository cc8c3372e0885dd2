// How attention is divided into work items, in which order threads compute them, and how their
// results are merged. tile.h computes an item.
#pragma once

#include <omp.h>

#include "backend/cpu/arena.h"
#include "backend/cpu/attention/tile.h"

namespace diffqkv::cpu::DIFFQKV_ISA {
namespace {

// out = o / divisor and lse = m |sm_scale| + ln(d) of one row. `query` counts within its batch.
DIFFQKV_INLINE void finish_row(const Problem& p, int64_t batch, int64_t query, int64_t head, const float* o,
                               float divisor, float m, float d) {
  // The largest score has the weight 1, so d is 0 only if no score is above -inf: without keys, or
  // if all products q.k overflowed. A softmax of -inf is NaN.
  if (d == 0 && p.num_visible_keys(batch, query) > 0) d = divisor = __builtin_nanf("");
  if (p.lse) {
    float* lse = p.lse + batch * p.stride_lse_batch + query * p.stride_lse_query + head * p.stride_lse_head;
    const double top = m > -kInfinity ? m * p.scale : 0;
    *lse = d == 0 ? -kInfinity : static_cast<float>(top + static_cast<double>(__builtin_logf(d)));
  }
  const int64_t at = ((batch * p.num_queries + query) * p.num_q_heads + head) * p.v.head_dim;
  visit(p.out_dtype, [&](auto type) DIFFQKV_LAMBDA {
    auto* out = reinterpret_cast<decltype(type)*>(p.out) + at;
    for (int64_t j = 0; j < p.v.head_dim; j += kLanes) {
      const F32v x = divisor == 0 ? F32v{} : load(o + j) / divisor;
      const int64_t count = p.v.head_dim - j;
      if (count >= kLanes) {
        store(out + j, x);
      } else {
        store_n(out + j, x, count);
      }
    }
  });
}

// How the problem is divided into work items.
struct Plan {
  int64_t unit_heads, tile_queries;
  int64_t num_splits;  // upper bound; each split of a tile has min_split_keys keys or more
  int64_t min_split_keys;
  int64_t fewest_keys, most_keys;  // tiles that see fewer or more keys are skipped
  bool prefetch;                   // the cache is read from memory: no earlier tile brought it into a CPU cache
};

DIFFQKV_INLINE void set_tile(const Problem& p, const Plan& plan, int64_t index, Tile& t) {
  // Tiles of the last queries come first, because those see the most keys.
  const int64_t tiles = ceil_div(p.num_queries, plan.tile_queries);
  const int64_t units = p.num_q_heads / plan.unit_heads;
  t.first_head = index % units * plan.unit_heads;
  t.num_heads = plan.unit_heads;
  t.batch = index / units % p.num_batches;
  t.first_query = (tiles - 1 - index / (units * p.num_batches)) * plan.tile_queries;
  t.num_queries = min_of(plan.tile_queries, p.num_queries - t.first_query);
  t.num_rows = t.num_heads * t.num_queries;
  t.max_visible = t.most_keys = 0;
  t.first_visible = p.kv_len;
  for (int64_t i = 0; i < t.num_queries; ++i) {
    const int64_t visible = p.num_visible_keys(t.batch, t.first_query + i);
    const int64_t first = p.window > 0 ? max_of(0, visible - p.window) : 0;
    t.visible[i] = static_cast<int32_t>(visible);
    t.first[i] = static_cast<int32_t>(first);
    if (visible == 0) continue;
    t.max_visible = max_of(t.max_visible, visible);
    t.first_visible = min_of(t.first_visible, first);
    t.most_keys = max_of(t.most_keys, visible - first);
  }
  t.first_visible = min_of(t.first_visible, t.max_visible);
}

DIFFQKV_INLINE int64_t num_tiles(const Problem& p, const Plan& plan) {
  return ceil_div(p.num_queries, plan.tile_queries) * p.num_batches * (p.num_q_heads / plan.unit_heads);
}

// The number of splits of a tile. It depends on this tile only, not on others. 0: the tile is
// skipped.
DIFFQKV_INLINE int64_t num_splits(const Plan& plan, const Tile& t) {
  if (t.most_keys < plan.fewest_keys || t.most_keys > plan.most_keys) return 0;
  return max_of(1, min_of(plan.num_splits, (t.max_visible - t.first_visible) / plan.min_split_keys));
}

// The keys of one split: whole blocks, except at both ends of the keys that the tile sees.
DIFFQKV_INLINE KeyRange split_range(const Problem& p, const Tile& t, int64_t num_splits, int64_t split) {
  const int64_t first = t.first_visible & -p.block_unit();
  const int64_t keys = round_up(ceil_div(t.max_visible - first, num_splits), p.block);
  const int64_t begin = min_of(first + split * keys, t.max_visible);
  return {max_of(begin, t.first_visible), min_of(begin + keys, t.max_visible)};
}

// Size of the result of one split for one row: o with its divisor in divisor_column, then m and
// d.
DIFFQKV_INLINE int64_t partial_floats(const Problem& p) { return p.ldo + kPanel; }

// Max and sum of the softmax of one row.
struct RowStats {
  float m, d;
};

// Merges the splits of one row into o.
RowStats merge_row(const Problem& p, const float* partials, int64_t num_splits, float* o) {
  RowStats r = {-kInfinity, 0};
  for (int64_t s = 0; s < num_splits; ++s) {
    const float m = partials[s * partial_floats(p) + p.ldo];
    r.m = m > r.m ? m : r.m;
  }
  for (int64_t j = 0; j < p.ldo; j += kLanes) store(o + j, F32v{});
  for (int64_t s = 0; s < num_splits; ++s) {
    const float* part = partials + s * partial_floats(p);
    // A split without a finite score has zeros, or NaN, which must survive.
    const float weight = part[p.ldo] > -kInfinity ? weight_of(p, part[p.ldo], r.m) : 1;
    r.d += part[p.ldo + 1] * weight;
    for (int64_t j = 0; j < p.ldo; j += kLanes) store(o + j, load(o + j) + load(part + j) * weight);
  }
  return r;
}

constexpr int64_t kPartialBytes = int64_t{64} << 20;  // limit on the results of splits that wait to be merged

void run(const Problem& p, const Plan& plan, Arena& arena) {
  const int num_threads = omp_get_max_threads();
  const int64_t tile_rows = plan.unit_heads * plan.tile_queries;
  const int64_t all_tiles = num_tiles(p, plan);
  Tile size = {};
  const int64_t scratch_bytes = size.lay_out(p, nullptr, plan.tile_queries, plan.unit_heads);
  char* scratch = static_cast<char*>(arena.get(kSlotAttention, static_cast<size_t>(num_threads * scratch_bytes)));
  const int64_t row_bytes = partial_floats(p) * 4;
  const int64_t tile_bytes = tile_rows * plan.num_splits * row_bytes;
  const int64_t tiles_at_once =
      plan.num_splits == 1 ? all_tiles : min_of(all_tiles, max_of(1, kPartialBytes / tile_bytes));
  float* partials =
      plan.num_splits == 1
          ? nullptr
          : static_cast<float*>(arena.get(kSlotPartials, static_cast<size_t>(tiles_at_once * tile_bytes)));
#pragma omp parallel num_threads(all_tiles* plan.num_splits > 1 ? num_threads : 1)
  {
    Tile t = {};
    t.lay_out(p, scratch + omp_get_thread_num() * scratch_bytes, plan.tile_queries, plan.unit_heads);
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
        attend(p, t, keys.begin, keys.end, plan.prefetch);
        for (int64_t row = 0; row < t.num_rows; ++row) {
          const float* o = t.o + row * p.ldo;
          const float d = p.sum_d ? t.d[row] : o[p.divisor_column];
          if (splits == 1) {
            finish_row(p, t.batch, t.first_query + row % t.num_queries, t.first_head + row / t.num_queries, o,
                       o[p.divisor_column], t.m[row], d);
            continue;
          }
          float* part =
              partials + ((item / plan.num_splits * tile_rows + row) * plan.num_splits + split) * partial_floats(p);
          for (int64_t j = 0; j < p.ldo; j += kLanes) store(part + j, load(o + j));
          part[p.ldo] = t.m[row];
          part[p.ldo + 1] = d;
        }
      }
      if (plan.num_splits == 1) continue;
#pragma omp for schedule(dynamic, 4)
      for (int64_t item = 0; item < tiles * tile_rows; ++item) {
        const int64_t row = item % tile_rows;
        set_tile(p, plan, first + item / tile_rows, t);
        const int64_t splits = num_splits(plan, t);
        if (row >= t.num_rows || splits <= 1) continue;
        const RowStats stats = merge_row(p, partials + item * plan.num_splits * partial_floats(p), splits, t.o);
        finish_row(p, t.batch, t.first_query + row % t.num_queries, t.first_head + row / t.num_queries, t.o,
                   t.o[p.divisor_column], stats.m, stats.d);
      }
    }
  }
}

}  // namespace
}  // namespace diffqkv::cpu::DIFFQKV_ISA
