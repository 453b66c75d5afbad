// The gradients of conv2d's weight and bias: sums over all output pixels. The weight's is the product of dy transposed,
// K x (N P Q), and the gathered image, (N P Q) x (r, s, c). Tasks are blocks of the result times stretches of the
// pixels, whose partial sums are added in order: how many depends on the sizes alone. Where it
// pays, 3 x 3 windows go by conv2d_winograd_weight.h instead. Worklog: bench/worklog/conv2d.md.
#include "core/dispatch.h"
#include "cpu/conv2d_depthwise.h"
#include "cpu/conv2d_gather.h"
#include "cpu/conv2d_narrow.h"
#include "cpu/conv2d_winograd_weight.h"
#include "cpu/lanes.h"
#include "ops/conv2d.h"

namespace drupe::cpu {
namespace {

constexpr std::int64_t kLeastTasks = 16;

// How the sums of one group are cut.
template <Isa I, class T>
struct WeightBlocks {
  using Tile = GemmTile<I, T>;
  static constexpr std::int64_t kDepth = Tile::kDepth / 2;  // of a slice: the packed image stays in L2
  static constexpr std::int64_t kTaskRows = 8 * Tile::kRows;
  std::int64_t rows, cols, padded_cols, depth;
  std::int64_t block_cols, row_blocks, col_blocks, splits, stretch;

