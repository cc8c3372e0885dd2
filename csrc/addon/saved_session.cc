// The native part of session.save and model.loadSession (lib/session_file.ts).

#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "addon/fields.h"
#include "addon/model.h"
#include "addon/session.h"
#include "model/fingerprint.h"
#include "model/kv_image.h"

namespace diffqkv::addon {
namespace {

ArrayView byte_array(const Fields& fields, const char* name) {
  const ArrayView view = fields.array(name);
  if (view.type != napi_uint8_array) fail(ErrorCode::invalid_argument, "%s must be a Uint8Array", name);
  return view;
}

}  // namespace

// session.saved(): what a file has beside the pages.
Napi::Value SessionObject::saved(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    check(info.Env());
    auto job = std::make_unique<Job>(info.Env());
    auto saved = std::make_shared<SavedSession>();
    auto num_bytes = std::make_shared<uint64_t>(0);
    job->run = [session = session_, saved, num_bytes](Job&) {
      *saved = session->saved();
      *num_bytes = KvImage(*session->model(), session->cache(), session->kv_len()).bytes();
    };
    job->resolve = [saved, num_bytes](Job& job) -> Napi::Value {
      const Napi::Env env = job.env;
      Napi::Object result = Napi::Object::New(env);
      const auto set = [&](const char* name, auto value) {
        result.Set(name, Napi::Number::New(env, static_cast<double>(value)));
      };
      const SessionOptions& options = saved->options;
      set("maxKvLen", *options.max_kv_len);
      result["kType"] = std::string(dtype_name(*options.k_type));
      result["vType"] = std::string(dtype_name(*options.v_type));
      if (options.selective_top_k > 0) {
        Napi::Object selective = Napi::Object::New(env);
        selective.Set("topK", Napi::Number::New(env, static_cast<double>(options.selective_top_k)));
        selective.Set("renormalize", Napi::Boolean::New(env, options.renormalize));
        result["selectiveV"] = selective;
      }
      set("ropeLength", saved->rope_length);
      set("promptLength", saved->prompt_length);
      set("first", saved->first);
      set("pageBytes", *num_bytes);
      Napi::Int32Array tokens = Napi::Int32Array::New(env, saved->tokens.size());
      std::copy(saved->tokens.begin(), saved->tokens.end(), tokens.Data());
      result["tokens"] = tokens;
      return result;
    };
    return device_->executor->submit(std::move(job));
  });
}

// session.readPages({ offset, array }): fills the array.
Napi::Value SessionObject::read_pages(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    check(info.Env());
    const Fields fields(info);
    const auto offset = static_cast<uint64_t>(fields.integer("offset", 0, kMaxSafeInteger));
    auto bytes = std::make_shared<std::vector<uint8_t>>(byte_array(fields, "array").length);
    auto job = std::make_unique<Job>(info.Env());
    job->run = [session = session_, offset, bytes](Job&) {
      KvImage(*session->model(), session->cache(), session->kv_len()).read(offset, bytes->data(), bytes->size());
    };
    job->keep = Napi::Persistent(fields.get("array").As<Napi::Object>());
    job->resolve = [bytes](Job& job) -> Napi::Value {
      fill_array(job.keep.Value(), bytes->data(), bytes->size());
      return job.env.Undefined();
    };
    return device_->executor->submit(std::move(job));
  });
}

// session.writePages({ offset, array })
Napi::Value SessionObject::write_pages(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    check(info.Env());
    const Fields fields(info);
    const auto offset = static_cast<uint64_t>(fields.integer("offset", 0, kMaxSafeInteger));
    const ArrayView view = byte_array(fields, "array");
    const auto* data = static_cast<const uint8_t*>(view.data);
    auto job = std::make_unique<Job>(info.Env());
    job->run = [session = session_, offset, bytes = std::vector<uint8_t>(data, data + view.length)](Job&) {
      KvImage(*session->model(), session->cache(), session->kv_len()).write(offset, bytes.data(), bytes.size());
    };
    return device_->executor->submit(std::move(job));
  });
}

// model.fingerprint(): the bytes to hash.
Napi::Value ModelObject::fingerprint(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    check_usable();
    auto job = std::make_unique<Job>(info.Env());
    auto material = std::make_shared<std::vector<uint8_t>>();
    job->run = [model = model_, material](Job&) { *material = fingerprint_material(*model); };
    job->resolve = [material](Job& job) -> Napi::Value {
      Napi::Uint8Array bytes = Napi::Uint8Array::New(job.env, material->size());
      std::copy(material->begin(), material->end(), bytes.Data());
      return bytes;
    };
    return device_->executor->submit(std::move(job));
  });
}

// model.pageLayout({ kType, vType }): { name, bytes }
Napi::Value ModelObject::page_layout(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    check_usable();
    const Fields fields(info);
    const KvTypes types{fields.dtype("kType"), fields.dtype("vType")};
    Napi::Object result = Napi::Object::New(info.Env());
    result["name"] = std::string(page_layout_name(*model_->backend()));
    result["bytes"] = Napi::Number::New(info.Env(), static_cast<double>(image_page_bytes(model_->config(), types)));
    return result;
  });
}

Napi::Value ModelObject::restore_session(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    check_usable();
    return SessionObject::restore(info, device_, Value(), model_);
  });
}

}  // namespace diffqkv::addon
