#if defined(DIFFQKV_HAVE_ONEDNN)

#include "backend/cpu/linear/onednn.h"

#include <mutex>
#include <string>
#include <unordered_map>

#include "backend/cpu/arena.h"
#include "backend/cpu/cpu_isa.h"
#include "backend/cpu/system/memory.h"
#include "backend/error.h"

namespace diffqkv::cpu {
namespace {

// A model has about seven shapes at each number of tokens.
constexpr size_t kMaxCompiled = 64;

dnnl::memory::data_type onednn_type(DType dtype) {
  return dtype == DType::bf16 ? dnnl::memory::data_type::bf16 : dnnl::memory::data_type::f32;
}

[[noreturn]] void rethrow(const dnnl::error& error, const Product& p) {
  const long long m = p.num_tokens;
  const long long k = p.in_features;
  const long long n = p.out_features;
  switch (error.status) {
    case dnnl_out_of_memory:
      fail(ErrorCode::out_of_memory, "oneDNN ran out of memory in a matmul of x [%lld, %lld] and weight [%lld, %lld]",
           m, k, n, k);
    case dnnl_invalid_arguments:
      fail(ErrorCode::invalid_argument, "oneDNN rejected a matmul of x [%lld, %lld] and weight [%lld, %lld]: %s", m, k,
           n, k, error.what());
    default:
      fail(ErrorCode::device_unavailable,
           "oneDNN failed in a matmul of x [%lld, %lld] and weight [%lld, %lld]: %s (status %d)", m, k, n, k,
           error.what(), static_cast<int>(error.status));
  }
}

// oneDNN 2.6.3 stops the process with SIGSEGV if it gets no memory for one of its objects. So check
// first that there is memory for what it will allocate: code and descriptions, or the handles of
// one call. Throws ERR_OUT_OF_MEMORY.
constexpr size_t kBytesToCompile = size_t{16} << 20;
constexpr size_t kBytesToRun = size_t{1} << 20;

void require_memory(size_t bytes) { free_memory(allocate_memory(bytes), bytes); }

dnnl::memory::desc factor_of(const Product& p) {
  return {{p.num_tokens, p.out_features}, dnnl::memory::data_type::f32, dnnl::memory::dims{p.out_features, 1}};
}

bool same_shape(const Product& a, const Product& b) {
  return a.num_tokens == b.num_tokens && a.in_features == b.in_features && a.out_features == b.out_features &&
         a.stride_out == b.stride_out && a.out_dtype == b.out_dtype && a.epilogue == b.epilogue;
}

// oneDNN detects instruction sets itself, and its environment variables may lower them. If the user
// selects AMX for this process, oneDNN must use it. It accepts that only before its first primitive.
void set_up_library() {
  static std::once_flag once;
  std::call_once(once, [] {
    if (cpu_isa().forced) dnnl::set_max_cpu_isa(dnnl::cpu_isa::all);
    // oneDNN would keep 1,024 primitives for the life of the process. OneDnnProducts keeps fewer,
    // for the life of the device.
    dnnl::set_primitive_cache_capacity(0);
  });
}

// On AVX-512 without bf16 products, the library emulates them at a fifth of the speed of f32.
// Instruction sets are bit sets, in which a higher one contains the lower ones.
bool has_bf16_matmul() {
  const unsigned needed = static_cast<unsigned>(dnnl::cpu_isa::avx512_core_bf16);
  return (static_cast<unsigned>(dnnl::get_effective_cpu_isa()) & needed) == needed;
}

}  // namespace

OneDnnProducts::OneDnnProducts() {
  require_memory(kBytesToCompile);
  set_up_library();
  engine_ = dnnl::engine(dnnl::engine::kind::cpu, 0);
  stream_ = dnnl::stream(engine_);
  multiplies_bf16_ = has_bf16_matmul();
}

const OneDnnProducts::Compiled& OneDnnProducts::compiled(const Product& p) {
  for (auto it = cache_.begin(); it != cache_.end(); ++it) {
    if (!same_shape(it->shape, p)) continue;
    cache_.splice(cache_.begin(), cache_, it);
    return cache_.front();
  }
  require_memory(kBytesToCompile);
  using dnnl::memory;
  const memory::data_type type = dnnl::memory::data_type::bf16;
  // The weight is not copied: to the library it is an [in, out] matrix, stored by columns.
  const memory::desc x({p.num_tokens, p.in_features}, type, memory::dims{p.in_features, 1});
  const memory::desc weight({p.in_features, p.out_features}, type, memory::dims{1, p.in_features});
  const memory::desc out({p.num_tokens, p.out_features}, onednn_type(p.out_dtype), memory::dims{p.stride_out, 1});
  dnnl::primitive_attr attr;
  attr.set_fpmath_mode(
      dnnl::fpmath_mode::strict);  // f32 products stay f32, regardless of the library's environment variables
  attr.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  dnnl::post_ops post_ops;
  switch (p.epilogue) {
    case Epilogue::none: break;
    case Epilogue::add: post_ops.append_sum(1.0f); break;
    case Epilogue::silu: post_ops.append_eltwise(1.0f, dnnl::algorithm::eltwise_swish, 1.0f, 0.0f); break;
    case Epilogue::multiply: post_ops.append_binary(dnnl::algorithm::binary_mul, factor_of(p)); break;
  }
  attr.set_post_ops(post_ops);
  const dnnl::matmul::primitive_desc descriptor(dnnl::matmul::desc(x, weight, out), attr, engine_);
  Compiled entry = {p, dnnl::matmul(descriptor), x, weight, out, descriptor.scratchpad_desc()};
  if (cache_.size() >= kMaxCompiled) cache_.pop_back();
  cache_.push_front(std::move(entry));
  return cache_.front();
}

void OneDnnProducts::run(const Product& p, Arena& arena) {
  try {
    const Compiled& product = compiled(p);
    require_memory(kBytesToRun);
    dnnl::memory x(product.x, engine_, const_cast<void*>(p.x));
    dnnl::memory weight(product.weight, engine_, const_cast<void*>(p.weight));
    dnnl::memory out(product.out, engine_, p.out);
    dnnl::memory scratchpad(product.scratchpad, engine_, arena.get(kSlotOneDnn, product.scratchpad.get_size()));
    std::unordered_map<int, dnnl::memory> arguments = {
        {DNNL_ARG_SRC, x}, {DNNL_ARG_WEIGHTS, weight}, {DNNL_ARG_DST, out}, {DNNL_ARG_SCRATCHPAD, scratchpad}};
    if (p.epilogue == Epilogue::multiply) {
      arguments.emplace(DNNL_ARG_ATTR_MULTIPLE_POST_OP(0) | DNNL_ARG_SRC_1,
                        dnnl::memory(factor_of(p), engine_, const_cast<float*>(p.factor)));
    }
    product.primitive.execute(stream_, arguments);
    stream_.wait();
  } catch (const dnnl::error& error) {
    rethrow(error, p);
  }
}

}  // namespace diffqkv::cpu

#endif
