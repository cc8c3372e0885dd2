// AMX in software, from the pseudocode and the exception classes of the Intel SDM (Intel 64 and IA-32 Architectures Software
// Developer's Manual, volume 2, LDTILECFG to TILEZERO). Compiled for AVX-512 and only called on CPUs that have it.
//
// Not verified, because no CPU with AMX was at hand: that the hardware adds in exactly the documented order, and which NaN it
// returns of several. Not emulated: a start_row other than 0, which only an interrupted instruction leaves.
#include "backend/cpu/amx_instructions.h"

// GCC bug 105593, as in csrc/backend/cpu/simd.h.
#pragma GCC diagnostic push
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#pragma GCC diagnostic pop
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

namespace diffqkv::cpu::emulated_amx {
namespace {

constexpr int kTiles = 8;
constexpr int kRows = 16;
constexpr int kRowBytes = 64;

struct Config {
  uint8_t palette, start_row, reserved[14];
  uint16_t bytes_per_row[16];
  uint8_t rows[16];
};
static_assert(sizeof(Config) == 64);

struct alignas(64) Unit {
  Config config;
  uint8_t tiles[kTiles][kRows][kRowBytes];
};

// On the heap, because a module that is loaded late has little room for thread-local data.
struct Owner {
  Unit* unit = new Unit();
  ~Owner() { delete unit; }
};

Unit& unit() {
  static thread_local Owner owner;
  return *owner.unit;
}

[[noreturn]] __attribute__((format(printf, 1, 2))) void fault(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  fputs("emulated AMX: ", stderr);
  vfprintf(stderr, format, arguments);
  fputc('\n', stderr);
  va_end(arguments);
  abort();
}

struct Tile {
  int rows, bytes_per_row;
  uint8_t (*row)[kRowBytes];
};

// The tile, which must be configured.
Tile configured(const char* instruction, int tile) {
  Unit& u = unit();
  if (u.config.palette == 0) fault("%s: #UD: tiles are not configured", instruction);
  if (u.config.rows[tile] == 0) fault("%s: #UD: tile %d is not configured", instruction, tile);
  const int bytes = u.config.bytes_per_row[tile];
  if (bytes % 4 != 0)
    fault("%s: #UD: the rows of tile %d have %d bytes, not a multiple of 4", instruction, tile, bytes);
  return {u.config.rows[tile], bytes, u.tiles[tile]};
}

struct Operands {
  Tile c, a, b;
};

// c += a b, with a and b in groups of 4 bytes: c is m by n, a is m by k groups, b is k groups by n.
Operands operands(const char* instruction, int c, int a, int b) {
  if (c == a || c == b || a == b) fault("%s: #UD: tiles %d, %d and %d are not different", instruction, c, a, b);
  const Operands o = {configured(instruction, c), configured(instruction, a), configured(instruction, b)};
  if (o.c.rows != o.a.rows || o.c.bytes_per_row != o.b.bytes_per_row || o.a.bytes_per_row != 4 * o.b.rows) {
    fault("%s: #UD: shapes do not fit (rows x bytes): tile %d is %d x %d, tile %d is %d x %d, tile %d is %d x %d",
          instruction, c, o.c.rows, o.c.bytes_per_row, a, o.a.rows, o.a.bytes_per_row, b, o.b.rows, o.b.bytes_per_row);
  }
  return o;
}

// The rows of an m by n tile that instructions do not write are 0, so whole rows can be computed. Not inlined, so that no
// operation moves out of the lines that set MXCSR.
__attribute__((noinline)) void multiply_bf16(const Operands& o) {
  const __m512i high_half = _mm512_set1_epi32(static_cast<int>(0xffff0000));
  for (int m = 0; m < o.c.rows; ++m) {
    __m512 even = _mm512_setzero_ps();
    __m512 odd = _mm512_setzero_ps();
    for (int k = 0; k < o.b.rows; ++k) {
      int pair;
      memcpy(&pair, &o.a.row[m][4 * k], 4);
      const __m512i a = _mm512_set1_epi32(pair);
      const __m512i b = _mm512_load_si512(o.b.row[k]);
      even = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_slli_epi32(a, 16)),
                             _mm512_castsi512_ps(_mm512_slli_epi32(b, 16)), even);
      odd = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_and_si512(a, high_half)),
                            _mm512_castsi512_ps(_mm512_and_si512(b, high_half)), odd);
    }
    const __mmask16 columns = static_cast<__mmask16>((1u << (o.c.bytes_per_row / 4)) - 1);
    const __m512 sum = _mm512_add_ps(_mm512_load_ps(o.c.row[m]), _mm512_add_ps(even, odd));
    _mm512_store_ps(o.c.row[m], _mm512_maskz_mov_ps(columns, sum));
  }
}

}  // namespace

