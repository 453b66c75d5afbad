// conv2d and the gradient of its input: implicit matrix products of gathered rows (n, p, q) x (r, s, c) and the weight,
// packed once. The gradient is one such product per phase of the stride, with the taps that hit that phase only. Where
// it pays, 3 x 3 windows go by conv2d_winograd.h instead, and groups of few channels by conv2d_narrow.h.
// Bytes: the image once from memory and once per tap from the caches. Worklog: bench/worklog/conv2d.md.
#include "ops/conv2d.h"

#include "core/dispatch.h"
#include "cpu/activation.h"
#include "cpu/conv2d_depthwise.h"
#include "cpu/conv2d_gather.h"
#include "cpu/conv2d_narrow.h"
#include "cpu/conv2d_winograd.h"
#include "cpu/gemm_epilogue.h"
#include "cpu/gemm_rows.h"
#include "cpu/lanes.h"

namespace drupe::cpu {
namespace {

// Whether y goes past the caches.
template <Isa I, class S>
bool streams(const Conv2dArgs& args) {
  return leaves_caches<I>(args.N * args.h.out * args.w.out * args.K * static_cast<std::int64_t>(sizeof(S)));
}

// y = activation(tile + bias + residual) on a finished tile of y's (N P Q) x K matrix; y may be where the tile lies.
template <Isa I, class S, Activation A>
void epilogue(const Conv2dArgs& args, std::int64_t row0, std::int64_t col0, std::int64_t rows, std::int64_t cols,
              const Accumulator<S>* tile, std::int64_t tile_row) {
  using V = Vec<Accumulator<S>, I>;
  const auto* bias = static_cast<const S*>(args.bias);
  const auto* residual = static_cast<const S*>(args.residual);
  auto* pre = static_cast<S*>(args.pre_activation);
  auto* y = static_cast<S*>(args.out);
  if (kHasTileEnd<I> && cols == GemmTile<I, Accumulator<S>>::kCols && !pre) {
    const std::int64_t at = row0 * args.K + col0;
    const S* added = residual ? residual + at : nullptr;
    const TileEnd<I, S> end{bias ? bias + col0 : nullptr, added, args.K, nullptr, y + at, args.K, streams<I, S>(args)};
    end.template write<A>(rows, tile, tile_row);
    return;
  }
  for (std::int64_t i = 0; i < rows; ++i) {
    const std::int64_t at = (row0 + i) * args.K + col0;
    for_vectors<I, Accumulator<S>>(cols, [&](std::int64_t j, auto lanes) {
      V x = load<V>(tile + i * tile_row + j, lanes);
      if (bias) x = x + load<V>(bias + col0 + j, lanes);
      if (residual) x = x + load<V>(residual + at + j, lanes);
      if (pre) store(x, pre + at + j, lanes);
      store(activate<A>(x), y + at + j, lanes);
    });
  }
}

// out[tap][c] = weight[c][tap], taps in the gather's order.
template <Isa I, class S>
void pack_depthwise(const Filters<I, S>& filters, std::int64_t C, Accumulator<S>* out) {
  for (std::int64_t tap_h = 0; tap_h < filters.h.taps; ++tap_h) {
    for (std::int64_t tap_w = 0; tap_w < filters.w.taps; ++tap_w, out += C) {
      const S* from = filters.data + filters.offset(tap_h, tap_w);
      for (std::int64_t c = 0; c < C; ++c) out[c] = static_cast<Accumulator<S>>(from[c * filters.column_stride]);
    }
  }
}

// Many groups: one each per task. Few: one after the other, each on all threads.
void for_groups(std::int64_t groups, FunctionRef<void(std::int64_t)> body) {
  constexpr std::int64_t kMany = 8;
  if (groups >= kMany) {
    parallel_for(groups, body);
  } else {
    for (std::int64_t group = 0; group < groups; ++group) body(group);
  }
}

// Whether minimal filtering is taken for so many channels.
template <Isa I, class S>
bool is_filtered(const Conv2dArgs& args, const GatherAxis& h, const GatherAxis& w, std::int64_t channels) {
  return with_product<I, S>([&]<class P>(P) { return by_winograd<I, S, WinogradBy<P>>(args, h, w, channels); });
}

// The gathered rows times the weight of one group, which lies packed in `panels`, if given; the rest as gemm_rows'.
template <Isa I, class S, class Finish>
void multiply(const Gather<I, S>& rows, const Filters<I, S>& filters, std::int64_t images, std::int64_t columns,
              const void* panels, const Finish& finish, const GemmResult<Accumulator<S>>& result) {
  using T = Accumulator<S>;
  with_product<I, S>([&]<class P>(P) {
    const auto product = [&](std::int64_t depth, const auto& pack_a, const auto& pack_b, const auto& pixels) {
      const PackedRows<T, std::decay_t<decltype(pack_a)>> left{pack_a,
                                                               rows.plain() ? pixels.in_place() : RowsInPlace<T>()};
      gemm_blocks<I, P>(rows.rows(images), columns, depth, left, pack_b, finish, result, static_cast<const T*>(panels));
    };
    if constexpr (kMultipliesPairs<P>) {
      product((rows.depth() + 1) / 2, [&](auto... panel) { rows.pack_row_pairs(panel...); },
              [&](auto... panel) { filters.pack_pairs(panel...); },
              PairedMatrix<I>{rows.source, rows.pitch, 1, rows.channels});
    } else {
      product(
          rows.depth(), [&](auto... panel) { rows.pack_rows(panel...); },
          [&](auto... panel) { filters.pack(panel...); }, StridedMatrix<I, S>{rows.source, rows.pitch, 1});
    }
  });
}

// Computes all groups, of so many outputs each, where conv2d_narrow.h is the way; write is NarrowConvolution's.
template <Isa I, class S, class Write>
bool by_narrow_groups(const Conv2dArgs& args, const Gather<I, S>& gather, const Filters<I, S>& filters,
                      std::int64_t outputs, const Write& write) {
  const auto run = [&]<class P>(P) {
    using Narrow = NarrowConvolution<I, S, P>;
    if (!Narrow::takes(gather.h, gather.w, args.groups, gather.channels, outputs)) return false;
    const std::int64_t group_stride = args.K / args.groups * (args.C / args.groups) * args.h.kernel * args.w.kernel;
    Narrow(gather, filters, group_stride, args.N, args.groups, outputs).run(write);
    return true;
  };
  // A pair needs two channels, and lanes of several groups whole pairs of each.
  const bool pairs = gather.channels > 1 && (gather.channels % 2 == 0 || outputs >= Vec<Accumulator<S>, I>::kLanes);
  return pairs ? with_product<I, S>(run) : run(Product());
}

template <Isa I, class S>
void forward(const Conv2dArgs& args) {
  using T = Accumulator<S>;
  const std::int64_t C = args.C / args.groups, K = args.K / args.groups;
  const std::int64_t window = args.h.kernel * args.w.kernel;
  const bool depthwise_groups = C == 1 && K == 1;
  T* partial = nullptr;
  if constexpr (std::is_same_v<S, T>) partial = static_cast<T*>(args.out);
  const bool plain =
      partial && !args.bias && !args.residual && !args.pre_activation && args.activation == Activation::none;
  const auto write = [&](std::int64_t row0, std::int64_t col0, std::int64_t rows, std::int64_t cols, const T* tile,
                         std::int64_t tile_row) {
    dispatch_activation(args.activation,
                        [&]<Activation A>() { epilogue<I, S, A>(args, row0, col0, rows, cols, tile, tile_row); });
  };
  const auto finish = [&](auto... tile) {
    if (!plain) write(tile...);
  };
  const auto beside = [&](const void* data, std::int64_t group) {
    return data ? Beside::of(static_cast<const S*>(data) + group * K, args.K) : Beside();
  };
  Gather<I, S> gather{.h = forward_axis(args.h),
                      .w = forward_axis(args.w),
                      .source = static_cast<const S*>(args.x),
                      .pitch = args.C,
                      .channels = C,
                      .end = static_cast<const S*>(args.x) + args.N * args.h.in * args.w.in * args.C};
  const Filters<I, S> filters = forward_filters<I, S>(args, gather.h, gather.w);
  if (depthwise_groups) {
    gather.channels = args.C;
    const Scratch<T> weight(static_cast<std::size_t>(window * args.C));
    pack_depthwise(filters, args.C, weight.data());
    depthwise<I, S>(
        gather, args.N, weight.data(),
        [&](std::int64_t row0, std::int64_t rows, const T* row) { finish(row0, 0, rows, args.C, row, args.C); },
        partial);
    return;
  }
  if (is_filtered<I, S>(args, gather.h, gather.w, C)) {
    const void* weight = args.form == FilterForm::transformed ? args.panels : nullptr;
    with_product<I, S>(
        [&]<class P>(P) { winograd<I, P>(gather, filters, args.N, K, static_cast<const T*>(weight), write); });
    return;
  }
  if (by_narrow_groups(args, gather, filters, K, write)) return;
  for_groups(args.groups, [&](std::int64_t group) {
    Gather<I, S> rows = gather;
    rows.source += group * C;
    Filters<I, S> columns = filters;
    columns.data += group * K * C * window;
    multiply(
        rows, columns, args.N, K, args.form == FilterForm::matrix && args.groups == 1 ? args.panels : nullptr,
        [&](std::int64_t row0, std::int64_t col0, std::int64_t height, std::int64_t width, const T* tile,
            std::int64_t tile_row) { finish(row0, group * K + col0, height, width, tile, tile_row); },
        GemmResult<T>{.sums = partial ? partial + group * K : nullptr,
                      .sums_row = args.K,
                      .in_place = plain,
                      .written = beside(streams<I, S>(args) ? nullptr : args.out, group),
                      .added = beside(args.residual, group)});
  });
}

// Writes rows of a phase of dx to where they belong.
template <Isa I, class S>
struct PhaseWriter {
  using T = Accumulator<S>;
  const Conv2dArgs& args;
  const GatherAxis &h, &w;

