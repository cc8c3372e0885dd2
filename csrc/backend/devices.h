// The kinds of devices that this module has.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "backend/backend.h"

namespace diffqkv {

struct DeviceOptions {
  int threads = 0;  // of the CPU device; 0: default_cpu_threads()
};

struct DeviceKind {
  std::vector<DeviceInfo> (*list)();
  // Null if the id is not one of this kind. Throws ERR_DEVICE_UNAVAILABLE if the device cannot be used.
  std::shared_ptr<Backend> (*open)(const std::string& id, const DeviceOptions& options);
};

// CPU and CUDA. A module that has more adds them when it is loaded, before anything lists or opens a device.
std::vector<DeviceKind>& device_kinds();

// The devices of all kinds, in the order of the kinds.
std::vector<DeviceInfo> list_devices();
// Throws ERR_DEVICE_UNAVAILABLE if there is no such device or it cannot be used.
std::shared_ptr<Backend> open_device(const std::string& id, const DeviceOptions& options = {});

}  // namespace diffqkv
