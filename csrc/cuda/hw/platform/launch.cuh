// launch<kernel>(config, stream, arguments…): one way to start a kernel, every error checked.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <stdexcept>
#include <string>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <utility>

#include "core/stream.h"

namespace drupe::cuda {

struct Dim3 {
  unsigned x = 1, y = 1, z = 1;
};

struct LaunchConfig {
  Dim3 grid, block;
  std::size_t shared_bytes = 0;
  Dim3 cluster = {};
};

inline constexpr std::size_t kDefaultSharedBytes = 48 * 1024;  // beyond it a kernel must be told

template <auto kKernel>
std::string kernel_name() {
  std::string_view text = __PRETTY_FUNCTION__;
  const auto begin = text.find("kKernel = ");
  return std::string(begin == text.npos ? text : text.substr(begin + 10));
}

template <auto kKernel>
void check_launch(cudaError_t status) {
  if (status == cudaSuccess) return;
  std::string text = "[cuda] " + kernel_name<kKernel>() + ": " + cudaGetErrorString(status);
  if (status == cudaErrorNoKernelImageForDevice) {
    text += "; rebuild with DRUPE_CUDA_ARCHS naming this device's architecture";
  }
  throw std::runtime_error(text);
}

template <class... P, class... A>
cudaError_t launch_kernel(void (*kernel)(P...), const cudaLaunchConfig_t& config, const A&... arguments) {
  return cudaLaunchKernelEx(&config, kernel, static_cast<P>(arguments)...);
}

// Throws std::runtime_error.
template <auto kKernel, class... A>
void launch(const LaunchConfig& config, Stream stream, const A&... arguments) {
  if (config.shared_bytes > kDefaultSharedBytes) {
    check_launch<kKernel>(cudaFuncSetAttribute(reinterpret_cast<const void*>(kKernel),
                                               cudaFuncAttributeMaxDynamicSharedMemorySize,
                                               static_cast<int>(config.shared_bytes)));
  }
  cudaLaunchAttribute attribute{};
  cudaLaunchConfig_t native{};
  native.gridDim = dim3(config.grid.x, config.grid.y, config.grid.z);
  native.blockDim = dim3(config.block.x, config.block.y, config.block.z);
  native.dynamicSmemBytes = config.shared_bytes;
  native.stream = static_cast<cudaStream_t>(stream.handle);
  if (config.cluster.x * config.cluster.y * config.cluster.z > 1) {
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = config.cluster.x;
    attribute.val.clusterDim.y = config.cluster.y;
    attribute.val.clusterDim.z = config.cluster.z;
    native.attrs = &attribute;
    native.numAttrs = 1;
  }
  check_launch<kKernel>(launch_kernel(kKernel, native, arguments...));
}

}  // namespace drupe::cuda
