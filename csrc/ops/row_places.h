// Where the rows of a matrix are, of which only some are stored.
//
//   rows   (R,) int32 or int64, on any device: which rows of n are stored, in this order; IndexError for one that is
//          none of them, ValueError for one that comes twice
//   map()  (n,) int32: row r is the stored one map[r], or where that is negative none of them
//
// Made and checked on the host.
#pragma once

#include <cstdint>

#include "core/tensor.h"

namespace drupe {

class RowPlaces {
 public:
  RowPlaces(const char* op, const Tensor& rows, std::int64_t n, Device device);

  std::int64_t stored() const { return stored_; }
  std::int64_t all() const { return map_.numel(); }
  Device device() const { return map_.device(); }
  const std::int32_t* map() const { return map_.data<std::int32_t>(); }

 private:
  std::int64_t stored_;
  Tensor map_;
};

}  // namespace drupe
