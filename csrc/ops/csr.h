// The pattern of a sparse matrix in compressed rows: where its entries are, but not their values.
//
//   indptr   (rows + 1,) int32 or int64: row r has the entries [indptr[r], indptr[r + 1]); from 0, without decrease
//   indices  (entries,) int32 or int64: each entry's column, in any order, in [0, cols): IndexError otherwise
//
// A pattern is checked when it is made and owns copies that nobody writes to, so that what takes one need not look
// again. Entries with the same place are allowed: they add up.
#pragma once

#include <cstdint>
#include <utility>

#include "core/tensor.h"

namespace drupe {

// A pattern as kernels see it. Rows of more than `segment` entries are long: they are cut into segments of so many (the
// last of a row may be shorter), for threads to share.
struct CsrView {
  std::int64_t rows, cols, size;
  const std::int64_t* indptr;  // (rows + 1,)
  const void* indices;         // (size,)
  Dtype index_dtype;
  std::int64_t segment, long_rows, segments;
  const std::int64_t* long_row;       // (long_rows,), ascending
  const std::int64_t* first_segment;  // (long_rows + 1,)
  const std::int64_t* segment_owner;  // (segments,): which of the long rows
};

class CsrPattern {
 public:
  CsrPattern(const Tensor& indptr, const Tensor& indices, std::int64_t rows, std::int64_t cols);

  std::int64_t rows() const { return view_.rows; }
  std::int64_t cols() const { return view_.cols; }
  std::int64_t size() const { return view_.size; }
  Device device() const { return indices_.device(); }
  const Tensor& indptr() const { return indptr_; }    // int64, read-only
  const Tensor& indices() const { return indices_; }  // read-only
  const CsrView& view() const { return view_; }

  CsrPattern to(Device device) const;

 private:
  CsrPattern() = default;
  void cut_long_rows(const std::int64_t* starts);

  Tensor indptr_, indices_, long_row_, first_segment_, segment_owner_;
  CsrView view_{};
};

namespace ops {

// The pattern of entries (rows[i], cols[i]), and `order` (entries,) int64: entry k of the pattern is the given one
// order[k]. Entries of a row keep their order. Sorted on the host, in time linear in entries and rows.
std::pair<CsrPattern, Tensor> csr_from_coo(const Tensor& rows, const Tensor& cols, const Dims& shape);
// The same for the transpose of a pattern, whose rows are then sorted.
std::pair<CsrPattern, Tensor> csr_transpose(const CsrPattern& pattern);

}  // namespace ops

}  // namespace drupe
