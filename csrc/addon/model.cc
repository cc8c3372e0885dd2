#include "addon/model.h"

#include <algorithm>

#include "addon/cancel.h"
#include "addon/device.h"
#include "addon/fields.h"
#include "addon/session.h"

namespace diffqkv::addon {
namespace {

// Makes the job resolve to the JS object of the model that it has created. Rejects if the device
// was disposed meanwhile.
void resolve_with_model(Job& job, const std::shared_ptr<DeviceContext>& device, Napi::Object device_object,
                        std::shared_ptr<std::shared_ptr<Model>> model) {
  job.keep = Napi::Persistent(device_object);
  job.resolve = [device = std::weak_ptr(device), model](Job& job) -> Napi::Value {
    auto& parent = unwrap<DeviceObject>(job.keep.Value(), "device");
    auto context = device.lock();
    if (parent.disposed() || !context) {
      fail(ErrorCode::disposed, "the device was disposed while a model was created on it");
    }
    return construct<ModelObject>(job.env, {context, &parent, *model});
  };
}

Napi::Object js_config(Napi::Env env, const Config& config) {
  Napi::Object result = Napi::Object::New(env);
  auto set = [&](const char* name, auto value) {
    result.Set(name, Napi::Number::New(env, static_cast<double>(value)));
  };
  result["architecture"] = std::string(config.architecture->name);
  set("hiddenSize", config.hidden_size);
  set("intermediateSize", config.intermediate_size);
  if (config.aug_q_size != Config::kUnknown) set("augQSize", config.aug_q_size);
  set("numLayers", config.num_layers);
  set("vocabSize", config.vocab_size);
  set("numQHeads", config.num_q_heads);
  set("numKHeads", config.num_k_heads);
  set("numVHeads", config.num_v_heads);
  set("headDimQk", config.head_dim_qk);
  set("headDimK", config.head_dim_k);
  set("headDimVo", config.head_dim_vo);
  result["vSharesK"] = Napi::Boolean::New(env, config.is_latent());
  set("ropeTheta", config.rope_theta);
  set("rmsNormEps", config.rms_norm_eps);
  set("maxPositionEmbeddings", config.max_position_embeddings);
  int64_t window_layers = 0, window = 0;
  for (const LayerConfig& layer : config.layers) {
    window_layers += layer.window > 0;
    window = std::max(window, layer.window);
  }
  set("numWindowLayers", window_layers);
  if (window > 0) set("slidingWindow", window);
  if (config.quantization.method != Quantization::none) result["quantization"] = std::string(config.quantization.name);
  result["tieWordEmbeddings"] = Napi::Boolean::New(env, config.tie_word_embeddings);
  if (config.key_lift.kind != KeyLift::none) {
    result["keyLift"] = std::string(config.key_lift.kind == KeyLift::linear ? "linear" : "swiglu") +
                        (config.key_lift.before_rope ? " before RoPE" : " after RoPE");
  }
  if (config.bos_token_id) set("bosTokenId", *config.bos_token_id);
  Napi::Array eos = Napi::Array::New(env, config.eos_token_ids.size());
  for (uint32_t i = 0; i < config.eos_token_ids.size(); ++i) {
    eos.Set(i, Napi::Number::New(env, static_cast<double>(config.eos_token_ids[i])));
  }
  result["eosTokenIds"] = eos;
  return result;
}

LoadOptions load_options(const Fields& fields) {
  LoadOptions options;
  options.dtype = fields.optional_dtype("dtype");
  if (fields.has("weightType")) {
    const std::string type = fields.text("weightType");
    if (type != "i8" && type != "i4") {
      fail(ErrorCode::invalid_argument, "weightType is '%s'; it must be 'i8' or 'i4'", printable(type).c_str());
    }
    WeightFormat& format = options.weight_format.emplace();
    format.dtype = type == "i8" ? DType::i8 : DType::i4;
    format.group_size = fields.optional_integer("weightGroupSize", 32, 128).value_or(format.group_size);
    if (fields.has("quantizeLmHead")) format.lm_head = fields.boolean("quantizeLmHead");
  }
  if (const auto bytes = fields.optional_integer("kvCacheBytes", 0, kMaxSafeInteger)) {
    options.kv_limits.max_bytes = static_cast<uint64_t>(*bytes);
  }
  if (const auto bytes = fields.optional_integer("prefixCacheBytes", 0, kMaxSafeInteger)) {
    options.kv_limits.prefix_bytes = static_cast<uint64_t>(*bytes);
  }
  return options;
}

}  // namespace

Napi::Function ModelObject::define(Napi::Env env) {
  return DefineClass(
      env, "NativeModel",
      {InstanceAccessor<&ModelObject::config>("config"), InstanceAccessor<&ModelObject::dtype_js>("dtype"),
       InstanceAccessor<&ModelObject::weight_type>("weightType"),
       InstanceAccessor<&ModelObject::num_parameters>("numParameters"),
       InstanceAccessor<&ModelObject::has_untied_lm_head>("hasUntiedLmHead"),
       InstanceAccessor<&ModelObject::weight_bytes>("weightBytesByPart"),
       InstanceAccessor<&ModelObject::kv_cache>("kvCache"),
       InstanceAccessor<&ModelObject::decode_graphs>("decodeGraphs"),
       InstanceMethod<&ModelObject::create_session>("createSession"), InstanceMethod<&ModelObject::step>("step"),
       InstanceMethod<&ModelObject::fingerprint>("fingerprint"),
       InstanceMethod<&ModelObject::page_layout>("pageLayout"),
       InstanceMethod<&ModelObject::restore_session>("restoreSession"),
       InstanceMethod<&ModelObject::dispose_js>("dispose")});
}

ModelObject::ModelObject(const Napi::CallbackInfo& info) : ObjectWrap(info) {
  auto state = consume_pending_state<State>(info.Env());
  model_ = std::move(state.model);
  own(info.Env(), kName, std::move(state.device), state.parent, static_cast<int64_t>(model_->weight_bytes().total()));
}

Napi::Value ModelObject::load(const Napi::CallbackInfo& info, const std::shared_ptr<DeviceContext>& device,
                              Napi::Object device_object) {
  const Fields fields(info);
  std::string directory = fields.text("directory");
  LoadOptions options = load_options(fields);
  auto job = std::make_unique<Job>(info.Env());
  if (fields.has("onProgress")) job->progress = Napi::Persistent(fields.function("onProgress"));
  CancelObject::attach(fields.get("cancel"), *job, device->executor);
  auto model = std::make_shared<std::shared_ptr<Model>>();
  // The job runs on the thread of this executor, so the executor outlives it.
  job->run = [executor = device->executor.get(), backend = device->backend, directory, options,
              model](Job& job) mutable {
    options.cancel = job.cancel.get();
    options.on_progress = [&](uint64_t loaded, uint64_t total) { executor->report_progress(job, loaded, total); };
    *model = Model::load(backend, directory, options);
  };
  resolve_with_model(*job, device, device_object, model);
  return device->executor->submit(std::move(job));
}

Napi::Value ModelObject::random(const Napi::CallbackInfo& info, const std::shared_ptr<DeviceContext>& device,
                                Napi::Object device_object) {
  const Fields fields(info);
  std::string config = fields.text("config");
  LoadOptions options = load_options(fields);
  uint64_t seed = fields.seed64("seed");
  auto job = std::make_unique<Job>(info.Env());
  auto model = std::make_shared<std::shared_ptr<Model>>();
  job->run = [backend = device->backend, config, options, seed, model](Job& job) mutable {
    options.cancel = job.cancel.get();
    *model = Model::random(backend, config, options, seed);
  };
  resolve_with_model(*job, device, device_object, model);
  return device->executor->submit(std::move(job));
}

Napi::Value ModelObject::parse_config(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    const Fields fields(info);
    std::optional<std::string> generation_config;
    if (fields.has("generationConfig")) generation_config = fields.text("generationConfig");
    return js_config(info.Env(),
                     parse_checkpoint_config(fields.text("directory"), fields.text("config"), generation_config));
  });
}

