// Checks that run as a program, emulation_check: what is wrong comes out as JSON, which emulation.test.ts reads.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "engine/engine.h"

namespace diffqkv::check {

// A check returns nothing where all is well, else what is wrong.
struct Check {
  std::string name;
  std::function<std::string()> run;
};

std::vector<Check> hazard_checks();
std::vector<Check> race_checks();         // of those, races within a block
std::vector<Check> block_race_checks();   // and between blocks
std::vector<Check> bulk_hazard_checks();  // and of bulk copies
std::vector<Check> device_layer_checks();
std::vector<Check> counter_checks();
std::vector<Check> launch_checks();
std::vector<Check> graph_checks();
std::vector<Check> operator_checks();
std::vector<Check> kv_cache_checks();   // of those, what works on a KV cache
std::vector<Check> selective_checks();  // and selective V
std::vector<Check> amx_checks();        // empty on a CPU without AVX-512, which the emulation of AMX needs
std::vector<Check> traffic_checks();
std::string check_paged_traffic();      // of those, on a KV cache
std::string check_selective_traffic();  // and of selective V

// Runs a kernel on the spot. Returns what went wrong.
template <typename... Parameters, typename... Arguments>
std::string run(const char* name, unsigned blocks, unsigned threads, size_t shared_bytes, void (*kernel)(Parameters...),
                const Arguments&... arguments) {
  return emulated::run_grid({name, {blocks, 1, 1}, threads, shared_bytes}, [&] { kernel(Parameters(arguments)...); });
}

}  // namespace diffqkv::check
