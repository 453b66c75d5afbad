// conv2d and the gradient of its input: implicit matrix products, or a kernel of their own where each channel is a
// group. The filters are packed first, so that each place in a product's depth has its row of them. The gradient is one
// product for each phase of the stride, with the taps that reach that phase only; kProducts of them run in one launch.
#include "ops/conv2d.h"

#include <algorithm>
#include <limits>
#include <memory>
#include <platform/launch.cuh>
#include <type_traits>
#include <utility>

#include "core/cuda.h"
#include "core/dispatch.h"
#include "cuda/conv2d/depthwise.cuh"
#include "cuda/conv2d/product.cuh"

namespace drupe::cuda {
namespace conv {
namespace {

constexpr int kPackThreads = 256;
constexpr int kPackTile = 32;  // columns and channels of a block

// to[group][(tap_h, tap_w, channel)][column] = the weight's element, strides counting elements; zero in the padding.
template <class T>
struct PackFilters {
  const T* weight;
  T* to;
  std::int64_t channels, cols, pitch;
  std::int64_t group_stride, channel_stride, col_stride;
  std::int64_t taps_h, taps_w, width;
  std::int64_t first_h, first_w, step_h, step_w;
  std::int64_t channel_tiles, col_tiles;
};

template <class T>
struct PackStorage {
  T tile[kPackTile][kPackTile + 1];  // [column][channel]
};

template <class T>
__global__ __launch_bounds__(kPackThreads) void conv2d_pack_filters_kernel(PackFilters<T> args) {
  auto& storage = shared_storage<PackStorage<T>>();
  const std::int64_t block = blockIdx.x, tiles = args.channel_tiles * args.col_tiles;
  const std::int64_t group = block / tiles, tile = block - group * tiles;
  const std::int64_t channel0 = tile / args.col_tiles * kPackTile, col0 = tile % args.col_tiles * kPackTile;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const bool channels_inner = args.channels > 1 && args.channel_stride < args.col_stride;
  for (std::int64_t tap = 0; tap < args.taps_h * args.taps_w; ++tap) {
    const std::int64_t at =
        (args.first_h + tap / args.taps_w * args.step_h) * args.width + args.first_w + tap % args.taps_w * args.step_w;
    for (int outer = warp; outer < kPackTile; outer += kPackThreads / 32) {
      const int c = channels_inner ? lane : outer, n = channels_inner ? outer : lane;
      const bool valid = channel0 + c < args.channels && col0 + n < args.cols;
      const std::int64_t from =
          group * args.group_stride + (channel0 + c) * args.channel_stride + (col0 + n) * args.col_stride + at;
      storage.tile[n][c] = valid ? args.weight[from] : narrow<T>(0);
    }
    __syncthreads();
    for (int c = warp; c < kPackTile; c += kPackThreads / 32) {
      if (channel0 + c >= args.channels || col0 + lane >= args.pitch) continue;
      const std::int64_t row = (group * args.taps_h * args.taps_w + tap) * args.channels + channel0 + c;
      args.to[row * args.pitch + col0 + lane] = storage.tile[lane][c];
    }
    __syncthreads();
  }
}

// The filters as the matrix of a product: strides within a group, in elements.
struct Filters {
  std::int64_t groups, channels, cols;
  std::int64_t channel_stride, col_stride;
};

template <class T>
struct PackedFilters {
  std::shared_ptr<void> owner;
  std::int64_t pitch = 0;
  const T* data() const { return static_cast<const T*>(owner.get()); }
};

template <class T>
PackedFilters<T> pack_filters(const Conv2dArgs& args, const Filters& filters, const GatherAxis& h, const GatherAxis& w,
                              Stream stream) {
  const std::int64_t pitch = ceil_div(filters.cols, kPackSize<T>) * kPackSize<T>;
  const std::int64_t size = filters.groups * h.taps * w.taps * filters.channels * pitch;
  PackedFilters<T> packed{allocate(static_cast<std::size_t>(std::max<std::int64_t>(1, size)) * sizeof(T),
                                   {DeviceType::cuda, stream.device}),
                          pitch};
  if (size == 0) return packed;
  const PackFilters<T> plan{.weight = static_cast<const T*>(args.weight),
                            .to = static_cast<T*>(packed.owner.get()),
                            .channels = filters.channels,
                            .cols = filters.cols,
                            .pitch = pitch,
                            .group_stride = filters.channels * filters.cols * args.h.kernel * args.w.kernel,
                            .channel_stride = filters.channel_stride,
                            .col_stride = filters.col_stride,
                            .taps_h = h.taps,
                            .taps_w = w.taps,
                            .width = args.w.kernel,
                            .first_h = h.first_tap,
                            .first_w = w.first_tap,
                            .step_h = h.tap_step,
                            .step_w = w.tap_step,
                            .channel_tiles = ceil_div(filters.channels, kPackTile),
                            .col_tiles = ceil_div(pitch, kPackTile)};
  const auto blocks = static_cast<unsigned>(filters.groups * plan.channel_tiles * plan.col_tiles);
  launch<conv2d_pack_filters_kernel<T>>(
      {.grid = {blocks}, .block = {kPackThreads}, .shared_bytes = sizeof(PackStorage<T>)}, stream, plan);
  return packed;
}

template <auto kKernel, class Storage, class T>
void launch_products(ProductBatch<T> batch, int count, int block_rows, int block_cols, int threads, Stream stream) {
  std::int64_t blocks = 0;
  for (int i = 0; i < kProducts; ++i) {
    Product<T>& product = batch.product[i];
    batch.first_block[i] = i < count ? blocks : std::numeric_limits<std::int64_t>::max();
    if (i >= count) continue;
    product.column_tiles = ceil_div(product.cols, block_cols);
    product.row_tiles = ceil_div(product.rows, block_rows);
    blocks += product.row_tiles * product.column_tiles * product.groups * product.splits;
  }
  launch<kKernel>({.grid = {static_cast<unsigned>(blocks)},
                   .block = {static_cast<unsigned>(threads)},
                   .shared_bytes = sizeof(Storage)},
                  stream, batch);
  for (int i = 0; i < count; ++i) {
    const Product<T>& product = batch.product[i];
    if (!product.partial) continue;
    const std::int64_t packs = product.rows * product.groups * (product.filter_pitch / kPackSize<T>);
    launch<conv2d_add_splits_kernel<T>>(
        {.grid = {static_cast<unsigned>(ceil_div(packs, kAddThreads))}, .block = {kAddThreads}}, stream, product);
  }
}

template <class T, int kSize>
void launch_thread_products(const ProductBatch<T>& batch, int count, Stream stream) {
  constexpr int kBlock = ThreadTile<T, kSize>::kBlock;
  launch_products<conv2d_thread_product_kernel<T, kSize>, ThreadProductStorage<T, kSize>>(batch, count, kBlock, kBlock,
                                                                                          kThreadTileThreads, stream);
}

template <class T, class Config>
void launch_tensor_products(const ProductBatch<T>& batch, int count, Stream stream) {
  launch_products<conv2d_tensor_product_kernel<T, Config>, TensorProductStorage<T, Config>>(
      batch, count, Config::kBlockM, Config::kBlockN, Config::kThreads, stream);
}

// Cuts the depth of products that have too few tiles for a large GPU. The results of the stretches live as long as what
// this returns; null where nothing is cut.
template <class T>
std::shared_ptr<void> split_depth(ProductBatch<T>& batch, int count, std::int64_t slice, Stream stream) {
  constexpr std::int64_t kBlock = kSmallBlock, kWantedBlocks = 132;
  std::int64_t tiles = 0, size = 0;
  for (int i = 0; i < count; ++i) {
    const Product<T>& product = batch.product[i];
    tiles += ceil_div(product.rows, kBlock) * ceil_div(product.cols, kBlock) * product.groups;
  }
  for (int i = 0; i < count; ++i) {
    Product<T>& product = batch.product[i];
    const Stretches stretches =
        choose_stretches(product.depth, tiles * 2 > kWantedBlocks ? 1 : kWantedBlocks, tiles, slice, 8);
    product.stretch = stretches.size;
    product.splits = stretches.count;
    if (product.splits > 1) size += product.splits * product.groups * product.rows * product.filter_pitch;
  }
  if (size == 0) return {};
  auto partial = allocate(static_cast<std::size_t>(size) * sizeof(Accumulator<T>), {DeviceType::cuda, stream.device});
  auto* to = static_cast<Accumulator<T>*>(partial.get());
  for (int i = 0; i < count; ++i) {
    Product<T>& product = batch.product[i];
    if (product.splits == 1) continue;
    product.partial = to;
    to += product.splits * product.groups * product.rows * product.filter_pitch;
  }
  return partial;
}

template <class T>
void run_products(ProductBatch<T> batch, int count, Stream stream) {
  constexpr std::int64_t kSlice = sizeof(T) == 2 ? LargeTensorTile::kBlockK : kThreadTileDepth<T>;
  const auto partial = split_depth(batch, count, kSlice, stream);
  const Product<T>& first = batch.product[0];
  const bool large = !partial && choose_block(first.rows, first.cols, first.groups, count,
                                              multiprocessors(stream.device)) == kLargeBlock;
  if constexpr (std::is_same_v<T, double>) {
    launch_thread_products<T, 4>(batch, count, stream);
  } else if constexpr (std::is_same_v<T, float>) {
    large ? launch_thread_products<T, 8>(batch, count, stream) : launch_thread_products<T, 4>(batch, count, stream);
  } else {
    large ? launch_tensor_products<T, LargeTensorTile>(batch, count, stream)
          : launch_tensor_products<T, SmallTensorTile>(batch, count, stream);
  }
}

// Convolutions that run in one launch where they are products, with the filters that they read.
template <class T>
class Batch {
 public:
  Batch(const Conv2dArgs& args, Stream stream) : args_(args), stream_(stream) {}