Napi::Value ModelObject::config(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    check_usable();
    return js_config(info.Env(), model_->config());
  });
}

Napi::Value ModelObject::dtype_js(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    check_usable();
    return Napi::String::New(info.Env(), dtype_name(model_->dtype()));
  });
}

Napi::Value ModelObject::weight_type(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    check_usable();
    return Napi::String::New(info.Env(), dtype_name(model_->weight_dtype()));
  });
}

Napi::Value ModelObject::num_parameters(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    check_usable();
    return Napi::Number::New(info.Env(), static_cast<double>(model_->num_parameters()));
  });
}

Napi::Value ModelObject::has_untied_lm_head(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    check_usable();
    return Napi::Boolean::New(info.Env(), model_->config().has_untied_lm_head);
  });
}

Napi::Value ModelObject::weight_bytes(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    check_usable();
    const WeightBytes bytes = model_->weight_bytes();
    Napi::Object parts = Napi::Object::New(info.Env());
    const auto set = [&](const char* name, uint64_t count) { parts.Set(name, static_cast<double>(count)); };
    set("embedding", bytes.embedding);
    set("output", bytes.output);
    set("attention", bytes.attention);
    set("augmentedQ", bytes.augmented_q);
    set("ffn", bytes.ffn);
    set("other", bytes.other);
    return parts;
  });
}

Napi::Value ModelObject::kv_cache(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    check_usable();
    KvPool& pool = model_->kv_pool();
    Napi::Object result = Napi::Object::New(info.Env());
    auto set = [&](const char* name, uint64_t value) {
      result.Set(name, Napi::Number::New(info.Env(), static_cast<double>(value)));
    };
    set("pageTokens", KvPool::kPageTokens);
    set("pages", pool.pages());
    set("prefixPages", pool.prefixes().pages());
    set("bytes", pool.bytes());
    if (pool.limits().max_bytes != UINT64_MAX) set("maxBytes", pool.limits().max_bytes);
    return result;
  });
}

Napi::Value ModelObject::decode_graphs(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    check_usable();
    if (!model_->backend()->replayer()) return info.Env().Null();
    const Replays::Counts counts = model_->workspace().replays.counts();
    Napi::Object result = Napi::Object::New(info.Env());
    result["recorded"] = Napi::Number::New(info.Env(), static_cast<double>(counts.recordings));
    result["replayed"] = Napi::Number::New(info.Env(), static_cast<double>(counts.replayed));
    result["failure"] = counts.failure.empty() ? info.Env().Null() : Napi::String::New(info.Env(), counts.failure);
    return result;
  });
}

Napi::Value ModelObject::create_session(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    check_usable();
    return SessionObject::create(info, device_, Value(), model_);
  });
}

Napi::Value ModelObject::dispose_js(const Napi::CallbackInfo& info) {
  dispose(info.Env());
  return info.Env().Undefined();
}

}  // namespace diffqkv::addon
