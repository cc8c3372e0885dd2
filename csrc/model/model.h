// A loaded model: its shape and its weights in device memory. Immutable after load, shared by its sessions.
#pragma once

#include <atomic>
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

// Set from another thread to end a long call early; the call then throws ErrorCode::aborted.
using CancelFlag = std::atomic<bool>;

struct LoadOptions {
  std::optional<DType> dtype;  // of weights and activations; default: the checkpoint's
  std::function<void(uint64_t loaded_bytes, uint64_t total_bytes)> on_progress;  // called on the loading thread
  const CancelFlag* cancel = nullptr;
  KvLimits kv_limits;
};

class Model {
 public:
  // Every error of the checkpoint is ERR_INVALID_CHECKPOINT or ERR_UNSUPPORTED_MODEL and names file and tensor.
  static std::shared_ptr<Model> load(std::shared_ptr<Backend> backend, const std::string& directory,
                                     const LoadOptions& options);
  // Weights drawn from a normal distribution by seed; `config_json` is the text of a config.json. What it gets wrong is
  // ERR_INVALID_ARGUMENT. Type: options.dtype, else the config's, else bf16. Where the config does not say, there is no
  // augmented Q, and lm_head is a matrix of its own.
  static std::shared_ptr<Model> random(std::shared_ptr<Backend> backend, const std::string& config_json,
                                       const LoadOptions& options, uint64_t seed);

  const Config& config() const { return config_; }
  const Weights& weights() const { return weights_; }
  const std::shared_ptr<Backend>& backend() const { return backend_; }
  DType dtype() const { return weights_.dtype; }
  // As in the checkpoint, before folding; tied embeddings count once.
  uint64_t num_parameters() const { return count_parameters(config_); }
  uint64_t weight_bytes() const { return weights_.bytes(); }  // in device memory
  // On the executor thread alone.
  KvPool& kv_pool() { return kv_pool_; }
  Workspace& workspace() { return workspace_; }

 private:
  Model(std::shared_ptr<Backend> backend, Config config, Weights weights, KvLimits kv_limits);

  std::shared_ptr<Backend> backend_;
  Config config_;
  Weights weights_;
  Workspace workspace_;  // shared by all sessions: calls on one device run one after another
  KvPool kv_pool_;
};

}  // namespace diffqkv
