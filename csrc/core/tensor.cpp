#include "core/tensor.h"

#include <cstring>
#include <limits>

#include "core/cuda.h"
#include "core/memory.h"

namespace drupe {

std::int64_t checked_numel(const Dims& shape, const char* op) {
  std::int64_t count = 1;
  bool has_zero = false;
  for (std::int64_t extent : shape) {
    check(extent >= 0, op, "shape is ", shape, ": extents must not be negative");
    if (extent == 0) has_zero = true;
    if (extent > 1) {
      check(!__builtin_mul_overflow(count, extent, &count), op, "shape is ", shape, ": too many elements");
    }
  }
  return has_zero ? 0 : count;
}

Dims contiguous_strides(const Dims& shape) {
  Dims strides = shape;
  std::int64_t stride = 1;
  for (int i = shape.size() - 1; i >= 0; --i) {
    strides[i] = stride;
    stride *= std::max<std::int64_t>(shape[i], 1);
  }
  return strides;
}

std::int64_t Tensor::numel() const {
  std::int64_t count = 1;
  for (std::int64_t extent : shape_) count *= extent;
  return count;
}

bool Tensor::is_contiguous() const {
  if (numel() == 0) return true;
  std::int64_t expected = 1;
  for (int i = ndim() - 1; i >= 0; --i) {
    if (shape_[i] != 1 && strides_[i] != expected) return false;
    expected *= shape_[i];
  }
  return true;
}

Tensor Tensor::permute(const Dims& order) const {
  check(order.size() == ndim(), "permute", "axes are ", order, " for a tensor of shape ", shape_);
  Tensor view = *this;
  Dims seen = Dims::filled(ndim(), 0);
  for (int i = 0; i < ndim(); ++i) {
    const int from = normalize_dim(order[i], ndim(), "permute");
    check(seen[from]++ == 0, "permute", "axes are ", order, ": axis ", from, " is named twice");
    view.shape_[i] = shape_[from];
    view.strides_[i] = strides_[from];
  }
  return view;
}

Tensor Tensor::transpose(int dim0, int dim1) const {
  dim0 = normalize_dim(dim0, ndim(), "transpose");
  dim1 = normalize_dim(dim1, ndim(), "transpose");
  Tensor view = *this;
  std::swap(view.shape_[dim0], view.shape_[dim1]);
  std::swap(view.strides_[dim0], view.strides_[dim1]);
  return view;
}

// start and stop follow Python's slice.indices: already clipped, start = the first element taken.
Tensor Tensor::slice(int dim, std::int64_t start, std::int64_t stop, std::int64_t step) const {
  dim = normalize_dim(dim, ndim(), "slice");
  const std::int64_t extent = shape_[dim];
  check(step != 0, "slice", "step is 0");
  Tensor view = *this;
  view.shape_[dim] = 0;
  if (step > 0 ? start >= stop : start <= stop) return view;
  check(start >= 0 && start < extent && stop >= -1 && stop <= extent, "slice", "[", start, ":", stop, ":", step,
        "] leaves dimension ", dim, " of shape ", shape_);
  const std::int64_t count = step > 0 ? (stop - start - 1) / step + 1 : (stop - start + 1) / step + 1;
  view.shape_[dim] = count;
  view.data_ = static_cast<std::byte*>(data_) + start * strides_[dim] * static_cast<std::int64_t>(size_of(dtype_));
  if (count > 1) view.strides_[dim] = strides_[dim] * step;  // a step over all of it may overflow
  return view;
}

Tensor Tensor::select(int dim, std::int64_t index) const {
  dim = normalize_dim(dim, ndim(), "select");
  const std::int64_t extent = shape_[dim];
  check_index(index >= -extent && index < extent, "select", "index ", index, " is out of range for dimension ", dim,
              " of shape ", shape_);
  if (index < 0) index += extent;
  Tensor view = slice(dim, index, index + 1, 1);
  view.shape_.erase(dim);
  view.strides_.erase(dim);
  return view;
}

Tensor Tensor::unsqueeze(int dim) const {
  dim = normalize_dim(dim, ndim() + 1, "unsqueeze");
  Tensor view = *this;
  view.shape_.insert(dim, 1);
  view.strides_.insert(dim, 1);
  return view;
}

Tensor Tensor::squeeze(int dim) const {
  dim = normalize_dim(dim, ndim(), "squeeze");
  check(shape_[dim] == 1, "squeeze", "dimension ", dim, " of shape ", shape_, " is not 1");
  Tensor view = *this;
  view.shape_.erase(dim);
  view.strides_.erase(dim);
  return view;
}

Tensor Tensor::broadcast_to(const Dims& shape) const {
  const int added = shape.size() - ndim();
  check(added >= 0, "broadcast_to", "shape ", shape_, " has more dimensions than ", shape);
  checked_numel(shape, "broadcast_to");
  Tensor view = *this;
  view.shape_ = shape;
  view.strides_ = Dims::filled(shape.size(), 0);
  for (int i = 0; i < ndim(); ++i) {
    if (shape_[i] == shape[i + added]) {
      view.strides_[i + added] = strides_[i];
    } else {
      check(shape_[i] == 1, "broadcast_to", "shape ", shape_, " does not broadcast to ", shape);
    }
  }
  return view;
}

std::optional<Tensor> Tensor::try_reshape(const Dims& requested) const {
  Dims shape = requested;
  int unknown = -1;
  std::int64_t known = 1;
  for (int i = 0; i < shape.size(); ++i) {
    if (shape[i] == -1) {
      check(unknown < 0, "reshape", "shape is ", requested, ": more than one extent is -1");
      unknown = i;
    } else {
      check(shape[i] >= 0, "reshape", "shape is ", requested, ": extents must not be negative");
      check(!__builtin_mul_overflow(known, shape[i], &known), "reshape", "shape is ", requested, ": too many elements");
    }
  }
  const std::int64_t count = numel();
  if (unknown >= 0) {
    check(known > 0 && count % known == 0, "reshape", "cannot view shape ", shape_, " as ", requested);
    shape[unknown] = count / known;
  } else {
    check(known == count, "reshape", "cannot view shape ", shape_, " (", count, " elements) as ", requested, " (",
          known, ")");
  }
  Tensor view = *this;
  view.shape_ = shape;
  if (is_contiguous()) {
    view.strides_ = contiguous_strides(shape);
    return view;
  }
  // Split the old dimensions into runs that are contiguous among themselves; each new dimension must fall
  // inside one run.
  view.strides_ = Dims::filled(shape.size(), 0);
  int old_dim = ndim() - 1;
  int new_dim = shape.size() - 1;
  while (old_dim >= 0) {
    std::int64_t run = shape_[old_dim];
    const std::int64_t base = strides_[old_dim];
    while (old_dim > 0 && (shape_[old_dim - 1] == 1 || strides_[old_dim - 1] == base * run)) run *= shape_[--old_dim];
    --old_dim;
    std::int64_t filled = 1;
    while (new_dim >= 0 && (filled < run || shape[new_dim] == 1)) {
      view.strides_[new_dim] = base * filled;
      filled *= shape[new_dim--];
    }
    if (filled != run) return std::nullopt;
  }
  return view;
}

Tensor empty(const Dims& shape, Dtype dtype, Device device) {
  const std::int64_t count = checked_numel(shape, "empty");
  std::int64_t bytes = 0;
  check(!__builtin_mul_overflow(count, static_cast<std::int64_t>(size_of(dtype)), &bytes), "empty", "shape is ", shape,
        ": more bytes than 63 bits can count");
  const auto size = static_cast<std::size_t>(bytes);
  std::shared_ptr<void> block = device.type == DeviceType::cpu ? allocate(size) : cuda::allocate(size, device);
  void* data = block.get();
  return Tensor(std::move(block), data, shape, contiguous_strides(shape), dtype, device);
}

Tensor zeros(const Dims& shape, Dtype dtype, Device device) {
  Tensor tensor = empty(shape, dtype, device);
  if (device.type == DeviceType::cpu) {
    std::memset(tensor.raw(), 0, tensor.nbytes());
  } else {
    cuda::zero_bytes(tensor.raw(), tensor.nbytes(), device);
  }
  return tensor;
}

bool is_dense(const Tensor& tensor) {
  Dims order = Dims::filled(tensor.ndim(), 0);
  for (int i = 0; i < tensor.ndim(); ++i) order[i] = i;
  std::sort(order.begin(), order.end(), [&](std::int64_t a, std::int64_t b) {
    return tensor.stride(static_cast<int>(a)) < tensor.stride(static_cast<int>(b));
  });
  std::int64_t expected = 1;
  for (std::int64_t dim : order) {
    const std::int64_t extent = tensor.size(static_cast<int>(dim));
    if (extent == 0) return true;
    if (extent == 1) continue;
    if (tensor.stride(static_cast<int>(dim)) != expected) return false;
    expected *= extent;
  }
  return true;
}

Tensor empty_like(const Tensor& like, Dtype dtype) {
  Tensor fresh = empty(like.shape(), dtype, like.device());
  if (!is_dense(like)) return fresh;
  return Tensor(fresh.owner(), fresh.raw(), like.shape(), like.strides(), dtype, like.device());
}

Dims broadcast_shapes(const Dims& a, const Dims& b, const char* op) {
  const int ndim = std::max(a.size(), b.size());
  Dims shape = Dims::filled(ndim, 1);
  for (int i = 0; i < ndim; ++i) {
    const int ia = i - (ndim - a.size());
    const int ib = i - (ndim - b.size());
    const std::int64_t ea = ia < 0 ? 1 : a[ia];
    const std::int64_t eb = ib < 0 ? 1 : b[ib];
    check(ea == eb || ea == 1 || eb == 1, op, "shapes ", a, " and ", b, " do not broadcast: ", ea, " and ", eb,
          " differ");
    shape[i] = ea == 1 ? eb : ea;
  }
  checked_numel(shape, op);
  return shape;
}

int normalize_dim(std::int64_t dim, int ndim, const char* op) {
  check_index(dim >= -ndim && dim < ndim, op, "dimension ", dim, " is out of range for ", ndim, " dimensions");
  return static_cast<int>(dim < 0 ? dim + ndim : dim);
}

Device common_device(const char* op, std::initializer_list<const Tensor*> tensors) {
  const Tensor* first = nullptr;
  for (const Tensor* tensor : tensors) {
    if (!tensor || !tensor->defined()) continue;
    if (!first) first = tensor;
    check(tensor->device() == first->device(), op, "tensors lie on ", first->device(), " and on ", tensor->device(),
          ": move them to one device");
  }
  return first ? first->device() : Device{};
}

void check_writable(const Tensor& tensor, const char* op, const char* what) {
  check(!tensor.readonly(), op, what, " is read-only and would be written in place");
}

}  // namespace drupe
