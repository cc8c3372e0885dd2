// Mutations that keep what libFuzzer's own would break at once: the length in front of a safetensors header, offsets that
// fit, numbers that stay numbers.
#pragma once

#include <cstddef>
#include <random>
#include <string>

namespace diffqkv::fuzz {

using Random = std::minstd_rand;

void mutate_bytes(std::string& bytes, size_t max_size);  // libFuzzer's own
void mutate_json(std::string& text, size_t max_size, Random& random);
void mutate_safetensors(std::string& file, size_t max_size, Random& random);

// The body of an LLVMFuzzerCustomMutator.
size_t mutate_with(void (*mutate)(std::string&, size_t, Random&), uint8_t* data, size_t size, size_t max_size,
                   unsigned seed);

}  // namespace diffqkv::fuzz
