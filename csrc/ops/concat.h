// Joining tensors, and setting one into a larger one. Each element is copied once.
#pragma once

#include <vector>

#include "core/tensor.h"
#include "ops/fill.h"

namespace drupe::ops {

// Along an existing axis; one dtype, and one shape but for that axis. At least one tensor.
Tensor concat(const std::vector<Tensor>& parts, std::int64_t axis);

// x with `before[i]` and `after[i]` elements of `value` around it along each dimension.
Tensor pad(const Tensor& x, const Dims& before, const Dims& after, Scalar value);

}  // namespace drupe::ops
