// What the calls of all operators share: tensors of reproducible numbers, the context, the list of calls.
#include "calls/call.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

namespace diffqkv::cuda {
namespace {

// Number `index` of the stream `seed`: 64 random bits (the finalizer of SplitMix64).
__host__ __device__ __forceinline__ uint64_t random_word(uint64_t seed, uint64_t index) {
  uint64_t x = (seed << 40) + index + 0x9e3779b97f4a7c15u;
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
  x = (x ^ x >> 27) * 0x94d049bb133111ebu;
  return x ^ x >> 31;
}

// Roughly normal, of standard deviation 1: the sum of four 16-bit numbers. Each operation is exact but the last, so that
// host and device agree on every bit.
__host__ __device__ __forceinline__ float random_normal(uint64_t seed, uint64_t index, float scale) {
  const uint64_t word = random_word(seed, index);
  const int sum = static_cast<int>((word & 0xffff) + (word >> 16 & 0xffff) + (word >> 32 & 0xffff) + (word >> 48));
  return static_cast<float>(sum - 2 * 0xffff) * (scale * 0x1.bb67aep-16f);  // sqrt(3) / 2^16
}

// Any code but NaN.
__host__ __device__ __forceinline__ uint8_t random_code(DType dtype, uint64_t seed, uint64_t index) {
  const uint8_t code = static_cast<uint8_t>(random_word(seed, index) >> 8);
  return dtype == DType::f8e4m3 && (code & 0x7f) == 0x7f ? code & 0xfe : code;  // 448 for NaN
}

__host__ __device__ __forceinline__ float random_scale(uint64_t seed, uint64_t index) {
  return 1e-5f * static_cast<float>(50 + random_word(seed, index) % 150);
}

struct FillParams {
  void* data;
  DType dtype;
  bool scales;  // random_scale in bf16
  int64_t count;
  float scale;
  uint64_t seed;
};

constexpr int kFillThreads = 256;

__global__ void __launch_bounds__(kFillThreads, 4) fill_kernel(FillParams p) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kFillThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kFillThreads + threadIdx.x; i < p.count; i += step) {
    if (p.scales) {
      store_any(p.data, DType::bf16, i, random_scale(p.seed, i));
    } else if (is_quantized(p.dtype)) {
      st_global(static_cast<uint8_t*>(p.data) + i, random_code(p.dtype, p.seed, i));
    } else {
      store_any(p.data, p.dtype, i, random_normal(p.seed, i, p.scale));
    }
  }
}

void run_fill(const FillParams& p) {
  if (p.count == 0) return;
  LaunchShape shape;
  shape.grid[0] = static_cast<unsigned>(std::min<int64_t>((p.count + kFillThreads - 1) / kFillThreads, 4096));
  shape.threads = kFillThreads;
  launch("fill", fill_kernel, shape, nullptr, p);
  check_cuda(cudaDeviceSynchronize(), "fill");
}

// On a GPU the kernel is faster from some size on; on the emulated device the host always is.
bool fill_on_device(size_t count) {
#if !defined(__CUDACC__)
  return count > SIZE_MAX / 2;
#else
  return count > size_t{1} << 18;
#endif
}

}  // namespace

Tensor& Call::tensor(const std::string& name) {
  for (Tensor& tensor : tensors) {
    if (tensor.name == name) return tensor;
  }
  fail(ErrorCode::invalid_argument, "the call has no tensor '%s'", name.c_str());
}

CallContext::CallContext(int multiprocessors, size_t shared_bytes) : found_(std::vector<Finding>(1, Finding{})) {
  check_cuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
  num_multiprocessors = multiprocessors;
  max_shared_bytes = shared_bytes;
  finding = found_.data();
}
CallContext::~CallContext() { cudaStreamDestroy(stream); }

void* CallContext::scratch(size_t bytes) {
  scratch_.emplace_back(bytes);
  return scratch_.back().data();
}
uint32_t* CallContext::zeroed_words(size_t count) {
  words_.emplace_back(std::vector<uint32_t>(count, 0));
  return words_.back().data();
}

