#include "ops/csr.h"

#include <limits>
#include <vector>

#include "core/check.h"
#include "core/dispatch.h"
#include "ops/copy.h"
#include "ops/index_range.h"

namespace drupe {
namespace {

const char* kOp = "csr";

// Segments of long rows: on a processor as many entries as keep a few wide rows in a core's cache; on a GPU as many as
// a warp walks through while others have as much to do.
constexpr std::int64_t kCpuSegment = 2048;
constexpr std::int64_t kCudaSegment = 128;

Tensor read_only(const Tensor& x) {
  return Tensor(x.owner(), x.raw(), x.shape(), x.strides(), x.dtype(), x.device(), true);
}

void check_list(const Tensor& x, const char* name) {
  check_type(x.dtype() == Dtype::i32 || x.dtype() == Dtype::i64, kOp, name, " is ", x.dtype(),
             ": expected int32 or int64");
  check(x.ndim() == 1, kOp, name, " is ", x.shape(), ": expected 1 dimension");
}

void check_range(const Tensor& indices, const char* name, std::int64_t limit) {
  if (const auto wrong = ops::first_out_of_range(indices, limit)) {
    fail<std::out_of_range>(kOp, name, "[", wrong->position, "] is ", wrong->index, ": expected [0, ", limit, ")");
  }
}

Tensor from_list(const std::vector<std::int64_t>& values, Device device) {
  const Tensor list = empty({static_cast<std::int64_t>(values.size())}, Dtype::i64);
  std::copy(values.begin(), values.end(), list.data<std::int64_t>());
  return ops::to_device(list, device);
}

// Of keys in [0, limit): where each one's items start, (limit + 1,), and the items by ascending key, those of a key in
// their order.
struct Sorted {
  Tensor starts, order;
};
template <class K>
Sorted counting_sort(const K* keys, std::int64_t size, std::int64_t limit) {
  Sorted sorted{zeros({limit + 1}, Dtype::i64), empty({size}, Dtype::i64)};
  auto* starts = sorted.starts.data<std::int64_t>();
  for (std::int64_t i = 0; i < size; ++i) ++starts[keys[i] + 1];
  for (std::int64_t k = 0; k < limit; ++k) starts[k + 1] += starts[k];
  std::vector<std::int64_t> next(starts, starts + limit);
  auto* order = sorted.order.data<std::int64_t>();
  for (std::int64_t i = 0; i < size; ++i) order[next[static_cast<std::size_t>(keys[i])]++] = i;
  return sorted;
}

}  // namespace

CsrPattern::CsrPattern(const Tensor& indptr, const Tensor& indices, std::int64_t rows, std::int64_t cols) {
  check(rows >= 0 && cols >= 0 && rows < std::numeric_limits<std::int64_t>::max(), kOp, "the shape is (", rows, ", ",
        cols, ")");
  check_list(indptr, "indptr");
  check_list(indices, "indices");
  const Device device = common_device(kOp, {&indptr, &indices});
  check(indptr.numel() == rows + 1, kOp, "indptr is ", indptr.shape(), ": expected (", rows + 1, ",) for ", rows,
        " rows");
  const std::int64_t size = indices.numel();
  const Tensor host = ops::contiguous(ops::cast(ops::to_device(indptr, Device{}), Dtype::i64));
  const auto* starts = host.data<std::int64_t>();
  check(starts[0] == 0, kOp, "indptr[0] is ", starts[0], ": expected 0");
  for (std::int64_t r = 0; r < rows; ++r) {
    check(starts[r] <= starts[r + 1], kOp, "indptr[", r + 1, "] is ", starts[r + 1], " after ", starts[r],
          ": expected no decrease");
  }
  check(starts[rows] == size, kOp, "indptr ends with ", starts[rows], ": there are ", size, " indices");
  indices_ = read_only(ops::clone(indices));
  check_range(indices_, "indices", cols);
  indptr_ = read_only(device == Device{} ? ops::clone(host) : ops::to_device(host, device));
  view_ = {.rows = rows,
           .cols = cols,
           .size = size,
           .indptr = indptr_.data<std::int64_t>(),
           .indices = indices_.raw(),
           .index_dtype = indices_.dtype(),
           .segment = device.type == DeviceType::cuda ? kCudaSegment : kCpuSegment,
           .long_rows = 0,
           .segments = 0,
           .long_row = nullptr,
           .first_segment = nullptr,
           .segment_owner = nullptr};
  cut_long_rows(starts);
}

void CsrPattern::cut_long_rows(const std::int64_t* starts) {
  std::vector<std::int64_t> rows, first{0}, owner;
  for (std::int64_t r = 0; r < view_.rows; ++r) {
    const std::int64_t length = starts[r + 1] - starts[r];
    if (length <= view_.segment) continue;
    owner.insert(owner.end(), static_cast<std::size_t>((length + view_.segment - 1) / view_.segment),
                 static_cast<std::int64_t>(rows.size()));
    rows.push_back(r);
    first.push_back(static_cast<std::int64_t>(owner.size()));
  }
  long_row_ = from_list(rows, device());
  first_segment_ = from_list(first, device());
  segment_owner_ = from_list(owner, device());
  view_.long_rows = long_row_.numel();
  view_.segments = segment_owner_.numel();
  view_.long_row = long_row_.data<std::int64_t>();
  view_.first_segment = first_segment_.data<std::int64_t>();
  view_.segment_owner = segment_owner_.data<std::int64_t>();
}

CsrPattern CsrPattern::to(Device device) const {
  return CsrPattern(ops::to_device(indptr_, device), ops::to_device(indices_, device), rows(), cols());
}

namespace ops {
namespace {

// The pattern of entries (rows[i], cols[i]) on the host, both in range.
std::pair<CsrPattern, Tensor> sort_entries(const Tensor& rows, const Tensor& cols, const Dims& shape, Device device) {
  Sorted sorted;
  dispatch_index(rows.dtype(), [&]<class R>() { sorted = counting_sort(rows.data<R>(), rows.numel(), shape[0]); });
  const Tensor indices = empty(cols.shape(), cols.dtype());
  const auto* order = sorted.order.data<std::int64_t>();
  dispatch_index(cols.dtype(), [&]<class C>() {
    const C* from = cols.data<C>();
    for (std::int64_t k = 0; k < cols.numel(); ++k) indices.data<C>()[k] = from[order[k]];
  });
  return {CsrPattern(to_device(sorted.starts, device), to_device(indices, device), shape[0], shape[1]),
          to_device(sorted.order, device)};
}

}  // namespace

std::pair<CsrPattern, Tensor> csr_from_coo(const Tensor& rows, const Tensor& cols, const Dims& shape) {
  check(shape.size() == 2 && shape[0] >= 0 && shape[1] >= 0, kOp, "the shape is ", shape, ": expected two extents");
  check_list(rows, "rows");
  check_list(cols, "cols");
  const Device device = common_device(kOp, {&rows, &cols});
  check(rows.numel() == cols.numel(), kOp, "rows is ", rows.shape(), ", cols is ", cols.shape());
  const Tensor row = contiguous(to_device(rows, Device{})), col = contiguous(to_device(cols, Device{}));
  check_range(row, "rows", shape[0]);
  check_range(col, "cols", shape[1]);
  return sort_entries(row, col, shape, device);
}

std::pair<CsrPattern, Tensor> csr_transpose(const CsrPattern& pattern) {
  const Tensor starts = to_device(pattern.indptr(), Device{}), cols = to_device(pattern.indices(), Device{});
  const bool wide = cols.dtype() == Dtype::i64 || pattern.rows() > std::numeric_limits<std::int32_t>::max();
  const Tensor rows = empty(cols.shape(), wide ? Dtype::i64 : Dtype::i32);
  dispatch_index(rows.dtype(), [&]<class R>() {
    const auto* start = starts.data<std::int64_t>();
    for (std::int64_t r = 0; r < pattern.rows(); ++r) {
      std::fill(rows.data<R>() + start[r], rows.data<R>() + start[r + 1], static_cast<R>(r));
    }
  });
  return sort_entries(cols, rows, {pattern.cols(), pattern.rows()}, pattern.device());
}

}  // namespace ops
}  // namespace drupe
