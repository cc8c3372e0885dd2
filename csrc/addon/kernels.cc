// The operators as methods of NativeDevice. A call reads and checks its arguments on the JS thread,
// which makes the Params of ops.h, and queues the work for the executor thread.
#include <algorithm>
#include <cfloat>
#include <cmath>
#include <initializer_list>
#include <list>
#include <optional>
#include <type_traits>

#include "addon/device.h"
#include "addon/fields.h"
#include "addon/tensor.h"
#include "backend/check.h"

namespace diffqkv::addon {
namespace {

using Run = std::function<void(Job&)>;

// A tensor of a call.
struct TensorView {
  const char* name = "";  // of the argument, for messages
  void* data = nullptr;
  DType dtype = DType::f32;
  std::vector<int64_t> shape;
};

// The tensors of a call. Holds their memory until the call is done.
class Operands {
 public:
  Operands(const Fields& fields, const DeviceContext& device) : fields_(fields), device_(device) {}

  const TensorView& tensor(const char* name) {
    if (!fields_.has(name)) fail(ErrorCode::invalid_argument, "%s is missing; it must be a tensor", name);
    return *optional_tensor(name);
  }

  // Null if the field is absent.
  const TensorView* optional_tensor(const char* name) {
    if (!fields_.has(name)) return nullptr;
    std::shared_ptr<TensorData> data = fields_.instance<TensorObject>(name).data(device_, name);
    TensorView& view = views_.emplace_back();
    view.name = name;
    view.data = data->buffer.data();
    view.dtype = data->dtype;
    view.shape = data->shape;
    data_.push_back(std::move(data));
    return &view;
  }

  // The job that calls backend.*op(p), or op(backend, p). If `out` has no elements, the job does
  // nothing.
  template <typename Params, typename Op>
  Run job(Op op, const Params& p, const TensorView& out) const {
    const bool is_empty = std::find(out.shape.begin(), out.shape.end(), 0) != out.shape.end();
    return [backend = device_.backend, op, p, data = data_, is_empty](Job&) {
      for (const auto& tensor : data) tensor->check();
      if (is_empty) return;
      if constexpr (std::is_member_function_pointer_v<Op>) {
        ((*backend).*op)(p);
      } else {
        op(backend, p);
      }
    };
  }

