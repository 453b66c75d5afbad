// Sums over all pixels of one channel's dy, times the image's element at a tap: the gradients of a depthwise
// convolution's weight and (without image) of the bias. A block owns kSumPacks packs of channels, kSumTaps taps and a
// stretch of the pixels; kSumLanes threads of one pack take every kSumLanes-th of them. Bytes: dy once per kSumTaps
// taps, the image once per tap.
#pragma once

#include "cuda/conv2d/weight_product.cuh"

namespace drupe::cuda::conv {

inline constexpr int kSumPacks = 8, kSumLanes = 16, kSumTaps = 4;
inline constexpr int kSumThreads = kSumPacks * kSumLanes;

template <class T>
struct ChannelSums {
  Gather<T> gather;  // channels of all groups; source null: the sums of dy alone
  const T* dy;
  std::int64_t pixels, stretch;
  int taps;
  std::int64_t channels;
  bool packed;                              // dy and the image
  Accumulator<T>* partial;                  // (splits, taps, channels)
  std::int64_t channel_blocks, tap_blocks;  // how blocks are numbered: channels first, then taps, then stretches
};

template <class T>
struct ChannelSumsStorage {
  Accumulator<T> sum[kSumTaps][kSumLanes][kSumPacks * kPackSize<T>];
};

template <class T>
__device__ __forceinline__ Pack<T, kPackSize<T>> load_channels(const T* from, int count, bool packed) {
  if (packed) return load_pack<kPackSize<T>>(from);
  Pack<T, kPackSize<T>> pack;
#pragma unroll
  for (int c = 0; c < kPackSize<T>; ++c) pack.element[c] = c < count ? from[c] : narrow<T>(0);
  return pack;
}

// sum[t] += dy times the image at tap0 + t, over this thread's pixels.
template <class T>
__device__ __forceinline__ void sum_pixels(const ChannelSums<T>& args, std::int64_t begin, std::int64_t end, int tap0,
                                           std::int64_t channel, int count,
                                           Accumulator<T> (&sum)[kSumTaps][kPackSize<T>]) {
  const Gather<T>& gather = args.gather;
  Depth depth[kSumTaps];
  PixelWalk walk(gather, begin);
  if (gather.source) {
#pragma unroll
    for (int t = 0; t < kSumTaps; ++t) depth[t].seek(gather, (tap0 + t) * static_cast<std::int64_t>(gather.channels));
  }
  for (std::int64_t pixel = begin; pixel < end; pixel += kSumLanes) {
    const auto dy = load_channels(args.dy + pixel * args.channels + channel, count, args.packed);
    if (!gather.source) {
#pragma unroll
      for (int c = 0; c < kPackSize<T>; ++c) sum[0][c] += widen(dy.element[c]);
      continue;
    }
    const Position row = walk.position(gather);
    walk.advance(gather, kSumLanes);
#pragma unroll
    for (int t = 0; t < kSumTaps; ++t) {
      if (!is_inside(gather, row, depth[t])) continue;
      const auto x = load_channels(gather.source + row.offset + depth[t].offset + channel, count, args.packed);
#pragma unroll
      for (int c = 0; c < kPackSize<T>; ++c) sum[t][c] += widen(dy.element[c]) * widen(x.element[c]);
    }
  }
}

template <class T>
__global__ __launch_bounds__(kSumThreads) void conv2d_channel_sums_kernel(ChannelSums<T> args) {
  using A = Accumulator<T>;
  constexpr int kPack = kPackSize<T>, kChannels = kSumPacks * kPack;
  auto& storage = shared_storage<ChannelSumsStorage<T>>();
  const int pack = static_cast<int>(threadIdx.x) % kSumPacks, lane = static_cast<int>(threadIdx.x) / kSumPacks;
  const std::int64_t block = blockIdx.x, rest = block / args.channel_blocks, split = rest / args.tap_blocks;
  const std::int64_t channel0 = (block - rest * args.channel_blocks) * kChannels, channel = channel0 + pack * kPack;
  const int tap0 = static_cast<int>(rest - split * args.tap_blocks) * kSumTaps;
  const std::int64_t begin = split * args.stretch, end = begin + args.stretch;
  A sum[kSumTaps][kPack] = {};
  if (channel < args.channels) {
    const std::int64_t left = args.channels - channel;
    sum_pixels(args, begin + lane, end < args.pixels ? end : args.pixels, tap0, channel,
               left < kPack ? static_cast<int>(left) : kPack, sum);
  }
#pragma unroll
  for (int t = 0; t < kSumTaps; ++t) {
#pragma unroll
    for (int c = 0; c < kPack; ++c) storage.sum[t][lane][pack * kPack + c] = sum[t][c];
  }
  __syncthreads();
  for (int index = static_cast<int>(threadIdx.x); index < kSumTaps * kChannels; index += kSumThreads) {
    const int t = index / kChannels, c = index % kChannels;
    if (tap0 + t >= args.taps || channel0 + c >= args.channels) continue;
    A total = 0;
    for (int from = 0; from < kSumLanes; ++from) total += storage.sum[t][from][c];
    args.partial[(split * args.taps + tap0 + t) * args.channels + channel0 + c] = total;
  }
}

}  // namespace drupe::cuda::conv
