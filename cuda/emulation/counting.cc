// The counters as the addon sees them: of all kernels of the process.
#include "backend/emulated_counters.h"
#include "emulation/engine.h"
#include "emulation/runtime.h"

namespace diffqkv {
namespace {

// Kernels add to them with Device::running held. Never destroyed, as the device.
emulated::Counters& counted() {
  static emulated::Counters* const counters = new emulated::Counters;
  return *counters;
}

class Counting {
 public:
  Counting() {
    std::lock_guard running(emulated::device().running);
    if (++holders_ == 1) emulated::settings().counters = &counted();
  }
  ~Counting() {
    std::lock_guard running(emulated::device().running);
    if (--holders_ == 0) emulated::settings().counters = nullptr;
  }

 private:
  static int holders_;
};
int Counting::holders_ = 0;

}  // namespace

std::shared_ptr<void> count_emulated() { return std::make_shared<Counting>(); }

DeviceCounters emulated_counters() {
  std::lock_guard running(emulated::device().running);
  const emulated::Counters& c = counted();
  return {c.read_bytes, c.written_bytes, c.read_sectors + c.written_sectors, c.bank_conflicts, c.mma};
}

void reset_emulated_counters() {
  std::lock_guard running(emulated::device().running);
  counted() = {};
}

}  // namespace diffqkv
