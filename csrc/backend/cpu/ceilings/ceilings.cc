#include <omp.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <list>

#include "backend/cpu/cpu_isa.h"
#include "backend/cpu/system/memory.h"
#include "backend/cpu/system/threads.h"
#include "backend/cpu_ceilings.h"
#include "backend/error.h"

#if defined(DIFFQKV_HAVE_ONEDNN)
#include <dnnl.hpp>
#endif

namespace diffqkv {
namespace {

constexpr int64_t kStreamBytes = int64_t{1536} << 20;
constexpr int64_t kMultiplyRounds = 1 << 20;

using Clock = std::chrono::steady_clock;

template <typename Work>
double milliseconds(const Work& work) {
  const Clock::time_point start = Clock::now();
  work();
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

double gb_per_s(int64_t bytes, double ms) { return static_cast<double>(bytes) / ms / 1e6; }

}  // namespace

struct CpuCeilings::Buffer {
  explicit Buffer(size_t size) : data(static_cast<char*>(cpu::allocate_memory(size))), bytes(size) {}
  ~Buffer() { cpu::free_memory(data, bytes); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  char* const data;
  const size_t bytes;
};

char* CpuCeilings::stream_buffer() {
  cpu::use_threads();
  if (!buffer_) {
    buffer_ = std::make_unique<Buffer>(kStreamBytes);
    // Written once: pages that nobody has written may all be one page of zeros.
#pragma omp parallel
    {
      const int64_t share = kStreamBytes / omp_get_num_threads();
      std::memset(buffer_->data + share * omp_get_thread_num(), 1, static_cast<size_t>(share));
    }
  }
  return buffer_->data;
}

double CpuCeilings::read_gb_per_s(int streams, int64_t prefetch_bytes) {
  const char* data = stream_buffer();
  const cpu::Kernels& kernels = *cpu::cpu_isa().kernels;
  uint32_t seen = 0;
  int64_t read = 0;
  const double ms = milliseconds([&] {
#pragma omp parallel reduction(| : seen) reduction(+ : read)
    {
      const int64_t share = kStreamBytes / omp_get_num_threads() / 4096 * 4096;
      seen |= kernels.read_stream(data + share * omp_get_thread_num(), share, streams, prefetch_bytes);
      read += share;
    }
  });
  if (seen == 0) fail(ErrorCode::device_unavailable, "the read bandwidth buffer does not have its contents");
  return gb_per_s(read, ms);
}

double CpuCeilings::copy_gb_per_s() {
  char* data = stream_buffer();
  const int64_t half = kStreamBytes / 2;
  int64_t copied = 0;
  const double ms = milliseconds([&] {
#pragma omp parallel reduction(+ : copied)
    {
      const int64_t share = half / omp_get_num_threads();
      const int64_t begin = share * omp_get_thread_num();
      std::memcpy(data + half + begin, data + begin, static_cast<size_t>(share));
      copied += share;
    }
  });
  return gb_per_s(2 * copied, ms);
}

double CpuCeilings::multiply_gflop_per_s() {
  cpu::use_threads();
  const cpu::Kernels& kernels = *cpu::cpu_isa().kernels;
  double best = 0;
  for (const auto unit : {cpu::MultiplyUnit::f32, cpu::MultiplyUnit::bf16, cpu::MultiplyUnit::tiles}) {
    double flops = 0;
    const double ms = milliseconds([&] {
#pragma omp parallel reduction(+ : flops)
      {
        float sink = 0;
        flops += kernels.multiply_registers(unit, kMultiplyRounds, &sink);
      }
    });
    best = std::max(best, flops / ms / 1e6);
  }
  return best;
}

#if defined(DIFFQKV_HAVE_ONEDNN)

namespace {

using dnnl::memory;

// Small random bf16 numbers of either sign, none of them denormal, as weights are.
void fill_with_weights(void* data, size_t bytes) {
  auto* out = static_cast<uint16_t*>(data);
  const size_t count = bytes / sizeof(uint16_t);
  const size_t drawn = std::min(count, size_t{1} << 20);
  uint32_t state = 12345;
  for (size_t i = 0; i < drawn; ++i) {
    state = state * 1664525u + 1013904223u;
    out[i] = static_cast<uint16_t>((state >> 16 & 0x807f) | 0x3c00 | (state >> 8 & 0x0080));
  }
  for (size_t i = drawn; i < count; i += drawn) {
    std::memcpy(out + i, out, std::min(drawn, count - i) * sizeof(uint16_t));
  }
}

}  // namespace

struct CpuCeilings::Products {
  // One matrix in one layout, with as many weights as it is measured with.
  struct Product {
    size_t index;  // in the list of matrices
    Matrix matrix;
    WeightLayout layout;
    dnnl::matmul primitive;
    memory x, out;
    std::vector<memory> weights;
    std::list<Buffer> buffers;
  };

