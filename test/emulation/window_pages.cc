#include "window_pages.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

namespace diffqkv {
namespace {

constexpr int64_t kQHeads = 8, kKHeads = 2, kVHeads = 4, kDim = 64, kKvLen = 300;
constexpr int64_t kPageOffset = 128;
const std::vector<int32_t> kLens = {300, 203, 64, 0};

struct Case {
  DType q, k, v;
  int64_t page_tokens, window, q_len, top_k, num_splits;
  bool shared;  // all sequences have the pages of the first, which has kKvLen keys
};

std::string name_of(const Case& c) {
  std::string name = c.q_len > 0 ? "prefill of " + std::to_string(c.q_len) : "decode";
  for (const DType type : {c.q, c.k, c.v}) name += std::string(" ") + dtype_name(type);
  return name + ", pages of " + std::to_string(c.page_tokens) + ", window " + std::to_string(c.window) + ", top " +
         std::to_string(c.top_k) + ", splits " + std::to_string(c.num_splits) + (c.shared ? ", shared" : "");
}

// K or V on the host: [sequence][key][head][dim] elements, and [sequence][key][head] scales if the type has them.
struct HostCache {
  DType dtype;
  int64_t heads;
  std::vector<uint8_t> source;  // what kv_append gets: the elements, before they are quantized
  std::vector<uint8_t> elements, scales;

