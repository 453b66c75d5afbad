// Convolution of each channel by itself (groups = C = K), and its input's gradient. A thread owns a pack of channels of
// kPixels neighbouring pixels of one row. Bytes: the image once from memory and once per tap from the caches.
#pragma once

#include <platform/launch.cuh>

#include "cuda/conv2d/epilogue.cuh"

namespace drupe::cuda::conv {

inline constexpr int kDepthwiseThreads = 128;
inline constexpr int kDepthwisePixels = 4;

template <class T>
struct Depthwise {
  Gather<T> gather;           // channels of all groups
  const T* filters;           // (tap, filter_pitch)
  std::int64_t filter_pitch;  // a multiple of 16 bytes
  std::int64_t lines;         // (n, i)
  Epilogue<T> epilogue;
};

template <class T>
__global__ __launch_bounds__(kDepthwiseThreads) void conv2d_depthwise_kernel(Depthwise<T> args) {
  using A = Accumulator<T>;
  constexpr int kPack = kPackSize<T>;
  const Gather<T>& gather = args.gather;
  const int packs = (gather.channels + kPack - 1) / kPack;
  const int runs = (gather.w.rows + kDepthwisePixels - 1) / kDepthwisePixels;
  const std::int64_t index = static_cast<std::int64_t>(blockIdx.x) * kDepthwiseThreads + threadIdx.x;
  const std::int64_t run = index / packs, line = run / runs;
  if (line >= args.lines) return;
  const int channel = static_cast<int>(index - run * packs) * kPack;
  const int count = gather.channels - channel < kPack ? gather.channels - channel : kPack;
  const int first = static_cast<int>(run - line * runs) * kDepthwisePixels;
  const Position row = position_of(gather, line * gather.w.rows + first);
  A sum[kDepthwisePixels][kPack] = {};
  for (int tap_h = 0; tap_h < gather.h.taps; ++tap_h) {
    const int h = row.h + tap_h * gather.h.spread;
    if (h < 0 || h >= gather.h.source) continue;
    for (int tap_w = 0; tap_w < gather.w.taps; ++tap_w) {
      const int tap = tap_h * gather.w.taps + tap_w;
      const auto filter = load_pack<kPack>(args.filters + tap * args.filter_pitch + channel);
      const int shift = tap_w * gather.w.spread;
      const std::int64_t offset =
          row.offset + (static_cast<std::int64_t>(tap_h) * gather.h.spread * gather.w.source + shift) * gather.pitch;
#pragma unroll
      for (int p = 0; p < kDepthwisePixels; ++p) {
        if (first + p >= gather.w.rows) continue;
        const int w = row.w + shift + p * gather.w.step;
        if (w < 0 || w >= gather.w.source) continue;
        const T* from = gather.source + offset + static_cast<std::int64_t>(p) * gather.w.step * gather.pitch + channel;
        Pack<T, kPack> x;
        if (gather.packed) {
          x = load_pack<kPack>(from);
        } else {
#pragma unroll
          for (int c = 0; c < kPack; ++c) x.element[c] = c < count ? from[c] : narrow<T>(0);
        }
#pragma unroll
        for (int c = 0; c < kPack; ++c) sum[p][c] += widen(x.element[c]) * widen(filter.element[c]);
      }
    }
  }
#pragma unroll
  for (int p = 0; p < kDepthwisePixels; ++p) {
    if (first + p >= gather.w.rows) break;
    const std::int64_t at = args.epilogue.offset_of(line * gather.w.rows + first + p);
    args.epilogue.finish(sum[p], at, channel, count);
  }
}

template <class T>
void run_depthwise(const Depthwise<T>& args, Stream stream) {
  const Gather<T>& gather = args.gather;
  const std::int64_t threads =
      args.lines * ceil_div(gather.w.rows, kDepthwisePixels) * ceil_div(gather.channels, kPackSize<T>);
  const auto blocks = static_cast<unsigned>(ceil_div(threads, kDepthwiseThreads));
  launch<conv2d_depthwise_kernel<T>>({.grid = {blocks}, .block = {kDepthwiseThreads}}, stream, args);
}

}  // namespace drupe::cuda::conv
