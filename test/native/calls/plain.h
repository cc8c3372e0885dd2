// What the plain kernels of several operators share. They compute every operator once more, as plainly as can be: one
// thread for one element of the output, or for one row where a row is one result; loops over float32; no shared memory,
// no tensor cores.
#pragma once

#include <cmath>

#include "calls/call.h"
#include "kv_page.h"

namespace diffqkv::cuda {

constexpr int kPlainThreads = 128;

__device__ __forceinline__ int64_t output_index() {
  return static_cast<int64_t>(blockIdx.x) * kPlainThreads + threadIdx.x;
}

// A thread for each of `count` outputs.
template <typename Params>
void run_over(int64_t count, void (*kernel)(Params), const Params& params, Context& context) {
  if (count <= 0) return;
  LaunchShape shape;
  shape.grid[0] = static_cast<unsigned>((count + kPlainThreads - 1) / kPlainThreads);
  shape.threads = kPlainThreads;
  launch("reference", kernel, shape, context.stream, params);
}

__device__ __forceinline__ float plain_activation(Activation activation, float x) {
  const double y = x;
  switch (activation) {
    case Activation::silu: return x / (1.0f + expf(-x));
    case Activation::gelu: return static_cast<float>(y / 2 * erfc(-y / sqrt(2.0)));
    case Activation::gelu_tanh:
      return static_cast<float>(y / (1 + exp(-2 * 0.79788456080286535588 * (y + 0.044715 * y * y * y))));
    case Activation::relu: return fmaxf(x, 0.0f);
    default: return fmaxf(x, 0.0f) * fmaxf(x, 0.0f);
  }
}

struct Pair {
  float low, high;  // elements d and d + head_dim / 2 of a head
};

// x: the first element of the head.
__device__ __forceinline__ Pair rotated_pair(const void* x, DType dtype, int64_t first, int64_t head_dim, int64_t d,
                                             int position, const double* inv_freq, float scale) {
  const float low = load_any(x, dtype, first + d), high = load_any(x, dtype, first + d + head_dim / 2);
  const double frequency = ld_global(inv_freq + d), angle = position * frequency;
  if (frequency == 0) return {low, high};
  const float c = scale * static_cast<float>(cos(angle)), s = scale * static_cast<float>(sin(angle));
  return {low * c - high * s, high * c + low * s};
}

// ---- Products.

__device__ __forceinline__ float weight_element(const WeightView& weight, int64_t row, int64_t i, int64_t columns) {
  if (weight.group_size == 0) return load_any(weight.data, weight.dtype, row * columns + i);
  const int64_t padded = (columns + 31) / 32 * 32, groups = (columns + weight.group_size - 1) / weight.group_size;
  const float scale = load_any(weight.scales, weight.scale_dtype, row * groups + i / weight.group_size);
  if (weight.dtype == DType::i8) return scale * load_float(static_cast<const i8*>(weight.data) + row * padded + i);
  const uint32_t word = ld_global(static_cast<const uint32_t*>(weight.data) + (row * padded + i) / 8);
  return scale * static_cast<float>(static_cast<int>(word >> (16 * (i % 2) + 4 * (i % 8 / 2)) & 15) - 8);
}

__device__ __forceinline__ float rounded_to(DType dtype, float x) {
  switch (dtype) {
    case DType::bf16: return to_float(from_float<bf16>(x));
    case DType::f16: return to_float(from_float<f16>(x));
    default: return x;
  }
}

// Weights are rounded to the type `rounding`.
__device__ __forceinline__ float dot(const void* x, DType x_dtype, const WeightView& weight, DType rounding,
                                     int64_t x_first, int64_t row, int64_t count) {
  float sum = 0;
  for (int64_t i = 0; i < count; ++i)
    sum += load_any(x, x_dtype, x_first + i) * rounded_to(rounding, weight_element(weight, row, i, count));
  return sum;
}

// Of i8 and i4 weights: with more than 16 tokens of a 16-bit type, to that type.
inline DType rounding_of(const WeightView& weight, DType x, int64_t num_tokens) {
  return weight.group_size > 0 && num_tokens > 16 ? x : DType::f32;
}

// The rows of x normalized, in memory of num_tokens * in_features elements of x_dtype. x if there is no norm.
const void* run_norm(const void* x, const InputNorm& norm, DType x_dtype, int64_t num_tokens, int64_t in_features,
                     Context& context);
// The product of matmul with weights rounded to a type, without its norm.
void run_product(const MatmulParams& p, DType rounding, Context& context);

// ---- The cache.

// A row of one head in a page.
struct Row {
  unsigned char* elements;  // of the head
  bf16* scale;              // if the type has one
  KvHeadLayout layout;
  int token, element_bytes;
  __device__ __forceinline__ unsigned char* at(int64_t d) const {
    return elements + layout.place(token, static_cast<int>(d) * element_bytes);
  }
};

__device__ __forceinline__ int64_t element_bytes(DType dtype) {
  return is_quantized(dtype) ? 1 : dtype == DType::f32 ? 4 : 2;
}

// page: the start of the page in K's or V's pool.
__device__ __forceinline__ Row cache_row(void* page, const KvView& kv, int64_t page_tokens, int64_t token,
                                         int64_t head) {
  const int bytes = static_cast<int>(element_bytes(kv.dtype)), in_page = static_cast<int>(token % page_tokens);
  const KvHeadLayout layout(kv.head_dim, bytes, page_tokens);
  const KvHead rows = head_in_page(page, kv.page_offset, layout, head, kv.num_heads);
  return {rows.elements, rows.scales + in_page, layout, in_page, bytes};
}

__device__ __forceinline__ KvPage page_of(const KvPage* table, int64_t token, int64_t page_tokens) {
  const KvPage* const page = table + token / page_tokens;
  return {ld_global(&page->k), ld_global(&page->v)};
}

__device__ __forceinline__ float load_code(const void* data, DType dtype, int64_t i) {
  if (dtype == DType::i8) return to_float(ld_global(static_cast<const i8*>(data) + i));
  if (dtype == DType::f8e4m3) return to_float(ld_global(static_cast<const f8e4m3*>(data) + i));
  return load_any(data, dtype, i);
}

// value(d) as codes, at code(d), and a scale, by the definition in ops.h.
template <typename Value, typename Code>
__device__ __forceinline__ void quantize_plainly(int64_t dim, DType dtype, const Value& value, const Code& code,
                                                 bf16* scale) {
  float top = 0;
  bool finite = true;
  for (int64_t d = 0; d < dim; ++d) {
    const float magnitude = fabsf(value(d));
    finite = finite && magnitude < infinity();
    top = fmaxf(top, magnitude);
  }
  const bool zero = top < 0x1p-100f;
  const uint32_t up = bit_cast<uint32_t>(top / (dtype == DType::i8 ? 127.0f : 448.0f)) + 0xffffu;  // away from zero
  const bf16 factor = {static_cast<uint16_t>(!finite ? 0x7fc0u : zero ? 0u : up >> 16)};
  st_global(scale, factor);
  for (int64_t d = 0; d < dim; ++d) {
    const float x = finite && !zero ? value(d) / to_float(factor) : 0.0f;
    if (dtype == DType::i8) {
      st_global(static_cast<i8*>(static_cast<void*>(code(d))), i8{static_cast<int8_t>(rintf(x))});
    } else {
      st_global(static_cast<f8e4m3*>(static_cast<void*>(code(d))), to_f8e4m3(x));
    }
  }
}

template <typename T>
std::vector<T> download(const T* data, int64_t count) {
  std::vector<T> values(static_cast<size_t>(count));
  if (count > 0)
    check_cuda(cudaMemcpy(values.data(), data, values.size() * sizeof(T), cudaMemcpyDeviceToHost), "download");
  return values;
}

}  // namespace diffqkv::cuda
