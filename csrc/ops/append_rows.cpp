#include "ops/append_rows.h"

#include <algorithm>

#include "core/check.h"
#include "ops/copy.h"

namespace drupe::ops {

Tensor append_rows(const Tensor& cache, const Tensor& rows, const std::vector<std::int64_t>& starts, const char* op) {
  check(cache.ndim() == 4 && rows.ndim() == 4 && cache.size(0) == rows.size(0) && cache.size(1) == rows.size(1) &&
            cache.size(3) == rows.size(3),
        op, "rows is ", rows.shape(), ", cache ", cache.shape(), ": expected (B, H, S, D) beside it");
  const std::int64_t B = rows.size(0), S = rows.size(2), capacity = cache.size(2);
  check(starts.size() == 1 || static_cast<std::int64_t>(starts.size()) == B, op, starts.size(),
        " starts for a batch of ", B);
  const std::int64_t first = starts.empty() ? 0 : *std::min_element(starts.begin(), starts.end());
  const std::int64_t last = starts.empty() ? 0 : *std::max_element(starts.begin(), starts.end());
  check(first >= 0 && last <= capacity - S, op, "rows ", first, " to ", last <= capacity ? last + S : last,
        " of a cache whose capacity is ", capacity);
  if (starts.size() == 1) {
    copy_into(cache.slice(2, first, first + S, 1), rows);
  } else {
    for (std::int64_t b = 0; b < B; ++b) {
      const std::int64_t start = starts[static_cast<std::size_t>(b)];
      copy_into(cache.select(0, b).slice(1, start, start + S, 1), rows.select(0, b));
    }
  }
  return cache.slice(2, 0, last + S, 1);
}

}  // namespace drupe::ops
