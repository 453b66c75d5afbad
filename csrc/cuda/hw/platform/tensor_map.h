// Tensor maps: what a bulk tensor copy must know of a tensor in global memory. The driver is reached through the
// runtime, so that nothing links libcuda. Kernels take them as `const __grid_constant__ TensorMap`.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstdint>
#include <span>
#include <stdexcept>
#include <string>

#include "core/dtype.h"

namespace drupe::cuda {

using TensorMap = CUtensorMap;

// Innermost dimension first. `strides` are those of the outer dimensions, in bytes; element_strides may be left out.
// A box is dense in shared memory, its addresses swizzled within lines of `swizzle_bytes` (0, 32, 64 or 128).
struct TensorMapArgs {
  const void* base;
  Dtype dtype;
  std::span<const std::int64_t> sizes, strides;
  std::span<const int> box, element_strides = {};
  int swizzle_bytes = 0;
};

struct Im2colMapArgs {
  TensorMapArgs tensor;  // without a box
  std::span<const int> lower, upper;
  int channels, pixels;
};

// A function of the driver, as of the CUDA version that brought it.
template <class F>
F driver_function(const char* name) {
  void* address = nullptr;
  cudaDriverEntryPointQueryResult result{};
  const cudaError_t status = cudaGetDriverEntryPointByVersion(name, &address, 12000, cudaEnableDefault, &result);
  if (status != cudaSuccess || result != cudaDriverEntryPointSuccess) {
    throw std::runtime_error(std::string("[cuda] the driver has no ") + name);
  }
  return reinterpret_cast<F>(address);
}

// The arguments in the driver's types.
struct NativeTensor {
  explicit NativeTensor(const TensorMapArgs& args) : rank(static_cast<cuuint32_t>(args.sizes.size())) {
    if (rank < 1 || rank > 5) throw std::invalid_argument("[cuda] a tensor map has 1 to 5 dimensions");
    for (cuuint32_t d = 0; d < rank; ++d) {
      sizes[d] = static_cast<cuuint64_t>(args.sizes[d]);
      if (d > 0) strides[d - 1] = static_cast<cuuint64_t>(args.strides[d - 1]);
      box[d] = args.box.empty() ? 1 : static_cast<cuuint32_t>(args.box[d]);
      element_strides[d] = args.element_strides.empty() ? 1 : static_cast<cuuint32_t>(args.element_strides[d]);
    }
    switch (args.dtype) {
      case Dtype::bf16:
        type = CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
        break;
      case Dtype::f16:
        type = CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
        break;
      case Dtype::f32:
        type = CU_TENSOR_MAP_DATA_TYPE_FLOAT32;
        break;
      case Dtype::f64:
        type = CU_TENSOR_MAP_DATA_TYPE_FLOAT64;
        break;
      case Dtype::i32:
        type = CU_TENSOR_MAP_DATA_TYPE_INT32;
        break;
      case Dtype::i64:
        type = CU_TENSOR_MAP_DATA_TYPE_INT64;
        break;
      default:
        type = CU_TENSOR_MAP_DATA_TYPE_UINT8;
    }
    swizzle = args.swizzle_bytes == 128  ? CU_TENSOR_MAP_SWIZZLE_128B
              : args.swizzle_bytes == 64 ? CU_TENSOR_MAP_SWIZZLE_64B
              : args.swizzle_bytes == 32 ? CU_TENSOR_MAP_SWIZZLE_32B
                                         : CU_TENSOR_MAP_SWIZZLE_NONE;
  }

  cuuint32_t rank;
  CUtensorMapDataType type;
  CUtensorMapSwizzle swizzle;
  cuuint64_t sizes[5] = {}, strides[5] = {};
  cuuint32_t box[5] = {}, element_strides[5] = {};
};

inline void check_encoded(CUresult result) {
  if (result != CUDA_SUCCESS) {
    throw std::invalid_argument("[cuda] the driver refuses a tensor map: error " +
                                std::to_string(static_cast<int>(result)));
  }
}

// Throws std::invalid_argument where the hardware cannot.
inline TensorMap make_tensor_map(const TensorMapArgs& args) {
  static const auto encode = driver_function<decltype(&cuTensorMapEncodeTiled)>("cuTensorMapEncodeTiled");
  const NativeTensor native(args);
  TensorMap map;
  check_encoded(encode(&map, native.type, native.rank, const_cast<void*>(args.base), native.sizes, native.strides,
                       native.box, native.element_strides, CU_TENSOR_MAP_INTERLEAVE_NONE, native.swizzle,
                       CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE));
  return map;
}

// Small tensors need a bit that drivers up to 13.1 set too, and that makes the copy fail, cleared.
inline void mend_im2col(TensorMap& map, const NativeTensor& native, std::size_t element_bytes) {
  std::size_t bytes = element_bytes;
  for (cuuint32_t d = 0; d < native.rank; ++d) bytes *= native.sizes[d];
  int version = 0;
  if (cudaDriverGetVersion(&version) == cudaSuccess && version <= 13010 && bytes < 131072) {
    reinterpret_cast<std::uint64_t*>(&map)[1] &= ~(std::uint64_t{1} << 21);
  }
}

inline TensorMap make_im2col_map(const Im2colMapArgs& args) {
  static const auto encode = driver_function<decltype(&cuTensorMapEncodeIm2col)>("cuTensorMapEncodeIm2col");
  const NativeTensor native(args.tensor);
  TensorMap map;
  check_encoded(encode(&map, native.type, native.rank, const_cast<void*>(args.tensor.base), native.sizes,
                       native.strides, args.lower.data(), args.upper.data(), static_cast<cuuint32_t>(args.channels),
                       static_cast<cuuint32_t>(args.pixels), native.element_strides, CU_TENSOR_MAP_INTERLEAVE_NONE,
                       native.swizzle, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE));
  mend_im2col(map, native, size_of(args.tensor.dtype));
  return map;
}

}  // namespace drupe::cuda
