// Copies: between any two layouts and dtypes of one shape.
#pragma once

#include "core/stream.h"
#include "core/tensor.h"
#include "cpu/isa.h"

namespace drupe {

// dst[i] = (dtype of dst) src[i]. Float to integer truncates towards zero and saturates (NaN gives 0); to
// bool is
// != 0. Strides count elements; dimensions of extent 1 are gone and adjacent ones are merged.
struct CopyArgs {
  const void* src;
  void* dst;
  Dims shape;
  Dims src_strides;
  Dims dst_strides;
  Dtype src_dtype;
  Dtype dst_dtype;
};

namespace ops {

// x itself where it is C-contiguous, else a contiguous copy.
Tensor contiguous(const Tensor& x);
// A fresh contiguous copy, always.
Tensor clone(const Tensor& x);
// x itself where the dtype is already that one.
Tensor cast(const Tensor& x, Dtype dtype);
// x itself where it lies on that device; a copy there otherwise, with x's strides where x is dense, else contiguous.
// With non_blocking, a copy to the host goes to page-locked memory and may come later, and one from page-locked memory
// may be read later: until the device has been waited for. From other memory it has happened on return.
Tensor to_device(const Tensor& x, Device device, bool non_blocking = false);
// The same elements in page-locked memory of the host: x itself where they lie there.
Tensor pin(const Tensor& x, int device = 0);
// Writes src, broadcast to dst's shape, into dst. They may overlap.
void copy_into(const Tensor& dst, const Tensor& src);
// A view where possible, a copy otherwise. One extent may be -1.
Tensor reshape(const Tensor& x, const Dims& shape);

}  // namespace ops

namespace cpu {
template <Isa>
void copy(const CopyArgs& args);
}  // namespace cpu

namespace cuda {
void copy(const CopyArgs& args, Stream stream);
}  // namespace cuda

}  // namespace drupe
