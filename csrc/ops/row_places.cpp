#include "ops/row_places.h"

#include <algorithm>
#include <limits>

#include "core/check.h"
#include "core/dispatch.h"
#include "ops/copy.h"

namespace drupe {

RowPlaces::RowPlaces(const char* op, const Tensor& rows, std::int64_t n, Device device) : stored_(rows.numel()) {
  check_type(rows.dtype() == Dtype::i32 || rows.dtype() == Dtype::i64, op, "rows is ", rows.dtype(),
             ": expected int32 or int64");
  check(rows.ndim() == 1, op, "rows is ", rows.shape(), ": expected 1 dimension");
  check(n <= std::numeric_limits<std::int32_t>::max(), op, "there are ", n, " rows: expected less than 2^31");
  const Tensor list = ops::contiguous(ops::to_device(rows, Device{}));
  const Tensor map = empty({n}, Dtype::i32);
  auto* places = map.data<std::int32_t>();
  std::fill_n(places, n, -1);
  dispatch_index(list.dtype(), [&]<class Index>() {
    const Index* row = list.data<Index>();
    for (std::int64_t i = 0; i < stored_; ++i) {
      if (row[i] < 0 || row[i] >= n)
        fail<std::out_of_range>(op, "rows[", i, "] is ", row[i], ": expected [0, ", n, ")");
      check(places[row[i]] < 0, op, "rows holds ", row[i], " twice");
      places[row[i]] = static_cast<std::int32_t>(i);
    }
  });
  map_ = ops::to_device(map, device);
}

}  // namespace drupe
