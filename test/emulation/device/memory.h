// cuda/device/memory.h as C++. The engine checks every access.
#pragma once

#include <cstring>

#include "types.h"

namespace diffqkv::emulated {

template <typename T>
inline T ld_global(const T* p, DIFFQKV_SITE) {
  check_access(p, sizeof(T), Access::global_load, site);
  T value;
  std::memcpy(&value, p, sizeof(T));
  return value;
}
template <typename T>
inline void st_global(T* p, const T& value, DIFFQKV_SITE) {
  check_access(p, sizeof(T), Access::global_store, site);
  std::memcpy(p, &value, sizeof(T));
}
inline Words4 ld_global_nc(const void* p, DIFFQKV_SITE) {
  check_streaming_load(p, site);
  Words4 value;
  std::memcpy(&value, p, 16);
  return value;
}
template <typename T>
inline T ld_shared(const T* p, DIFFQKV_SITE) {
  check_access(p, sizeof(T), Access::shared_load, site);
  T value;
  std::memcpy(&value, p, sizeof(T));
  return value;
}
template <typename T>
inline void st_shared(T* p, const T& value, DIFFQKV_SITE) {
  check_access(p, sizeof(T), Access::shared_store, site);
  std::memcpy(p, &value, sizeof(T));
}

}  // namespace diffqkv::emulated
