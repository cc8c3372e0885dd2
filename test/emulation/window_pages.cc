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
  std::vector<uint8_t> elements, scales;

  size_t element_bytes() const { return static_cast<size_t>(heads * kDim) * dtype_size(dtype); }  // of a key
  size_t scale_bytes() const { return dtype_is_scaled(dtype) ? static_cast<size_t>(heads) * 2 : 0; }
};

std::vector<uint8_t> random_floats(DType dtype, size_t count, float mean, std::mt19937& random) {
  std::normal_distribution<float> normal(mean, 1.0f);
  std::vector<float> values(count);
  for (float& x : values) x = std::fabs(mean) > 0 ? std::fabs(normal(random)) * 0.01f : normal(random);
  std::vector<uint8_t> bytes(count * dtype_size(dtype));
  convert_from_f32(dtype, bytes.data(), values.data(), count);
  return bytes;
}

HostCache random_cache(DType dtype, int64_t heads, size_t sequences, std::mt19937& random) {
  HostCache cache = {dtype, heads, {}, {}};
  const size_t keys = sequences * kKvLen;
  if (dtype_is_scaled(dtype)) {
    cache.elements.resize(keys * cache.element_bytes());
    for (uint8_t& code : cache.elements) code = static_cast<uint8_t>(random() % 0x7f);  // not NaN in f8e4m3
    cache.scales = random_floats(DType::bf16, keys * static_cast<size_t>(heads), 1, random);
  } else {
    cache.elements = random_floats(dtype, keys * static_cast<size_t>(heads * kDim), 0, random);
  }
  return cache;
}

Buffer uploaded(const std::shared_ptr<Backend>& backend, const void* data, size_t bytes) {
  Buffer buffer(backend, bytes);
  backend->upload(buffer.data(), data, bytes);
  return buffer;
}

// The part of one page: elements, then scales. Rows outside [begin, end) are 0xff, which is NaN in every type but i8.
std::vector<uint8_t> page_bytes(const HostCache& cache, size_t sequence, int64_t page, int64_t page_tokens,
                                int64_t begin, int64_t end) {
  std::vector<uint8_t> bytes(
      static_cast<size_t>(kPageOffset + kv_page_layer_bytes(cache.dtype, page_tokens, cache.heads, kDim)), 0xff);
  for (int64_t j = 0; j < page_tokens; ++j) {
    const int64_t key = page * page_tokens + j;
    if (key < begin || key >= end) continue;
    const size_t row = sequence * kKvLen + static_cast<size_t>(key);
    uint8_t* const part = bytes.data() + kPageOffset;
    std::memcpy(part + static_cast<size_t>(j) * cache.element_bytes(), &cache.elements[row * cache.element_bytes()],
                cache.element_bytes());
    if (cache.scale_bytes() == 0) continue;
    uint8_t* const scales = part + static_cast<size_t>(page_tokens) * cache.element_bytes();
    std::memcpy(scales + static_cast<size_t>(j) * cache.scale_bytes(), &cache.scales[row * cache.scale_bytes()],
                cache.scale_bytes());
  }
  return bytes;
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
  const HostCache k = random_cache(c.k, kKHeads, caches, random);
  const HostCache v = random_cache(c.v, kVHeads, caches, random);
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
        const std::vector<uint8_t> k_bytes = page_bytes(k, sequence, page, c.page_tokens, begin, end);
        const std::vector<uint8_t> v_bytes = page_bytes(v, sequence, page, c.page_tokens, begin, end);
        entry.k = on_device(k_bytes.data(), k_bytes.size());
        entry.v = on_device(v_bytes.data(), v_bytes.size());
      }
      table.push_back(entry);
    }
    tables.push_back(static_cast<const KvPage*>(on_device(table.data(), table.size() * sizeof(KvPage))));
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
