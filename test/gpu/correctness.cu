// Every operator's call: its outputs against plain kernels (calls/plain.h), and at small shapes against the emulation.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "compare.h"
#include "device_cases.h"
#include "emulated_outputs.h"
#include "kv_page.h"

namespace diffqkv::cuda {
namespace {

using driver::Case;
using driver::Options;
using driver::Result;
using Bytes = std::vector<uint8_t>;

constexpr size_t kGuardBytes = 4096;
// Inputs of calls up to this size are checked to be as they were.
constexpr size_t kMaxCheckedInput = size_t{1} << 20;

bool is_output(const Call& call, size_t tensor) {
  return std::any_of(call.outputs.begin(), call.outputs.end(), [=](const Output& o) { return o.tensor == tensor; });
}

std::vector<Bytes> input_bytes(const Call& call) {
  std::vector<Bytes> inputs;
  for (size_t i = 0; i < call.tensors.size(); ++i) {
    const Memory<uint8_t>& memory = call.tensors[i].memory;
    inputs.push_back(is_output(call, i) || memory.bytes() > kMaxCheckedInput ? Bytes() : memory.values());
  }
  return inputs;
}

std::vector<Bytes> output_bytes(const Call& call) {
  std::vector<Bytes> outputs;
  for (const Output& output : call.outputs) outputs.push_back(call.tensors[output.tensor].memory.values());
  return outputs;
}

driver::Tolerance tolerance_of(const Call& call, const Output& output) {
  if (output.comparison == Comparison::lse) return driver::kLse;
  const bool elementwise = std::holds_alternative<GatedActivationParams>(call.params);
  return elementwise && output.coarsest_dtype == DType::f32 ? driver::kF32Elementwise
                                                            : driver::tolerance_of(output.coarsest_dtype);
}

// ---- The pool of quantized K pages. RoPE may differ in the last bits of f32, and then a code may be the neighbor. So the
// codes are checked against their definition: each is the rounded quotient of the row's element and its scale, and the scale
// is the row's largest magnitude over the type's, rounded up to bf16.

constexpr float kRopeError = 1e-6f;  // relative to the largest magnitude of a row

// The distance between neighboring codes of the type at `x`, in units of the scale.
float code_step(DType dtype, float x) {
  if (dtype == DType::i8) return 1;
  return std::exp2(std::max(std::floor(std::log2(std::fabs(x))), -6.0f) - 3);
}

std::string quantized_row_problem(DType dtype, const std::vector<float>& row, const std::vector<float>& codes,
                                  float scale) {
  const float limit = dtype == DType::i8 ? 127.0f : 448.0f;
  float top = 0;
  for (const float x : row) top = std::max(top, std::fabs(x));
  const float exact = top / limit;
  if (!(scale >= exact * (1 - kRopeError) && scale <= exact * (1 + 0x1p-7f) * (1 + kRopeError)))
    return "scale " + std::to_string(scale) + ", expected " + std::to_string(exact) + " rounded up";
  for (size_t d = 0; d < row.size(); ++d) {
    const float x = row[d] / scale;
    if (std::fabs(codes[d] - x) <= code_step(dtype, x) / 2 + limit * kRopeError) continue;
    return "code [" + std::to_string(d) + "] is " + std::to_string(codes[d]) + ", expected " + std::to_string(x) +
           " rounded";
  }
  return "";
}

std::string quantized_pool_problem(const Call& call, const Bytes& pool, Bytes untouched, Context& context) {
  const KvAppendParams& p = std::get<KvAppendParams>(call.params);
  const std::vector<float> rows = rotated_keys(p, context);
  const size_t dim = static_cast<size_t>(p.k_cache.head_dim), heads = static_cast<size_t>(p.k_cache.num_heads);
  const KvHeadLayout layout(p.k_cache.head_dim, 1, p.page_tokens);
  const auto integers = [&](const char* name) {
    std::vector<int32_t> values(static_cast<size_t>(p.num_tokens));
    const Bytes bytes = call.tensor(name).memory.values();
    std::memcpy(values.data(), bytes.data(), bytes.size());
    return values;
  };
  const std::vector<int32_t> positions = integers("positions"), sequences = integers("sequences");
  const uint8_t* const start = call.tensor("k_pool").memory.data();
  for (size_t token = 0; token < positions.size(); ++token) {
    const size_t position = static_cast<size_t>(positions[token]), page_tokens = static_cast<size_t>(p.page_tokens);
    const std::vector<KvPage> table = call.pages[static_cast<size_t>(sequences[token])].values();
    const size_t layer = static_cast<size_t>(static_cast<const uint8_t*>(table[position / page_tokens].k) - start +
                                             p.k_cache.page_offset);
    for (size_t head = 0; head < heads; ++head) {
      const int in_page = static_cast<int>(position % page_tokens);
      const size_t head_at = layer + head * static_cast<size_t>(layout.bytes());
      const size_t scale_at =
          layer + heads * static_cast<size_t>(layout.bytes()) + 2 * (head * page_tokens + static_cast<size_t>(in_page));
      Bytes codes(dim);
      for (size_t d = 0; d < dim; ++d) {
        const size_t at = head_at + static_cast<size_t>(layout.place(in_page, static_cast<int>(d)));
        codes[d] = untouched[at] = pool[at];
      }
      const auto part = [&](size_t at, size_t size) { return Bytes(pool.begin() + at, pool.begin() + at + size); };
      const auto first = rows.begin() + static_cast<int64_t>((token * heads + head) * dim);
      const std::string problem = quantized_row_problem(p.k_cache.dtype, {first, first + p.k_cache.head_dim},
                                                        floats_of_bytes(p.k_cache.dtype, codes),
                                                        floats_of_bytes(DType::bf16, part(scale_at, 2))[0]);
      if (!problem.empty())
        return "K row " + std::to_string(head) + " of token " + std::to_string(token) + ": " + problem;
      std::memcpy(&untouched[scale_at], &pool[scale_at], 2);
    }
  }
  const std::string elsewhere = driver::byte_difference(pool, untouched);
  return elsewhere.empty() ? "" : "outside of the new rows: " + elsewhere;
}

// ---- A call.

class Check {
 public:
  explicit Check(Call& call) : call_(call), shape_(device_shape()) {}

