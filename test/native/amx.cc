// The emulated AMX instructions: results compared with scalar loops bit by bit, and the faults that hardware would raise.
#include "backend/cpu/amx_instructions.h"

#include <sys/wait.h>
#include <unistd.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <thread>

#include "check.h"

namespace diffqkv::check {
namespace {

using namespace cpu::emulated_amx;

struct alignas(64) Config {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes_per_row[16] = {};
  uint8_t rows[16] = {};

  void set(int tile, int num_rows, int num_bytes) {
    rows[tile] = static_cast<uint8_t>(num_rows);
    bytes_per_row[tile] = static_cast<uint16_t>(num_bytes);
  }
};

// Tiles 0, 1 and 2 are c (m by n), a (m by k) and b (k by n), in elements of 4 bytes.
Config product_config(int m, int k, int n) {
  Config config;
  config.set(0, m, 4 * n);
  config.set(1, m, 4 * k);
  config.set(2, k, 4 * n);
  return config;
}

using Words = uint32_t[16][16];

struct Product {
  Words a, b, c;
};

// c += a b by the emulation. Elements outside the shapes stay as they are.
void emulate(int m, int k, int n, Product& p, void (*dot)(int, int, int)) {
  const Config config = product_config(m, k, n);
  ldtilecfg(&config);
  tileloadd(0, p.c, 64);
  tileloadd(1, p.a, 64);
  tileloadd(2, p.b, 64);
  dot(0, 1, 2);
  tilestored(0, p.c, 64);
  tilerelease();
}

float flushed(float x) { return std::fpclassify(x) == FP_SUBNORMAL ? std::copysign(0.0f, x) : x; }
float from_bf16(uint32_t bits) { return flushed(std::bit_cast<float>(bits << 16)); }

void expected_bf16(int m, int k, int n, Product& p) {
  for (int i = 0; i < m; ++i) {
    for (int j = 0; j < n; ++j) {
      float sums[2] = {};
      for (int s = 0; s < k; ++s) {
        for (int half = 0; half < 2; ++half) {
          const float a = from_bf16(p.a[i][s] >> (16 * half) & 0xffff);
          const float b = from_bf16(p.b[s][j] >> (16 * half) & 0xffff);
          sums[half] = flushed(std::fma(a, b, sums[half]));
        }
      }
      const float old = flushed(std::bit_cast<float>(p.c[i][j]));
      p.c[i][j] = std::bit_cast<uint32_t>(flushed(old + flushed(sums[0] + sums[1])));
    }
  }
}

void expected_bytes(int m, int k, int n, Product& p) {
  for (int i = 0; i < m; ++i) {
    for (int j = 0; j < n; ++j) {
      for (int s = 0; s < 4 * k; ++s) {
        const auto a = static_cast<int8_t>(p.a[i][s / 4] >> (s % 4 * 8));
        const auto b = static_cast<int8_t>(p.b[s / 4][j] >> (s % 4 * 8));
        p.c[i][j] += static_cast<uint32_t>(a * b);
      }
    }
  }
}

uint32_t next_random(uint32_t& state) { return state = state * 1664525u + 1013904223u; }

// Two bf16 of random sign and mantissa, with exponents that reach into the denormals if `tiny`.
uint32_t random_pair(uint32_t& state, bool tiny) {
  uint32_t pair = 0;
  for (int half = 0; half < 2; ++half) {
    const uint32_t bits = next_random(state) >> 8;
    const uint32_t exponent = tiny ? bits % 3 * 32 : 120 + bits % 12;
    pair |= ((bits >> 15 & 1) << 15 | exponent << 7 | (bits >> 4 & 127)) << (16 * half);
  }
  return pair;
}

enum class Values { normal, tiny, bytes };

std::string check_products(Values values, void (*dot)(int, int, int), void (*expected)(int, int, int, Product&)) {
  uint32_t state = 1;
  constexpr int kShapes[][3] = {{16, 16, 16}, {1, 16, 2}, {8, 16, 3}, {5, 7, 11}, {1, 1, 1}, {16, 2, 16}};
  for (const auto& [m, k, n] : kShapes) {
    Product p;
    for (Words* words : {&p.a, &p.b, &p.c}) {
      for (auto& row : *words) {
        for (uint32_t& word : row) {
          word = values == Values::bytes ? next_random(state) : random_pair(state, values == Values::tiny);
        }
      }
    }
    Product right = p;
    emulate(m, k, n, p, dot);
    expected(m, k, n, right);
    if (std::memcmp(p.c, right.c, sizeof(p.c)) != 0) {
      return "the product of " + std::to_string(m) + " x " + std::to_string(k) + " x " + std::to_string(n) + " differs";
    }
  }
  return "";
}

// 1 + 2^-24 + 2^-24 is 1 in every order of single additions, but c + (even + odd) is 1 + 2^-23.
std::string check_order() {
  Product p = {};
  p.a[0][0] = p.b[0][0] = 0x39803980;  // two bf16 of 2^-12
  p.c[0][0] = std::bit_cast<uint32_t>(1.0f);
  emulate(1, 1, 1, p, tdpbf16ps);
  return p.c[0][0] == std::bit_cast<uint32_t>(1.0f + 0x1p-23f) ? ""
                                                               : "the halves of a pair are not summed apart from c";
}

std::string check_configuration() {
  Config config = product_config(3, 2, 5);
  ldtilecfg(&config);
  Config stored;
  sttilecfg(&stored);
  if (std::memcmp(&stored, &config, sizeof(config)) != 0) return "sttilecfg does not store what ldtilecfg loaded";
  Words ones;
  std::memset(ones, 0xff, sizeof(ones));
  tileloadd(0, ones, 64);
  bool others_configured = true;
  std::thread([&] {
    Config other;
    sttilecfg(&other);
    others_configured = other.palette != 0;
  }).join();
  if (others_configured) return "a thread has the configuration of another";
  ldtilecfg(&config);
  tilestored(0, ones, 64);
  if (ones[0][0] != 0) return "ldtilecfg does not clear the tiles";
  if (ones[0][5] != ~0u || ones[3][0] != ~0u) return "tilestored writes more than the tile";
  tilerelease();
  sttilecfg(&stored);
  return stored.palette == 0 ? "" : "tilerelease leaves a configuration";
}

std::string check_mxcsr() {
  const unsigned before = __builtin_ia32_stmxcsr();
  Product p = {};
  p.a[0][0] = p.b[0][0] = 0x00010001;
  emulate(1, 1, 1, p, tdpbf16ps);
  return __builtin_ia32_stmxcsr() == before ? "" : "tdpbf16ps changes MXCSR";
}

// Runs `call` in a child process, which must abort with a message that contains `text`.
std::string check_fault(const std::string& text, const std::function<void()>& call) {
  int ends[2];
  if (pipe(ends) != 0) return "pipe failed";
  const pid_t child = fork();
  if (child < 0) return "fork failed";
  if (child == 0) {
    dup2(ends[1], STDERR_FILENO);
    call();
    _exit(0);
  }
  close(ends[1]);
  std::string message;
  char buffer[256];
  for (ssize_t n; (n = read(ends[0], buffer, sizeof(buffer))) > 0;) message.append(buffer, static_cast<size_t>(n));
  close(ends[0]);
  int status = 0;
  waitpid(child, &status, 0);
  if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGABRT) return "it did not abort: " + message;
  return message.find(text) != std::string::npos ? "" : "another message: " + message;
}

Check fault_check(const char* name, const char* text, void (*call)()) {
  return {name, [=] { return check_fault(text, call); }};
}

void load(const Config& config) { ldtilecfg(&config); }

}  // namespace

