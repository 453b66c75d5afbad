#include "core/dlpack.h"

#include <cstdlib>
#include <limits>
#include <optional>

#include "core/check.h"
#include "core/cuda.h"

namespace drupe::dlpack {
namespace {

DLDataType to_dltype(Dtype dtype) {
  const auto bits = static_cast<std::uint8_t>(8 * size_of(dtype));
  switch (dtype) {
    case Dtype::bf16:
      return {kBFloat, bits, 1};
    case Dtype::boolean:
      return {kBool, bits, 1};
    case Dtype::u8:
      return {kUInt, bits, 1};
    default:
      return {is_float(dtype) ? kFloat : kInt, bits, 1};
  }
}

std::optional<Dtype> from_dltype(DLDataType type) {
  for (Dtype dtype : {Dtype::f32, Dtype::f64, Dtype::f16, Dtype::bf16, Dtype::i8, Dtype::u8, Dtype::i32, Dtype::i64,
                      Dtype::boolean}) {
    const DLDataType known = to_dltype(dtype);
    if (known.code == type.code && known.bits == type.bits && type.lanes == 1) return dtype;
  }
  return std::nullopt;
}

bool is_host(DLDevice device) {
  return device.device_type == kCpu || device.device_type == kCudaHost;
}

void check_device(const char* op, DLDevice device) {
  if (is_host(device)) return;
  const cuda::Status status = cuda::status();
  check(device.device_type == kCuda && device.device_id >= 0 && device.device_id < status.devices, op,
        "the tensor lies on device ", device.device_type, ":", device.device_id, ": drupe's are the CPU and ",
        status.devices, " CUDA device(s) (", status.reason, ")");
}

// Keeps what the DLTensor points to: the shape, the strides, and the memory's owner.
template <class Managed>
struct Holder {
  Managed managed;
  Tensor tensor;
  Dims shape, strides;
};

template <class Managed>
Holder<Managed>* hold(const Tensor& tensor) {
  auto* holder = new Holder<Managed>{{}, tensor, tensor.shape(), tensor.strides()};
  holder->managed.dl_tensor = {tensor.raw(),
                               to_dldevice(tensor.device()),
                               tensor.ndim(),
                               to_dltype(tensor.dtype()),
                               holder->shape.begin(),
                               holder->strides.begin(),
                               0};
  holder->managed.manager_ctx = holder;
  holder->managed.deleter = [](Managed* managed) { delete static_cast<Holder<Managed>*>(managed->manager_ctx); };
  return holder;
}

}  // namespace

DLDevice to_dldevice(Device device) {
  return {device.type == DeviceType::cpu ? kCpu : kCuda, device.index};
}

DLManagedTensor* to_managed(const Tensor& tensor) {
  return &hold<DLManagedTensor>(tensor)->managed;
}

DLManagedTensorVersioned* to_versioned(const Tensor& tensor, bool copied) {
  DLManagedTensorVersioned* managed = &hold<DLManagedTensorVersioned>(tensor)->managed;
  managed->major = kMajorVersion;
  managed->minor = kMinorVersion;
  managed->flags = (tensor.readonly() ? kReadOnly : 0) | (copied ? kIsCopied : 0);
  return managed;
}

void validate(const DLTensor& source) {
  constexpr const char* op = "from_dlpack";
  check_device(op, source.device);
  check(source.ndim >= 0 && source.ndim <= kMaxDims, op, "the tensor has ", source.ndim, " dimensions: expected 0 to ",
        kMaxDims);
  check(source.ndim == 0 || source.shape, op, "the tensor has no shape");
  check_type(from_dltype(source.dtype).has_value(), op, "dtype (code ", int{source.dtype.code}, ", ",
             int{source.dtype.bits}, " bits, ", source.dtype.lanes, " lanes) is not one of drupe's");
  const Dims shape(std::span<const std::int64_t>(source.shape, static_cast<std::size_t>(source.ndim)));
  const std::int64_t count = checked_numel(shape, op);
  if (count == 0) return;
  check(source.data, op, "the tensor of shape ", shape, " has no data");
  const auto itemsize = static_cast<std::int64_t>(size_of(*from_dltype(source.dtype)));
  check((reinterpret_cast<std::uintptr_t>(source.data) + source.byte_offset) % static_cast<std::size_t>(itemsize) == 0,
        op, "the data is not aligned to its elements of ", itemsize, " bytes");
  std::int64_t reach = 0;
  check(!__builtin_mul_overflow(count, itemsize, &reach), op, "shape is ", shape, ": too many bytes");
  if (!source.strides) return;
  reach = itemsize;
  for (int i = 0; i < source.ndim; ++i) {
    const std::int64_t stride = source.strides[i];
    std::int64_t step = 0;
    const bool fits = shape[i] == 1 || (stride != std::numeric_limits<std::int64_t>::min() &&
                                        !__builtin_mul_overflow(std::abs(stride), itemsize * (shape[i] - 1), &step) &&
                                        !__builtin_add_overflow(reach, step, &reach));
    check(fits, op, "strides reach further than 63 bits can count");
  }
}

Tensor from_dltensor(const DLTensor& source, bool readonly, std::function<void()> release) {
  const auto ndim = static_cast<std::size_t>(source.ndim);
  const Dims shape(std::span<const std::int64_t>(source.shape, ndim));
  const Dims strides =
      source.strides ? Dims(std::span<const std::int64_t>(source.strides, ndim)) : contiguous_strides(shape);
  void* data = static_cast<std::byte*>(source.data) + source.byte_offset;
  std::shared_ptr<void> owner(data ? data : &release, [release = std::move(release)](void*) { release(); });
  const Device device = is_host(source.device) ? Device{} : Device{DeviceType::cuda, source.device.device_id};
  return Tensor(std::move(owner), data, shape, strides, *from_dltype(source.dtype), device, readonly);
}

}  // namespace drupe::dlpack
