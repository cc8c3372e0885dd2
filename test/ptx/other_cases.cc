// All else: what works on a token or on a row at a time.
#include <limits>

#include "backend/backend.h"
#include "cases.h"

namespace diffqkv::ptx {
namespace {

using namespace emulated;

constexpr DType kF32 = DType::f32, kF16 = DType::f16, kBf16 = DType::bf16, kI8 = DType::i8, kF8 = DType::f8e4m3;
constexpr DType kFloats[] = {kF32, kF16, kBf16}, kCacheTypes[] = {kF32, kF16, kBf16, kI8, kF8};

std::string name_of(DType dtype) { return dtype_name(dtype); }

// Tensors that begin an element past an aligned address.
Call shifted_gated_activation(DType dtype, int64_t count, Activation activation) {
  Call call = gated_activation_call({dtype, count + 1, activation});
  GatedActivationParams p = std::get<GatedActivationParams>(call.params);
  const size_t bytes = dtype_size(dtype);
  p.gate = static_cast<const uint8_t*>(p.gate) + bytes;
  p.up = static_cast<const uint8_t*>(p.up) + bytes;
  p.out = static_cast<uint8_t*>(p.out) + bytes;
  p.count = count;
  set_operator(call, gated_activation, p);
  return call;
}

// The call with other integers for one of its arguments.
template <typename Params>
Call with_integers(Call call, const int32_t* Params::*argument, const std::vector<int32_t>& values,
                   void (*launcher)(const Params&, Context&)) {
  Params p = std::get<Params>(call.params);
  p.*argument = add_integers(call, "other integers", values);
  set_operator(call, launcher, p);
  return call;
}

Call sample_of(const SampleCase& c, const std::vector<float>& first_logits, const std::vector<int32_t>& history) {
  Call call = sample_call(c);
  Tensor& logits = call.tensor("logits");
  std::vector<float> values = floats_of_bytes(kF32, logits.memory.values());
  std::copy(first_logits.begin(), first_logits.end(), values.begin());
  logits.memory.upload(bytes_of_floats(kF32, values));
  call = with_integers(std::move(call), &SampleParams::history, history, sample);
  SampleParams p = std::get<SampleParams>(call.params);
  p.history_len = static_cast<int64_t>(history.size());
  set_operator(call, sample, p);
  return call;
}

// Tensors that begin an element past an aligned address.
Call shifted_softcap(int64_t count) {
  Call call = softcap_call({count + 1, 30});
  SoftcapParams p = std::get<SoftcapParams>(call.params);
  ++p.x;
  ++p.out;
  p.count = count;
  set_operator(call, softcap, p);
  return call;
}

void add_elementwise(std::vector<Case>* cases) {
  for (const int64_t count : {300, 40003}) {
    const std::string size = std::to_string(count);
    cases->push_back({"softcap, " + size, [=] { return softcap_call({count, 20}); }, {1, 99 * 1024}});
    cases->push_back({"softcap, not aligned, " + size, [=] { return shifted_softcap(count); }, {1, 99 * 1024}});
  }
  for (const DType dtype : kFloats) {
    for (const auto& [name, activation] : kOtherActivations) {
      const std::string start = "gated_activation, " + name_of(dtype) + ", " + name;
      const Activation function = activation;
      cases->push_back({start + ", not aligned", [=] { return shifted_gated_activation(dtype, 300, function); }});
      cases->push_back({start, [=] { return gated_activation_call({dtype, 1003, function}); }});
      cases->push_back({start + ", no gate", [=] { return gated_activation_call({dtype, 1003, function, false}); }});
    }
    for (const int64_t count : {300, 40000}) {
      cases->push_back({"gated_activation, " + name_of(dtype) + ", not aligned, " + std::to_string(count),
                        [=] { return shifted_gated_activation(dtype, count, Activation::silu); },
                        {1, 99 * 1024}});
      cases->push_back({"gated_activation, " + name_of(dtype) + ", " + std::to_string(count),
                        [=] {
                          return gated_activation_call({dtype, count + 3});
                        },
                        {1, 99 * 1024}});
    }
    for (const int64_t features : {33, 1028}) {
      cases->push_back({"add_bias, " + name_of(dtype) + ", rows of " + std::to_string(features), [=] {
                          return add_bias_call({dtype, 3, features});
                        }});
    }
    for (const DType out : kFloats) {
      const std::string name = "embed, " + name_of(dtype) + " to " + name_of(out);
      for (const int64_t hidden : {33, 1027, 4104})
        cases->push_back({name + ", rows of " + std::to_string(hidden), [=] {
                            return embed_call({dtype, out, 3, hidden});
                          }});
      cases->push_back({name + ", scaled", [=] { return embed_call({dtype, out, 3, 1027, 50, 12.5f}); }});
      cases->push_back({name + ", a token that is none",
                        [=] {
                          return with_integers(embed_call({dtype, out, 3, dtype == out ? 64 : 33}),
                                               &EmbedParams::tokens, {3, dtype == kF32 ? -1 : 50, 1}, embed);
                        },
                        {},
                        true});
    }
    for (const DType residual : kFloats) {
      for (const int64_t hidden : {601, 5003, 4104}) {
        cases->push_back(
            {"RMSNorm, " + name_of(dtype) + " and " + name_of(residual) + ", rows of " + std::to_string(hidden), [=] {
               return rms_norm_call({dtype, residual, hidden == 601 ? kBf16 : dtype, hidden == 5003 ? residual : kF32,
                                     2, hidden, hidden != 5003});
             }});
      }
    }
    for (const int64_t hidden : {601, 4104}) {
      cases->push_back({"RMSNorm, " + name_of(dtype) + ", accumulated, rows of " + std::to_string(hidden), [=] {
                          return rms_norm_call({dtype, dtype, dtype, kF32, 2, hidden, false, true});
                        }});
    }
    cases->push_back({"rope, " + name_of(dtype) + ", heads of 600", [=] { return rope_call({dtype, 3, 2, 600}); }});
    cases->push_back({"rope, " + name_of(dtype) + ", a position that is none",
                      [=] {
                        return with_integers(rope_call({dtype, 3, 2, 64}), &RopeParams::positions, {1, -2, 3}, rope);
                      },
                      {},
                      true});
  }
}

void add_cache(std::vector<Case>* cases) {
  int i = 0;
  for (const DType dtype : kFloats) {
    for (const DType k : kCacheTypes) {
      for (const DType v : kCacheTypes) {
        for (const Dims& dims : {Dims{64, 72}, Dims{10, 9}}) {
          const bool rotate = i++ % 4 != 0;
          cases->push_back({"kv_append, " + name_of(dtype) + " to " + name_of(k) + " and " + name_of(v) +
                                (rotate ? ", rotated" : "") + ", heads of " + std::to_string(dims.vo),
                            [=] {
                              return kv_append_call({dtype, k, v, dims, rotate});
                            }});
        }
      }
    }
  }
  for (const DType dtype : kFloats) {
    for (const DType cache : kCacheTypes) {
      for (const Dims& dims : {Dims{520, 600}, Dims{514, 601}}) {
        // RoPE in f32 cancels in some of so many elements, and a pool has no rows to judge them by.
        const bool rotate = dtype != kF32 || cache != kF32;
        cases->push_back(
            {"kv_append, " + name_of(dtype) + " to " + name_of(cache) + ", heads of " + std::to_string(dims.vo), [=] {
               return kv_append_call({dtype, cache, cache, dims, rotate});
             }});
      }
    }
    cases->push_back({"kv_append, " + name_of(dtype) + ", a position that is none",
                      [=] {
                        return with_integers(kv_append_call({dtype, kBf16, kI8, {10, dtype == kF32 ? 9 : 64}, true}),
                                             &KvAppendParams::positions, {0, dtype == kF16 ? -1 : 71, 1, 2, 64},
                                             kv_append);
                      },
                      {},
                      true});
    for (const DType cache : kCacheTypes) {
      cases->push_back({"kv_gather, " + name_of(cache) + " to " + name_of(dtype), [=] {
                          return kv_gather_call({cache, dtype, 70, 2, 64});
                        }});
      cases->push_back({"kv_gather, " + name_of(cache) + " to " + name_of(dtype) + ", heads of 10", [=] {
                          return kv_gather_call({cache, dtype, 70, 3, 10});
                        }});
    }
    for (const DType out : {kI8, kF8}) {
      for (const int64_t dim : {33, 300})
        cases->push_back(
            {"quantize, " + name_of(dtype) + " to " + name_of(out) + ", rows of " + std::to_string(dim), [=] {
               return quantize_call({dtype, out, dim});
             }});
    }
  }
}

void add_sampling(std::vector<Case>* cases) {
  const float nan = std::numeric_limits<float>::quiet_NaN(), infinity = std::numeric_limits<float>::infinity();
  const std::vector<int32_t> history = {3, 5, 5, 0}, bad_history = {3, 6000, 5};
  const auto token = [&](const std::string& name, const SampleCase& c, const std::vector<float>& logits,
                         const std::vector<int32_t>& tokens, bool reports = false) {
    cases->push_back({"sampling: " + name, [=] { return sample_of(c, logits, tokens); }, {}, reports});
  };
  token("zeros of both signs", {.vocab_size = 700, .penalty = 1.3f}, {0.0f, -0.0f, 20.0f, -3.0f}, history);
  token("a logit of NaN", {.vocab_size = 700}, {1, nan}, {}, true);
  token("a logit of infinity", {.vocab_size = 700, .temperature = 1}, {1, infinity}, {});
  token("no logit", {.vocab_size = 3, .temperature = 1}, {-infinity, -infinity, -infinity}, {}, true);
  token("a history that is none", {.vocab_size = 700, .penalty = 1.3f}, {}, bad_history, true);
  token("a single token", {.vocab_size = 1, .temperature = 1}, {}, {});
  token("equal logits", {.vocab_size = 6, .temperature = 1, .top_k = 3, .top_p = 0.5f}, {1, 1, 1, 1, 1, 1}, {});
  token("cold", {.vocab_size = 3000, .temperature = 0.05f, .top_p = 0.9f}, {}, history);
  token("hot", {.vocab_size = 20000, .temperature = 30, .top_p = 0.999f, .min_p = 0.001f}, {}, history);
  token("most are kept", {.vocab_size = 9000, .temperature = 2, .top_k = 8000}, {}, history);
  token("everything",
        {.vocab_size = 9000, .temperature = 0.7f, .top_k = 500, .top_p = 0.8f, .min_p = 0.05f, .penalty = 1.1f}, {},
        history);
}

}  // namespace

std::vector<Case> other_cases() {
  std::vector<Case> cases;
  add_elementwise(&cases);
  add_cache(&cases);
  add_sampling(&cases);
  cases.push_back({"the probe of a device that is opened", [] {
                     Call call;
                     call.enqueue = [](Context&) { make_backend(0)->synchronize(); };
                     return call;
                   }});
  return cases;
}

}  // namespace diffqkv::ptx
