// The operators on a paged KV cache, with pages in a random order and NaN in the rows that hold no token: the same bits as
// over contiguous tensors, their definitions, and the traffic that the design promises.
#include "operator_check.h"

namespace diffqkv::check {
namespace {

// Pages lie elsewhere, and nothing else is different.
std::string same_as_contiguous(const AttentionCase& paged, Call (*make)(const AttentionCase&)) {
  AttentionCase contiguous = paged;
  contiguous.page_tokens = 0;
  std::vector<uint8_t> out[2], lse[2];
  for (const bool is_paged : {false, true}) {
    Call call = make(is_paged ? paged : contiguous);
    const std::string wrong = run_call(call, nullptr, 1, nullptr);
    if (!wrong.empty()) return (is_paged ? "paged: " : "contiguous: ") + wrong;
    out[is_paged] = call.tensor("out").memory.values();
    lse[is_paged] = call.tensor("lse").memory.values();
  }
  if (out[0] != out[1]) return "out has other bits";
  return lse[0] == lse[1] ? "" : "lse has other bits";
}

// f32: the row times its scale, which is exact.
std::string check_gather(DType cache, int64_t heads, int64_t dim) {
  Call call = kv_gather_call({cache, DType::f32, 150, heads, dim});
  const Rows rows = random_rows(cache, static_cast<size_t>(150 * heads), dim, kGatherSeed);
  const std::string wrong = run_call(call, nullptr, 3, nullptr);
  if (!wrong.empty()) return wrong;
  const std::vector<float> elements = floats_of_bytes(cache, rows.elements.values());
  const std::vector<float> scales = floats_of_bytes(DType::bf16, rows.scales.values());
  const std::vector<float> out = floats_of_bytes(DType::f32, call.tensor("out").memory.values());
  for (size_t i = 0; i < elements.size(); ++i) {
    const float want = is_quantized(cache) ? elements[i] * scales[i / static_cast<size_t>(dim)] : elements[i];
    if (want != out[i]) return "element " + std::to_string(i) + " is " + std::to_string(out[i]);
  }
  return "";
}

// By the definition in ops.h, once more.
std::string check_quantize(DType dtype, DType out, int64_t dim) {
  Call call = quantize_call({dtype, out, dim});
  const std::string wrong = run_call(call, nullptr, 2, nullptr);
  if (!wrong.empty()) return wrong;
  const std::vector<float> values = floats_of_bytes(dtype, call.tensor("x").memory.values());
  const std::vector<uint8_t> codes = call.tensor("out").memory.values();
  const std::vector<float> scales = floats_of_bytes(DType::bf16, call.tensor("scales").memory.values());
  const size_t size = static_cast<size_t>(dim);
  for (size_t row = 0; row < values.size() / size; ++row) {
    const float scale = scales[row];
    float top = 0;
    bool finite = true;
    for (size_t d = 0; d < size; ++d) {
      const float x = std::fabs(values[row * size + d]);
      finite = finite && x < INFINITY;
      top = std::fmax(top, x);
    }
    const bool zero = top < 0x1p-100f;
    const float exact = top / (out == DType::i8 ? 127.0f : 448.0f);
    const bool right = !finite ? scale != scale : zero ? scale == 0 : scale >= exact && scale <= exact * (1 + 0x1p-7f);
    if (!right) return "row " + std::to_string(row) + " has scale " + std::to_string(scale);
    for (size_t d = 0; d < size; ++d) {
      const float x = finite && !zero ? values[row * size + d] / scale : 0.0f;
      uint8_t want = static_cast<uint8_t>(static_cast<int8_t>(std::nearbyint(x)));
      if (out == DType::f8e4m3) convert_from_f32(out, &want, &x, 1);
      if (codes[row * size + d] != want) return "an element of row " + std::to_string(row);
    }
  }
  return "";
}

// The position of the token, which is the last of its cache, written with the limit that makes it the last, and not written
// with the limit before it.
std::string check_append_limit() {
  for (const bool is_inside : {true, false}) {
    Call call = kv_append_call({DType::bf16, DType::bf16, DType::i8, {64, 32}, true});
    KvAppendParams p = std::get<KvAppendParams>(call.params);
    ++p.positions, ++p.sequences;  // its second token
    p.num_tokens = 1;
    p.max_kv_len = is_inside ? 71 : 70;
    set_operator(call, kv_append, p);
    std::vector<std::vector<uint8_t>> before;
    for (const char* pool : {"k_pool", "v_pool"}) before.push_back(call.tensor(pool).memory.values());
    const std::string reported = run_call(call, nullptr, 1, nullptr);
    const bool is_rejected = reported.find("70 at index 0, limit 70") != std::string::npos;
    if (is_inside ? !reported.empty() : !is_rejected) return "position 70 of 71 or 70: " + reported;
    for (const char* pool : {"k_pool", "v_pool"}) {
      const bool is_same = call.tensor(pool).memory.values() == before[pool[0] == 'v'];
      if (is_same == is_inside) return std::string(pool) + (is_same ? " is not written" : " is written");
    }
  }
  return "";
}

// Rows of V that start an element past an aligned address, against the same rows at an aligned one.
std::string check_append_unaligned(DType dtype) {
  const size_t size = dtype_size(dtype);
  std::vector<uint8_t> pools[2];
  for (const bool is_aligned : {false, true}) {
    Call call = kv_append_call({dtype, dtype, dtype, {64, 64}, false});
    KvAppendParams p = std::get<KvAppendParams>(call.params);
    --p.num_tokens;
    if (is_aligned) {
      std::vector<uint8_t> rows = call.tensor("v").memory.values();
      rows.erase(rows.begin(), rows.begin() + static_cast<int64_t>(size));
      rows.resize(rows.size() + size);
      call.tensor("v").memory.upload(rows);
    } else {
      p.v = static_cast<const char*>(p.v) + size;
    }
    set_operator(call, kv_append, p);
    const std::string wrong = run_call(call, nullptr, 1, nullptr);
    if (!wrong.empty()) return wrong;
    pools[is_aligned] = call.tensor("v_pool").memory.values();
  }
  return pools[0] == pools[1] ? "" : "V has other bits";
}

// What decode reads of a paged cache of 32/4/16 x 64. `*bytes`: in all.
std::string check_decode_traffic(DType k, DType v, int32_t tokens, double most_sectors, double* bytes) {
  const AttentionCase c = {.types = {DType::bf16, k, v},
                           .heads = {32, 4, 16},
                           .dims = {64, 64},
                           .kv_len = tokens,
                           .lengths = {tokens},
                           .page_tokens = 64};
  Call call = decode_call(c);
  Counters counters;
  std::string wrong = count_traffic(call, &counters);
  if (!wrong.empty()) return wrong;
  const double pages = tokens / 64;
  const double k_bytes = pages * static_cast<double>(kv_page_layer_bytes(k, 64, c.heads.k, c.dims.qk));
  const double v_bytes = pages * static_cast<double>(kv_page_layer_bytes(v, 64, c.heads.v, c.dims.vo));
  *bytes = static_cast<double>(counters.read_bytes);
  // Of an allocation what each lane reads is counted, and four lanes read the scale of a K row together.
  if (!is_quantized(k)) wrong += within("K read", read_from(counters, call.tensor("k_pool")) / k_bytes, 1, 1);
  wrong += within("V read", read_from(counters, call.tensor("v_pool")) / v_bytes, 1, 1);
  wrong += within("all reads over K and V", *bytes / (k_bytes + v_bytes), 1, 1.03);
  wrong += within("bytes of sectors read over bytes read", 32 * static_cast<double>(counters.read_sectors) / *bytes, 1,
                  most_sectors);
  for (const auto& [line, conflicts] : counters.conflicts_by_line)
    wrong += within(("bank conflicts at " + line).c_str(), static_cast<double>(conflicts) / tokens, 0, 0.02);
  return wrong;
}

}  // namespace

std::vector<Check> kv_cache_checks() {
  std::vector<Check> checks;
  for (const PagedCase& c : paged_decode_cases()) {
    checks.push_back({"decode attention, paged, " + c.name + ": as contiguous",
                      [c = c.attention] { return same_as_contiguous(c, decode_call); }});
  }
  for (const PagedCase& c : paged_prefill_cases()) {
    checks.push_back({"prefill attention, paged, " + c.name + ": as contiguous",
                      [c = c.attention] { return same_as_contiguous(c, prefill_call); }});
  }
  checks.push_back({"kv_append at the limit", check_append_limit});
  for (const DType dtype : {kF32, kF16, kBf16}) {
    checks.push_back({std::string("kv_append, V not aligned, ") + dtype_name(dtype),
                      [dtype] { return check_append_unaligned(dtype); }});
  }
  for (const DType cache : {kF32, kF16, kBf16, kI8, kF8}) {
    checks.push_back({std::string("kv_gather of ") + dtype_name(cache), [=] { return check_gather(cache, 4, 64); }});
    checks.push_back({std::string("kv_gather of ") + dtype_name(cache) + ", heads of 10",
                      [=] { return check_gather(cache, 3, 10); }});
  }
  for (const DType out : {kI8, kF8}) {
    for (const DType in : {kF32, kBf16}) {
      checks.push_back({std::string("quantize ") + dtype_name(in) + " to " + dtype_name(out),
                        [=] { return check_quantize(in, out, 64) + check_quantize(in, out, 33); }});
    }
  }
  return checks;
}

// A unit reads the scales of its own heads, 2 or 8 bytes of a key's 8 or 32: those alone are not whole sectors.
std::string check_paged_traffic() {
  const int32_t tokens = gpu_shape().num_multiprocessors < 100 ? 4096 : 16384;
  double wide = 0, v_in_i8 = 0, both_in_i8 = 0;
  std::string wrong = check_decode_traffic(DType::bf16, DType::bf16, tokens, 1.01, &wide);
  wrong += check_decode_traffic(DType::bf16, DType::i8, tokens, 1.08, &v_in_i8);
  wrong += check_decode_traffic(DType::i8, DType::i8, tokens, 1.11, &both_in_i8);
  wrong += within("bytes read with V in i8 over bf16", v_in_i8 / wide, 0.61, 0.62);
  return wrong + within("bytes read with both in i8 over bf16", both_in_i8 / wide, 0.51, 0.525);
}

}  // namespace diffqkv::check
