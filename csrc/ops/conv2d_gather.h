// How the rows of a convolution's implicit matrix read its image: what the kernels of all devices share.
#pragma once

#include <cstdint>

#include "ops/window.h"

namespace drupe {

// One spatial dimension of a gather. Row i, tap t reads position i * step + base + t * spread of the source, or zero
// outside of it; tap t belongs to the weight's position first_tap + t * tap_step, row i to the output's first_out +
// i * out_step.
struct GatherAxis {
  std::int64_t rows, taps, source;
  std::int64_t step, base, spread;
  std::int64_t first_tap, tap_step;
  std::int64_t first_out, out_step;
};

GatherAxis forward_axis(const WindowAxis& axis);
// The gradient's: the positions phase, phase + stride, … of the image, and only the taps that reach them, last first.
GatherAxis backward_axis(const WindowAxis& axis, std::int64_t phase);

}  // namespace drupe
