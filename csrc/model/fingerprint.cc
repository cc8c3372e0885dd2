#include "model/fingerprint.h"

#include <algorithm>
#include <cstdio>
#include <string>

namespace diffqkv {
namespace {

constexpr size_t kNumPieces = 8;
constexpr size_t kPieceBytes = 512;

// What the forward pass reads from the config and the shapes of the weights do not show.
std::string settings_text(const Config& c) {
  std::string all(c.architecture->name);
  const auto add = [&](double value) {  // exact for the sizes too: they are below 2^53
    char text[32];
    std::snprintf(text, sizeof text, " %.17g", value);
    all += text;
  };
  for (const int64_t size : {c.num_q_heads, c.num_k_heads, c.num_v_heads, c.head_dim_qk, c.head_dim_vo, c.head_dim_k,
                             c.original_context, static_cast<int64_t>(c.activation)}) {
    add(static_cast<double>(size));
  }
  for (const double value : {c.rms_norm_eps, c.residual_eps, c.score_scale, c.score_softcap, c.embedding_scale,
                             c.dynamic_factor, c.logit_softcap}) {
    add(value);
  }
  add(c.key_lift.before_rope);
  for (const LayerConfig& layer : c.layers) {
    add(static_cast<double>(layer.window));
    add(layer.rope);
  }
  for (const auto* tables : {&c.ropes, &c.long_ropes}) {
    for (const RopeTable& table : *tables) add(table.attention_factor);
  }
  return all;
}

}  // namespace

std::vector<uint8_t> fingerprint_material(const Model& model) {
  Backend& backend = *model.backend();
  const std::string settings = settings_text(model.config());
  std::vector<uint8_t> material(settings.begin(), settings.end());
  const auto append = [&](const Buffer& buffer, size_t from, size_t bytes) {
    material.resize(material.size() + bytes);
    backend.download(material.data() + material.size() - bytes, buffer.as<const uint8_t>() + from, bytes);
  };
  for (const Buffer* buffer : model.weights().buffers()) {
    const uint64_t bytes = buffer->bytes();
    for (int shift = 0; shift < 64; shift += 8) material.push_back(static_cast<uint8_t>(bytes >> shift));
    if (bytes == 0) continue;
    if (bytes <= kNumPieces * kPieceBytes) {
      append(*buffer, 0, bytes);
      continue;
    }
    for (size_t i = 0; i < kNumPieces; i++) {
      append(*buffer, (bytes - kPieceBytes) * i / (kNumPieces - 1), kPieceBytes);
    }
  }
  return material;
}

}  // namespace diffqkv
