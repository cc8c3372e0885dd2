// Stands in for cuda/emulation wherever the module is not the tests'.
#include "backend/backend.h"
#include "backend/emulated_counters.h"
#include "backend/emulated_faults.h"

namespace diffqkv {

std::vector<DeviceInfo> emulated_device_infos() { return {}; }

std::shared_ptr<Backend> make_emulated_backend() {
  fail(ErrorCode::device_unavailable,
       "there is no device \"emulated\": this is no test build; ids are 'auto', 'cpu', 'cuda' and 'cuda:0', 'cuda:1' "
       "and so on");
}

std::shared_ptr<void> count_emulated() { return nullptr; }
DeviceCounters emulated_counters() { return {}; }
void reset_emulated_counters() {}
uint64_t set_emulated_fault(const EmulatedFault&) { return 0; }

}  // namespace diffqkv
