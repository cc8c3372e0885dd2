// What the JS objects of this addon have in common: native memory that is freed on the device's executor thread, never
// on the JS thread, whether by dispose(), by the disposal of a parent, or by the garbage collector. JS thread only.
#pragma once

#include <napi.h>

#include <memory>
#include <unordered_set>

#include "addon/convert.h"
#include "addon/executor.h"

namespace diffqkv::addon {

// An open device, held by everything made on it. Its last holder lets the thread end.
struct DeviceContext {
  ~DeviceContext();
  void release_backend();

  std::shared_ptr<Executor> executor;
  std::shared_ptr<Backend> backend;  // null once disposed
  DeviceInfo info;
  Executor::Entries release_entry = Executor::one_entry();
};

class Resource {
 public:
  bool disposed() const { return disposed_; }
  // Disposes what depends on this first. A second call does nothing. Calls already queued keep what they use.
  void dispose(Napi::Env env);

 protected:
  // Takes its place under `parent`; `external_bytes` of native memory are reported to the garbage collector.
  void own(Napi::Env env, const char* what, std::shared_ptr<DeviceContext> device, Resource* parent,
           int64_t external_bytes);
  ~Resource() = default;
  void finalize(Napi::Env env);  // for the destructor; children hold what they need themselves, and live on
  void check_usable() const;     // ERR_DISPOSED
  void set_external_bytes(Napi::Env env, int64_t bytes);
  virtual std::shared_ptr<void> take() = 0;  // gives up the native memory

  std::shared_ptr<DeviceContext> device_;

 private:
  void let_go(Napi::Env env);

  const char* what_ = "object";
  Executor::Entries release_entry_ = Executor::one_entry();
  Resource* parent_ = nullptr;
  std::unordered_set<Resource*> children_;
  int64_t external_bytes_ = 0;
  bool disposed_ = false;
};

}  // namespace diffqkv::addon
