// Tensors of one value.
#pragma once

#include <string>
#include <variant>

#include "core/stream.h"
#include "core/tensor.h"
#include "cpu/isa.h"

namespace drupe {

// A Python number.
using Scalar = std::variant<bool, std::int64_t, double>;

struct FillArgs {
  void* y;
  std::int64_t bytes;
  unsigned char element[8];  // the value, as y's dtype stores it
  std::int64_t element_bytes;
};

namespace ops {

// A fresh contiguous tensor whose elements all are `value`. Throws std::invalid_argument where an integer dtype cannot
// hold it.
Tensor full(const Dims& shape, Scalar value, Dtype dtype, Device device = {});

// `value` as a tensor of no dimensions, for arithmetic with a tensor of that dtype. Throws TypeError for a float with
// an integer dtype, and for a number other than a bool with bool; std::invalid_argument as full().
Tensor scalar(const std::string& op, Scalar value, Dtype dtype, Device device = {});

}  // namespace ops

namespace cpu {
template <Isa>
void fill(const FillArgs& args);
}  // namespace cpu

namespace cuda {
void fill(const FillArgs& args, Stream stream);
}  // namespace cuda

}  // namespace drupe
