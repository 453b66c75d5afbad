// How gemm is cut into blocks: each tile and each part of K once, and no worse than leaving the last wave whole.
#include <platform/launch.cuh>

#include "cuda/gemm/grid.cuh"
#include "cuda/gemm_tile.h"
#include "cuda/selftest.h"

namespace drupe::selftest {
namespace {

using namespace drupe::cuda;

static_assert(schedule_gemm(8192, 8192, 8192, 1, 132).block == kLargeBlock);
static_assert(schedule_gemm(512, 512, 512, 1, 132).block == kSmallBlock);
static_assert(schedule_gemm(64, 64, 255, 1, 132).splits == 1);
// A grid that fills the device evenly stays whole, one that has a single tile too many cuts that one only.
static_assert(schedule_gemm(12 * 128, 11 * 128, 4096, 1, 132).splits == 1);
static_assert(schedule_gemm(7 * 128, 19 * 128, 8192, 1, 132, 128).whole == 132);
static_assert(schedule_gemm(7 * 128, 19 * 128, 8192, 1, 132, 128).splits > 4);
// Few tiles and a long K: all of them are cut, so that their parts fill the device.
static_assert(schedule_gemm(128, 128, 65536, 1, 132).whole == 0);
static_assert(schedule_gemm(128, 128, 65536, 1, 132).splits == 32);

// Few rows: enough blocks for the device, or else the narrow ones.
static_assert(few_rows_columns(1, 4096, 4096, 1, 132) == 8);
static_assert(few_rows_columns(1, 16384, 4096, 1, 132) == 16);
static_assert(few_rows_columns(16, 256, 4096, 1, 132) == 16);
static_assert(few_rows_columns(17, 4096, 4096, 1, 132) == 0);
static_assert(few_rows_columns(1, 4096, 64, 1, 132) == 0);

__global__ void place_kernel(GemmGrid grid, GemmPlace* places) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < grid.blocks()) places[i] = gemm_place(grid, i);
}

struct Problem {
  std::int64_t M, N, K, batch;
};

void check_coverage(const Problem& p, int multiprocessors) {
  const GemmSchedule schedule = schedule_gemm(p.M, p.N, p.K, p.batch, multiprocessors);
  const Loops batch{.shape = {p.batch}, .strides = {Dims{1}, Dims{2}, Dims{3}}};
  const GemmGrid grid(p.M, p.N, p.K, batch, schedule, 32);
  const Array<GemmPlace> places(static_cast<std::size_t>(grid.blocks()));
  launch<place_kernel>({.grid = {static_cast<unsigned>(grid.blocks() / 32 + 1)}, .block = {32}}, stream(), grid,
                       places.data());
  std::vector<std::int64_t> end(static_cast<std::size_t>(grid.tiles_m * grid.tiles_n * p.batch));
  for (const GemmPlace& at : places.values()) {
    require(at.m0 % grid.block == 0 && at.m0 < p.M && at.n0 % grid.block == 0 && at.n0 < p.N, "outside of y");
    const auto tile =
        static_cast<std::size_t>((at.batch * grid.tiles_m + at.m0 / grid.block) * grid.tiles_n + at.n0 / grid.block);
    require_equal(at.offset.at[kBatchB], 2 * at.batch, "offset of b in tile", tile);
    require_equal(at.k_begin, end[tile], "begin of a part of tile", tile);
    require(at.k_end > at.k_begin || p.K == 0, "an empty part of tile ", tile);
    require(at.partial < grid.rest() * grid.splits, "sums without a place");
    end[tile] = at.k_end;
  }
  for (std::size_t tile = 0; tile < end.size(); ++tile) require_equal(end[tile], p.K, "end of tile", tile);
}

const Register kCoverage("gemm.schedule", [] {
  const Problem problems[] = {{1, 1, 1, 1},         {64, 64, 0, 3},       {128, 128, 4096, 1},   {300, 200, 777, 5},
                              {2100, 1912, 136, 1}, {900, 2300, 8200, 1}, {128, 2000, 5000, 33}, {70, 90, 300, 1000}};
  for (const Problem& p : problems) {
    for (int multiprocessors : {1, 4, 108, 132}) check_coverage(p, multiprocessors);
  }
});

}  // namespace
}  // namespace drupe::selftest
