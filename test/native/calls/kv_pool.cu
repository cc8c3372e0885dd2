// Pools of pages of a KV cache, for the calls of all operators that work on one.
#include <algorithm>
#include <cstring>

#include "calls/call.h"
#include "kv_page.h"
#include "random.h"

namespace diffqkv::cuda {

Rows random_rows(DType dtype, size_t count, int64_t dim, uint64_t seed) {
  return {random_memory(dtype, count * static_cast<size_t>(dim), 0.1f, seed),
          random_scale_memory(is_quantized(dtype) ? count : 0, seed + 100)};
}

namespace {

struct PoolPlan {
  DType dtype;
  int64_t heads, dim, offset;
  const Rows* rows;
};

// The pages of all sequences, of which `order` says where each is in the pool.
Memory<uint8_t> make_pool(const PoolPlan& plan, const PoolShape& shape, int64_t kv_len,
                          const std::vector<size_t>& order, size_t page_bytes) {
  Memory<uint8_t> pool(order.size() * page_bytes);
  if (plan.rows == nullptr) return pool;
  const KvHeadLayout layout(plan.dim, static_cast<int>(dtype_size(plan.dtype)), shape.page_tokens);
  const std::vector<uint8_t> elements = plan.rows->elements.values(), scales = plan.rows->scales.values();
  std::vector<uint8_t> bytes(pool.size(), 0xff);
  auto place = order.begin();
  for (size_t b = 0; b < shape.lengths.size(); ++b) {
    for (int64_t token = 0; token < shape.lengths[b]; ++token) {
      const int in_page = static_cast<int>(token % shape.page_tokens);
      uint8_t* const page = bytes.data() + *place * page_bytes;
      for (int64_t head = 0; head < plan.heads; ++head) {
        const size_t row =
            (b * static_cast<size_t>(kv_len) + static_cast<size_t>(token)) * static_cast<size_t>(plan.heads) +
            static_cast<size_t>(head);
        const KvHead to = head_in_page(page, plan.offset, layout, head, plan.heads);
        const uint8_t* const from = &elements[row * static_cast<size_t>(layout.row_bytes)];
        for (int byte = 0; byte < layout.row_bytes; byte += 16)
          std::memcpy(to.elements + layout.place(in_page, byte), from + byte,
                      static_cast<size_t>(std::min(16, layout.row_bytes - byte)));
        if (is_quantized(plan.dtype)) std::memcpy(to.scales + in_page, &scales[2 * row], 2);
      }
      if (in_page + 1 == shape.page_tokens || token + 1 == shape.lengths[b]) ++place;
    }
  }
  pool.upload(bytes);
  return pool;
}

}  // namespace

const KvPage* const* add_pools(Call& call, const PoolShape& shape, int64_t kv_len, const Rows* k, const Rows* v) {
  std::vector<size_t> counts, order;
  for (const int32_t length : shape.lengths) {
    counts.push_back(static_cast<size_t>((length + shape.page_tokens - 1) / shape.page_tokens));
    order.resize(order.size() + counts.back());
  }
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  check::Random random(9);
  for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[random.word() % i]);

  std::vector<KvPage> pages(order.size());
  const auto add = [&](const char* name, const PoolPlan& plan, void* KvPage::*start) {
    const int64_t layer = kv_page_layer_bytes(plan.dtype, shape.page_tokens, plan.heads, plan.dim);
    const size_t page_bytes = static_cast<size_t>(layer + plan.offset + 255) / 256 * 256;
    uint8_t* const pool = add_memory(call, name, plan.dtype, make_pool(plan, shape, kv_len, order, page_bytes));
    for (size_t i = 0; i < order.size(); ++i) pages[i].*start = pool + order[i] * page_bytes;
  };
  add("k_pool", {shape.k, shape.heads.k, shape.dims.qk, kKPageOffset, k}, &KvPage::k);
  add("v_pool", {shape.v, shape.heads.v, shape.dims.vo, kVPageOffset, v}, &KvPage::v);

  // Each table in memory of its own, with nothing behind it.
  std::vector<const KvPage*> tables;
  auto first = pages.begin();
  for (const size_t count : counts) {
    const auto end = first + static_cast<int64_t>(count);
    std::vector<KvPage> table(first, end);
    const int64_t first_token = shape.lengths[tables.size()] - shape.last_tokens;
    for (int64_t i = 0; shape.last_tokens > 0 && (i + 1) * shape.page_tokens <= first_token; ++i)
      table[static_cast<size_t>(i)] = {nullptr, nullptr};
    call.pages.emplace_back(table);
    tables.push_back(call.pages.back().data());
    first = end;
  }
  call.tables = std::make_unique<Memory<const KvPage*>>(tables);
  return call.tables->data();
}

}  // namespace diffqkv::cuda
