// Building blocks of csrc/cuda/tile at sizes that the ops' tests would need minutes to reach.
#include <cstdint>
#include <vector>

#include "cuda/selftest.h"
#include "cuda/tile/scan.cuh"

namespace drupe::selftest {
namespace {

using namespace drupe::cuda;

const Register kScanRows("tile.scan_rows", [] {
  constexpr std::size_t kRows = 3;
  for (const std::size_t length : {1, 31, 255, 256, 257, 700}) {
    std::vector<std::int64_t> values(kRows * length);
    for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<std::int64_t>(i * i % 101);
    const Array<std::int64_t> scanned(values), totals(kRows);
    scan_rows(stream(), scanned.data(), kRows, static_cast<std::int64_t>(length), totals.data());
    const std::vector<std::int64_t> got = scanned.values(), sums = totals.values();
    for (std::size_t row = 0; row < kRows; ++row) {
      std::int64_t before = 0;
      for (std::size_t i = row * length; i < (row + 1) * length; before += values[i++]) {
        require_equal(got[i], before, "the prefix sum", i);
      }
      require_equal(sums[row], before, "the total", row);
    }
  }
});

}  // namespace
}  // namespace drupe::selftest
