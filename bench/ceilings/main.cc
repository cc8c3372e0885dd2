// Reads one request a line from stdin and answers each with one line of JSON on stdout, until stdin ends:
//   info                                     {"threads", "onednn", "bandwidthBufferBytes"}
//   bandwidth ROUNDS [NUMBER]                [{"pattern", "gbPerS": [...]}, ...]; with NUMBER only that one has samples
//   copy ROUNDS                              [GB/s, ...]
//   linear ROUNDS SETS M,K,N,TYPE ...        [{"m", "k", "n", "packedMs": [...], "plainMs": [...]}, ...]; TYPE of the output: bf16 or f32
// It lives as long as a bench run, so that limits can be measured between the figures at no cost but the measuring.
#include <omp.h>

#include <cstdio>
#include <iostream>
#include <sstream>

#include "ceilings.h"

namespace {

void print_list(const char* name, const std::vector<double>& values) {
  std::printf("\"%s\":[", name);
  for (size_t i = 0; i < values.size(); ++i) std::printf(i == 0 ? "%.6g" : ",%.6g", values[i]);
  std::printf("]");
}

void print_bandwidth(int rounds, int only) {
  std::printf("[");
  const char* separator = "";
  for (const auto& samples : ceilings::read_bandwidth(rounds, only)) {
    std::printf("%s{\"pattern\":\"%s\",", separator, samples.pattern);
    print_list("gbPerS", samples.gb_per_s);
    std::printf("}");
    separator = ",";
  }
  std::printf("]\n");
}

void print_copy(int rounds) {
  const char* separator = "[";
  for (const double value : ceilings::copy_bandwidth(rounds)) {
    std::printf("%s%.6g", separator, value);
    separator = ",";
  }
  std::printf("]\n");
}

bool print_linear(std::istringstream& request) {
  int rounds = 0, sets = 0;
  request >> rounds >> sets;
  std::vector<ceilings::Matrix> matrices;
  for (std::string word; request >> word;) {
    ceilings::Matrix matrix{};
    char type[8] = "";
    if (std::sscanf(word.c_str(), "%ld,%ld,%ld,%7s", &matrix.m, &matrix.k, &matrix.n, type) != 4) return false;
    matrix.out_f32 = std::string(type) == "f32";
    matrices.push_back(matrix);
  }
  if (rounds < 1 || sets < 1 || matrices.empty()) return false;
  std::printf("[");
  const char* separator = "";
  for (const auto& samples : ceilings::onednn_linear(matrices, sets, rounds)) {
    std::printf("%s{\"m\":%ld,\"k\":%ld,\"n\":%ld,", separator, samples.matrix.m, samples.matrix.k, samples.matrix.n);
    print_list("packedMs", samples.packed_ms);
    std::printf(",");
    print_list("plainMs", samples.plain_ms);
    std::printf("}");
    separator = ",";
  }
  std::printf("]\n");
  return true;
}

}  // namespace

int main() {
  for (std::string line; std::getline(std::cin, line);) {
    std::istringstream request(line);
    std::string what;
    request >> what;
    int rounds = 0;
    bool understood = true;
    if (what == "info") {
      std::printf("{\"threads\":%d,\"onednn\":\"%s\",\"bandwidthBufferBytes\":%zu}\n", omp_get_max_threads(),
                  ceilings::onednn_version().c_str(), ceilings::bandwidth_buffer_bytes());
    } else if (what == "bandwidth" && request >> rounds && rounds > 0) {
      int only = -1;
      if (!(request >> only)) only = -1;
      print_bandwidth(rounds, only);
    } else if (what == "copy" && request >> rounds && rounds > 0) {
      print_copy(rounds);
    } else {
      understood = what == "linear" && print_linear(request);
    }
    if (!understood) {
      std::fprintf(stderr, "ceilings: cannot make sense of the request: %s\n", line.c_str());
      return 1;
    }
    std::fflush(stdout);
  }
  return 0;
}
