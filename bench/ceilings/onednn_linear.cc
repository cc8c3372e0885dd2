// The rate of oneDNN's own matmul primitive, called as directly as can be: primitives and memory made beforehand.
#include "ceilings.h"

#ifdef DIFFQKV_HAVE_ONEDNN

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <oneapi/dnnl/dnnl.hpp>
#include <tuple>

namespace ceilings {
namespace {

using dnnl::memory;
using Tag = memory::format_tag;
using Type = memory::data_type;

dnnl::engine& engine() {
  static dnnl::engine cpu(dnnl::engine::kind::cpu, 0);
  return cpu;
}

// Small random bf16 numbers: of either sign and never denormal, as weights are.
void fill(void* data, size_t bytes) {
  auto* out = static_cast<uint16_t*>(data);
  uint32_t state = 12345;
  const size_t block = size_t{1} << 20;
  for (size_t i = 0; i < bytes / 2; ++i) {
    if (i == block) {  // drawn once, then copied: filling gigabytes would take longer than measuring
      for (size_t at = block; at < bytes / 2; at += block)
        std::memcpy(out + at, out, std::min(block, bytes / 2 - at) * 2);
      break;
    }
    state = state * 1664525u + 1013904223u;
    out[i] = static_cast<uint16_t>((state >> 16 & 0x807f) | 0x3c00 | (state >> 8 & 0x0080));
  }
}

memory make_memory(const memory::desc& desc) {
  void* data = allocate(desc.get_size());
  fill(data, desc.get_size());
  return memory(desc, engine(), data);
}

// One matrix in one weight layout, with a weight per set.
struct Runner {
  dnnl::matmul primitive;
  memory x, out;
  std::vector<memory> weights;

  Runner(const Matrix& p, bool packed, int sets) {
    const memory::desc x_desc({p.m, p.k}, Type::bf16, Tag::ab);
    const memory::desc weight_desc({p.k, p.n}, Type::bf16, packed ? Tag::any : Tag::ba);  // ba: row-major [n, k]
    const memory::desc out_desc({p.m, p.n}, p.out_f32 ? Type::f32 : Type::bf16, Tag::ab);
#if DNNL_VERSION_MAJOR >= 3
    const dnnl::matmul::primitive_desc desc(engine(), x_desc, weight_desc, out_desc);
#else
    const dnnl::matmul::primitive_desc desc(dnnl::matmul::desc(x_desc, weight_desc, out_desc), engine());
#endif
    primitive = dnnl::matmul(desc);
    x = make_memory(desc.src_desc());
    out = make_memory(desc.dst_desc());
    for (int set = 0; set < sets; ++set) weights.push_back(make_memory(desc.weights_desc()));
  }

  double run(dnnl::stream& stream, int set) {
    const double start = now_ms();
    primitive.execute(stream, {{DNNL_ARG_SRC, x}, {DNNL_ARG_WEIGHTS, weights[set]}, {DNNL_ARG_DST, out}});
    stream.wait();
    return now_ms() - start;
  }
};

using Key = std::tuple<long, long, long, bool, bool, int, size_t>;

Runner& runner(const Matrix& p, bool packed, int sets, size_t place) {
  static std::map<Key, std::unique_ptr<Runner>> runners;
  auto& found = runners[Key(p.m, p.k, p.n, p.out_f32, packed, sets, place)];
  if (!found) found = std::make_unique<Runner>(p, packed, sets);
  return *found;
}

}  // namespace

std::vector<LinearSamples> onednn_linear(const std::vector<Matrix>& matrices, int sets, int rounds) {
  dnnl::stream stream(engine());
  std::vector<LinearSamples> samples;
  for (const Matrix& matrix : matrices) samples.push_back({matrix, {}, {}});
  // Round 0 warms up: it makes what is missing, and oneDNN compiles its kernels.
  for (int round = 0; round <= rounds; ++round) {
    for (const bool packed : {true, false}) {
      for (int set = 0; set < sets; ++set) {
        for (size_t i = 0; i < matrices.size(); ++i) {
          const double ms = runner(matrices[i], packed, sets, i).run(stream, set);
          if (round > 0) (packed ? samples[i].packed_ms : samples[i].plain_ms).push_back(ms);
        }
      }
    }
  }
  return samples;
}

std::string onednn_version() {
  const dnnl_version_t* version = dnnl_version();
  return std::to_string(version->major) + "." + std::to_string(version->minor) + "." + std::to_string(version->patch);
}

}  // namespace ceilings

#else

namespace ceilings {
std::vector<LinearSamples> onednn_linear(const std::vector<Matrix>&, int, int) { return {}; }
std::string onednn_version() { return ""; }
}  // namespace ceilings

#endif