  dnnl::engine engine{dnnl::engine::kind::cpu, 0};
  dnnl::stream stream{engine};
  std::list<Product> products;

  memory make_memory(Product& product, const memory::desc& desc) {
    Buffer& buffer = product.buffers.emplace_back(desc.get_size());
    fill_with_weights(buffer.data, buffer.bytes);
    return memory(desc, engine, buffer.data);
  }

  Product& product(size_t index, const Matrix& matrix, size_t num_weights, WeightLayout layout) {
    const auto [m, k, n, out_type] = matrix;
    for (Product& known : products) {
      const Matrix& p = known.matrix;
      const bool same_matrix = p.m == m && p.k == k && p.n == n && p.out_type == out_type;
      if (same_matrix && known.index == index && known.layout == layout && known.weights.size() == num_weights) {
        return known;
      }
    }
    using Tag = memory::format_tag;
    using Type = memory::data_type;
    const memory::desc x({m, k}, Type::bf16, Tag::ab);
    const memory::desc weight({k, n}, Type::bf16, layout == WeightLayout::packed ? Tag::any : Tag::ba);
    const memory::desc out({m, n}, out_type == OutType::f32 ? Type::f32 : Type::bf16, Tag::ab);
    const dnnl::matmul::primitive_desc desc(dnnl::matmul::desc(x, weight, out), engine);
    Product made = {index, matrix, layout, dnnl::matmul(desc), {}, {}, {}, {}};
    made.x = make_memory(made, desc.src_desc());
    made.out = make_memory(made, desc.dst_desc());
    for (size_t i = 0; i < num_weights; ++i) made.weights.push_back(make_memory(made, desc.weights_desc()));
    for (size_t i = 0; i < num_weights; ++i) run(made, i);
    return products.emplace_back(std::move(made));
  }

  void run(Product& p, size_t weight) {
    p.primitive.execute(stream, {{DNNL_ARG_SRC, p.x}, {DNNL_ARG_WEIGHTS, p.weights[weight]}, {DNNL_ARG_DST, p.out}});
    stream.wait();
  }
};

std::vector<double> CpuCeilings::matrices_ms(const std::vector<Matrix>& matrices, int64_t num_weights,
                                             WeightLayout layout) {
  cpu::use_threads();
  try {
    if (!products_) products_ = std::make_unique<Products>();
    const size_t count = static_cast<size_t>(num_weights);
    std::vector<Products::Product*> products;
    for (size_t i = 0; i < matrices.size(); ++i) {
      products.push_back(&products_->product(i, matrices[i], count, layout));
    }
    std::vector<double> times;
    for (size_t weight = 0; weight < count; ++weight) {
      for (Products::Product* product : products) {
        times.push_back(milliseconds([&] { products_->run(*product, weight); }));
      }
    }
    return times;
  } catch (const dnnl::error& error) {
    const bool no_memory = error.status == dnnl_out_of_memory;
    fail(no_memory ? ErrorCode::out_of_memory : ErrorCode::device_unavailable,
         "oneDNN failed in the measurement of its matrix rate: %s", error.what());
  }
}

#else

struct CpuCeilings::Products {};

std::vector<double> CpuCeilings::matrices_ms(const std::vector<Matrix>&, int64_t, WeightLayout) {
  fail(ErrorCode::device_unavailable, "oneDNN is not built in, so its matrix rate cannot be measured");
}

#endif

CpuCeilings::CpuCeilings() = default;
CpuCeilings::~CpuCeilings() = default;

}  // namespace diffqkv