void CallContext::finish() {
  check_cuda(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
  for (const auto& words : words_) {
    for (const uint32_t word : words.values()) {
      if (word != 0) throw std::runtime_error("a zeroed word was left " + std::to_string(word));
    }
  }
  const Finding found = found_.values()[0];
  if (found.kind != Finding::none) {
    fail(ErrorCode::invalid_argument, "a kernel reports an argument: kind %u, %d at index %d, limit %d", found.kind,
         found.value, found.index, found.limit);
  }
}

size_t CallContext::scratch_bytes() const {
  size_t bytes = 0;
  for (const auto& memory : scratch_) bytes += memory.bytes();
  return bytes;
}

std::vector<uint8_t> bytes_of_floats(DType dtype, const std::vector<float>& values) {
  std::vector<uint8_t> bytes(values.size() * dtype_size(dtype));
  convert_from_f32(dtype, bytes.data(), values.data(), values.size());
  return bytes;
}

std::vector<float> floats_of_bytes(DType dtype, const std::vector<uint8_t>& bytes) {
  std::vector<float> values(bytes.size() / dtype_size(dtype));
  if (dtype == DType::i8) {
    for (size_t i = 0; i < bytes.size(); ++i) values[i] = static_cast<float>(static_cast<int8_t>(bytes[i]));
  } else {
    convert_to_f32(dtype, values.data(), bytes.data(), values.size());
  }
  return values;
}

std::vector<uint8_t> random_bytes(DType dtype, size_t count, float scale, uint64_t seed) {
  if (is_quantized(dtype)) {
    std::vector<uint8_t> codes(count);
    for (size_t i = 0; i < count; ++i) codes[i] = random_code(dtype, seed, i);
    return codes;
  }
  std::vector<float> values(count);
  for (size_t i = 0; i < count; ++i) values[i] = random_normal(seed, i, scale);
  return bytes_of_floats(dtype, values);
}

std::vector<uint8_t> random_scales(size_t count, uint64_t seed) {
  std::vector<float> scales(count);
  for (size_t i = 0; i < count; ++i) scales[i] = random_scale(seed, i);
  return bytes_of_floats(DType::bf16, scales);
}

void fill_random(void* data, DType dtype, size_t count, float scale, uint64_t seed) {
  run_fill({data, dtype, false, static_cast<int64_t>(count), scale, seed});
}

void fill_scales(void* data, size_t count, uint64_t seed) {
  run_fill({data, DType::bf16, true, static_cast<int64_t>(count), 0, seed});
}

Memory<uint8_t> random_memory(DType dtype, size_t count, float scale, uint64_t seed) {
  if (!fill_on_device(count)) return Memory<uint8_t>(random_bytes(dtype, count, scale, seed));
  Memory<uint8_t> memory(count * dtype_size(dtype));
  fill_random(memory.data(), dtype, count, scale, seed);
  return memory;
}

Memory<uint8_t> random_scale_memory(size_t count, uint64_t seed) {
  if (!fill_on_device(count)) return Memory<uint8_t>(random_scales(count, seed));
  Memory<uint8_t> memory(count * 2);
  fill_scales(memory.data(), count, seed);
  return memory;
}

uint8_t* add_memory(Call& call, const char* name, DType dtype, Memory<uint8_t> memory) {
  call.tensors.push_back({name, dtype, std::move(memory)});
  return call.tensors.back().memory.data();
}

uint8_t* add_tensor(Call& call, const char* name, DType dtype, const std::vector<uint8_t>& bytes) {
  return add_memory(call, name, dtype, Memory<uint8_t>(bytes));
}

uint8_t* add_random(Call& call, const char* name, DType dtype, size_t count, float scale, uint64_t seed) {
  return add_memory(call, name, dtype, random_memory(dtype, count, scale, seed));
}

const int32_t* add_integers(Call& call, const char* name, const std::vector<int32_t>& values) {
  std::vector<uint8_t> bytes(values.size() * sizeof(int32_t));
  std::memcpy(bytes.data(), values.data(), bytes.size());
  return reinterpret_cast<const int32_t*>(add_tensor(call, name, DType::i32, bytes));
}

uint8_t* add_output(Call& call, const char* name, DType dtype, size_t count, Comparison comparison, int64_t row_length,
                    DType coarsest_dtype) {
  call.outputs.push_back({call.tensors.size(), comparison, row_length, coarsest_dtype});
  call.tensors.push_back({name, dtype, Memory<uint8_t>(count * dtype_size(dtype))});
  return call.tensors.back().memory.data();
}

DType coarsest(std::initializer_list<DType> dtypes) {
  const auto has = [&](DType dtype) { return std::find(dtypes.begin(), dtypes.end(), dtype) != dtypes.end(); };
  return has(DType::bf16) ? DType::bf16 : has(DType::f16) ? DType::f16 : DType::f32;
}

size_t count_of(std::initializer_list<int64_t> sizes) {
  size_t count = 1;
  for (const int64_t size : sizes) count *= static_cast<size_t>(size);
  return count;
}

namespace {

using Lists = std::initializer_list<CallList OperatorCalls::*>;

void add_lists(const char* operator_name, OperatorCalls from, Lists lists, std::vector<NamedCall>* to) {
  for (const auto list : lists) {
    for (NamedCall& call : (from.*list).calls) {
      call.operator_name = operator_name;
      to->push_back(std::move(call));
    }
  }
}

// These lists of all operators.
std::vector<NamedCall> calls_of(Lists lists) {
  std::vector<NamedCall> calls;
#define DIFFQKV_ADD_LISTS(name, Params) add_lists(#name, name##_calls(), lists, &calls);
  DIFFQKV_OPERATORS(DIFFQKV_ADD_LISTS)
#undef DIFFQKV_ADD_LISTS
  return calls;
}

}  // namespace

std::vector<NamedCall> seeded_calls() { return calls_of({&OperatorCalls::seeded}); }
std::vector<NamedCall> operator_calls() { return calls_of({&OperatorCalls::seeded, &OperatorCalls::small}); }
std::vector<NamedCall> sigma_calls() { return calls_of({&OperatorCalls::sigma}); }
std::vector<NamedCall> ptx_calls() {
  return calls_of({&OperatorCalls::seeded, &OperatorCalls::small, &OperatorCalls::ptx});
}

void reference(const OperatorParams& params, Context& context) {
  const auto run = [&](const auto& p) {
    if constexpr (std::is_same_v<decltype(p), const std::monostate&>) {
      throw std::runtime_error("the call has no operator");
    } else {
      reference(p, context);
    }
  };
  std::visit(run, params);
  check_cuda(cudaStreamSynchronize(context.stream), "reference");
}

}  // namespace diffqkv::cuda
