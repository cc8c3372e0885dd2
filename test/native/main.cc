// emulation_check [--only TEXT] [PART ...]: runs the checks of the parts (all if none is named) and prints
// [{"name": ..., "wrong": null or text}, ...]. TEXT: a part of the checks' names. Status 1 if something is wrong, 2 if
// there is no such check.
#include <cstdio>
#include <exception>
#include <map>

#include "check.h"
#include "cuda_devices.h"

namespace {

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    if (static_cast<unsigned char>(c) < 32) {
      char code[8];
      std::snprintf(code, sizeof(code), "\\u%04x", c);
      out += code;
    } else {
      out += c;
    }
  }
  return out + '"';
}

}  // namespace

int main(int argc, char** argv) {
  using namespace diffqkv::check;
  const std::map<std::string, std::vector<Check> (*)()> parts = {
      {"hazards", hazard_checks},   {"device_layer", device_layer_checks},
      {"counters", counter_checks}, {"launches", launch_checks},
      {"graphs", graph_checks},     {"operators", operator_checks},
      {"traffic", traffic_checks},  {"amx", amx_checks}};
  std::vector<std::string> chosen(argv + 1, argv + argc);
  std::string only;
  if (chosen.size() >= 2 && chosen[0] == "--only") {
    only = chosen[1];
    chosen.erase(chosen.begin(), chosen.begin() + 2);
  }
  if (chosen.empty()) {
    for (const auto& part : parts) chosen.push_back(part.first);
  }
  bool failed = false;
  const char* separator = "[";
  for (const std::string& part : chosen) {
    const auto found = parts.find(part);
    if (found == parts.end()) {
      std::fprintf(stderr, "there is no part \"%s\"\n", part.c_str());
      return 2;
    }
    for (const Check& check : found->second()) {
      if (check.name.find(only) == std::string::npos) continue;
      std::string wrong;
      try {
        wrong = check.run();
      } catch (const std::exception& error) {
        wrong = std::string("it threw: ") + error.what();
      }
      failed |= !wrong.empty();
      if (!wrong.empty()) diffqkv::emulated::reset_gpu(0);  // a fault must not reach the next check
      std::printf("%s\n  {\"name\": %s, \"wrong\": %s}", separator, quoted(part + ": " + check.name).c_str(),
                  wrong.empty() ? "null" : quoted(wrong).c_str());
      separator = ",";
      std::fflush(stdout);
    }
  }
  if (*separator == '[') {
    std::fprintf(stderr, "no check's name contains \"%s\"\n", only.c_str());
    return 2;
  }
  std::printf("\n]\n");
  return failed ? 1 : 0;
}
