// The input is a config.json, as a file beside a generation_config.json (what stands behind the first NUL, which no JSON
// has) and as the argument of Model.random.

#include <algorithm>
#include <cmath>

#include "harness.h"
#include "model/config.h"
#include "model/weights.h"
#include "mutate.h"

namespace {

using namespace diffqkv;

void check_config(const Config& config) {
  const auto positive = [](int64_t size) { return size > 0; };
  fuzz::check(positive(config.hidden_size) && positive(config.intermediate_size) && positive(config.num_layers) &&
                  positive(config.vocab_size) && positive(config.max_position_embeddings) &&
                  positive(config.num_q_heads) && positive(config.num_k_heads) && positive(config.num_v_heads) &&
                  positive(config.head_dim_qk) && positive(config.head_dim_vo) && positive(config.head_dim_k),
              "a size that is not positive");
  fuzz::check(config.num_q_heads % config.num_k_heads == 0 && config.num_q_heads % config.num_v_heads == 0,
              "heads that do not divide");
  fuzz::check(config.head_dim_qk % 2 == 0 && config.head_dim_k % 2 == 0 && config.head_dim_k <= config.head_dim_qk,
              "head sizes that RoPE cannot turn");
  fuzz::check(config.aug_q_size >= Config::kUnknown, "a negative aug_q_size");
  fuzz::check(config.rms_norm_eps > 0 && config.rms_norm_eps <= 1, "rms_norm_eps");
  for (const auto* tables : {&config.ropes, &config.long_ropes}) {
    for (const RopeTable& table : *tables) {
      for (const auto* frequencies : {&table.inv_freq, &table.k_inv_freq}) {
        for (const double value : *frequencies) fuzz::check(std::isfinite(value) && value >= 0, "a frequency");
      }
      fuzz::check(table.inv_freq.size() == static_cast<size_t>(config.head_dim_qk / 2), "the number of frequencies");
      fuzz::check(std::isfinite(table.attention_factor) && table.attention_factor > 0, "an attention factor");
    }
  }
  fuzz::check(config.layers.size() == static_cast<size_t>(config.num_layers), "the number of layers");
  for (const LayerConfig& layer : config.layers) {
    fuzz::check(layer.window >= 0, "a negative window");
    fuzz::check(layer.rope >= -1 && layer.rope < static_cast<int>(config.ropes.size()), "the index of a RoPE table");
  }
  for (const auto* order : {&config.q_order, &config.k_order, &config.v_order}) {
    std::vector<int32_t> sorted = *order;
    std::sort(sorted.begin(), sorted.end());
    for (size_t i = 0; i < sorted.size(); i++) fuzz::check(sorted[i] == static_cast<int32_t>(i), "an order of rows");
  }
  // What they count fits 64 bits with much to spare: UBSan and this see to it.
  Config settled = config;
  if (settled.aug_q_size == Config::kUnknown) settled.aug_q_size = 0;
  fuzz::check(count_parameters(settled) < (uint64_t{1} << 62), "the number of parameters");
  (void)folding_saves_bytes(settled);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const size_t end = text.find('\0');
  fuzz::clear_files();
  fuzz::put_file("config.json", text.substr(0, end));
  Config config;
  if (fuzz::opens(
          40, [&] { config = parse_config(text.substr(0, end), "config", ErrorCode::invalid_argument); },
          ErrorCode::invalid_argument, "config")) {
    check_config(config);
  }
  if (end != std::string_view::npos) fuzz::put_file("generation_config.json", text.substr(end + 1));
  if (fuzz::opens(40, [&] { config = load_config(fuzz::kDirectory); })) check_config(config);
  return 0;
}

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size, unsigned seed) {
  return fuzz::mutate_with(fuzz::mutate_json, data, size, max_size, seed);
}
