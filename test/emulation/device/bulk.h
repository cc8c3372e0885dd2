// cuda/device/bulk.h as C++.
#pragma once

#include <device/base.h>

namespace diffqkv::emulated {

inline bool has_bulk_copies() { return gpu_has_bulk_copies(); }

inline void mbarrier_init(uint64_t* barrier, int arrivals, DIFFQKV_SITE) { init_mbarrier(barrier, arrivals, site); }
inline void mbarrier_arrive_expect_tx(uint64_t* barrier, int bytes, DIFFQKV_SITE) {
  arrive_expecting(barrier, bytes, site);
}
inline bool mbarrier_try_wait_parity(uint64_t* barrier, int parity, DIFFQKV_SITE) {
  return try_wait(barrier, parity, site);
}
inline void cp_async_bulk(void* shared, const void* global, int bytes, uint64_t* barrier, DIFFQKV_SITE) {
  bulk_copy(shared, global, bytes, barrier, site);
}
inline void fence_proxy_async() { proxy_fence(); }

}  // namespace diffqkv::emulated
