// Calls of operators as tests make them: tensors, what runs the operator on them, and which of them it writes. The same
// sources are C++ for the emulated device and CUDA for a GPU; the tensors have the same bytes on both.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <type_traits>
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

// Those of the call's operator, if it has one.
#define DIFFQKV_PARAMS(name, Params) , Params
using OperatorParams = std::variant<std::monostate DIFFQKV_OPERATORS(DIFFQKV_PARAMS)>;
#undef DIFFQKV_PARAMS

struct Call {
  std::vector<Tensor> tensors;
  std::vector<Memory<KvPage>> pages;  // a table for each sequence
  std::unique_ptr<Memory<const KvPage*>> tables;
  std::vector<Memory<SampleRow>> sample_rows;
  std::vector<Output> outputs;  // the tensors that the operator writes; they may be inputs as well
  OperatorParams params;
  std::function<void(Context&)> enqueue;

  // The tensor with this name, which must be there.
  Tensor& tensor(const std::string& name);
  const Tensor& tensor(const std::string& name) const { return const_cast<Call*>(this)->tensor(name); }
};

// A GPU as launchers plan for it. They choose larger tiles the fewer multiprocessors there are.
struct PlannedGpu {
  int multiprocessors;
  size_t shared_bytes;
};

constexpr PlannedGpu kTinyGpu = {1, 99 * 1024}, kSmallGpu = {6, 99 * 1024}, kLargeGpu = {132, 227 * 1024};

struct NamedCall {
  std::string name;  // unlike all others
  std::function<Call()> make;
  PlannedGpu gpu = kSmallGpu;  // for ptx_check
  bool is_rejected = false;    // a kernel must find an argument in device memory to be wrong
  const char* operator_name = "";
};

struct CallList {
  std::vector<NamedCall> calls;

  NamedCall& add(std::string name, std::function<Call()> make, const PlannedGpu& gpu = kSmallGpu) {
    calls.push_back({std::move(name), std::move(make), gpu});
    return calls.back();
  }
  template <typename Case>
  NamedCall& add(std::string name, Call (*make)(const Case&), const std::type_identity_t<Case>& c,
                 const PlannedGpu& gpu = kSmallGpu) {
    return add(
        std::move(name), [=] { return make(c); }, gpu);
  }
  void add_rejected(std::string name, std::function<Call()> make) {
    add(std::move(name), std::move(make)).is_rejected = true;
  }
};

// What the file of an operator has. Calls of small shapes, seeded and others, also run on a GPU and from PTX.
struct OperatorCalls {
  CallList seeded;  // emulation_check runs them in many orders of threads
  CallList small;
  CallList sigma;  // at the shapes of Sigma-1.5B and Sigma-10B, for a GPU
  CallList ptx;    // only from PTX, until every kernel has run and nearly all of its code
};

// Every operator has `OperatorCalls embed_calls();` and `void reference(const EmbedParams& p, Context& context);`, which
// enqueues its plain kernels (calls/plain.h).
#define DIFFQKV_OPERATOR_TEST(name, Params) \
  OperatorCalls name##_calls();             \
  void reference(const Params& p, Context& context);
DIFFQKV_OPERATORS(DIFFQKV_OPERATOR_TEST)
#undef DIFFQKV_OPERATOR_TEST

// Writes what the operator with these params should, by its plain kernels, and waits.
void reference(const OperatorParams& params, Context& context);

std::vector<NamedCall> seeded_calls();
std::vector<NamedCall> operator_calls();  // seeded and small
std::vector<NamedCall> sigma_calls();
std::vector<NamedCall> ptx_calls();  // seeded, small and those for PTX only

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

// The call with params that `change(call, params)` has changed.
template <typename Params, typename Change>
Call changed(Call call, void (*launcher)(const Params&, Context&), const Change& change) {
  Params params = std::get<Params>(call.params);
  change(call, params);
  set_operator(call, launcher, params);
  return call;
}

