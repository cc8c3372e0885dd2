#include "addon/step.h"

#include <algorithm>
#include <limits>
#include <set>

#include "addon/cancel.h"
#include "addon/session.h"
#include "model/turns.h"

namespace diffqkv::addon {
namespace {

float in_range(const Napi::Value& value, const char* name, double min, double max) {
  double result = number(value, name);
  if (!(result >= min && result <= max))
    fail(ErrorCode::invalid_argument, "%s is %g; it must be from %g to %g", name, result, min, max);
  return static_cast<float>(result);
}

SamplingOptions sampling_options(const Napi::Value& value) {
  if (!value.IsObject()) fail(ErrorCode::invalid_argument, "sampling options must be an object");
  SamplingOptions options;
  options.temperature = in_range(property(value, "temperature"), "temperature", 0, 1e6);
  options.top_k = integer(property(value, "topK"), "topK", 0, INT32_MAX);
  // A number that float rounds to 0 still means "the likeliest token alone".
  options.top_p = std::max(in_range(property(value, "topP"), "topP", 0, 1), std::numeric_limits<float>::min());
  options.min_p = in_range(property(value, "minP"), "minP", 0, 1);
  options.repetition_penalty = in_range(property(value, "repetitionPenalty"), "repetitionPenalty", 1e-6, 1e6);
  options.seed = seed64(property(value, "seed"), "seed");
  return options;
}

Turn turn_argument(Napi::Env env, const Napi::Value& value) {
  if (!value.IsObject()) fail(ErrorCode::invalid_argument, "a turn must be an object");
  Turn turn;
  turn.session = unwrap<SessionObject>(property(value, "session"), "session").session(env);
  turn.tokens = tokens_argument(property(value, "tokens"));
  if (Napi::Value sampling = property(value, "sampling"); !absent(sampling)) turn.sampling = sampling_options(sampling);
  turn.draw = static_cast<uint64_t>(integer(property(value, "draw"), "draw", 0, kMaxSafeInteger));
  if (Napi::Value cancel = property(value, "cancel"); !absent(cancel))
    turn.cancel = unwrap<CancelObject>(cancel, "cancel").flag();
  return turn;
}

}  // namespace

Napi::Value submit_step(const Napi::CallbackInfo& info, const std::shared_ptr<DeviceContext>& device,
                        const std::shared_ptr<Model>& model) {
  if (!info[0].IsArray()) fail(ErrorCode::invalid_argument, "turns must be an array");
  auto list = info[0].As<Napi::Array>();
  auto turns = std::make_shared<std::vector<Turn>>();
  std::set<const Session*> sessions;
  for (uint32_t i = 0; i < list.Length(); ++i) {
    turns->push_back(turn_argument(info.Env(), list.Get(i)));
    const Session* session = turns->back().session.get();
    if (session->model() != model) fail(ErrorCode::invalid_argument, "the session belongs to another model");
    if (!sessions.insert(session).second) fail(ErrorCode::invalid_argument, "a session has two turns in one step");
  }
  auto job = std::make_unique<Job>(info.Env());
  job->run = [model, turns](Job& job) {
    run_turns(*model, *turns, *job.cancel);
    for (Turn& turn : *turns) turn.session.reset();  // here, in case this was its last user
  };
  job->resolve = [turns](Job& job) -> Napi::Value {
    Napi::Array results = Napi::Array::New(job.env, turns->size());
    for (uint32_t i = 0; i < turns->size(); ++i) {
      const Turn& turn = (*turns)[i];
      Napi::Object result = Napi::Object::New(job.env);
      result.Set("consumed", Napi::Number::New(job.env, static_cast<double>(turn.consumed)));
      if (turn.token >= 0) result.Set("token", Napi::Number::New(job.env, turn.token));
      if (turn.error) result.Set("error", Napi::Value(job.env, js_error(job.env, turn.error)));
      results.Set(i, result);
    }
    return results;
  };
  return device->executor->submit(std::move(job));
}

}  // namespace diffqkv::addon
