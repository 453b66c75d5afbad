// What the machine can do at most, measured: the ceilings that `drupe bench` holds kernels against.
//
//   fma_f32   c = a c + b in registers, float32: 2 flops an element
//   dot_bf16  pairs of bfloat16 products added to float32, in registers: 4 flops an element of the sum
//   read      the sum of an array: its bytes
//   copy      dst = src: the bytes read and those written (that a cache reads a line before it is written is not
//             counted, as in McCalpin's STREAM)
//   copy_nt   the same with stores past the caches; on a GPU there is no difference
//
// On the CPU each thread works on a slice of its own. A size that fits a cache level measures that level.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "core/stream.h"
#include "core/tensor.h"
#include "cpu/isa.h"

namespace drupe {

enum class Limit : std::uint8_t { fma_f32, dot_bf16, read, copy, copy_nt };

// One run: `tasks` slices of `size` floats each, `repeats` passes over each slice. On a GPU `tasks` is the number of
// blocks, which share one slice.
struct LimitArgs {
  Limit limit;
  const float* src;
  float* dst;
  float* sink;  // kLimitSink floats a task, written so that no work can be left out
  std::int64_t tasks;
  std::int64_t size;  // a multiple of kLimitStep
  std::int64_t repeats;
};

inline constexpr std::int64_t kLimitStep = 256, kLimitSink = 256;

namespace ops {

// Flops or bytes per second, the best run of about `seconds` of them on a GPU or on the threads in use; nullopt where
// the processor, or the instruction set in use, has no such instruction. `bytes` is the working set, of one array for
// read and of two for copies; it matters to bandwidths only.
std::optional<double> measure_limit(const std::string& name, std::int64_t bytes, double seconds, Device device = {});

}  // namespace ops

namespace cpu {
// Does the run and returns the flops or bytes that it took; 0 where it cannot.
template <Isa>
double run_limit(const LimitArgs& args);
}  // namespace cpu

namespace cuda {
double run_limit(const LimitArgs& args, Stream stream);
}  // namespace cuda

}  // namespace drupe
