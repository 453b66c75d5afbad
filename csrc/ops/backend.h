// Where an op runs: on the CPU with the instruction set in use, or on a device's current stream.
#pragma once

#include "core/cuda.h"
#include "cpu/isa.h"

namespace drupe {

#if defined(DRUPE_HAS_CUDA)
inline constexpr bool kHasCuda = true;
#else
inline constexpr bool kHasCuda = false;
#endif

// Calls cpu.operator()<Isa>() or cuda(stream). `cuda` is a generic lambda, [&](auto stream) { … }, so that a build
// without CUDA never asks for its kernel.
template <class Cpu, class Cuda>
void dispatch(Device device, Cpu&& cpu, Cuda&& cuda) {
  if constexpr (kHasCuda) {
    if (device.type == DeviceType::cuda) {
      cuda(cuda::current_stream(device.index));
      return;
    }
  }
  dispatch_isa(cpu);
}

}  // namespace drupe
