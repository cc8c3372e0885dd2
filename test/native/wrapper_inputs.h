// Inputs for the kernels of wrappers.h, the same on every machine.
#pragma once

#include "random.h"
#include "wrappers.h"

namespace diffqkv::check {

// kIn words for each lane of `blocks` warps.
inline std::vector<uint32_t> wrapper_input(cuda::Input input, int blocks, uint64_t seed) {
  using namespace cuda;
  Random random(seed);
  const auto float_bits = [](float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    return bits;
  };
  std::vector<uint32_t> words(static_cast<size_t>(blocks) * 32 * kIn);
  for (size_t i = 0; i < words.size(); ++i) {
    const size_t place = i % kIn;
    switch (input) {
      case Input::bits: words[i] = random.word(); break;
      case Input::bf16_pairs:  // sign, an exponent of 2^-8 to 2^3, mantissa
      case Input::f16_pairs:
        if (place >= 6) {
          words[i] = float_bits(random.normal(4));
          break;
        }
        for (int h = 0; h < 2; ++h) {
          const uint32_t r = random.word();
          const uint32_t number = input == Input::bf16_pairs ? (r & 0x807f) | (119 + (r >> 16) % 12) << 7
                                                             : (r & 0x83ff) | (7 + (r >> 16) % 12) << 10;
          words[i] |= number << (16 * h);
        }
        break;
      case Input::floats: {
        static constexpr uint32_t kSpecial[] = {0,           0x80000000u, 0x7f800000u, 0xff800000u, 0x7fc00000u,
                                                0x477fe000u, 0x477ff000u, 0x7f7fffffu, 0x33000000u, 0x387fe000u};
        const uint32_t r = random.word();
        words[i] = r % 16 == 0 ? kSpecial[r / 16 % 10] : float_bits(random.normal(r % 3 == 0 ? 100.0f : 1.0f));
        break;
      }
    }
  }
  return words;
}

}  // namespace diffqkv::check