 private:
  const Fields& fields_;
  const DeviceContext& device_;
  std::list<TensorView> views_;  // at fixed addresses
  std::vector<std::shared_ptr<TensorData>> data_;
};

// ---- Checks. They throw ERR_INVALID_ARGUMENT with the value, the limit and the remedy.

int64_t elements(const TensorView& t) {
  int64_t count = 1;
  for (int64_t size : t.shape) count *= size;
  return count;
}

void check_rank(const TensorView& t, size_t rank, const char* layout) {
  if (t.shape.size() != rank) {
    fail(ErrorCode::invalid_argument, "%s has shape %s; it must be %s", t.name, shape_text(t.shape).c_str(), layout);
  }
}

void check_shape(const TensorView& t, const std::vector<int64_t>& wanted, const char* layout) {
  if (t.shape != wanted) {
    fail(ErrorCode::invalid_argument, "%s has shape %s; here it must be %s, %s", t.name, shape_text(t.shape).c_str(),
         layout, shape_text(wanted).c_str());
  }
}

void check_type(const TensorView& t, DType wanted) {
  if (t.dtype != wanted) {
    fail(ErrorCode::invalid_argument, "%s has type %s; it must be %s", t.name, dtype_name(t.dtype), dtype_name(wanted));
  }
}

void check_float(std::initializer_list<const TensorView*> tensors) {
  for (const TensorView* t : tensors) {
    if (!dtype_is_float(t->dtype)) {
      fail(ErrorCode::invalid_argument, "%s has type %s; it must be a float type: f32, f16, bf16 or f8e4m3", t->name,
           dtype_name(t->dtype));
    }
  }
}

void check_same_type(const TensorView& a, const TensorView& b) {
  if (a.dtype != b.dtype) {
    fail(ErrorCode::invalid_argument, "%s has type %s and %s has %s; they must have the same type", a.name,
         dtype_name(a.dtype), b.name, dtype_name(b.dtype));
  }
}

// Two tensors never overlap in part: they are the same memory or separate.
void check_apart(const TensorView& out, std::initializer_list<const TensorView*> inputs) {
  for (const TensorView* input : inputs) {
    if (input != nullptr && input->data == out.data && elements(*input) > 0) {
      fail(ErrorCode::invalid_argument,
           "%s and %s are the same tensor; this operator does not work in place: pass another %s", out.name,
           input->name, out.name);
    }
  }
}

void check_at_least_one(const char* what, int64_t value) {
  if (value < 1)
    fail(ErrorCode::invalid_argument, "%s is %lld; it must be at least 1", what, static_cast<long long>(value));
}

Activation activation_named(const std::string& name) {
  if (name == "silu") return Activation::silu;
  if (name == "gelu") return Activation::gelu;
  if (name == "gelu_tanh") return Activation::gelu_tanh;
  if (name == "relu") return Activation::relu;
  if (name == "relu2") return Activation::relu2;
  fail(ErrorCode::invalid_argument, "activation is '%s'; it must be 'silu', 'gelu', 'gelu_tanh', 'relu' or 'relu2'",
       name.c_str());
}

// K or V as the caller passes it, with the names of its axes.
struct KvArgument {
  const TensorView& tensor;
  const TensorView* scales;
  const char *scales_name, *layout, *scales_layout, *heads_name;
};

// The scales' memory, or null if the type has none.
const void* check_scales(const KvArgument& kv) {
  const TensorView& t = kv.tensor;
  require_cache_type(t.name, t.dtype);
  if (!dtype_is_scaled(t.dtype)) {
    if (kv.scales == nullptr) return nullptr;
    fail(ErrorCode::invalid_argument,
         "%s is given and %s has type %s, which has no scales; leave them out (i8 and f8e4m3 have them)",
         kv.scales_name, t.name, dtype_name(t.dtype));
  }
  if (kv.scales == nullptr) {
    fail(ErrorCode::invalid_argument,
         "%s has type %s, and %s is missing; it must be bf16 %s, as kernels.quantize makes it", t.name,
         dtype_name(t.dtype), kv.scales_name, kv.scales_layout);
  }
  check_type(*kv.scales, DType::bf16);
  check_shape(*kv.scales, {t.shape[0], t.shape[1], t.shape[2]}, kv.scales_layout);
  return kv.scales->data;
}

// The view of a contiguous tensor, [batch, kvLen, heads, headDim].
KvView contiguous_view(const TensorView& t) {
  return {.data = t.data,
          .num_heads = t.shape[2],
          .head_dim = t.shape[3],
          .batch_stride = t.shape[1] * t.shape[2] * t.shape[3],
          .dtype = t.dtype};
}

// ---- Attention.

// The tensors of an attention call. Optional ones may be null.
struct AttentionTensors {
  const TensorView &q, &k, &v;
  const TensorView *k_scales, *v_scales;
  const TensorView& out;
  const TensorView *lse, *kv_lens;

