// Reproducible random numbers, the same on every machine.
#pragma once

#include <cstdint>

namespace diffqkv::check {

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
