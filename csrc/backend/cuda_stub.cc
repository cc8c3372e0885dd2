// Replaces cuda/ if the module is built without nvcc.
#include "backend/backend.h"

namespace diffqkv::cuda {

std::vector<DeviceInfo> device_infos() {
  DeviceInfo info;
  info.id = "cuda";
  info.kind = "cuda";
  info.name = "CUDA";
  info.usable = false;
  info.reason =
      "this module was built without nvcc and has no CUDA part: install the CUDA toolkit and build again, or use 'cpu'";
  return {info};
}

std::shared_ptr<Backend> make_backend(int) {
  fail(ErrorCode::device_unavailable, "%s", device_infos()[0].reason.c_str());
}

}  // namespace diffqkv::cuda
