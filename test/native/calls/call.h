// Calls of operators as tests make them: tensors, what runs the operator on them, and which of them it writes. The same
// sources are C++ for the emulated device and CUDA for a GPU; the tensors have the same bytes on both.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "calls/memory.h"
#include "element_types.h"
#include "kernels.h"

namespace diffqkv::cuda {

struct Tensor {
  std::string name;  // of the operator's argument
  DType dtype;
  Memory<uint8_t> memory;
};

// How an output of two runs is compared: bit by bit; or by the limits of compare.ts, those of a type or those of lse;
// or as a pool of quantized K pages, whose codes depend on the rounding of RoPE.
enum class Comparison { bits, values, lse, quantized_pool };

struct Output {
  size_t tensor;  // index in Call::tensors
  Comparison comparison;
  int64_t row_length;                 // of `values`
  DType coarsest_dtype = DType::f32;  // of `values`: whose limits apply
};

using OperatorParams =
    std::variant<EmbedParams, RmsNormParams, MatmulParams, GatedMlpParams, GatedActivationParams, SoftcapParams,
                 AddBiasParams, RopeParams, KvAppendParams, KvGatherParams, QuantizeParams, QuantizeWeightParams,
                 AttentionPrefillParams, AttentionDecodeParams, SampleParams>;

struct Call {
  std::vector<Tensor> tensors;
  std::vector<Memory<KvPage>> pages;  // a table for each sequence
  std::unique_ptr<Memory<const KvPage*>> tables;
  std::vector<Output> outputs;  // the tensors that the operator writes; they may be inputs as well
  OperatorParams params;
  std::function<void(Context&)> enqueue;

  // The tensor with this name, which must be there.
  Tensor& tensor(const std::string& name);
  const Tensor& tensor(const std::string& name) const { return const_cast<Call*>(this)->tensor(name); }
};

struct NamedCall {
  std::string name;  // unlike all others
  std::function<Call()> make;
};

// The calls that emulation_check runs in many orders of threads.
std::vector<NamedCall> seeded_calls();
// Every operator at small shapes: those, and more.
std::vector<NamedCall> operator_calls();
// Every operator at the shapes of Sigma-1.5B and Sigma-10B (arXiv 2501.13629, table 14), for a GPU.
std::vector<NamedCall> sigma_calls();

// A context whose scratch memory starts as NaN at each request, so that nothing depends on what an earlier call left.
class CallContext : public Context {
 public:
  CallContext(int multiprocessors, size_t shared_bytes);
  ~CallContext() override;
  void* scratch(size_t bytes) override;
  uint32_t* zeroed_words(size_t count) override;
  // Waits. Throws an error of the device, or if a kernel reports an argument or leaves a zeroed word at another value.
  void finish();
  size_t scratch_bytes() const;

