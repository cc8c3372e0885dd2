#include "engine/sites.h"

#include <cstring>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

namespace diffqkv::emulated {
namespace {

struct Sites {
  std::mutex mutex;
  std::map<std::pair<std::string, int>, uint16_t> ids;
  std::vector<Site> sites;
};
// Never destroyed: threads may still run kernels as the process ends.
Sites& sites() {
  static Sites* const sites = new Sites;
  return *sites;
}

}  // namespace

std::string text_of(Site site) {
  const char* slash = std::strrchr(site.file, '/');
  return std::string(slash ? slash + 1 : site.file) + ":" + std::to_string(site.line);
}

uint16_t add_site(Site site) {
  Sites& all = sites();
  std::lock_guard lock(all.mutex);
  const auto found = all.ids.find({site.file, site.line});
  if (found != all.ids.end()) return found->second;
  // A process has a few thousand at most. Beyond 65,535 a place gets the name of the first.
  if (all.sites.size() > 0xffff) return 0;
  const uint16_t id = static_cast<uint16_t>(all.sites.size());
  all.ids[{site.file, site.line}] = id;
  all.sites.push_back(site);
  return id;
}

Site site_of(uint16_t id) {
  Sites& all = sites();
  std::lock_guard lock(all.mutex);
  return all.sites[id];
}

}  // namespace diffqkv::emulated