  DType source_dtype() const { return dtype_is_scaled(dtype) ? DType::f32 : dtype; }
};

std::vector<uint8_t> random_floats(DType dtype, size_t count, float mean, std::mt19937& random) {
  std::normal_distribution<float> normal(mean, 1.0f);
  std::vector<float> values(count);
  for (float& x : values) x = std::fabs(mean) > 0 ? std::fabs(normal(random)) * 0.01f : normal(random);
  std::vector<uint8_t> bytes(count * dtype_size(dtype));
  convert_from_f32(dtype, bytes.data(), values.data(), count);
  return bytes;
}

Buffer uploaded(const std::shared_ptr<Backend>& backend, const void* data, size_t bytes) {
  Buffer buffer(backend, bytes);
  backend->upload(buffer.data(), data, bytes);
  return buffer;
}

HostCache random_cache(const std::shared_ptr<Backend>& backend, DType dtype, int64_t heads, size_t sequences,
                       std::mt19937& random) {
  HostCache cache = {dtype, heads, {}, {}, {}};
  const size_t rows = sequences * kKvLen * static_cast<size_t>(heads);
  cache.source = random_floats(cache.source_dtype(), rows * kDim, 0, random);
  cache.elements = cache.source;
  if (!dtype_is_scaled(dtype)) return cache;
  const Buffer source = uploaded(backend, cache.source.data(), cache.source.size());
  const Buffer elements(backend, rows * kDim), scales(backend, rows * 2);
  QuantizeParams p;
  p.x = source.data();
  p.out = elements.data();
  p.scales = scales.data();
  p.x_dtype = cache.source_dtype();
  p.out_dtype = dtype;
  p.num_rows = static_cast<int64_t>(rows);
  p.head_dim = kDim;
  backend->quantize(p);
  cache.elements.resize(elements.bytes());
  cache.scales.resize(scales.bytes());
  backend->download(cache.elements.data(), elements.data(), elements.bytes());
  backend->download(cache.scales.data(), scales.data(), scales.bytes());
  return cache;
}

std::vector<float> floats(const std::shared_ptr<Backend>& backend, const Buffer& buffer, DType dtype) {
  std::vector<uint8_t> bytes(buffer.bytes());
  backend->download(bytes.data(), buffer.data(), buffer.bytes());
  std::vector<float> values(bytes.size() / dtype_size(dtype));
  convert_to_f32(dtype, values.data(), bytes.data(), values.size());
  return values;
}

std::string compare(const std::vector<float>& paged, const std::vector<float>& contiguous, float tolerance) {
  for (size_t i = 0; i < paged.size(); ++i) {
    const float a = paged[i], b = contiguous[i];
    if (a == b || std::fabs(a - b) <= tolerance * std::fmax(1.0f, std::fabs(b))) continue;
    return "element " + std::to_string(i) + " is " + std::to_string(a) + ", contiguous " + std::to_string(b);
  }
  return "";
}

std::string check(const std::shared_ptr<Backend>& backend, const Case& c) {
  std::mt19937 random(7);
  std::vector<int32_t> lens = kLens;
  if (c.shared) lens = {300, 203, 64};
  const size_t batch = lens.size();
  const size_t caches = c.shared ? 1 : batch;
  const HostCache k = random_cache(backend, c.k, kKHeads, caches, random);
  const HostCache v = random_cache(backend, c.v, kVHeads, caches, random);
  const int64_t q_len = std::max<int64_t>(c.q_len, 1);
  const size_t rows = batch * static_cast<size_t>(q_len * kQHeads);
  const std::vector<uint8_t> q = random_floats(c.q, rows * kDim, 0, random);

  std::vector<Buffer> memory;
  const auto on_device = [&](const void* data, size_t bytes) {
    memory.push_back(uploaded(backend, data, bytes));
    return memory.back().data();
  };
  AttentionDecodeParams p;
  p.q = on_device(q.data(), q.size());
  p.kv_lens = static_cast<const int32_t*>(on_device(lens.data(), 4 * lens.size()));
  p.q_dtype = p.out_dtype = c.q;
  p.sm_scale = 0.125f;
  p.window = c.window;
  p.batch_size = static_cast<int64_t>(batch);
  p.kv_len = kKvLen;
  p.num_q_heads = kQHeads;
  p.num_splits = c.num_splits;
  p.top_k = c.top_k;
  const auto view = [&](const HostCache& cache) {
    KvView kv;
    kv.data = on_device(cache.elements.data(), cache.elements.size());
    if (!cache.scales.empty()) kv.scales = on_device(cache.scales.data(), cache.scales.size());
    kv.num_heads = cache.heads;
    kv.head_dim = kDim;
    kv.batch_stride = c.shared ? 0 : kKvLen * cache.heads * kDim;
    kv.page_offset = kPageOffset;
    kv.dtype = cache.dtype;
    return kv;
  };
  p.k = view(k);
  p.v = view(v);

  std::vector<const KvPage*> tables;
  for (size_t sequence = 0; sequence < caches; ++sequence) {
    // The keys that some query sees.
    int64_t begin = kKvLen, end = 0;
    std::vector<char> seen(kKvLen, 0);
    for (size_t b = 0; b < batch; ++b) {
      if (!c.shared && b != sequence) continue;
      for (int64_t i = 0; i < q_len; ++i) {
        const int64_t last = lens[b] - q_len + i + 1;
        for (int64_t j = std::max<int64_t>(0, last - c.window); j < last; ++j) seen[static_cast<size_t>(j)] = 1;
        if (last > 0) begin = std::min(begin, std::max<int64_t>(0, last - c.window));
        end = std::max(end, last);
      }
    }
    std::vector<KvPage> table;
    for (int64_t page = 0; page * c.page_tokens < kKvLen; ++page) {
      const int64_t first = page * c.page_tokens;
      const int64_t last = std::min(first + c.page_tokens, kKvLen);
      KvPage entry = {nullptr, nullptr};
      if (std::count(seen.begin() + first, seen.begin() + last, 1) > 0) {
        // 0xff is NaN in every type but i8.
        const auto new_page = [&](const HostCache& cache) {
          const int64_t bytes = kv_page_layer_bytes(cache.dtype, c.page_tokens, cache.heads, kDim);
          const std::vector<uint8_t> nans(static_cast<size_t>(kPageOffset + bytes), 0xff);
          return on_device(nans.data(), nans.size());
        };
        entry = {new_page(k), new_page(v)};
      }
      table.push_back(entry);
    }
    tables.push_back(static_cast<const KvPage*>(on_device(table.data(), table.size() * sizeof(KvPage))));

    // Keys outside of [begin, end) are not written.
    std::vector<int32_t> positions;
    for (int64_t key = begin; key < end; ++key)
      if (table[static_cast<size_t>(key / c.page_tokens)].k != nullptr) positions.push_back(static_cast<int32_t>(key));
    if (positions.empty()) continue;
    KvAppendParams append;
    const auto source = [&](const HostCache& cache) {
      const size_t row_bytes = static_cast<size_t>(cache.heads * kDim) * dtype_size(cache.source_dtype());
      std::vector<uint8_t> rows;
      for (const int32_t position : positions) {
        const uint8_t* const row = &cache.source[(sequence * kKvLen + static_cast<size_t>(position)) * row_bytes];
        rows.insert(rows.end(), row, row + row_bytes);
      }
      return on_device(rows.data(), rows.size());
    };
    append.k = source(k);
    append.v = source(v);
    append.k_dtype = k.source_dtype();
    append.v_dtype = v.source_dtype();
    append.k_cache = p.k;
    append.v_cache = p.v;
    append.pages = static_cast<const KvPage* const*>(on_device(&tables.back(), sizeof(tables.back())));
    append.positions = static_cast<const int32_t*>(on_device(positions.data(), positions.size() * 4));
    append.num_tokens = static_cast<int64_t>(positions.size());
    append.max_kv_len = kKvLen;
    append.page_tokens = c.page_tokens;
    backend->kv_append(append);
  }
  const void* const device_tables = on_device(tables.data(), tables.size() * sizeof(tables[0]));

  std::vector<float> out[2], lse[2];
  for (const bool paged : {false, true}) {
    Buffer out_memory(backend, rows * kDim * dtype_size(c.q));
    Buffer lse_memory(backend, rows * 4);
    p.out = out_memory.data();
    p.lse = lse_memory.as<float>();
    p.pages = paged ? static_cast<const KvPage* const*>(device_tables) : nullptr;
    p.pages_shared = paged && c.shared;
    p.page_tokens = c.page_tokens;
    if (c.q_len > 0) {
      AttentionPrefillParams prefill{static_cast<const AttentionParams&>(p)};
      prefill.q_len = c.q_len;
      prefill.causal = true;
      backend->attention_prefill(prefill);
    } else {
      backend->attention_decode(p);
    }
    out[paged] = floats(backend, out_memory, c.q);
    lse[paged] = floats(backend, lse_memory, DType::f32);
  }
  std::string wrong = compare(out[1], out[0], c.q == DType::f32 ? 1e-5f : 2e-2f);
  if (wrong.empty()) wrong = compare(lse[1], lse[0], 1e-4f);
  return wrong.empty() ? "" : name_of(c) + ": " + wrong;
}

}  // namespace

std::string check_window_pages(const std::shared_ptr<Backend>& backend) {
  constexpr DType kF32 = DType::f32, kBf16 = DType::bf16, kF16 = DType::f16, kI8 = DType::i8, kF8 = DType::f8e4m3;
  const DType types[][3] = {{kF32, kF32, kF32}, {kBf16, kBf16, kBf16}, {kBf16, kBf16, kI8}, {kF16, kF8, kI8}};
  for (const auto& [q, k, v] : types) {
    for (const int64_t page_tokens : {32, 64, 128}) {
      for (const int64_t window : {1, 33, 64, 100}) {
        std::vector<Case> cases = {
            {q, k, v, page_tokens, window, 0, 0, 0, false},  {q, k, v, page_tokens, window, 0, 0, 3, false},
            {q, k, v, page_tokens, window, 0, 20, 0, false}, {q, k, v, page_tokens, window, 0, 0, 0, true},
            {q, k, v, page_tokens, window, 0, 20, 0, true},  {q, k, v, page_tokens, window, 20, 0, 0, false}};
        for (const Case& c : cases) {
          const std::string wrong = check(backend, c);
          if (!wrong.empty()) return wrong;
        }
      }
    }
  }
  return "";
}

}  // namespace diffqkv
