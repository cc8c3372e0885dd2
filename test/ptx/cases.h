// What ptx_check runs, until every kernel has run and nearly all of its code: the calls of all operators, a kernel for each
// function of the device layer, and the probe of a device.
#pragma once

#include <vector>

#include "calls/call.h"

namespace diffqkv::ptx {

std::vector<emulated::NamedCall> all_cases();

}  // namespace diffqkv::ptx