  explicit AttentionTensors(Operands& operands)
      : q(operands.tensor("q")),
        k(operands.tensor("k")),
        v(operands.tensor("v")),
        k_scales(operands.optional_tensor("kScales")),
        v_scales(operands.optional_tensor("vScales")),
        out(operands.tensor("out")),
        lse(operands.optional_tensor("lse")),
        kv_lens(operands.optional_tensor("kvLens")) {}
};

// The part that prefill and decode share. q has the axes [batch, ..., numQHeads, headDimQk].
AttentionParams attention_params(const Fields& fields, const AttentionTensors& tensors) {
  const auto& [q, k, v, k_scales, v_scales, out, lse, kv_lens] = tensors;
  AttentionParams p;
  const std::optional<double> sm_scale = fields.optional_number("smScale");
  const double softcap = fields.number("softcap");
  p.window = fields.integer("window", 0, kMaxSafeInteger);
  const KvArgument k_argument = {
      k, k_scales, "kScales", "[batch, kvLen, numKHeads, headDimQk]", "[batch, kvLen, numKHeads]", "numKHeads"};
  const KvArgument v_argument = {
      v, v_scales, "vScales", "[batch, kvLen, numVHeads, headDimVo]", "[batch, kvLen, numVHeads]", "numVHeads"};
  check_rank(k, 4, k_argument.layout);
  check_rank(v, 4, v_argument.layout);
  require_compute_type(q.name, q.dtype);
  require_compute_type(out.name, out.dtype);
  p.batch_size = q.shape[0];
  p.num_q_heads = q.shape[q.shape.size() - 2];
  p.kv_len = k.shape[1];
  p.k = contiguous_view(k);
  p.v = contiguous_view(v);
  const int64_t head_dim_qk = q.shape.back();
  check_at_least_one("numQHeads", p.num_q_heads);
  check_at_least_one("numKHeads", p.k.num_heads);
  check_at_least_one("numVHeads", p.v.num_heads);
  check_at_least_one("headDimQk", head_dim_qk);
  check_at_least_one("headDimVo", p.v.head_dim);
  check_shape(k, {p.batch_size, p.kv_len, p.k.num_heads, head_dim_qk},
              "[batch, kvLen, numKHeads, headDimQk] by the shape of q");
  check_shape(v, {p.batch_size, p.kv_len, p.v.num_heads, p.v.head_dim},
              "[batch, kvLen, numVHeads, headDimVo] by the shape of k");
  p.k.scales = check_scales(k_argument);
  p.v.scales = check_scales(v_argument);
  for (const KvArgument& kv : {k_argument, v_argument}) {
    const int64_t heads = kv.tensor.shape[2];
    if (p.num_q_heads % heads != 0) {
      fail(ErrorCode::invalid_argument, "numQHeads is %lld and %s is %lld; numQHeads must be a multiple of it",
           static_cast<long long>(p.num_q_heads), kv.heads_name, static_cast<long long>(heads));
    }
  }
  p.sm_scale = static_cast<float>(sm_scale.value_or(1.0 / std::sqrt(static_cast<double>(head_dim_qk))));
  if (!std::isfinite(p.sm_scale))
    fail(ErrorCode::invalid_argument, "smScale is %g; it must be finite", sm_scale.value_or(0));
  p.softcap = static_cast<float>(softcap);
  if (softcap != 0 && !(std::isnormal(p.softcap) && p.softcap > 0)) {
    fail(ErrorCode::invalid_argument, "softcap is %g; it must be finite, and 0 (none) or at least %g", softcap,
         static_cast<double>(FLT_MIN));
  }
  if (kv_lens != nullptr) {
    check_type(*kv_lens, DType::i32);
    check_shape(*kv_lens, {p.batch_size}, "[batch]");
    p.kv_lens = static_cast<const int32_t*>(kv_lens->data);
  }
  check_apart(out, {&q, &k, &v, k_scales, v_scales, lse, kv_lens});
  if (lse != nullptr) {
    check_type(*lse, DType::f32);
    check_apart(*lse, {&q, &k, &v, kv_lens});
    p.lse = static_cast<float*>(lse->data);
  }
  p.q = q.data;
  p.out = out.data;
  p.q_dtype = q.dtype;
  p.out_dtype = out.dtype;
  return p;
}

Run attention_prefill(const Fields& fields, Operands& operands) {
  const AttentionTensors tensors(operands);
  const bool causal = fields.boolean("causal");
  const TensorView &q = tensors.q, *lse = tensors.lse;
  check_rank(q, 4, "[batch, qLen, numQHeads, headDimQk]");
  AttentionPrefillParams p{attention_params(fields, tensors)};
  p.q_len = q.shape[1];
  p.causal = causal;
  if (p.window > 0 && !p.causal) {
    fail(ErrorCode::invalid_argument, "window is %lld and causal is false; a window needs causal: true",
         static_cast<long long>(p.window));
  }
  check_shape(tensors.out, {p.batch_size, p.q_len, p.num_q_heads, p.v.head_dim}, "[batch, qLen, numQHeads, headDimVo]");
  if (lse != nullptr) check_shape(*lse, {p.batch_size, p.num_q_heads, p.q_len}, "[batch, numQHeads, qLen]");
  return operands.job(&Backend::attention_prefill, p, tensors.out);
}

Run attention_decode(const Fields& fields, Operands& operands) {
  const AttentionTensors tensors(operands);
  const TensorView &q = tensors.q, *lse = tensors.lse;
  check_rank(q, 3, "[batch, numQHeads, headDimQk]");
  AttentionDecodeParams p{attention_params(fields, tensors)};
  p.num_splits = fields.integer("numSplits", 0, 1 << 20);
  if (const auto selective = fields.optional_object("selectiveV", "selectiveV.")) {
    p.top_k = selective->integer("topK", 1, kMaxSafeInteger);
    p.renormalize = selective->boolean("renormalize");
  }
  check_shape(tensors.out, {p.batch_size, p.num_q_heads, p.v.head_dim}, "[batch, numQHeads, headDimVo]");
  if (lse != nullptr) check_shape(*lse, {p.batch_size, p.num_q_heads}, "[batch, numQHeads]");
  return operands.job(&Backend::attention_decode, p, tensors.out);
}

// ---- Weights.

// A weight of a direct call: [out, in] of a float type without scales; else i8 [out, padded in] or
// i32 [out, padded in / 8] (eight i4 in each), with scales bf16 or f16 [out, groups], where padded in
// is in rounded up to a multiple of 32.
struct WeightArgument {
  const TensorView& tensor;
  const TensorView* scales;  // or null
  const char* scales_name;
  int64_t group_size;
};

void check_group_size(int64_t group_size) {
  if (group_size == 32 || group_size == 64 || group_size == 128) return;
  fail(ErrorCode::invalid_argument, "groupSize is %lld; it must be 32, 64 or 128", static_cast<long long>(group_size));
}

// The type of a quantized weight, whose tensor is i8, or i32 with eight i4 in each element.
DType packed_dtype(const TensorView& values) {
  if (values.dtype == DType::i8) return DType::i8;
  if (values.dtype == DType::i32) return DType::i4;
  fail(ErrorCode::invalid_argument, "%s has type %s; it must be i8, or i32 for eight i4 in each element", values.name,
       dtype_name(values.dtype));
}

void check_packed_shapes(const TensorView& values, const TensorView& scales, int64_t out_features, int64_t in_features,
                         int64_t group_size) {
  const int64_t bytes = weight_row_bytes(packed_dtype(values), in_features);
  check_shape(values, {out_features, values.dtype == DType::i32 ? bytes / 4 : bytes},
              values.dtype == DType::i32 ? "[out, in / 8], with in rounded up to a multiple of 32"
                                         : "[out, in], with in rounded up to a multiple of 32");
  check_shape(scales, {out_features, weight_row_groups(in_features, group_size)}, "[out, in / groupSize], rounded up");
}

WeightView check_weight(const WeightArgument& weight, int64_t out_features, int64_t in_features, const char* layout) {
  const TensorView& t = weight.tensor;
  if (weight.scales == nullptr) {
    if (t.dtype == DType::i8 || t.dtype == DType::i32) {
      fail(ErrorCode::invalid_argument,
           "%s has type %s, and %s is missing; it must be bf16 or f16 [out, in / groupSize], as "
           "kernels.quantizeWeight makes it",
           t.name, dtype_name(t.dtype), weight.scales_name);
    }
    check_float({&t});
    check_shape(t, {out_features, in_features}, layout);
    return {t.data, t.dtype};
  }
  if (t.dtype != DType::i8 && t.dtype != DType::i32) {
    fail(ErrorCode::invalid_argument,
         "%s is given and %s has type %s, which has no scales; leave them out (i8, and i32 for i4, have them)",
         weight.scales_name, t.name, dtype_name(t.dtype));
  }
  check_group_size(weight.group_size);
  const TensorView& scales = *weight.scales;
  if (scales.dtype != DType::bf16 && scales.dtype != DType::f16) {
    fail(ErrorCode::invalid_argument, "%s has type %s; it must be bf16 or f16", scales.name, dtype_name(scales.dtype));
  }
  check_packed_shapes(t, scales, out_features, in_features, weight.group_size);
  return {t.data, packed_dtype(t), scales.data, weight.group_size, scales.dtype};
}

Run matmul(const Fields& fields, Operands& operands) {
  const TensorView& x = operands.tensor("x");
  const WeightArgument weight = {operands.tensor("weight"), operands.optional_tensor("weightScales"), "weightScales",
                                 fields.integer("groupSize", 0, kMaxSafeInteger)};
  const TensorView& out = operands.tensor("out");
  MatmulParams p;
  check_rank(x, 2, "[tokens, in]");
  check_rank(weight.tensor, 2, "[out, in]");
  check_float({&x, &out});
  p.num_tokens = x.shape[0];
  p.in_features = x.shape[1];
  p.out_features = weight.tensor.shape[0];
  check_at_least_one("in", p.in_features);
  p.weight = check_weight(weight, p.out_features, p.in_features, "[out, in] by the shape of x");
  check_shape(out, {p.num_tokens, p.out_features}, "[tokens, out]");
  check_apart(out, {&x, &weight.tensor, weight.scales});
  p.x = x.data;
  p.out = out.data;
  p.x_dtype = x.dtype;
  p.out_dtype = out.dtype;
  return operands.job(&Backend::matmul, p, out);
}

Run gated_mlp(const Fields& fields, Operands& operands) {
  const TensorView& x = operands.tensor("x");
  const int64_t group_size = fields.integer("groupSize", 0, kMaxSafeInteger);
  const TensorView* gate_tensor = operands.optional_tensor("gate");
  std::optional<WeightArgument> gate;
  if (gate_tensor) gate.emplace(*gate_tensor, operands.optional_tensor("gateScales"), "gateScales", group_size);
  const WeightArgument up = {operands.tensor("up"), operands.optional_tensor("upScales"), "upScales", group_size};
  const WeightArgument down = {operands.tensor("down"), operands.optional_tensor("downScales"), "downScales",
                               group_size};
  const TensorView& out = operands.tensor("out");
  GatedMlpParams p;
  check_rank(x, 2, "[tokens, qDim]");
  check_rank(up.tensor, 2, "[augQ, qDim]");
  check_rank(down.tensor, 2, "[qDim, augQ]");
  check_float({&x, &out});
  p.num_tokens = x.shape[0];
  p.in_features = x.shape[1];
  p.inner_size = up.tensor.shape[0];
  p.out_features = down.tensor.shape[0];
  check_at_least_one("qDim", p.in_features);
  check_at_least_one("augQ", p.inner_size);
  p.up = check_weight(up, p.inner_size, p.in_features, "[augQ, qDim] by the shape of x");
  p.down = check_weight(down, p.out_features, p.inner_size, "[qDim, augQ] by the shape of up");
  check_shape(out, {p.num_tokens, p.out_features}, "[tokens, qDim]");
  check_same_type(up.tensor, down.tensor);
  check_apart(out, {&x, &up.tensor, up.scales, &down.tensor, down.scales});
  if (gate) {
    p.gate = check_weight(*gate, p.inner_size, p.in_features, "[augQ, qDim] by the shape of up");
    check_same_type(gate->tensor, up.tensor);
    if (gate->scales && up.scales) check_same_type(*gate->scales, *up.scales);
    check_apart(out, {&gate->tensor, gate->scales});
  }
  p.activation = activation_named(fields.text("activation"));
  p.x = x.data;
  p.out = out.data;
  p.x_dtype = x.dtype;
  p.out_dtype = out.dtype;
  return operands.job(&Backend::gated_mlp, p, out);
}

Run quantize_weight(const Fields& fields, Operands& operands) {
  const TensorView& weight = operands.tensor("weight");
  const TensorView& values = operands.tensor("values");
  const TensorView& scales = operands.tensor("scales");
  const int64_t group_size = fields.integer("groupSize", 0, kMaxSafeInteger);
  QuantizeWeightParams p;
  check_rank(weight, 2, "[out, in]");
  require_compute_type(weight.name, weight.dtype);
  p.out_features = weight.shape[0];
  p.in_features = weight.shape[1];
  check_at_least_one("in", p.in_features);
  check_group_size(group_size);
  p.dtype = packed_dtype(values);
  p.group_size = group_size;
  check_type(scales, DType::bf16);
  check_packed_shapes(values, scales, p.out_features, p.in_features, group_size);
  p.weight = weight.data;
  p.data = values.data;
  p.scales = scales.data;
  p.weight_dtype = weight.dtype;
  return operands.job(&Backend::quantize_weight, p, values);
}

// ---- Others.

// x, out and scales have different types or ranks, so no two of them are the same tensor.
Run quantize(const Fields&, Operands& operands) {
  const TensorView& x = operands.tensor("x");
  const TensorView& out = operands.tensor("out");
  const TensorView& scales = operands.tensor("scales");
  QuantizeParams p;
  if (x.shape.size() < 2 || x.shape.size() > 4) {
    fail(ErrorCode::invalid_argument, "%s has shape %s; it must have 2 to 4 axes", x.name, shape_text(x.shape).c_str());
  }
  require_compute_type(x.name, x.dtype);
  if (!dtype_is_scaled(out.dtype)) {
    fail(ErrorCode::invalid_argument, "%s has type %s; it must be i8 or f8e4m3", out.name, dtype_name(out.dtype));
  }
  p.head_dim = x.shape.back();
  check_at_least_one("the last axis of x", p.head_dim);
  p.num_rows = elements(x) / p.head_dim;
  check_shape(out, x.shape, "the shape of x");
  check_type(scales, DType::bf16);
  check_shape(scales, {x.shape.begin(), x.shape.end() - 1}, "the shape of x without its last axis");
  p.x = x.data;
  p.out = out.data;
  p.scales = scales.data;
  p.x_dtype = x.dtype;
  p.out_dtype = out.dtype;
  return operands.job(&Backend::quantize, p, out);
}

Run rms_norm(const Fields& fields, Operands& operands) {
  const TensorView& x = operands.tensor("x");
  const TensorView& weight = operands.tensor("weight");
  const TensorView& out = operands.tensor("out");
  const TensorView* residual = operands.optional_tensor("residual");
  const double eps = fields.number("eps");
  const bool accumulate = fields.boolean("accumulate");
  RmsNormParams p;
  check_rank(x, 2, "[tokens, hidden]");
  check_float({&x, &weight, &out});
  p.num_tokens = x.shape[0];
  p.hidden_size = x.shape[1];
  check_at_least_one("hidden", p.hidden_size);
  check_shape(weight, {p.hidden_size}, "[hidden] by the shape of x");
  check_shape(out, x.shape, "[tokens, hidden]");
  check_apart(out, {&x, &weight, residual});
  if (residual != nullptr) {
    check_float({residual});
    check_shape(*residual, x.shape, "[tokens, hidden]");
    check_apart(*residual, {&x, &weight});
    p.residual = residual->data;
    p.residual_dtype = residual->dtype;
  }
  if (!(eps >= 0) || !std::isfinite(eps))
    fail(ErrorCode::invalid_argument, "eps is %g; it must be finite and not negative", eps);
  if (accumulate) {
    require_accumulator_type(out.name, out.dtype);
    if (residual != nullptr) {
      fail(ErrorCode::invalid_argument, "accumulate is true and residual is given; leave out one of them");
    }
  }
  p.x = x.data;
  p.weight = weight.data;
  p.out = out.data;
  p.eps = static_cast<float>(eps);
  p.accumulate = accumulate;
  p.x_dtype = x.dtype;
  p.weight_dtype = weight.dtype;
  p.out_dtype = out.dtype;
  return operands.job(&Backend::rms_norm, p, out);
}

Run add_bias(const Fields&, Operands& operands) {
  const TensorView& x = operands.tensor("x");
  const TensorView& bias = operands.tensor("bias");
  const TensorView& out = operands.tensor("out");
  AddBiasParams p;
  check_rank(x, 2, "[tokens, features]");
  check_float({&x, &out});
  check_same_type(x, out);
  check_type(bias, DType::f32);
  p.num_tokens = x.shape[0];
  p.num_features = x.shape[1];
  check_shape(bias, {p.num_features}, "[features]");
  check_shape(out, x.shape, "the shape of x");
  check_apart(out, {&bias});
  p.x = x.data;
  p.bias = static_cast<const float*>(bias.data);
  p.out = out.data;
  p.dtype = x.dtype;
  return operands.job(&Backend::add_bias, p, out);
}

Run rope(const Fields& fields, Operands& operands) {
  const TensorView& x = operands.tensor("x");
  const TensorView& positions = operands.tensor("positions");
  const TensorView& out = operands.tensor("out");
  const double theta = fields.number("theta");
  RopeParams p;
  check_rank(x, 3, "[tokens, heads, headDim]");
  check_float({&x, &out});
  check_same_type(x, out);
  check_type(positions, DType::i32);
  p.num_tokens = x.shape[0];
  p.num_heads = x.shape[1];
  p.head_dim = x.shape[2];
  if (p.head_dim < 2 || p.head_dim % 2 != 0) {
    fail(ErrorCode::invalid_argument, "headDim is %lld; RoPE needs an even number of at least 2",
         static_cast<long long>(p.head_dim));
  }
  check_shape(positions, {p.num_tokens}, "[tokens] by the shape of x");
  check_shape(out, x.shape, "[tokens, heads, headDim]");
  check_apart(out, {&positions});
  // With theta below 1, the angles would grow with the dim, beyond what float64 can reduce.
  if (!(theta >= 1) || !std::isfinite(theta)) {
    fail(ErrorCode::invalid_argument, "theta is %g; it must be finite and at least 1", theta);
  }
  p.x = x.data;
  p.out = out.data;
  p.positions = static_cast<const int32_t*>(positions.data);
  p.dtype = x.dtype;
  return operands.job(
      [theta](const std::shared_ptr<Backend>& backend, RopeParams p) {
        std::vector<double> inv_freq(p.head_dim / 2);
        for (int64_t d = 0; d < p.head_dim / 2; ++d) inv_freq[d] = std::pow(theta, -2.0 * d / p.head_dim);
        Buffer device_inv_freq(backend, inv_freq.size() * sizeof(double));
        backend->upload(device_inv_freq.data(), inv_freq.data(), device_inv_freq.bytes());
        p.inv_freq = device_inv_freq.as<double>();
        backend->rope(p);
      },
      p, out);
}

Run gated_activation(const Fields& fields, Operands& operands) {
  const TensorView* gate = operands.optional_tensor("gate");
  const TensorView& up = operands.tensor("up");
  const TensorView& out = operands.tensor("out");
  GatedActivationParams p;
  check_float({&up, &out});
  check_same_type(up, out);
  check_shape(out, up.shape, "the shape of up");
  if (gate != nullptr) {
    check_shape(*gate, up.shape, "the shape of up");
    check_same_type(*gate, up);
    p.gate = gate->data;
  }
  p.activation = activation_named(fields.text("activation"));
  p.up = up.data;
  p.out = out.data;
  p.dtype = up.dtype;
  p.count = elements(up);
  return operands.job(&Backend::gated_activation, p, out);
}

Run softcap(const Fields& fields, Operands& operands) {
  const TensorView& x = operands.tensor("x");
  const TensorView& out = operands.tensor("out");
  const double cap = fields.number("cap");
  SoftcapParams p;
  check_type(x, DType::f32);
  check_type(out, DType::f32);
  check_shape(out, x.shape, "the shape of x");
  p.cap = static_cast<float>(cap);
  if (!(p.cap > 0) || !std::isfinite(p.cap)) {
    fail(ErrorCode::invalid_argument, "cap is %g; it must be positive and finite in float32", cap);
  }
  p.x = static_cast<const float*>(x.data);
  p.out = static_cast<float*>(out.data);
  p.count = elements(x);
  return operands.job(&Backend::softcap, p, out);
}

Run embed(const Fields& fields, Operands& operands) {
  const TensorView& table = operands.tensor("table");
  const TensorView& tokens = operands.tensor("tokens");
  const TensorView& out = operands.tensor("out");
  const double scale = fields.number("scale");
  EmbedParams p;
  check_rank(table, 2, "[vocab, hidden]");
  check_rank(tokens, 1, "[tokens]");
  check_float({&table, &out});
  check_type(tokens, DType::i32);
  p.vocab_size = table.shape[0];
  p.hidden_size = table.shape[1];
  p.num_tokens = tokens.shape[0];
  check_shape(out, {p.num_tokens, p.hidden_size}, "[tokens, hidden]");
  check_apart(out, {&table, &tokens});
  p.scale = static_cast<float>(scale);
  if (!std::isfinite(p.scale)) fail(ErrorCode::invalid_argument, "scale is %g; it must be finite in float32", scale);
  p.table = table.data;
  p.tokens = static_cast<const int32_t*>(tokens.data);
  p.out = out.data;
  p.table_dtype = table.dtype;
  p.out_dtype = out.dtype;
  return operands.job(&Backend::embed, p, out);
}

// `prepare` reads and checks the arguments on the JS thread and returns the job for the executor.
struct Kernel {
  const char* name;
  Run (*prepare)(const Fields& fields, Operands& operands);
};
constexpr Kernel kKernels[] = {
    {"attentionPrefill", attention_prefill},
    {"attentionDecode", attention_decode},
    {"quantize", quantize},
    {"quantizeWeight", quantize_weight},
    {"gatedMlp", gated_mlp},
    {"matmul", matmul},
    {"rmsNorm", rms_norm},
    {"rope", rope},
    {"addBias", add_bias},
    {"gatedActivation", gated_activation},
    {"softcap", softcap},
    {"embed", embed},
};

}  // namespace

std::vector<Napi::ClassPropertyDescriptor<DeviceObject>> DeviceObject::kernel_methods() {
  std::vector<PropertyDescriptor> methods;
  for (const Kernel& kernel : kKernels) {
    methods.push_back(
        InstanceMethod<&DeviceObject::run_kernel>(kernel.name, napi_default, const_cast<Kernel*>(&kernel)));
  }
  return methods;
}

Napi::Value DeviceObject::run_kernel(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    check_usable();
    const Fields fields(info);
    Operands operands(fields, *device_);
    return submit(info, static_cast<const Kernel*>(info.Data())->prepare(fields, operands));
  });
}

}  // namespace diffqkv::addon
