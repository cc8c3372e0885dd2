// cuda/device/async.h as C++.
#pragma once

#include <device/base.h>

namespace diffqkv::emulated {

// A copy is carried out at its wait. Until then nobody may access what it writes, or write what it reads.
inline void cp_async_cg(void* shared, const void* global, int valid_bytes = 16, DIFFQKV_SITE) {
  async_copy(shared, global, valid_bytes, site);
}
inline void cp_async_commit_group() { async_commit(); }
template <int kNewest>
inline void cp_async_wait_group() {
  async_wait(kNewest);
}

}  // namespace diffqkv::emulated