  WeightBlocks(std::int64_t groups, std::int64_t K, std::int64_t columns, std::int64_t pixels)
      : rows(K), cols(columns), padded_cols(ceil_div(columns, Tile::kCols) * Tile::kCols), depth(pixels) {
    constexpr std::int64_t kPanels = 256 / Tile::kCols;
    const std::int64_t panels = padded_cols / Tile::kCols;
    col_blocks = ceil_div(panels, kPanels);
    block_cols = ceil_div(panels, col_blocks) * Tile::kCols;
    row_blocks = ceil_div(rows, kTaskRows);
    const std::int64_t wanted = ceil_div(kLeastTasks, groups * row_blocks * col_blocks);
    splits = std::clamp<std::int64_t>(wanted, 1, std::max<std::int64_t>(1, depth / (2 * kDepth)));
    stretch = std::max<std::int64_t>(1, ceil_div(ceil_div(depth, splits), kDepth)) * kDepth;
    splits = std::max<std::int64_t>(1, ceil_div(depth, stretch));
  }
  std::int64_t tasks() const { return row_blocks * col_blocks * splits; }
  std::int64_t partial_size() const { return rows * padded_cols; }
};

// One block of one group's sums over one stretch of pixels, into `sums` (rows x padded_cols of the whole group).
template <Isa I, class S>
void sum_block(const WeightBlocks<I, Accumulator<S>>& blocks, const S* dy, std::int64_t dy_row,
               const Gather<I, S>& image, std::int64_t task, Accumulator<S>* sums) {
  using T = Accumulator<S>;
  using Tile = GemmTile<I, T>;
  using Blocks = WeightBlocks<I, T>;
  const std::int64_t row0 = task / blocks.col_blocks % blocks.row_blocks * Blocks::kTaskRows;
  const std::int64_t col0 = task % blocks.col_blocks * blocks.block_cols;
  const std::int64_t begin = task / blocks.col_blocks / blocks.row_blocks * blocks.stretch;
  const std::int64_t end = std::min(blocks.depth, begin + blocks.stretch);
  const std::int64_t rows = std::min<std::int64_t>(Blocks::kTaskRows, blocks.rows - row0);
  const std::int64_t cols = std::min(blocks.block_cols, blocks.padded_cols - col0);
  if (cols <= 0) return;
  T* to = sums + row0 * blocks.padded_cols + col0;
  const Scratch<T> a(static_cast<std::size_t>(ceil_div(rows, Tile::kRows) * Tile::kRows * Tile::kPanelStride));
  const Scratch<T> b(static_cast<std::size_t>(cols * Blocks::kDepth));
  typename Gather<I, S>::Position positions[Blocks::kDepth];
  for (std::int64_t k0 = begin; k0 == begin || k0 < end; k0 += Blocks::kDepth) {
    const std::int64_t depth = std::min(Blocks::kDepth, end - k0);
    for (std::int64_t m = 0; m < rows; m += Tile::kRows) {
      T* panel = a.data() + m * Tile::kPanelStride;
      const std::int64_t height = std::min<std::int64_t>(Tile::kRows, rows - m);
      for (std::int64_t k = 0; k < depth; ++k) {
        copy_run<I>(panel + k * Tile::kRows, dy + (k0 + k) * dy_row + row0 + m, height);
      }
    }
    image.locate(positions, k0, depth);
    for (std::int64_t n = 0; n < cols; n += Tile::kCols) {
      T* panel = b.data() + n * Blocks::kDepth;
      const std::int64_t width = std::min<std::int64_t>(Tile::kCols, blocks.cols - col0 - n);
      if (width < Tile::kCols) zero_run(panel, depth * Tile::kCols);
      image.copy(panel, Tile::kCols, positions, depth, col0 + n, width);
    }
    gemm_block<I, true>(rows, cols, depth, a.data(), Tile::kPanelStride, b.data(), Tile::kCols * Blocks::kDepth, to,
                        blocks.padded_cols, k0 > begin, [](auto...) {});
  }
}

// dw[c][tap] = the sum of the partials' [tap][c], for one output channel; adds up in the first partial.
template <Isa I, class S>
void reduce_row(const WeightBlocks<I, Accumulator<S>>& blocks, Accumulator<S>* partials, std::int64_t channels, S* dw) {
  using V = Vec<Accumulator<S>, I>;
  for (std::int64_t split = 1; split < blocks.splits; ++split) {
    const Accumulator<S>* more = partials + split * blocks.partial_size();
    for (std::int64_t j = 0; j < blocks.padded_cols; j += V::kLanes) {
      (V::load(partials + j) + V::load(more + j)).store(partials + j);
    }
  }
  const std::int64_t taps = blocks.cols / channels;
  for (std::int64_t c = 0; c < channels; ++c) {
    for (std::int64_t tap = 0; tap < taps; ++tap) dw[c * taps + tap] = static_cast<S>(partials[tap * channels + c]);
  }
}

template <Isa I, class S>
void backward_weight(const Conv2dArgs& args) {
  using T = Accumulator<S>;
  const std::int64_t C = args.C / args.groups, K = args.K / args.groups;
  const Gather<I, S> gather{.h = forward_axis(args.h),
                            .w = forward_axis(args.w),
                            .source = static_cast<const S*>(args.x),
                            .pitch = args.C,
                            .channels = C};
  // The sums at all points are four times the gradient, written and read at least once: 8 more patches for each 8 MiB.
  constexpr std::int64_t kMiB = std::int64_t{1} << 20;
  using W = WinogradBy<Product>;
  const std::int64_t bytes = W::kPoints * C * K * static_cast<std::int64_t>(sizeof(T));
  const bool large = bytes > 256 * kMiB && args.algorithm == Conv2dAlgorithm::automatic;
  if (!large && by_winograd<I, S, W>(args, gather.h, gather.w, C, bytes / (2 * kMiB))) {
    WinogradWeightGradient<I, S>(gather, static_cast<const S*>(args.dy), args.N, K).run(static_cast<S*>(args.out));
    return;
  }
  using Narrow = NarrowConvolution<I, S, Product>;
  if (Narrow::takes(gather.h, gather.w, args.groups, C, K) && args.N > 0) {
    Narrow(gather, forward_filters<I, S>(args, gather.h, gather.w), K * C * args.h.kernel * args.w.kernel, args.N,
           args.groups, K)
        .gradient(static_cast<const S*>(args.dy), static_cast<S*>(args.out));
    return;
  }
  const WeightBlocks<I, T> blocks(args.groups, K, gather.depth(), gather.rows(args.N));
  const std::int64_t group_size = blocks.splits * blocks.partial_size();
  const Scratch<T> partials(static_cast<std::size_t>(args.groups * group_size));
  parallel_for(args.groups * blocks.tasks(), [&](std::int64_t task) {
    const std::int64_t group = task / blocks.tasks();
    const std::int64_t index = task % blocks.tasks();
    const std::int64_t split = index / blocks.col_blocks / blocks.row_blocks;
    Gather<I, S> image = gather;
    image.source += group * C;
    sum_block<I, S>(blocks, static_cast<const S*>(args.dy) + group * K, args.K, image, index,
                    partials.data() + group * group_size + split * blocks.partial_size());
  });
  parallel_ranges(args.K, 4, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t k = begin; k < end; ++k) {
      reduce_row<I, S>(blocks, partials.data() + k / K * group_size + k % K * blocks.padded_cols, C,
                       static_cast<S*>(args.out) + k * blocks.cols);
    }
  });
}

// sums[tap][c] += x dy over one row of output pixels.
template <Isa I, class S>
void depthwise_row(const Gather<I, S>& gather, const S* dy, std::int64_t row, Accumulator<S>* sums) {
  using V = Vec<Accumulator<S>, I>;
  const GatherAxis &h = gather.h, &w = gather.w;
  const std::int64_t C = gather.channels;
  const std::int64_t at_h = row % h.rows * h.step + h.base;
  const TapRange r = taps_inside(h, at_h);
  for (std::int64_t tap_h = r.first; tap_h < r.last; ++tap_h) {
    const S* line = gather.source + (row / h.rows * h.source + at_h + tap_h * h.spread) * w.source * C;
    for (std::int64_t tap_w = 0; tap_w < w.taps; ++tap_w) {
      const std::int64_t at_w = w.base + tap_w * w.spread;
      const std::int64_t first = at_w >= 0 ? 0 : ceil_div(-at_w, w.step);
      const std::int64_t last = at_w >= w.source ? 0 : std::min(w.rows, (w.source - 1 - at_w) / w.step + 1);
      for_vectors<I, Accumulator<S>>(C, [&](std::int64_t c, auto lanes) {
        Accumulator<S>* to = sums + (tap_h * w.taps + tap_w) * C + c;
        V sum = load<V>(to, lanes);
        for (std::int64_t j = first; j < last; ++j) {
          sum = fma(load<V>(line + (at_w + j * w.step) * C + c, lanes), load<V>(dy + j * C + c, lanes), sum);
        }
        store(sum, to, lanes);
      });
    }
  }
}

