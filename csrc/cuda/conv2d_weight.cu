// The gradients of conv2d's weight and bias: sums over all output pixels, in stretches whose number depends on the
// sizes alone; the partial sums are added in order.
#include <algorithm>
#include <memory>
#include <platform/launch.cuh>
#include <type_traits>

#include "core/cuda.h"
#include "core/dispatch.h"
#include "cuda/conv2d/channel_sums.cuh"
#include "cuda/tile/map.cuh"
#include "ops/conv2d.h"

namespace drupe::cuda {
namespace conv {
namespace {

constexpr std::int64_t kWantedBlocks = 264;  // two for each multiprocessor of a large GPU

template <class A>
std::shared_ptr<void> allocate_partial(std::int64_t size, Stream stream) {
  return allocate(static_cast<std::size_t>(size) * sizeof(A), {DeviceType::cuda, stream.device});
}

// out[row][channel][tap] = the sum over splits of partial[split][row][(tap, channel)]
template <class T>
struct AddPartials {
  const Accumulator<T>* partial;
  T* out;
  std::int64_t splits, rows, pitch, taps, channels;
};

template <class T>
__global__ __launch_bounds__(kMapThreads) void conv2d_add_partials_kernel(AddPartials<T> args) {
  const std::int64_t cols = args.taps * args.channels, size = args.rows * cols;
  for (std::int64_t index = global_thread(); index < size; index += global_threads()) {
    const std::int64_t row = index / cols, col = index - row * cols;
    const std::int64_t tap = col / args.channels, channel = col - tap * args.channels;
    const Accumulator<T>* from = args.partial + row * args.pitch + col;
    Accumulator<T> sum = 0;
    for (std::int64_t split = 0; split < args.splits; ++split) sum += from[split * args.rows * args.pitch];
    args.out[(row * args.channels + channel) * args.taps + tap] = narrow<T>(sum);
  }
}

template <class T>
void add_partials(const AddPartials<T>& args, Stream stream) {
  launch<conv2d_add_partials_kernel<T>>(
      {.grid = {blocks_for(args.rows * args.taps * args.channels)}, .block = {kMapThreads}}, stream, args);
}

template <auto kKernel, class Storage, class T>
void launch_weight_product(WeightProduct<T> product, T* out, int block_rows, int block_cols, int slice, int threads,
                           Stream stream) {
  product.row_tiles = ceil_div(product.rows, block_rows);
  product.col_tiles = ceil_div(product.cols, block_cols);
  const std::int64_t blocks = product.row_tiles * product.col_tiles * product.groups;
  const Stretches stretches = choose_stretches(product.pixels, kWantedBlocks, blocks, slice, 8);
  product.stretch = stretches.size;
  product.splits = stretches.count;
  const std::int64_t rows = product.groups * product.rows;
  const auto partial = allocate_partial<Accumulator<T>>(product.splits * rows * product.pitch, stream);
  product.partial = static_cast<Accumulator<T>*>(partial.get());
  launch<kKernel>({.grid = {static_cast<unsigned>(blocks * product.splits)},
                   .block = {static_cast<unsigned>(threads)},
                   .shared_bytes = sizeof(Storage)},
                  stream, product);
  const std::int64_t channels = product.gather.channels;
  add_partials<T>({.partial = product.partial,
                   .out = out,
                   .splits = product.splits,
                   .rows = rows,
                   .pitch = product.pitch,
                   .taps = product.cols / channels,
                   .channels = channels},
                  stream);
}

template <class T, int kSize>
void launch_thread_weight(const WeightProduct<T>& product, T* out, Stream stream) {
  constexpr int kBlock = ThreadTile<T, kSize>::kBlock;
  launch_weight_product<conv2d_thread_weight_kernel<T, kSize>, ThreadWeightStorage<T, kSize>>(
      product, out, kBlock, kBlock, kThreadTileDepth<T>, kThreadTileThreads, stream);
}

template <class T, class Config>
void launch_tensor_weight(const WeightProduct<T>& product, T* out, Stream stream) {
  launch_weight_product<conv2d_tensor_weight_kernel<T, Config>, TensorWeightStorage<T, Config>>(
      product, out, Config::kBlockM, Config::kBlockN, Config::kBlockK, Config::kThreads, stream);
}

template <class T>
void backward_weight(const Conv2dArgs& args, Stream stream) {
  const Gather<T> gather = make_gather<T>(forward_axis(args.h), forward_axis(args.w), args.x, args.C, args.groups);
  const auto* dy = static_cast<const T*>(args.dy);
  const std::int64_t rows = args.K / args.groups, cols = gather.depth();
  constexpr std::int64_t kPartialPack = kPackSize<Accumulator<T>>;
  const WeightProduct<T> product{.gather = gather,
                                 .dy = dy,
                                 .dy_pitch = args.K,
                                 .dy_packed = rows % kPackSize<T> == 0 && is_pack_aligned(dy),
                                 .partial = nullptr,
                                 .rows = rows,
                                 .cols = cols,
                                 .pitch = ceil_div(cols, kPartialPack) * kPartialPack,
                                 .groups = args.groups,
                                 .pixels = gather.rows(args.N),
                                 .stretch = 0,
                                 .splits = 0,
                                 .row_tiles = 0,
                                 .col_tiles = 0};
  auto* out = static_cast<T*>(args.out);
  const bool large = rows > kSmallBlock && cols > kSmallBlock;
  if constexpr (std::is_same_v<T, double>) {
    launch_thread_weight<T, 4>(product, out, stream);
  } else if constexpr (std::is_same_v<T, float>) {
    large ? launch_thread_weight<T, 8>(product, out, stream) : launch_thread_weight<T, 4>(product, out, stream);
  } else {
    large ? launch_tensor_weight<T, LargeTensorTile>(product, out, stream)
          : launch_tensor_weight<T, SmallTensorTile>(product, out, stream);
  }
}

// The sums of each channel, to out[channel][tap].
template <class T>
void channel_sums(ChannelSums<T> sums, T* out, Stream stream) {
  constexpr int kSlice = kSumLanes * 4;
  sums.packed = sums.channels % kPackSize<T> == 0 && is_pack_aligned(sums.dy, sums.gather.source);
  sums.channel_blocks = ceil_div(sums.channels, kSumPacks * kPackSize<T>);
  sums.tap_blocks = ceil_div(sums.taps, kSumTaps);
  const std::int64_t blocks = sums.channel_blocks * sums.tap_blocks;
  const Stretches stretches = choose_stretches(sums.pixels, kWantedBlocks, blocks, kSlice, 2);
  sums.stretch = stretches.size;
  const auto partial = allocate_partial<Accumulator<T>>(stretches.count * sums.taps * sums.channels, stream);
  sums.partial = static_cast<Accumulator<T>*>(partial.get());
  launch<conv2d_channel_sums_kernel<T>>({.grid = {static_cast<unsigned>(blocks * stretches.count)},
                                         .block = {kSumThreads},
                                         .shared_bytes = sizeof(ChannelSumsStorage<T>)},
                                        stream, sums);
  add_partials<T>({.partial = sums.partial,
                   .out = out,
                   .splits = stretches.count,
                   .rows = 1,
                   .pitch = sums.taps * sums.channels,
                   .taps = sums.taps,
                   .channels = sums.channels},
                  stream);
}

template <class T>
void depthwise_weight(const Conv2dArgs& args, Stream stream) {
  const Gather<T> gather = make_gather<T>(forward_axis(args.h), forward_axis(args.w), args.x, args.C, 1);
  channel_sums<T>({.gather = gather,
                   .dy = static_cast<const T*>(args.dy),
                   .pixels = gather.rows(args.N),
                   .stretch = 0,
                   .taps = gather.h.taps * gather.w.taps,
                   .channels = args.C,
                   .packed = false,
                   .partial = nullptr,
                   .channel_blocks = 0,
                   .tap_blocks = 0},
                  static_cast<T*>(args.out), stream);
}

template <class T>
void backward_bias(const Conv2dArgs& args, Stream stream) {
  Gather<T> none{};
  none.h.rows = none.w.rows = 1;
  channel_sums<T>({.gather = none,
                   .dy = static_cast<const T*>(args.dy),
                   .pixels = args.N,
                   .stretch = 0,
                   .taps = 1,
                   .channels = args.K,
                   .packed = false,
                   .partial = nullptr,
                   .channel_blocks = 0,
                   .tap_blocks = 0},
                  static_cast<T*>(args.out), stream);
}

}  // namespace
}  // namespace conv

void conv2d_backward_weight(const Conv2dArgs& args, Stream stream) {
  const bool depthwise = args.C == args.groups && args.K == args.groups;
  dispatch_float(args.dtype, [&]<class T>() {
    depthwise ? conv::depthwise_weight<T>(args, stream) : conv::backward_weight<T>(args, stream);
  });
}

void conv2d_backward_bias(const Conv2dArgs& args, Stream stream) {
  dispatch_float(args.dtype, [&]<class T>() { conv::backward_bias<T>(args, stream); });
}

}  // namespace drupe::cuda
