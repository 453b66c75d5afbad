// Tensor: a refcounted, strided view of a block of memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <ostream>

#include "core/dims.h"
#include "core/dtype.h"

namespace drupe {

enum class DeviceType : std::uint8_t { cpu, cuda };

struct Device {
  DeviceType type = DeviceType::cpu;
  int index = 0;
  bool operator==(const Device&) const = default;
};

inline std::ostream& operator<<(std::ostream& out, Device device) {
  if (device.type == DeviceType::cpu) return out << "cpu";
  return out << "cuda:" << device.index;
}

// Copies share memory. Strides count elements and may be zero or negative.
class Tensor {
 public:
  Tensor() = default;
  Tensor(std::shared_ptr<void> owner, void* data, Dims shape, Dims strides, Dtype dtype, Device device = {},
         bool readonly = false)
      : owner_(std::move(owner)),
        data_(data),
        shape_(shape),
        strides_(strides),
        dtype_(dtype),
        device_(device),
        readonly_(readonly) {}

  const Dims& shape() const { return shape_; }
  const Dims& strides() const { return strides_; }
  int ndim() const { return shape_.size(); }
  // Negative dimensions count from the end.
  std::int64_t size(int dim) const { return shape_[dim < 0 ? dim + ndim() : dim]; }
  std::int64_t stride(int dim) const { return strides_[dim < 0 ? dim + ndim() : dim]; }
  std::int64_t numel() const;
  std::size_t nbytes() const { return static_cast<std::size_t>(numel()) * size_of(dtype_); }
  Dtype dtype() const { return dtype_; }
  Device device() const { return device_; }
  bool readonly() const { return readonly_; }
  bool is_contiguous() const;
  bool defined() const { return owner_ != nullptr; }
  const std::shared_ptr<void>& owner() const { return owner_; }

  void* raw() const { return data_; }
  // The caller has checked the dtype; kernels get their pointers here.
  template <class T>
  T* data() const {
    return static_cast<T*>(data_);
  }

  // Views: no element moves. Each throws std::invalid_argument when the view does not exist.
  Tensor permute(const Dims& order) const;
  Tensor transpose(int dim0, int dim1) const;
  Tensor slice(int dim, std::int64_t start, std::int64_t stop, std::int64_t step) const;
  Tensor select(int dim, std::int64_t index) const;
  Tensor unsqueeze(int dim) const;
  Tensor squeeze(int dim) const;
  Tensor broadcast_to(const Dims& shape) const;
  // nullopt where the new shape needs a copy (ops::reshape makes it). One extent may be -1.
  std::optional<Tensor> try_reshape(const Dims& shape) const;

 private:
  std::shared_ptr<void> owner_;
  void* data_ = nullptr;
  Dims shape_;
  Dims strides_;
  Dtype dtype_ = Dtype::f32;
  Device device_;
  bool readonly_ = false;
};

// The number of elements; throws std::invalid_argument for a negative extent or where it overflows 63 bits.
std::int64_t checked_numel(const Dims& shape, const char* op);

Dims contiguous_strides(const Dims& shape);

// A fresh, uninitialised, contiguous tensor.
Tensor empty(const Dims& shape, Dtype dtype, Device device = {});
// The same with the strides of a dense `like` of that shape (its memory order), contiguous otherwise.
Tensor empty_like(const Tensor& like, Dtype dtype);
inline Tensor empty_like(const Tensor& like) {
  return empty_like(like, like.dtype());
}
// All bytes zero.
Tensor zeros(const Dims& shape, Dtype dtype, Device device = {});

// True when the elements fill one block without gap or overlap, in any order of dimensions.
bool is_dense(const Tensor& tensor);

// NumPy's broadcasting; throws std::invalid_argument naming both shapes.
Dims broadcast_shapes(const Dims& a, const Dims& b, const char* op);

// `dim` in [-ndim, ndim) as a dimension in [0, ndim); throws std::out_of_range otherwise.
int normalize_dim(std::int64_t dim, int ndim, const char* op);

// Throws std::invalid_argument unless all the defined ones lie on one device, which it returns.
Device common_device(const char* op, std::initializer_list<const Tensor*> tensors);

// Throws std::invalid_argument if the tensor is read-only: for ops that write in place.
void check_writable(const Tensor& tensor, const char* op, const char* what);

}  // namespace drupe
