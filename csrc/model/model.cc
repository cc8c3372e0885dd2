#include "model/model.h"

namespace diffqkv {
namespace {

void check_dtype(const LoadOptions& options) {
  if (!options.dtype) return;
  const DType dtype = *options.dtype;
  if (dtype == DType::f32 || dtype == DType::f16 || dtype == DType::bf16) return;
  fail(dtype == DType::i32 ? ErrorCode::invalid_argument : ErrorCode::unsupported_model,
       "dtype is %s; weights must be f32, f16 or bf16", dtype_name(dtype));
}

// The type of the weights according to config.json.
DType config_dtype(const Config& config) {
  if (config.dtype.empty() || config.dtype == "bfloat16") return DType::bf16;
  if (config.dtype == "float16") return DType::f16;
  if (config.dtype == "float32") return DType::f32;
  fail(ErrorCode::unsupported_model, "config: dtype is '%s'; it must be 'bfloat16', 'float16' or 'float32'",
       printable(config.dtype).c_str());
}

}  // namespace

Model::Model(std::string name, std::shared_ptr<Backend> backend, Config config, Weights weights, KvLimits kv_limits)
    : name_(std::move(name)),
      backend_(std::move(backend)),
      config_(std::move(config)),
      weights_(std::move(weights)),
      workspace_(backend_, config_, weights_),
      kv_pool_(backend_, config_, kv_limits) {}

std::shared_ptr<Model> Model::load(std::shared_ptr<Backend> backend, const std::string& directory,
                                   const LoadOptions& options) {
  check_dtype(options);
  Config config = load_config(directory);
  Checkpoint checkpoint(directory, options.cancel);
  checkpoint.combine_parts(config.quantization);
  resolve_config(config, checkpoint);
  Weights weights = load_weights(backend, config, checkpoint, options);
  return std::shared_ptr<Model>(
      new Model(directory, std::move(backend), std::move(config), std::move(weights), options.kv_limits));
}

std::shared_ptr<Model> Model::random(std::shared_ptr<Backend> backend, const std::string& config_json,
                                     const LoadOptions& options, uint64_t seed) {
  check_dtype(options);
  Config config = parse_config(config_json, "config", ErrorCode::invalid_argument);
  if (config.aug_q_size == Config::kUnknown) config.aug_q_size = 0;
  const DType dtype = options.dtype ? *options.dtype : config_dtype(config);
  Weights weights = random_weights(backend, config, dtype, options, seed);
  return std::shared_ptr<Model>(
      new Model("the random model", std::move(backend), std::move(config), std::move(weights), options.kv_limits));
}

}  // namespace diffqkv
