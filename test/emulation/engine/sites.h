// Places in the source as numbers of 16 bits, so that a record of an access can name its line.
#pragma once

#include <array>
#include <cstdint>
#include <string>

#include "engine/engine.h"

namespace diffqkv::emulated {

std::string text_of(Site site);  // "file.cu:12"

// The same number for the same place, on every thread of the system.
uint16_t add_site(Site site);
Site site_of(uint16_t id);

// Remembers the numbers that one thread of the system asked for last.
class SiteIds {
 public:
  uint16_t id(Site site) {
    const uintptr_t file = reinterpret_cast<uintptr_t>(site.file);
    Entry& entry = entries_[(file / 8 + static_cast<unsigned>(site.line)) % entries_.size()];
    if (entry.site.file != site.file || entry.site.line != site.line) entry = {site, add_site(site)};
    return entry.id;
  }

 private:
  struct Entry {
    Site site = {nullptr, 0};
    uint16_t id = 0;
  };
  std::array<Entry, 1024> entries_{};
};

}  // namespace diffqkv::emulated
