// A loaded model: its shape and its weights in device memory. Immutable after the load, shared by
// its sessions.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "backend/backend.h"
#include "model/config.h"
#include "model/forward.h"
#include "model/kv_pool.h"
#include "model/weights.h"

namespace diffqkv {

struct LoadOptions {
  std::optional<DType> dtype;                 // of weights and activations; default: the checkpoint's
  std::optional<WeightFormat> weight_format;  // default: matrices are not quantized
  // Called on the loading thread.
  std::function<void(uint64_t loaded_bytes, uint64_t total_bytes)> on_progress;
  const CancelFlag* cancel = nullptr;
  KvLimits kv_limits;
};

class Model {
 public:
  // An invalid checkpoint is ERR_INVALID_CHECKPOINT or ERR_UNSUPPORTED_MODEL. The message names
  // file and tensor.
  static std::shared_ptr<Model> load(std::shared_ptr<Backend> backend, const std::string& directory,
                                     const LoadOptions& options);
  // Draws the weights from a normal distribution, determined by seed. `config_json` is the text of
  // a config.json; errors in it are ERR_INVALID_ARGUMENT. The dtype is options.dtype, else that of
  // the config, else bf16. By default there is no augmented Q, and lm_head is not tied to the
  // embedding.
  static std::shared_ptr<Model> random(std::shared_ptr<Backend> backend, const std::string& config_json,
                                       const LoadOptions& options, uint64_t seed);

  const Config& config() const { return config_; }
  const Weights& weights() const { return weights_; }
  const std::shared_ptr<Backend>& backend() const { return backend_; }
  DType dtype() const { return weights_.dtype; }
  // Of the matrices.
  DType weight_dtype() const { return weights_.format ? weights_.format->dtype : weights_.dtype; }
  const std::string& name() const { return name_; }  // for messages: the directory, or "the random model"
  // Number of parameters in the checkpoint, before folding. Tied embeddings count once.
  uint64_t num_parameters() const { return count_parameters(config_); }
  WeightBytes weight_bytes() const { return weights_.bytes(); }  // in device memory
  // Executor thread only.
  KvPool& kv_pool() { return kv_pool_; }
  Workspace& workspace() { return workspace_; }

 private:
  Model(std::string name, std::shared_ptr<Backend> backend, Config config, Weights weights, KvLimits kv_limits);

  std::string name_;
  std::shared_ptr<Backend> backend_;
  Config config_;
  Weights weights_;
  Workspace workspace_;  // shared by all sessions, because calls on a device run one after another
  KvPool kv_pool_;
};

}  // namespace diffqkv
