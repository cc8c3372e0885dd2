#pragma once

#include <vector>

#include "check.h"

namespace diffqkv::ptx {

std::vector<check::Check> interpreter_checks();

}  // namespace diffqkv::ptx
