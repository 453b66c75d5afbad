// Dropout by a counter-based generator: the mask is a pure function of (seed, offset, element index), and so is the
// same on every device, instruction set and number of threads. A GPU draws it again on the way back; a CPU, for which
// that takes longer than a pass over memory, can keep it as a bit an element.
//
//   y_i = x_i / (1 - p) where u_i >= p, else 0;   p = 1 gives zeros
//   u_i = (word >> 8) 2^-24, word being word i mod 4 of philox4x32-10(counter, key)
//   counter = (b mod 2^32, b div 2^32, offset mod 2^32, offset div 2^32), b = i div 4;  key = (seed mod 2^32, seed div
//   2^32)
//
// i counts x's elements in C order of its indices, whatever their order in memory. x: any shape, float dtypes, copied
// unless contiguous; y: as x, contiguous. A dropped infinity or NaN gives 0. Backward does the same to dy.
// Srivastava et al. 2014, "Dropout"; Salmon et al. 2011, "Parallel Random Numbers: As Easy as 1, 2, 3", section 3.3.
#pragma once

#include <cstdint>
#include <optional>
#include <utility>

#include "core/stream.h"
#include "core/tensor.h"
#include "cpu/isa.h"

namespace drupe {

struct DropoutArgs {
  const void* x;
  void* y;
  std::int64_t size;
  double p;
  std::uint64_t seed, offset;
  Dtype dtype;
  const std::uint64_t* state = nullptr;  // on a device: {seed, offset} to take in place of seed, and to add to offset
  std::uint8_t* mask = nullptr;          // bit i mod 8 of byte i div 8: whether element i stays. The CPU's forward pass
                                         // writes it unless null, its backward pass reads it
};

// Some more than the bits fill, so that they can be read and written in words.
constexpr std::int64_t dropout_mask_bytes(std::int64_t size) {
  return (size + 15) / 16 * 2 + 4;
}

namespace ops {
// With a state, (2,) int64 on x's device, the stream is (state[0], state[1] + offset): what a graph was captured with.
// With `keep` y comes with the mask, if it is worth keeping: bytes for dropout_backward, which else draws it again.
std::pair<Tensor, std::optional<Tensor>> dropout(const Tensor& x, double p, std::uint64_t seed, std::uint64_t offset,
                                                 const std::optional<Tensor>& state, bool keep);
Tensor dropout_backward(const Tensor& dy, const std::optional<Tensor>& mask, double p, std::uint64_t seed,
                        std::uint64_t offset, const std::optional<Tensor>& state);
}  // namespace ops

namespace cpu {
template <Isa>
void dropout(const DropoutArgs& args);
template <Isa>
void dropout_backward(const DropoutArgs& args);
}  // namespace cpu

namespace cuda {
void dropout(const DropoutArgs& args, Stream stream);
}  // namespace cuda

}  // namespace drupe
