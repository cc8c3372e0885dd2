#include "backend/devices.h"

#include <cstdlib>

namespace diffqkv {
namespace {

std::shared_ptr<Backend> open_cpu(const std::string& id, const DeviceOptions& options) {
  if (id != "cpu") return nullptr;
  return make_cpu_backend(options.threads > 0 ? options.threads : default_cpu_threads());
}

std::shared_ptr<Backend> open_first_gpu() {
  std::string reason;
  for (const DeviceInfo& info : cuda::device_infos()) {
    if (info.usable) return cuda::make_backend(std::atoi(info.id.c_str() + 5));
    reason += (reason.empty() ? "" : "; ") + (info.id == "cuda" ? "" : info.id + ": ") + info.reason;
  }
  fail(ErrorCode::device_unavailable, "no usable CUDA device: %s", reason.c_str());
}

std::shared_ptr<Backend> open_gpu(const std::string& id, const DeviceOptions&) {
  if (id == "cuda") return open_first_gpu();
  const bool is_ordinal = id.size() > 5 && id.size() <= 8 && id.compare(0, 5, "cuda:") == 0 &&
                          id.find_first_not_of("0123456789", 5) == std::string::npos;
  return is_ordinal ? cuda::make_backend(std::stoi(id.substr(5))) : nullptr;
}

}  // namespace

std::vector<DeviceKind>& device_kinds() {
  static std::vector<DeviceKind>* const kinds = new std::vector<DeviceKind>{
      {[] { return std::vector<DeviceInfo>{cpu_device_info(default_cpu_threads())}; }, open_cpu},
      {cuda::device_infos, open_gpu},
  };
  return *kinds;
}

std::vector<DeviceInfo> list_devices() {
  std::vector<DeviceInfo> all;
  for (const DeviceKind& kind : device_kinds()) {
    for (DeviceInfo& info : kind.list()) all.push_back(std::move(info));
  }
  return all;
}

std::shared_ptr<Backend> open_device(const std::string& id, const DeviceOptions& options) {
  for (const DeviceKind& kind : device_kinds()) {
    if (std::shared_ptr<Backend> backend = kind.open(id, options)) return backend;
  }
  fail(ErrorCode::device_unavailable,
       "there is no device \"%s\"; ids are 'auto', 'cpu', 'cuda' and 'cuda:0', 'cuda:1' and so on (listDevices() has "
       "those of this machine)",
       id.c_str());
}

}  // namespace diffqkv