  Result run(const std::vector<Bytes>* emulated) {
    const std::vector<Bytes> inputs = input_bytes(call_), initial = output_bytes(call_);
    {
      CallContext context(shape_.multiprocessors, shape_.shared_bytes);
      call_.enqueue(context);
      context.finish();
    }
    const std::vector<Bytes> actual = output_bytes(call_);
    for (const Tensor& tensor : call_.tensors) {
      if (!tensor.memory.guard_is_untouched()) note(tensor.name, "what is behind its end was written");
    }
    for (size_t i = 0; i < inputs.size(); ++i) {
      if (!inputs[i].empty() && inputs[i] != call_.tensors[i].memory.values())
        note(call_.tensors[i].name, "an input was written");
    }
    for (size_t i = 0; i < initial.size(); ++i) call_.tensors[call_.outputs[i].tensor].memory.upload(initial[i]);
    CallContext context(shape_.multiprocessors, shape_.shared_bytes);
    reference(call_.params, context);
    const std::vector<Bytes> expected = output_bytes(call_);
    for (size_t i = 0; i < actual.size(); ++i) {
      if (call_.outputs[i].comparison == Comparison::quantized_pool) {
        note(name_of(i), quantized_pool_problem(call_, actual[i], initial[i], context));
      } else {
        compare(i, "", actual[i], expected[i]);
        if (emulated) compare(i, " against the emulation", actual[i], (*emulated)[i]);
      }
    }
    result_.details.insert(result_.details.begin(), {{"elements", std::to_string(elements_)},
                                                     {"largestError", driver::json_number(largest_error_)},
                                                     {"emulation", emulated ? "true" : "false"}});
    return result_;
  }

 private:
  const std::string& name_of(size_t output) const { return call_.tensors[call_.outputs[output].tensor].name; }

  void note(const std::string& tensor, const std::string& problem) {
    if (problem.empty()) return;
    if (!result_.wrong.empty()) result_.wrong += "; ";
    result_.wrong += tensor + ": " + problem;
  }

  void compare(size_t i, const char* with, const Bytes& actual, const Bytes& expected) {
    const Output& output = call_.outputs[i];
    const DType dtype = call_.tensors[output.tensor].dtype;
    elements_ += actual.size() / dtype_size(dtype);
    if (output.comparison == Comparison::bits)
      return note(name_of(i) + with, driver::byte_difference(actual, expected));
    const driver::Difference difference =
        driver::difference(floats_of_bytes(dtype, actual), floats_of_bytes(dtype, expected),
                           tolerance_of(call_, output), output.row_length);
    largest_error_ = std::max(largest_error_, difference.largest_error);
    note(name_of(i) + with, difference.wrong);
  }

  Call& call_;
  const DeviceShape shape_;
  Result result_;
  size_t elements_ = 0;
  double largest_error_ = 0;
};

Case check_of(const NamedCall& named, bool guard, bool emulation) {
  return {named.name, [=]() -> Result {
            guard_bytes = guard ? kGuardBytes : 0;
            Call call = named.make();
            std::vector<Bytes> emulated;
            if (emulation) emulated = driver::emulated_outputs(named.name);
            Result result = check_call(call, emulation ? &emulated : nullptr);
            result.details.insert(result.details.begin(), {"operator", driver::json_text(named.operator_name)});
            return result;
          }};
}

// Inputs of a GPU at large shapes are written by a kernel, else by the host: the bytes must be the same.
Result check_fill() {
  constexpr size_t kCount = 5000;
  Result result;
  for (const DType dtype : {DType::f32, DType::f16, DType::bf16, DType::i8, DType::f8e4m3}) {
    const Memory<uint8_t> filled(kCount * dtype_size(dtype));
    fill_random(filled.data(), dtype, kCount, 0.1f, 7);
    const std::string problem = driver::byte_difference(filled.values(), random_bytes(dtype, kCount, 0.1f, 7));
    if (!problem.empty()) result.wrong += std::string(dtype_name(dtype)) + ": " + problem + "; ";
  }
  const Memory<uint8_t> scales(kCount * 2);
  fill_scales(scales.data(), kCount, 7);
  const std::string problem = driver::byte_difference(scales.values(), random_scales(kCount, 7));
  if (!problem.empty()) result.wrong += "scales: " + problem;
  return result;
}

}  // namespace

Result check_call(Call& call, const std::vector<Bytes>* emulated) { return Check(call).run(emulated); }

std::vector<Case> correctness_cases(const Options& options) {
#if !defined(__CUDACC__)
  constexpr bool kOnGpu = false;
#else
  constexpr bool kOnGpu = true;
#endif
  const bool emulation = options.emulation.value_or(kOnGpu);
  // Without a guard the emulated device, or compute-sanitizer, finds an access past an end by itself.
  const bool guard = !options.in_process && (kOnGpu || emulation);
  std::vector<Case> cases = {{"random inputs", check_fill}};
  if (options.small_shapes) {
    for (const NamedCall& named : operator_calls()) cases.push_back(check_of(named, guard, emulation));
  }
  if (options.sigma_shapes) {
    for (const NamedCall& named : sigma_calls()) cases.push_back(check_of(named, guard, false));
  }
  return cases;
}

}  // namespace diffqkv::cuda