// The call with other integers for one of its arguments.
template <typename Params>
Call with_integers(Call call, void (*launcher)(const Params&, Context&), const int32_t* Params::*argument,
                   const std::vector<int32_t>& values) {
  return changed(std::move(call), launcher,
                 [&](Call& c, Params& p) { p.*argument = add_integers(c, "other integers", values); });
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
// decode_call by attention_selective alone: throws if that does not support the call.
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

// Without num_tokens, five tokens of two sequences; else that many new tokens of one sequence. Q is rotated if K is.
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
// What kv_append quantizes: the new K rows after RoPE, [num_tokens, num_k_heads, head_dim_qk]. Waits.
std::vector<float> rotated_keys(const KvAppendParams& p, Context& context);

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
  std::vector<int64_t> others = {};  // out_features of the other outputs
  bool has_norm = false;
};
Call matmul_call(const MatmulCase& c);
// Adds random weights of standard deviation `scale`. Integers have one of 74 (i8) or 4.6 (i4). `dtype`: of weights that
// are not packed.
WeightView add_weight(Call& call, const std::string& name, DType dtype, const Packing& packing, int64_t rows,
                      int64_t columns, float scale, uint64_t seed);
std::string packing_text(const Packing& packing);
// x and its norm, for a call of matmul or gated_mlp. Rows differ in size, which a norm takes out.
void add_normed_x(Call& call, const void** x, InputNorm* norm, int64_t num_tokens, int64_t in_features);
// The call of matmul or gated_mlp with x of f32, whatever the type of the weights.
template <typename Params>
Call with_wide_x(Call call, void (*launcher)(const Params&, Context&)) {
  return changed(std::move(call), launcher, [](Call& c, Params& p) {
    p.x = add_random(c, "x in f32", DType::f32, count_of({p.num_tokens, p.in_features}), 0.1f, 9);
    p.x_dtype = DType::f32;
  });
}
struct GatedMlpCase {
  DType dtype;
  int64_t num_tokens, in_features, inner_size, out_features;
  bool accumulate = false;  // into f32
  Activation activation = Activation::silu;
  bool has_gate = true;
  Packing packing = {};
  std::vector<int64_t> others = {};  // out_features of the other products of x
  bool has_norm = false;
};
Call gated_mlp_call(const GatedMlpCase& c);

// Adds RoPE's frequencies, of which there are head_dim / 2.
const double* add_frequencies(Call& call, int64_t head_dim);

// All activations but silu, with their names.
struct NamedActivation {
  const char* name;
  Activation activation;
};
constexpr NamedActivation kOtherActivations[] = {{"gelu", Activation::gelu},
                                                 {"gelu_tanh", Activation::gelu_tanh},
                                                 {"relu", Activation::relu},
                                                 {"relu2", Activation::relu2}};

// ---- What tables of calls are made of.

constexpr DType kF32 = DType::f32, kF16 = DType::f16, kBf16 = DType::bf16, kI8 = DType::i8, kI4 = DType::i4,
                kF8 = DType::f8e4m3;
constexpr DType kFloats[] = {kF32, kF16, kBf16}, kCacheTypes[] = {kF32, kF16, kBf16, kI8, kF8};

inline std::string text_of(DType dtype) { return dtype_name(dtype); }
inline std::string tokens_text(int64_t tokens) { return std::to_string(tokens) + (tokens == 1 ? " token" : " tokens"); }

// Sigma-1.5B and Sigma-10B (arXiv 2501.13629, table 14).
struct Sigma {
  std::string name;  // the start of the names of its calls
  int64_t hidden_size, head_dim, aug_q_size, intermediate_size;
};
inline const Sigma kSigmas[] = {{"Sigma-1.5B: ", 2048, 64, 3072, 6144}, {"Sigma-10B: ", 4096, 128, 6144, 14336}};
constexpr Heads kSigmaHeads = {32, 4, 16}, kStandardHeads = {32, 16, 16};
constexpr int64_t kSigmaVocabSize = 128256;
constexpr int64_t kSigmaTokens[] = {1, 16, 512};

}  // namespace diffqkv::cuda
