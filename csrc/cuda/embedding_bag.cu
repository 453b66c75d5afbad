// Reductions over bags. A group of lanes (tile/row_groups.cuh) has a bag, or 32 packs of a wide one's columns: it walks
// the bag's rows in their order with the result in registers and kInFlight rows on their way. Bytes: the indices and
// the named rows once, the result once. Backward: sparse_rows.cu.
#include "ops/embedding_bag.h"

#include "core/dispatch.h"
#include "cuda/tile/row_groups.cuh"
#include "cuda/tile/scan.cuh"

namespace drupe::cuda {
namespace {

constexpr int kInFlight = 4;

template <class S>
struct BagTable {
  using A = Accumulator<S>;
  const S* weight;
  std::int64_t row_stride, width;
  IndexArray indices;
  const S* scale;
  std::int64_t skip;
  BagMap bags;
  bool mean;
  S* y;
  A* argmax;

  explicit BagTable(const EmbeddingBagArgs& args)
      : weight(static_cast<const S*>(args.weight)),
        row_stride(args.row_stride),
        width(args.width),
        indices(args.indices, args.index_dtype),
        scale(static_cast<const S*>(args.scale)),
        skip(args.skip),
        bags{args.offsets, args.length, {args.bags, args.lists}},
        mean(args.mode == BagMode::mean),
        y(static_cast<S*>(args.y)),
        argmax(static_cast<A*>(args.argmax)) {}

  // Whether rows can be read in packs.
  template <int kPack, class... P>
  bool takes_packs(const P*... others) const {
    return width % kPack == 0 && row_stride % kPack == 0 && is_pack_aligned(weight, others...);
  }

