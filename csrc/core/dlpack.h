// The DLPack ABI (dmlc.github.io/dlpack, versions 0.x and 1.x) and its way to and from Tensor.
#pragma once

#include <cstdint>
#include <functional>

#include "core/tensor.h"

namespace drupe::dlpack {

enum DeviceCode : std::int32_t { kCpu = 1, kCuda = 2, kCudaHost = 3 };
enum TypeCode : std::uint8_t { kInt = 0, kUInt = 1, kFloat = 2, kBFloat = 4, kBool = 6 };
inline constexpr std::uint64_t kReadOnly = 1, kIsCopied = 2;
inline constexpr std::uint32_t kMajorVersion = 1, kMinorVersion = 0;

struct DLDevice {
  std::int32_t device_type;
  std::int32_t device_id;
};

struct DLDataType {
  std::uint8_t code;
  std::uint8_t bits;
  std::uint16_t lanes;
};

struct DLTensor {
  void* data;
  DLDevice device;
  std::int32_t ndim;
  DLDataType dtype;
  std::int64_t* shape;
  std::int64_t* strides;  // in elements; null means C-contiguous
  std::uint64_t byte_offset;
};

struct DLManagedTensor {
  DLTensor dl_tensor;
  void* manager_ctx;
  void (*deleter)(DLManagedTensor*);
};

struct DLManagedTensorVersioned {
  std::uint32_t major, minor;
  void* manager_ctx;
  void (*deleter)(DLManagedTensorVersioned*);
  std::uint64_t flags;
  DLTensor dl_tensor;
};

// The caller (or its consumer) calls the deleter once.
DLManagedTensor* to_managed(const Tensor& tensor);
DLManagedTensorVersioned* to_versioned(const Tensor& tensor, bool copied);

// Throws before it takes ownership: std::invalid_argument for a device that is not here, a rank or extent that drupe
// cannot hold, TypeError for a dtype. `release` runs when the last view of the memory is gone.
void validate(const DLTensor& source);
Tensor from_dltensor(const DLTensor& source, bool readonly, std::function<void()> release);

DLDevice to_dldevice(Device device);

}  // namespace drupe::dlpack
