// out = activation(gate) * up, or activation(up) without a gate. Split by elements. Bound by exp,
// then by memory.
#include "backend/cpu/isa_kernels.h"
#include "backend/cpu/parallel.h"
#include "backend/cpu/rowwise/activation.h"
#include "backend/cpu/simd.h"
#include "backend/error.h"

namespace diffqkv::cpu::DIFFQKV_ISA {
namespace {

template <typename T, typename Function>
void gated_activation_range(const GatedActivationParams& p, Function function, int64_t begin, int64_t end) {
  const T* gate = static_cast<const T*>(p.gate);
  const T* up = static_cast<const T*>(p.up);
  T* out = static_cast<T*>(p.out);
  int64_t i = begin;
  if (gate) {
    for (; i + kLanes <= end; i += kLanes) store(out + i, function(load(gate + i)) * load(up + i));
    if (i < end) store_n(out + i, function(load_n(gate + i, end - i)) * load_n(up + i, end - i), end - i);
  } else {
    for (; i + kLanes <= end; i += kLanes) store(out + i, function(load(up + i)));
    if (i < end) store_n(out + i, function(load_n(up + i, end - i)), end - i);
  }
}

}  // namespace

void gated_activation(const GatedActivationParams& p, Arena&) {
  require_compute_type("gated_activation: up", p.dtype);
  visit(p.dtype, [&](auto tag) {
    visit_activation(p.activation, [&](auto function) {
      parallel_ranges(p.count, 64, p.count, [&](int64_t begin, int64_t end) {
        gated_activation_range<decltype(tag)>(p, function, begin, end);
      });
    });
  });
}

}  // namespace diffqkv::cpu::DIFFQKV_ISA