void ldtilecfg(const void* config) {
  Config next;
  memcpy(&next, config, sizeof(next));
  if (next.palette > 1) fault("ldtilecfg: #GP: palette %d", next.palette);
  if (next.palette == 0) return tilerelease();
  if (next.start_row != 0) fault("ldtilecfg: start_row %d is not emulated", next.start_row);
  for (const uint8_t byte : next.reserved) {
    if (byte != 0) fault("ldtilecfg: #GP: a reserved byte is not 0");
  }
  for (int i = 0; i < 16; ++i) {
    const int rows = next.rows[i];
    const int bytes = next.bytes_per_row[i];
    if (i >= kTiles && (rows != 0 || bytes != 0)) fault("ldtilecfg: #GP: there is no tile %d", i);
    if (rows > kRows) fault("ldtilecfg: #GP: tile %d has %d rows", i, rows);
    if (bytes > kRowBytes) fault("ldtilecfg: #GP: the rows of tile %d have %d bytes", i, bytes);
    if ((rows == 0) != (bytes == 0)) fault("ldtilecfg: #GP: tile %d has %d rows of %d bytes", i, rows, bytes);
  }
  Unit& u = unit();
  u.config = next;
  memset(u.tiles, 0, sizeof(u.tiles));
}

void sttilecfg(void* config) { memcpy(config, &unit().config, sizeof(Config)); }

void tilerelease() { memset(&unit(), 0, sizeof(Unit)); }

void tileloadd(int tile, const void* base, int64_t stride) {
  const Tile t = configured("tileloadd", tile);
  memset(t.row, 0, sizeof(Unit::tiles[0]));
  for (int m = 0; m < t.rows; ++m) {
    memcpy(t.row[m], static_cast<const char*>(base) + m * stride, static_cast<size_t>(t.bytes_per_row));
  }
}

void tilestored(int tile, void* base, int64_t stride) {
  const Tile t = configured("tilestored", tile);
  for (int m = 0; m < t.rows; ++m) {
    memcpy(static_cast<char*>(base) + m * stride, t.row[m], static_cast<size_t>(t.bytes_per_row));
  }
}

void tilezero(int tile) { memset(configured("tilezero", tile).row, 0, sizeof(Unit::tiles[0])); }

// Per element of c: the fused sums of the even products and of the odd ones, each from 0 and in the order of k, are added,
// and their sum is added to c. Denormal inputs count as zero, denormal results become zero, each operation rounds to
// nearest even, and MXCSR has no effect and does not change.
void tdpbf16ps(int c, int a, int b) {
  const Operands o = operands("tdpbf16ps", c, a, b);
  constexpr unsigned kAllMasked = 0x1f80;
  constexpr unsigned kDenormalsAreZero = 0x0040;
  constexpr unsigned kFlushToZero = 0x8000;
  const unsigned saved = _mm_getcsr();
  _mm_setcsr(kAllMasked | kDenormalsAreZero | kFlushToZero);
  multiply_bf16(o);
  _mm_setcsr(saved);
}

// Sums wrap around at 32 bits.
void tdpbssd(int c, int a, int b) {
  const Operands o = operands("tdpbssd", c, a, b);
  for (int m = 0; m < o.c.rows; ++m) {
    uint32_t sums[kRows];
    memcpy(sums, o.c.row[m], sizeof(sums));
    for (int k = 0; k < o.b.rows; ++k) {
      for (int n = 0; n < o.c.bytes_per_row / 4; ++n) {
        for (int i = 0; i < 4; ++i) {
          const int product = static_cast<int8_t>(o.a.row[m][4 * k + i]) * static_cast<int8_t>(o.b.row[k][4 * n + i]);
          sums[n] += static_cast<uint32_t>(product);
        }
      }
    }
    memcpy(o.c.row[m], sums, sizeof(sums));
  }
}

}  // namespace diffqkv::cpu::emulated_amx
