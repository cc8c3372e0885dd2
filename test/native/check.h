// Checks that run as a program, emulation_check: what is wrong comes out as JSON, which test/emulation.test.ts reads.
#pragma once

#include <cmath>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace diffqkv::check {

// A check returns nothing where all is well, else what is wrong.
struct Check {
  std::string name;
  std::function<std::string()> run;
};

std::vector<Check> hazard_checks();
std::vector<Check> device_layer_checks();
std::vector<Check> counter_checks();
std::vector<Check> operator_checks();
std::vector<Check> kv_cache_checks();   // of those, what works on a KV cache
std::vector<Check> selective_checks();  // and selective V

// A number of a reproducible stream, in [0, 2^32).
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15u + 1) {}
  uint32_t word() {
    state_ ^= state_ >> 12, state_ ^= state_ << 25, state_ ^= state_ >> 27;
    return static_cast<uint32_t>(state_ * 0x2545f4914f6cdd1du >> 32);
  }
  // Roughly normal, of standard deviation `scale`.
  float normal(float scale) {
    float sum = 0;
    for (int i = 0; i < 12; ++i) sum += static_cast<float>(word() >> 8) * 0x1p-24f;
    return (sum - 6) * scale;
  }

 private:
  uint64_t state_;
};

}  // namespace diffqkv::check
