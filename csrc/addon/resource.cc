#include "addon/resource.h"

#include <utility>

namespace diffqkv::addon {

DeviceContext::~DeviceContext() {
  if (!executor) return;
  release_backend();
  executor->close();
}

void DeviceContext::release_backend() {
  if (backend) executor->release(std::move(release_entry), std::move(backend));
}

void Resource::own(Napi::Env env, const char* what, std::shared_ptr<DeviceContext> device, Resource* parent,
                   int64_t external_bytes) {
  what_ = what;
  device_ = std::move(device);
  parent_ = parent;
  if (parent_ != nullptr) parent_->children_.insert(this);
  set_external_bytes(env, external_bytes);
}

void Resource::set_external_bytes(Napi::Env env, int64_t bytes) {
  int64_t now;
  if (disposed_ || bytes == external_bytes_) return;
  napi_adjust_external_memory(env, bytes - std::exchange(external_bytes_, bytes), &now);
}

void Resource::check_usable() const {
  if (disposed_) {
    fail(ErrorCode::disposed, "this %s is disposed, by its own dispose() or that of its model or device", what_);
  }
}

void Resource::dispose(Napi::Env env) {
  if (disposed_) return;
  for (Resource* child : std::exchange(children_, {})) {
    child->parent_ = nullptr;
    child->dispose(env);
  }
  release(env);
}

void Resource::finalize(Napi::Env env) {
  for (Resource* child : children_) child->parent_ = nullptr;
  children_.clear();
  release(env);
}

void Resource::release(Napi::Env env) {
  if (parent_ != nullptr) parent_->children_.erase(this);
  parent_ = nullptr;
  if (!disposed_) {
    set_external_bytes(env, 0);
    disposed_ = true;
    if (device_) {  // null if the constructor did not finish
      if (std::shared_ptr<void> memory = detach_memory()) {
        device_->executor->release(std::move(release_entry_), std::move(memory));
      }
    }
  }
  device_.reset();
}

}  // namespace diffqkv::addon