// Stretches of `size` things: enough for a few threads, few enough to add up.
DRUPE_INLINE std::int64_t stretch_of(std::int64_t size, std::int64_t least) {
  constexpr std::int64_t kStretches = 32;
  return std::max({std::int64_t{1}, least, ceil_div(size, kStretches)});
}

template <Isa I, class S>
void depthwise_weight(const Conv2dArgs& args) {
  using T = Accumulator<S>;
  const Gather<I, S> gather{.h = forward_axis(args.h),
                            .w = forward_axis(args.w),
                            .source = static_cast<const S*>(args.x),
                            .pitch = args.C,
                            .channels = args.C};
  const std::int64_t taps = gather.h.taps * gather.w.taps;
  const std::int64_t rows = args.N * args.h.out;
  const std::int64_t stretch = stretch_of(rows, 1);
  const std::int64_t count = std::max<std::int64_t>(1, ceil_div(rows, stretch));
  const Scratch<T> partials(static_cast<std::size_t>(count * taps * args.C));
  parallel_for(count, [&](std::int64_t task) {
    T* sums = partials.data() + task * taps * args.C;
    zero_run(sums, taps * args.C);
    for (std::int64_t row = task * stretch; row < std::min(rows, (task + 1) * stretch); ++row) {
      depthwise_row<I, S>(gather, static_cast<const S*>(args.dy) + row * args.w.out * args.C, row, sums);
    }
  });
  S* dw = static_cast<S*>(args.out);
  for (std::int64_t c = 0; c < args.C; ++c) {
    for (std::int64_t tap = 0; tap < taps; ++tap) {
      T sum = 0;
      for (std::int64_t i = 0; i < count; ++i) sum += partials[static_cast<std::size_t>((i * taps + tap) * args.C + c)];
      dw[c * taps + tap] = static_cast<S>(sum);
    }
  }
}

// sums[k] = the sum of rows of dy.
template <Isa I, class S>
void column_sums(const S* dy, std::int64_t rows, std::int64_t K, Accumulator<S>* sums) {
  using V = Vec<Accumulator<S>, I>;
  for_vectors<I, Accumulator<S>>(K, [&](std::int64_t k, auto lanes) {
    V even = V::zero(), odd = V::zero();
    std::int64_t row = 0;
    for (; row + 2 <= rows; row += 2) {
      even = even + load<V>(dy + row * K + k, lanes);
      odd = odd + load<V>(dy + (row + 1) * K + k, lanes);
    }
    if (row < rows) even = even + load<V>(dy + row * K + k, lanes);
    store(even + odd, sums + k, lanes);
  });
}

template <Isa I, class S>
void backward_bias(const Conv2dArgs& args) {
  using T = Accumulator<S>;
  const std::int64_t K = args.K;
  const std::int64_t stretch = stretch_of(args.N, 32768 / K);
  const std::int64_t count = std::max<std::int64_t>(1, ceil_div(args.N, stretch));
  const Scratch<T> partials(static_cast<std::size_t>(count * K));
  parallel_for(count, [&](std::int64_t task) {
    const std::int64_t begin = task * stretch;
    column_sums<I>(static_cast<const S*>(args.dy) + begin * K, std::min(args.N - begin, stretch), K,
                   partials.data() + task * K);
  });
  for (std::int64_t k = 0; k < K; ++k) {
    T sum = 0;
    for (std::int64_t i = 0; i < count; ++i) sum += partials[static_cast<std::size_t>(i * K + k)];
    static_cast<S*>(args.out)[k] = static_cast<S>(sum);
  }
}

}  // namespace

template <Isa I>
void conv2d_backward_weight(const Conv2dArgs& args) {
  const bool depthwise = args.C == args.groups && args.K == args.groups;
  dispatch_float(args.dtype, [&]<class S>() {
    if (depthwise) {
      depthwise_weight<I, S>(args);
    } else {
      backward_weight<I, S>(args);
    }
  });
}

template <Isa I>
void conv2d_backward_bias(const Conv2dArgs& args) {
  dispatch_float(args.dtype, [&]<class S>() { backward_bias<I, S>(args); });
}

template void conv2d_backward_weight<Isa::DRUPE_ISA>(const Conv2dArgs&);
template void conv2d_backward_bias<Isa::DRUPE_ISA>(const Conv2dArgs&);

}  // namespace drupe::cpu