  // From an image with that many channels.
  void add(const void* image, std::int64_t channels, const Filters& filters, const GatherAxis& h, const GatherAxis& w,
           const Epilogue<T>& epilogue) {
    const Gather<T> gather = make_gather<T>(h, w, image, channels, filters.groups);
    PackedFilters<T> packed = pack_filters<T>(args_, filters, h, w, stream_);
    if (is_depthwise(args_)) {
      return run_depthwise<T>({.gather = gather,
                               .filters = packed.data(),
                               .filter_pitch = packed.pitch,
                               .lines = args_.N * h.rows,
                               .epilogue = epilogue},
                              stream_);
    }
    products_.product[count_] = {.gather = gather,
                                 .filters = packed.data(),
                                 .filter_pitch = packed.pitch,
                                 .rows = gather.rows(args_.N),
                                 .cols = filters.cols,
                                 .depth = gather.depth(),
                                 .groups = filters.groups,
                                 .column_tiles = 0,
                                 .row_tiles = 0,
                                 .splits = 1,
                                 .stretch = 0,
                                 .partial = nullptr,
                                 .epilogue = epilogue};
    packed_[count_] = std::move(packed);
    if (++count_ == kProducts) run();
  }
  void run() {
    if (count_ > 0) run_products(products_, count_, stream_);
    count_ = 0;
  }