 private:
  Memory<Finding> found_;
  std::vector<Memory<uint8_t>> scratch_;
  std::vector<Memory<uint32_t>> words_;
};

// ---- What calls are made of.

// `count` random elements of a type, of standard deviation `scale`. i8 and f8e4m3: codes of all magnitudes but NaN, where
// `scale` does not matter.
std::vector<uint8_t> random_bytes(DType dtype, size_t count, float scale, uint64_t seed);
// bf16 scales that give rows of such codes a standard deviation of about 0.1.
std::vector<uint8_t> random_scales(size_t count, uint64_t seed);
// Write random_bytes and random_scales of the same arguments, by a kernel; and wait.
void fill_random(void* data, DType dtype, size_t count, float scale, uint64_t seed);
void fill_scales(void* data, size_t count, uint64_t seed);
// Device memory with random_bytes or random_scales of the same arguments.
Memory<uint8_t> random_memory(DType dtype, size_t count, float scale, uint64_t seed);
Memory<uint8_t> random_scale_memory(size_t count, uint64_t seed);

// These add a tensor to the call and return its memory.
uint8_t* add_memory(Call& call, const char* name, DType dtype, Memory<uint8_t> memory);
uint8_t* add_tensor(Call& call, const char* name, DType dtype, const std::vector<uint8_t>& bytes);
uint8_t* add_random(Call& call, const char* name, DType dtype, size_t count, float scale, uint64_t seed);
const int32_t* add_integers(Call& call, const char* name, const std::vector<int32_t>& values);
// Adds a tensor that the operator writes, NaN throughout.
uint8_t* add_output(Call& call, const char* name, DType dtype, size_t count, Comparison comparison,
                    int64_t row_length = 1, DType coarsest_dtype = DType::f32);

// The call runs `launcher` on `params`.
template <typename Params>
void set_operator(Call& call, void (*launcher)(const Params&, Context&), const Params& params) {
  call.params = params;
  call.enqueue = [launcher, params](Context& context) { launcher(params, context); };
}

// The limits of which type apply to an operator's output, given all the types of its tensors.
DType coarsest(std::initializer_list<DType> dtypes);
std::vector<uint8_t> bytes_of_floats(DType dtype, const std::vector<float>& values);
std::vector<float> floats_of_bytes(DType dtype, const std::vector<uint8_t>& bytes);
size_t count_of(std::initializer_list<int64_t> sizes);

// ---- Builders.

struct Heads {
  int64_t q, k, v;
};
struct Dims {
  int64_t qk, vo;
};
struct Types {
  DType q, k, v;
};
inline Types same(DType dtype) { return {dtype, dtype, dtype}; }

// Attention on a cache of random rows. `lengths` are the kv_lens, one a sequence; without them there are `batch` sequences
// of kv_len and no kv_lens.
struct AttentionCase {
  Types types = same(DType::bf16);
  Heads heads;
  Dims dims;
  int64_t kv_len;
  std::vector<int32_t> lengths = {};
  int64_t batch = 1;
  int64_t page_tokens = 0;    // 0: contiguous
  bool shared_cache = false;  // one cache for all sequences
  int64_t distinct_keys = 0;  // rows of K that differ; 0: all do. Contiguous
  int64_t q_len = 1;          // prefill
  bool causal = true;         // prefill
  int64_t num_splits = 0;     // decode
  int64_t top_k = 0;          // decode: selective V
  bool renormalize = false;   // decode: selective V
  int64_t window = 0;         // with pages: those before the windows of all queries are null
  float softcap = 0;
};
Call decode_call(const AttentionCase& c);
Call prefill_call(const AttentionCase& c);
// decode_call by attention_selective alone: throws if that does not take the call.
Call selective_call(const AttentionCase& c);

// Decode and prefill on paged caches; their contiguous twins give the same bits.
struct PagedCase {
  std::string name;
  AttentionCase attention;
};
std::vector<PagedCase> paged_decode_cases();
std::vector<PagedCase> paged_prefill_cases();

// Pools of K and V with pages in a random order. Rows that hold no token are 0xff, NaN, throughout.
struct PoolShape {
  DType k, v;
  Heads heads;
  Dims dims;
  int64_t page_tokens;
  std::vector<int32_t> lengths;  // of the sequences
  int64_t last_tokens = 0;       // not 0: pages with none of the last so many tokens are null in the tables
};
// As if other layers came first.
constexpr int64_t kKPageOffset = 384, kVPageOffset = 128;
// What attention has contiguously, [batch, kv_len, heads] rows, to be put into pages.
struct Rows {
  Memory<uint8_t> elements, scales;  // no scales where the type has none
};
Rows random_rows(DType dtype, size_t count, int64_t dim, uint64_t seed);
// Adds the tensors `k_pool` and `v_pool`, filled with `k` and `v` if they are given, and the tables, which it returns.
const KvPage* const* add_pools(Call& call, const PoolShape& shape, int64_t kv_len, const Rows* k, const Rows* v);

// Without num_tokens, five tokens of two sequences; else that many new tokens of one sequence.
struct KvAppendCase {
  DType dtype;  // of the new rows
  DType k, v;   // of the caches
  Dims dims;
  bool rotate;
  Heads heads = {8, 2, 4};
  int64_t num_tokens = 0;
};
Call kv_append_call(const KvAppendCase& c);
struct KvGatherCase {
  DType cache, out;
  int64_t num_keys, heads, dim;
};
// The pool holds random_rows(c.cache, num_keys * heads, dim, kGatherSeed).
constexpr uint64_t kGatherSeed = 2;
Call kv_gather_call(const KvGatherCase& c);
// Rows of all magnitudes, with zeros, tiny ones, NaN and infinity among them.
struct QuantizeCase {
  DType x, out;
  int64_t dim;
  int64_t num_rows = 70;
};
Call quantize_call(const QuantizeCase& c);

// Groups as QuantizeCase has rows: with zeros, tiny ones, NaN and infinity among them.
struct QuantizeWeightCase {
  DType weight, out;
  int64_t group_size, num_rows, num_columns;
};
Call quantize_weight_call(const QuantizeWeightCase& c);

// Weights of i8 or i4; or, with group_size 0, of the type of x.
struct Packing {
  DType dtype = DType::f32;
  int64_t group_size = 0;
  DType scale_dtype = DType::bf16;
};
struct MatmulCase {
  DType dtype;  // of x and of weights that are not packed
  int64_t num_tokens, in_features, out_features;
  bool accumulate = false;  // into f32
  bool f32_out = false;
  Packing packing = {};
};
Call matmul_call(const MatmulCase& c);
struct GatedMlpCase {
  DType dtype;
  int64_t num_tokens, in_features, inner_size, out_features;
  bool accumulate = false;  // into f32
  Activation activation = Activation::silu;
  bool has_gate = true;
  Packing packing = {};
};
Call gated_mlp_call(const GatedMlpCase& c);

struct RmsNormCase {
  DType x, residual, weight, out;
  int64_t num_tokens, hidden_size;
  bool has_residual = true;
  bool accumulate = false;  // into f32, without a residual
};
Call rms_norm_call(const RmsNormCase& c);
struct EmbedCase {
  DType table, out;
  int64_t num_tokens, hidden_size;
  int64_t vocab_size = 50;
  float scale = 1;
};
Call embed_call(const EmbedCase& c);
struct RopeCase {
  DType dtype;
  int64_t num_tokens, num_heads, head_dim;
  bool in_place = false;
};
Call rope_call(const RopeCase& c);
// Adds RoPE's frequencies, of which there are head_dim / 2.
const double* add_frequencies(Call& call, int64_t head_dim);
struct GatedActivationCase {
  DType dtype;
  int64_t count;
  Activation activation = Activation::silu;
  bool has_gate = true;
};
Call gated_activation_call(const GatedActivationCase& c);
struct AddBiasCase {
  DType dtype;
  int64_t num_tokens, num_features;
};
Call add_bias_call(const AddBiasCase& c);

struct SoftcapCase {
  int64_t count;
  float cap;
};
Call softcap_call(const SoftcapCase& c);

struct SampleCase {
  int64_t vocab_size;
  float temperature = 0;
  int64_t top_k = 0;
  float top_p = 1, min_p = 0, penalty = 1;
};
Call sample_call(const SampleCase& c);

// All activations but silu, with their names.
struct NamedActivation {
  const char* name;
  Activation activation;
};
constexpr NamedActivation kOtherActivations[] = {{"gelu", Activation::gelu},
                                                 {"gelu_tanh", Activation::gelu_tanh},
                                                 {"relu", Activation::relu},
                                                 {"relu2", Activation::relu2}};

// The tables of calls, by file.
std::vector<NamedCall> seeded_attention_calls();
std::vector<NamedCall> seeded_linear_calls();
std::vector<NamedCall> seeded_cache_calls();
std::vector<NamedCall> seeded_sample_calls();
std::vector<NamedCall> more_attention_calls();
std::vector<NamedCall> more_linear_calls();
std::vector<NamedCall> more_cache_calls();
std::vector<NamedCall> more_sample_calls();

}  // namespace diffqkv::cuda
