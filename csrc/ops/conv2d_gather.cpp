#include "ops/conv2d_gather.h"

namespace drupe {

GatherAxis forward_axis(const WindowAxis& axis) {
  return {.rows = axis.out,
          .taps = axis.kernel,
          .source = axis.in,
          .step = axis.stride,
          .base = -axis.before,
          .spread = axis.dilation,
          .first_tap = 0,
          .tap_step = 1,
          .first_out = 0,
          .out_step = 1};
}

GatherAxis backward_axis(const WindowAxis& axis, std::int64_t phase) {
  GatherAxis result{.rows = (axis.in - phase + axis.stride - 1) / axis.stride,
                    .taps = 0,
                    .source = axis.out,
                    .step = 1,
                    .base = 0,
                    .spread = 0,
                    .first_tap = 0,
                    .tap_step = 0,
                    .first_out = phase,
                    .out_step = axis.stride};
  std::int64_t last = -1, previous = -1;
  for (std::int64_t r = axis.kernel - 1; r >= 0; --r) {
    if ((phase + axis.before - r * axis.dilation) % axis.stride != 0) continue;
    if (last < 0) last = r;
    if (last != r && previous < 0) previous = r;
    ++result.taps;
  }
  if (result.taps == 0) return result;
  result.first_tap = last;
  result.tap_step = previous < 0 ? 0 : previous - last;
  result.base = (phase + axis.before - last * axis.dilation) / axis.stride;
  result.spread = -result.tap_step * axis.dilation / axis.stride;
  return result;
}

}  // namespace drupe