 private:
  const Conv2dArgs& args_;
  Stream stream_;
  int count_ = 0;
  ProductBatch<T> products_{};
  PackedFilters<T> packed_[kProducts];
};

template <class T>
void forward(const Conv2dArgs& args, Stream stream) {
  const std::int64_t window = args.h.kernel * args.w.kernel, C = args.C / args.groups;
  Filters filters{args.groups, C, args.K / args.groups, window, C * window};
  if (is_depthwise(args)) filters = {1, 1, args.C, 0, window};
  Batch<T> batch(args, stream);
  batch.add(args.x, args.C, filters, forward_axis(args.h), forward_axis(args.w), forward_epilogue<T>(args));
  batch.run();
}

template <class T>
void backward_input(const Conv2dArgs& args, Stream stream) {
  const std::int64_t window = args.h.kernel * args.w.kernel, C = args.C / args.groups;
  Filters filters{args.groups, args.K / args.groups, C, C * window, window};
  if (is_depthwise(args)) filters = {1, 1, args.C, 0, window};
  Batch<T> batch(args, stream);
  for (std::int64_t phase_h = 0; phase_h < std::min(args.h.stride, args.h.in); ++phase_h) {
    for (std::int64_t phase_w = 0; phase_w < std::min(args.w.stride, args.w.in); ++phase_w) {
      const GatherAxis h = backward_axis(args.h, phase_h), w = backward_axis(args.w, phase_w);
      batch.add(args.dy, args.K, filters, h, w, backward_epilogue<T>(args, h, w));
    }
  }
  batch.run();
}

}  // namespace
}  // namespace conv

void conv2d(const Conv2dArgs& args, Stream stream) {
  dispatch_float(args.dtype, [&]<class T>() { conv::forward<T>(args, stream); });
}

void conv2d_backward_input(const Conv2dArgs& args, Stream stream) {
  dispatch_float(args.dtype, [&]<class T>() { conv::backward_input<T>(args, stream); });
}

}  // namespace drupe::cuda