std::vector<Check> amx_checks() {
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx512f")) return {};
  return {
      {"bf16 products", [] { return check_products(Values::normal, tdpbf16ps, expected_bf16); }},
      {"bf16 products of denormals", [] { return check_products(Values::tiny, tdpbf16ps, expected_bf16); }},
      {"i8 products", [] { return check_products(Values::bytes, tdpbssd, expected_bytes); }},
      {"order of a sum", check_order},
      {"configuration", check_configuration},
      {"MXCSR", check_mxcsr},
      fault_check("a tile without configuration", "#UD: tiles are not configured", [] { tilezero(0); }),
      fault_check("a tile that is not configured", "#UD: tile 3 is not configured",
                  [] {
                    load(product_config(16, 16, 16));
                    tilezero(3);
                  }),
      fault_check("shapes that do not fit", "#UD: shapes do not fit",
                  [] {
                    load(product_config(16, 8, 16));
                    tdpbf16ps(0, 2, 1);
                  }),
      fault_check("the same tile twice", "are not different",
                  [] {
                    load(product_config(16, 16, 16));
                    tdpbssd(0, 1, 1);
                  }),
      fault_check("17 rows", "#GP: tile 0 has 17 rows", [] { load(product_config(17, 16, 16)); }),
      fault_check("rows of 68 bytes", "#GP: the rows of tile 0 have 68 bytes",
                  [] { load(product_config(16, 16, 17)); }),
      fault_check("another palette", "#GP: palette 2",
                  [] {
                    Config config;
                    config.palette = 2;
                    load(config);
                  }),
  };
}

}  // namespace diffqkv::check
