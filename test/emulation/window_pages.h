// Attention with a window over pages, some of which do not exist.
#pragma once

#include <string>

#include "backend/backend.h"

namespace diffqkv {

// Decodes and prefills with windows over page tables whose entries are null for pages before the windows of all queries.
// Rows before the windows in other pages are NaN. Compares with contiguous caches. Returns what differs, or "". Throws what
// the operators throw.
std::string check_window_pages(const std::shared_ptr<Backend>& backend);

}  // namespace diffqkv
