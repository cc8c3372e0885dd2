// The base of the JS objects of this addon. Their native memory is freed on the device's executor
// thread, whether by dispose(), by disposal of a parent, or by the garbage collector. JS thread
// only.
#pragma once

#include <napi.h>

#include <memory>
#include <unordered_set>

#include "addon/convert.h"
#include "addon/executor.h"

namespace diffqkv::addon {

// An open device. Every object on it holds this; the thread ends after the last holder.
struct DeviceContext {
  ~DeviceContext();
  void release_backend();

  std::shared_ptr<Executor> executor;
  std::shared_ptr<Backend> backend;  // null after disposal
  DeviceInfo info;
  Executor::Entries release_entry = Executor::one_entry();
};

class Resource {
 public:
  bool disposed() const { return disposed_; }
  // Disposes of the children first. A second call does nothing. Queued calls keep what they use.
  void dispose(Napi::Env env);

 protected:
  // Registers this with `parent` and reports `external_bytes` of native memory to the garbage
  // collector.
  void own(Napi::Env env, const char* what, std::shared_ptr<DeviceContext> device, Resource* parent,
           int64_t external_bytes);
  ~Resource() = default;
  void finalize(Napi::Env env);  // for the destructor; children stay usable
  void check_usable() const;     // throws ERR_DISPOSED
  void set_external_bytes(Napi::Env env, int64_t bytes);
  virtual std::shared_ptr<void> detach_memory() = 0;  // moves the native memory out

  std::shared_ptr<DeviceContext> device_;

 private:
  void release(Napi::Env env);

  const char* what_ = "object";
  Executor::Entries release_entry_ = Executor::one_entry();
  Resource* parent_ = nullptr;
  std::unordered_set<Resource*> children_;
  int64_t external_bytes_ = 0;
  bool disposed_ = false;
};

}  // namespace diffqkv::addon
