// out (+)= (activation(x gate^T) * (x up^T)) down^T, or activation(x up^T) down^T: one kernel for gate, up and the
// activation, which with few tokens also forms the other products of x, and one for down; bound as gemv and gemm are. gemm
// has only silu in its epilogue, because the others, in each of its unrolled elements, would be most of its code. They, and
// what has no gate, take a kernel for each product and one for the activation.
//
// What lies between, h, is rounded at most once: to bf16 if x is bf16 and the weights are bf16 or
// quantized, else it stays f32. f16 ends at 65,504, which activation(a) * b leaves easily: for
// gemm, which wants f16, each row of h is brought into f16's range by a power of two, and that is
// taken back in down's epilogue.
#include <algorithm>

#include "linear.h"
#include "reductions.h"

namespace diffqkv::cuda {
namespace {

constexpr int64_t kBlockTokens = 2048;  // bounds scratch memory
constexpr int kThreads = 256;

struct ScaleRowsParams {
  const float* h;  // [rows, row_size]
  f16* out;        // the same
  float* row_scale;
  int64_t row_size;
};

// The largest finite magnitude of a row comes to lie in [2^14, 2^15); infinities and NaN stay. A block a row.
__global__ void __launch_bounds__(kThreads, 4) scale_rows(ScaleRowsParams p) {
  const int64_t row = blockIdx.x;
  const float* h = p.h + row * p.row_size;
  float largest = 0;
  for (int64_t i = threadIdx.x; i < p.row_size; i += kThreads) {
    const float value = ld_global(h + i), magnitude = value < 0 ? -value : value;
    if (magnitude > largest && magnitude < infinity()) largest = magnitude;
  }
  largest = warp_max(largest);
  float* shared = reinterpret_cast<float*>(dynamic_shared());
  if (lane_index() == 0) st_shared(shared + warp_index(), largest);
  __syncthreads();
  for (int warp = 0; warp < kThreads / kWarpSize; ++warp) largest = max_number(largest, ld_shared(shared + warp));
  // Exponents as f32 holds them, 127 for 2^0; factor and its inverse are both normal numbers.
  const int exponent = static_cast<int>(bit_cast<uint32_t>(largest) >> 23), wanted = 127 + 127 + 14 - exponent;
  const int factor_exponent = largest == 0 ? 127 : wanted > 253 ? 253 : wanted;
  const float factor = bit_cast<float>(static_cast<uint32_t>(factor_exponent) << 23);
  if (threadIdx.x == 0)
    st_global(p.row_scale + row, bit_cast<float>(static_cast<uint32_t>(254 - factor_exponent) << 23));
  f16* out = p.out + row * p.row_size;
  for (int64_t i = threadIdx.x; i < p.row_size; i += kThreads)
    st_global(out + i, from_float<f16>(ld_global(h + i) * factor));
}

size_t round_up_256(size_t bytes) { return (bytes + 255) / 256 * 256; }

}  // namespace

void gated_mlp(const GatedMlpParams& p, Context& context) {
  check_linear_types("gated MLP", p.x_dtype, p.up.dtype, p.out_dtype, p.accumulate);
  check_linear_types("gated MLP", p.x_dtype, p.down.dtype, p.out_dtype, p.accumulate);
  if (p.num_tokens <= 0 || p.out_features <= 0) return;
  const int64_t block_tokens = std::min(kBlockTokens, p.num_tokens);
  const auto in_bf16 = [](DType weight) { return weight == DType::bf16 || dtype_is_packed(weight); };
  const bool bf16_throughout = p.x_dtype == DType::bf16 && in_bf16(p.up.dtype) && in_bf16(p.down.dtype);
  const bool scales = p.x_dtype == DType::f16 && gemm_takes(p.x_dtype, p.down.dtype, p.out_dtype) &&
                      p.num_tokens > gemv_tokens(DType::f32, p.down.dtype);
  const size_t elements = static_cast<size_t>(block_tokens * std::max<int64_t>(p.inner_size, 1));
  const size_t h_bytes = round_up_256(elements * (bf16_throughout ? 2 : 4));
  const size_t scaled_bytes = scales ? round_up_256(elements * 2) : 0;
  const size_t scale_bytes = scales ? static_cast<size_t>(block_tokens) * sizeof(float) : 0;
  // The products in f32, if the activation has a kernel of its own. Without rounding, up's become h.
  const size_t product_bytes =
      p.gate.data && p.activation == Activation::silu ? 0 : round_up_256(elements * sizeof(float));
  const size_t products_bytes = (p.gate.data ? product_bytes : 0) + (bf16_throughout ? product_bytes : 0);
  const DType h_dtype = bf16_throughout ? DType::bf16 : DType::f32;
  LinearParams first;
  first.x = p.x;
  first.norm = p.norm;
  first.x_dtype = p.x_dtype;
  first.num_tokens = block_tokens;
  first.in_features = p.in_features;
  first.activation = p.activation;
  first.add({{p.up, nullptr, p.inner_size}, p.gate, h_dtype});
  for (int i = 0; i < p.num_others; ++i) first.add({p.others[i], {}, p.out_dtype});
  LinearParams down;
  down.x_dtype = DType::f32;
  down.num_tokens = block_tokens;
  down.in_features = p.inner_size;
  down.accumulate = p.accumulate;
  down.add({{p.down, p.out, p.out_features}, {}, p.out_dtype});
  // Copies of x and then of h, if a product needs one.
  const size_t h_offset = round_up_256(std::max(x_scratch_bytes(first), x_scratch_bytes(down)));
  char* x_scratch =
      static_cast<char*>(context.scratch(h_offset + h_bytes + products_bytes + scaled_bytes + scale_bytes));
  char* h = x_scratch + h_offset;
  char* gate_product = h + h_bytes;
  char* up_product = !bf16_throughout ? h : p.gate.data ? gate_product + product_bytes : gate_product;
  char* scaled_h = h + h_bytes + products_bytes;

  first.x_scratch = down.x_scratch = x_scratch;
  first.outputs[0].out = h;
  down.x = h;
  down.x_dtype = h_dtype;
  // Rows of `size` elements of a tensor, from `token` on.
  const auto rows = [](const void* data, int64_t token, int64_t size, DType dtype) {
    const int64_t offset = token * size * static_cast<int64_t>(dtype_size(dtype));
    return const_cast<char*>(static_cast<const char*>(data)) + offset;
  };
  for (int64_t token = 0; token < p.num_tokens; token += block_tokens) {
    const int64_t num_tokens = std::min(block_tokens, p.num_tokens - token);
    first.x = rows(p.x, token, p.in_features, p.norm.weight ? DType::f32 : p.x_dtype);
    first.num_tokens = num_tokens;
    for (int i = 0; i < p.num_others; ++i)
      first.outputs[1 + i].out = rows(p.others[i].out, token, p.others[i].out_features, p.out_dtype);
    if (p.gate.data && (p.activation == Activation::silu || !suits_gemm(first))) {
      linear(first, context);
    } else {
      LinearParams products = first;
      if (p.gate.data || p.num_others > 0) apply_norm(&products, context);
      const auto product = [&](LinearOutput output) {
        LinearParams one = products;
        one.num_outputs = 0;
        one.add(output);
        linear(one, context);
      };
      product({{p.up, up_product, p.inner_size}, {}, DType::f32});
      if (p.gate.data) product({{p.gate, gate_product, p.inner_size}, {}, DType::f32});
      for (int i = 0; i < p.num_others; ++i) product(first.outputs[1 + i]);
      GatedActivationParams activation;
      activation.gate = p.gate.data ? gate_product : nullptr;
      activation.up = up_product;
      activation.out = h;
      activation.count = num_tokens * p.inner_size;
      activation.activation = p.activation;
      bf16_throughout ? gated_activation_to_bf16(activation, context) : gated_activation(activation, context);
    }

    down.num_tokens = num_tokens;
    down.outputs[0].out = rows(p.out, token, p.out_features, p.out_dtype);
    if (scales) {
      const ScaleRowsParams scaling = {reinterpret_cast<const float*>(h), reinterpret_cast<f16*>(scaled_h),
                                       reinterpret_cast<float*>(scaled_h + scaled_bytes), p.inner_size};
      LaunchShape shape;
      shape.grid[0] = static_cast<unsigned>(num_tokens);
      shape.threads = kThreads;
      shape.shared_bytes = sizeof(float) * kThreads / kWarpSize;
      launch("scale_rows", scale_rows, shape, context.stream, scaling);
      down.x = scaling.out;
      down.x_dtype = DType::f16;
      down.row_scale = scaling.row_scale;
    }
    linear(down, context);
  }
}

}  // namespace diffqkv::cuda