  template <int kPack>
  __device__ __forceinline__ WidePack<S, kPack> load(std::int64_t row, std::int64_t column) const {
    return WidePack<S, kPack>::load(weight + row * row_stride + column);
  }
};

// The rows of places [i, i + kInFlight) of a bag; gives which of them count.
template <class S, int kPack>
__device__ __forceinline__ unsigned load_rows(const BagTable<S>& table, std::int64_t i, std::int64_t end,
                                              std::int64_t column, WidePack<S, kPack> (&rows)[kInFlight]) {
  unsigned counted = 0;
#pragma unroll
  for (int k = 0; k < kInFlight; ++k) {
    if (i + k >= end) continue;
    const std::int64_t row = table.indices[i + k];
    if (row == table.skip) continue;
    rows[k] = table.template load<kPack>(row, column);
    counted |= 1u << k;
  }
  return counted;
}

template <class S, int kPack>
__global__ __launch_bounds__(kMapThreads) void embedding_bag_sum_kernel(BagTable<S> table, RowGroups groups) {
  using A = Accumulator<S>;
  if (groups.first() >= groups.count) return;
  const RowPiece at = groups.piece(groups.first());
  if (at.unit >= groups.units) return;
  const std::int64_t column = at.unit * kPack, end = table.bags.begin(at.row + 1);
  auto total = WidePack<S, kPack>::zero();
  std::int64_t count = 0;
  for (std::int64_t i = table.bags.begin(at.row); i < end; i += kInFlight) {
    WidePack<S, kPack> rows[kInFlight];
    const unsigned counted = load_rows(table, i, end, column, rows);
#pragma unroll
    for (int k = 0; k < kInFlight; ++k) {
      if (!(counted >> k & 1)) continue;
      const A factor = table.scale ? widen(table.scale[i + k]) : A(1);
#pragma unroll
      for (int j = 0; j < kPack; ++j) total.element[j] += rows[k].element[j] * factor;
    }
    count += __popc(counted);
  }
  if (table.mean && count > 1) {
#pragma unroll
    for (int j = 0; j < kPack; ++j) total.element[j] /= static_cast<A>(count);
  }
  total.store(table.y + table.bags.order.place(at.row) * table.width + column);
}

template <class S, int kPack>
__global__ __launch_bounds__(kMapThreads) void embedding_bag_max_kernel(BagTable<S> table, RowGroups groups) {
  using A = Accumulator<S>;
  if (groups.first() >= groups.count) return;
  const RowPiece at = groups.piece(groups.first());
  if (at.unit >= groups.units) return;
  const std::int64_t column = at.unit * kPack, begin = table.bags.begin(at.row), end = table.bags.begin(at.row + 1);
  auto best = WidePack<S, kPack>::zero(), place = WidePack<S, kPack>::zero();
  for (int j = 0; j < kPack; ++j) place.element[j] = A(-1);
  for (std::int64_t i = begin; i < end; i += kInFlight) {
    WidePack<S, kPack> rows[kInFlight];
    const unsigned counted = load_rows(table, i, end, column, rows);
#pragma unroll
    for (int k = 0; k < kInFlight; ++k) {
      if (!(counted >> k & 1)) continue;
      const auto here = static_cast<A>(i + k - begin);
#pragma unroll
      for (int j = 0; j < kPack; ++j) {
        const A x = rows[k].element[j], y = best.element[j];
        // The first of all, a greater one, or the first NaN.
        const bool take = place.element[j] < A(0) || (!(x <= y) && y == y);
        best.element[j] = take ? x : y;
        place.element[j] = take ? here : place.element[j];
      }
    }
  }
  best.store(table.y + at.row * table.width + column);
  if (table.argmax) place.store_wide(table.argmax + at.row * table.width + column);
}

// A bag by 2^log_lanes lanes.
template <class A>
__global__ __launch_bounds__(kMapThreads) void embedding_bag_counts_kernel(BagMap bags, IndexArray indices,
                                                                           std::int64_t skip, int log_lanes, A* y) {
  const std::int64_t bag = global_thread() >> log_lanes;
  const int lanes = 1 << log_lanes, lane = static_cast<int>(threadIdx.x) & (lanes - 1);
  const bool exists = bag < bags.order.bags;
  const std::int64_t begin = exists ? bags.begin(bag) : 0, end = exists ? bags.begin(bag + 1) : 0;
  std::int64_t count = skip < 0 ? end - begin : 0;
  if (skip >= 0) {
    for (std::int64_t i = begin + lane; i < end; i += lanes) count += indices[i] != skip;
    count = group_sum(count, log_lanes);
  }
  if (exists && lane == 0) y[bags.order.place(bag)] = count ? A(1) / static_cast<A>(count) : A(0);
}

// A contribution by 2^log_lanes lanes, which share the columns.
template <class S, int kPack>
__global__ __launch_bounds__(kMapThreads) void embedding_bag_backward_scale_kernel(BagTable<S> table, std::int64_t size,
                                                                                   int log_lanes, const S* dy,
                                                                                   S* dscale) {
  using A = Accumulator<S>;
  const std::int64_t i = global_thread() >> log_lanes;
  const int lanes = 1 << log_lanes, lane = static_cast<int>(threadIdx.x) & (lanes - 1);
  const std::int64_t row = i < size ? table.indices[i] : table.skip;
  A sum = A(0);
  if (i < size && row != table.skip) {
    const S* gradient = dy + table.bags.order.place(table.bags.bag_of(i)) * table.width;
    for (std::int64_t column = lane * kPack; column < table.width; column += lanes * kPack) {
      const auto x = table.template load<kPack>(row, column), g = WidePack<S, kPack>::load(gradient + column);
#pragma unroll
      for (int j = 0; j < kPack; ++j) sum = std::fma(x.element[j], g.element[j], sum);
    }
  }
  sum = group_sum(sum, log_lanes);
  if (i < size && lane == 0) dscale[i] = narrow<S>(sum);
}

// Zero where nothing is found, so that the largest of each is the answer.
struct BagFindings {
  unsigned long long decrease, too_long;  // bags + 1 - place
  std::int64_t first;
};

__global__ __launch_bounds__(kMapThreads) void inspect_bags_kernel(const std::int64_t* offsets, std::int64_t bags,
                                                                   std::int64_t longest, BagFindings* findings) {
  unsigned long long decrease = 0, too_long = 0;
  for (std::int64_t b = bags - global_thread(); b > 0; b -= global_threads()) {
    const std::int64_t before = offsets[b - 1], here = offsets[b];
    const auto left = static_cast<unsigned long long>(bags + 1 - b);
    if (here < before) decrease = left;
    // Without sign: what decreases is too long as well, and has been found.
    if (static_cast<std::uint64_t>(here) - static_cast<std::uint64_t>(before) > static_cast<std::uint64_t>(longest)) {
      too_long = left;
    }
  }
  if (decrease) atomicMax(&findings->decrease, decrease);
  if (too_long) atomicMax(&findings->too_long, too_long);
  if (global_thread() == 0) findings->first = offsets[0];
}

}  // namespace

void embedding_bag(const EmbeddingBagArgs& args, Stream stream) {
  dispatch_float(args.dtype, [&]<class S>() {
    const BagTable<S> table(args);
    const auto run = [&]<int kPack>() {
      const RowGroups groups(args.bags, args.width / kPack);
      const LaunchConfig config{.grid = {blocks_for(groups.threads())}, .block = {kMapThreads}};
      if (args.mode == BagMode::max) {
        launch<embedding_bag_max_kernel<S, kPack>>(config, stream, table, groups);
      } else {
        launch<embedding_bag_sum_kernel<S, kPack>>(config, stream, table, groups);
      }
    };
    if (table.template takes_packs<kPackSize<S>>(table.y, table.argmax)) {
      run.template operator()<kPackSize<S>>();
    } else {
      run.template operator()<1>();
    }
  });
}

void embedding_bag_counts(const EmbeddingBagArgs& args, Stream stream) {
  if (args.bags == 0) return;
  const int log_lanes = args.skip < 0 ? 0 : 5;
  const LaunchConfig config{.grid = {blocks_for(args.bags << log_lanes)}, .block = {kMapThreads}};
  const BagMap bags{args.offsets, args.length, {args.bags, args.lists}};
  const IndexArray indices(args.indices, args.index_dtype);
  if (accumulator_of(args.dtype) == Dtype::f64) {
    launch<embedding_bag_counts_kernel<double>>(config, stream, bags, indices, args.skip, log_lanes,
                                                static_cast<double*>(args.bag_scale));
  } else {
    launch<embedding_bag_counts_kernel<float>>(config, stream, bags, indices, args.skip, log_lanes,
                                               static_cast<float*>(args.bag_scale));
  }
}

void embedding_bag_backward_scale(const BagScaleArgs& args, Stream stream) {
  dispatch_float(args.bag.dtype, [&]<class S>() {
    const BagTable<S> table(args.bag);
    const auto* dy = static_cast<const S*>(args.dy);
    const auto run = [&]<int kPack>() {
      const int log_lanes = RowGroups(1, args.bag.width / kPack).log_lanes;
      const LaunchConfig config{.grid = {blocks_for(args.bag.size << log_lanes)}, .block = {kMapThreads}};
      launch<embedding_bag_backward_scale_kernel<S, kPack>>(config, stream, table, args.bag.size, log_lanes, dy,
                                                            static_cast<S*>(args.dscale));
    };
    if (table.template takes_packs<kPackSize<S>>(dy)) {
      run.template operator()<kPackSize<S>>();
    } else {
      run.template operator()<1>();
    }
  });
}

void inspect_bags(InspectBagsArgs& args, Stream stream) {
  const Device here{DeviceType::cuda, stream.device};
  const auto there = scratch<BagFindings>(stream, 1);
  zero_bytes(there.get(), sizeof(BagFindings), here);
  launch<inspect_bags_kernel>({.grid = {blocks_for(args.bags, kMapPacks)}, .block = {kMapThreads}}, stream,
                              args.offsets, args.bags, args.longest, there.get());
  BagFindings found;
  copy_bytes(&found, Device{}, there.get(), here, sizeof found);
  const auto place = [&](unsigned long long left) {
    return left ? args.bags + 1 - static_cast<std::int64_t>(left) : -1;
  };
  args.first = found.first;
  args.decrease = place(found.decrease);
  args.too_long = found.too_long ? place(found.too_long) - 1 : -1;
}

}  // namespace drupe::cuda
