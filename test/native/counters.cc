// The counters, on kernels whose traffic can be told by hand.
#include <device/async.h>
#include <device/memory.h>
#include <device/mma.h>
#include "calls/memory.h"
#include "check.h"

namespace diffqkv::check {
namespace {

using namespace emulated;

__global__ void __launch_bounds__(128, 1) copy_words(const uint32_t* in, uint32_t* out, int stride) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  st_global(out + i, ld_global(in + i * stride));
}
__global__ void __launch_bounds__(32, 1) broadcast(const uint32_t* in, uint32_t* out) {
  st_global(out + lane_index(), ld_global(in));
}
__global__ void __launch_bounds__(32, 1) copy_16(const uint32_t* in, uint32_t* out) {
  st_global(reinterpret_cast<Words4*>(out) + lane_index(), ld_global_nc(in + 4 * lane_index()));
}
template <typename T>
__global__ void __launch_bounds__(32, 1) shared_stride(uint32_t* out, int stride) {
  T* shared = reinterpret_cast<T*>(dynamic_shared());
  st_shared(shared + lane_index() * stride, T{});
  st_global(out + lane_index(), 1u);
}
// 32 rows of 16 bytes, `row_bytes` apart; with the swizzle, the chunk of a row is moved by the row.
__global__ void __launch_bounds__(32, 1) ldmatrix_rows(const uint32_t* in, uint32_t* out, int row_bytes, int swizzle) {
  const int row = lane_index(), chunk = swizzle ? row % 8 : 0;
  unsigned char* at = dynamic_shared() + row * row_bytes + 16 * chunk;
  cp_async_cg(at, in);
  cp_async_commit_group();
  cp_async_wait_group<0>();
  __syncwarp();
  uint32_t r[4];
  ldmatrix_x4(r, at);
  float c[4] = {};
  const uint32_t b[2] = {r[0], r[1]};
  mma_m16n8k16<bf16>(c, r, b);
  st_global(out + lane_index(), bit_cast<uint32_t>(c[0]));
}

template <typename... Parameters, typename... Arguments>
Counters counted(unsigned blocks, unsigned threads, size_t shared_bytes, void (*kernel)(Parameters...),
                 std::string* wrong, const Arguments&... arguments) {
  Counters counters;
  settings().counters = &counters;
  *wrong = run("kernel", blocks, threads, shared_bytes, kernel, arguments...);
  settings().counters = nullptr;
  return counters;
}

std::string expect(std::string wrong, std::vector<std::pair<const char*, std::pair<uint64_t, uint64_t>>> figures) {
  for (const auto& [name, pair] : figures) {
    if (pair.first != pair.second)
      wrong +=
          std::string(name) + " " + std::to_string(pair.first) + ", expected " + std::to_string(pair.second) + "; ";
  }
  return wrong;
}

std::string check_copy(int stride, uint64_t sectors) {
  Memory<uint32_t> in(static_cast<size_t>(1024 * stride)), out(1024);
  std::string wrong;
  const Counters c = counted(8, 128, 0, copy_words, &wrong, in.data(), out.data(), stride);
  return expect(wrong, {{"read_bytes", {c.read_bytes, 4096}},
                        {"read_sectors", {c.read_sectors, sectors}},
                        {"distinct_read_bytes", {c.distinct_read_bytes, 32 * sectors}},
                        {"written_bytes", {c.written_bytes, 4096}},
                        {"written_sectors", {c.written_sectors, 128}},
                        {"launches", {c.launches, 1}},
                        {"read from in", {c.read_bytes_by_allocation.at(in.data()), 4096}}});
}

template <typename T>
std::string check_stride(int stride, uint64_t conflicts) {
  Memory<uint32_t> out(32);
  std::string wrong;
  const Counters c = counted(1, 32, 32768, shared_stride<T>, &wrong, out.data(), stride);
  return expect(wrong,
                {{"shared_accesses", {c.shared_accesses, 1}}, {"bank_conflicts", {c.bank_conflicts, conflicts}}});
}

std::string check_ldmatrix_rows(int row_bytes, int swizzle, uint64_t conflicts) {
  Memory<uint32_t> in(std::vector<uint32_t>(4, 0)), out(32);
  std::string wrong;
  const Counters c = counted(1, 32, 8192, ldmatrix_rows, &wrong, in.data(), out.data(), row_bytes, swizzle);
  return expect(wrong, {{"shared_accesses", {c.shared_accesses, 2}},  // the copy's and ldmatrix's
                        {"bank_conflicts", {c.bank_conflicts, 2 * conflicts}},
                        {"mma", {c.mma, 1}},
                        {"read_bytes", {c.read_bytes, 16}}});
}

}  // namespace

std::vector<Check> counter_checks() {
  return {
      {"a coalesced copy", [] { return check_copy(1, 128); }},
      {"every other word", [] { return check_copy(2, 256); }},
      {"a sector a lane", [] { return check_copy(8, 1024); }},
      {"a word for all lanes",
       [] {
         Memory<uint32_t> in(1), out(32);
         std::string wrong;
         const Counters c = counted(1, 32, 0, broadcast, &wrong, in.data(), out.data());
         return expect(wrong, {{"read_bytes", {c.read_bytes, 4}}, {"read_sectors", {c.read_sectors, 1}}});
       }},
      {"a word for all blocks",
       [] {
         Memory<uint32_t> in(1), out(1024);
         std::string wrong;
         const Counters c = counted(8, 128, 0, copy_words, &wrong, in.data(), out.data(), 0);
         return expect(wrong,
                       {{"read_bytes", {c.read_bytes, 128}}, {"distinct_read_bytes", {c.distinct_read_bytes, 32}}});
       }},
      {"16 bytes a lane",
       [] {
         Memory<uint32_t> in(128), out(128);
         std::string wrong;
         const Counters c = counted(1, 32, 0, copy_16, &wrong, in.data(), out.data());
         return expect(wrong, {{"read_bytes", {c.read_bytes, 512}}, {"read_sectors", {c.read_sectors, 16}}});
       }},
      {"shared words side by side", [] { return check_stride<uint32_t>(1, 0); }},
      {"shared words 2 apart", [] { return check_stride<uint32_t>(2, 1); }},
      {"shared words 32 apart", [] { return check_stride<uint32_t>(32, 31); }},
      {"shared words 33 apart", [] { return check_stride<uint32_t>(33, 0); }},
      {"16 bytes side by side", [] { return check_stride<Words4>(1, 0); }},
      {"16 bytes, 128 apart", [] { return check_stride<Words4>(8, 4 * 7); }},
      {"ldmatrix, rows of 16 bytes", [] { return check_ldmatrix_rows(16, 0, 0); }},
      {"ldmatrix, rows of 128 bytes", [] { return check_ldmatrix_rows(128, 0, 4 * 7); }},
      {"ldmatrix, rows of 128 bytes, swizzled", [] { return check_ldmatrix_rows(128, 1, 0); }},
      {"ldmatrix, rows of 144 bytes", [] { return check_ldmatrix_rows(144, 0, 0); }},
  };
}

}  // namespace diffqkv::check