  void operator()(std::int64_t row0, std::int64_t col0, std::int64_t rows, std::int64_t cols, const T* tile,
                  std::int64_t tile_row) const {
    using V = Vec<T, I>;
    for (std::int64_t i = 0; i < rows; ++i) {
      const std::int64_t row = row0 + i;
      const std::int64_t at_w = w.first_out + row % w.rows * w.out_step;
      const std::int64_t at_h = h.first_out + row / w.rows % h.rows * h.out_step;
      const std::int64_t image = row / w.rows / h.rows;
      S* to = static_cast<S*>(args.out) + ((image * args.h.in + at_h) * args.w.in + at_w) * args.C + col0;
      for_vectors<I, T>(
          cols, [&](std::int64_t j, auto lanes) { store(load<V>(tile + i * tile_row + j, lanes), to + j, lanes); });
    }
  }
};

template <Isa I, class S>
void backward_phase(const Conv2dArgs& args, const GatherAxis& h, const GatherAxis& w) {
  using T = Accumulator<S>;
  const std::int64_t C = args.C / args.groups, K = args.K / args.groups;
  const std::int64_t window = args.h.kernel * args.w.kernel;
  const PhaseWriter<I, S> writer{args, h, w};
  T* direct = nullptr;  // dx itself, where the phase is all of it
  if constexpr (std::is_same_v<S, T>) {
    if (h.out_step == 1 && w.out_step == 1) direct = static_cast<T*>(args.out);
  }
  Gather<I, S> gather{.h = h,
                      .w = w,
                      .source = static_cast<const S*>(args.dy),
                      .pitch = args.K,
                      .channels = K,
                      .end = static_cast<const S*>(args.dy) + args.N * args.h.out * args.w.out * args.K};
  Filters<I, S> filters{.data = static_cast<const S*>(args.weight),
                        .width = args.w.kernel,
                        .channel_stride = C * window,
                        .column_stride = window,
                        .h = h,
                        .w = w,
                        .channels = K};
  if (C == 1 && K == 1) {
    gather.channels = args.C;
    const Scratch<T> weight(static_cast<std::size_t>(std::max<std::int64_t>(1, h.taps * w.taps * args.C)));
    pack_depthwise(filters, args.C, weight.data());
    depthwise<I, S>(
        gather, args.N, weight.data(),
        [&](std::int64_t row0, std::int64_t rows, const T* row) {
          if (!direct) writer(row0, 0, rows, args.C, row, args.C);
        },
        direct);
    return;
  }
  if (is_filtered<I, S>(args, gather.h, gather.w, K)) {
    with_product<I, S>(
        [&]<class P>(P) { winograd<I, P>(gather, filters, args.N, C, static_cast<const T*>(nullptr), writer); });
    return;
  }
  if (by_narrow_groups(args, gather, filters, C, writer)) return;
  for_groups(args.groups, [&](std::int64_t group) {
    Gather<I, S> rows = gather;
    rows.source += group * K;
    Filters<I, S> columns = filters;
    columns.data += group * K * C * window;
    multiply(
        rows, columns, args.N, C, nullptr,
        [&](std::int64_t row0, std::int64_t col0, std::int64_t height, std::int64_t width, const T* tile,
            std::int64_t tile_row) {
          if (!direct) writer(row0, group * C + col0, height, width, tile, tile_row);
        },
        GemmResult<T>{
            .sums = direct ? direct + group * C : nullptr, .sums_row = args.C, .in_place = direct != nullptr});
  });
}

}  // namespace

template <Isa I>
void conv2d(const Conv2dArgs& args) {
  dispatch_float(args.dtype, [&]<class S>() { forward<I, S>(args); });
}

template <Isa I>
void conv2d_backward_input(const Conv2dArgs& args) {
  for (std::int64_t phase_h = 0; phase_h < std::min(args.h.stride, args.h.in); ++phase_h) {
    for (std::int64_t phase_w = 0; phase_w < std::min(args.w.stride, args.w.in); ++phase_w) {
      const GatherAxis h = backward_axis(args.h, phase_h), w = backward_axis(args.w, phase_w);
      dispatch_float(args.dtype, [&]<class S>() { backward_phase<I, S>(args, h, w); });
    }
  }
}

template <Isa I>
FilterForm conv2d_reads(const Conv2dArgs& args) {
  const GatherAxis h = forward_axis(args.h), w = forward_axis(args.w);
  FilterForm form = FilterForm::none;
  dispatch_float(args.dtype, [&]<class S>() {
    with_product<I, S>([&]<class P>(P) {
      if (!by_winograd<I, S, WinogradBy<P>>(args, h, w, args.C)) {
        const bool narrow = !args.pointwise() && NarrowConvolution<I, S, P>::takes(h, w, args.groups, args.C, args.K);
        if (args.groups == 1 && args.C * args.K > 1 && !narrow) form = FilterForm::matrix;
      } else if (kMultipliesPairs<P>) {  // floats' four times as many bytes come later than they are transformed
        form = FilterForm::transformed;
      }
    });
  });
  return form;
}

template <Isa I>
std::int64_t transform_filters(const Conv2dArgs& args, void* panels) {
  const GatherAxis h = forward_axis(args.h), w = forward_axis(args.w);
  std::int64_t bytes = 0;
  dispatch_float(args.dtype, [&]<class S>() {
    using T = Accumulator<S>;
    with_product<I, S>([&]<class P>(P) {
      WinogradWeight<I, P, T> weight(args.K, args.C);
      bytes = weight.size() * static_cast<std::int64_t>(sizeof(T));
      if (panels) weight.fill(static_cast<T*>(panels), forward_filters<I, S>(args, h, w), 0);
    });
  });
  return bytes;
}

template void conv2d<Isa::DRUPE_ISA>(const Conv2dArgs&);
template FilterForm conv2d_reads<Isa::DRUPE_ISA>(const Conv2dArgs&);
template std::int64_t transform_filters<Isa::DRUPE_ISA>(const Conv2dArgs&, void*);
template void conv2d_backward_input<Isa::DRUPE_ISA>(const Conv2dArgs&);

}  // namespace drupe::cpu
