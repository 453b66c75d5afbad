// Reductions, x read once. Rows (the innermost reduced dimension is contiguous): some lanes of a warp, or a block, walk
// the 16-byte blocks of memory that hold the elements of one result. Columns (the innermost kept dimension is
// contiguous): a block owns some packs of neighbouring results, and its threads share the rows in `parts`, merged as a
// tree in shared memory. Where the results are few, several blocks share one (cut by size alone); what they find is
// reduced in a second pass, by columns.
#include <memory>

#include "core/cuda.h"
#include "core/dispatch.h"
#include "cuda/reduce.cuh"
#include "cuda/tile/map.cuh"
#include "cuda/tile/row.cuh"

namespace drupe::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kResident = 2;  // blocks of a multiprocessor; left to itself, the compiler spills to make it five
constexpr int kUnroll = 4;
constexpr std::int64_t kMinSteps = 8;    // of a thread, before its work is cut further
constexpr std::int64_t kMaxSteps = 128;  // beyond which it is cut, for the sake of the rounding error

template <class R, int kPack>
__device__ __forceinline__ typename R::A pack_value(const R& rule, const Pack<typename R::Source, kPack>& pack,
                                                    typename R::A shift) {
  auto value = rule.map(pack.element[0], shift);
#pragma unroll
  for (int k = 1; k < kPack; ++k) value = rule(value, rule.map(pack.element[k], shift));
  return value;
}

// One 16-byte block of a run, from its element `begin` on.
template <class R>
__device__ __forceinline__ typename R::A block_value(const R& rule, const typename R::Source* run, std::int64_t begin,
                                                     std::int64_t size, typename R::A shift) {
  constexpr int kPack = kPackSize<typename R::Source>;
  if (begin >= 0 && begin + kPack <= size) return pack_value(rule, load_pack<kPack>(run + begin), shift);
  const std::int64_t end = begin + kPack < size ? begin + kPack : size;
  auto total = rule.identity();
  for (std::int64_t i = begin < 0 ? 0 : begin; i < end; ++i) total = rule(total, rule.map(run[i], shift));
  return total;
}

// Blocks first, first + lanes, … before `last` of one run.
template <class R>
__device__ __forceinline__ typename R::A reduce_run(const R& rule, const typename R::Source* run, std::int64_t size,
                                                    std::int64_t first, std::int64_t last, int lanes,
                                                    typename R::A shift) {
  constexpr int kPack = kPackSize<typename R::Source>;
  const int skew = skew_of(run);
  const std::int64_t whole = (size + skew) / kPack;  // those before it, but for the first, are full
  auto total = rule.identity();
  std::int64_t block = first;
  if (block == 0) {
    total = block_value(rule, run, -skew, size, shift);
    block += lanes;
  }
  const std::int64_t end = last < whole ? last : whole;
  for (; block + (kUnroll - 1) * lanes < end; block += kUnroll * lanes) {
    Pack<typename R::Source, kPack> pack[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) pack[u] = load_pack<kPack>(run + (block + u * lanes) * kPack - skew);
    const auto low = rule(pack_value(rule, pack[0], shift), pack_value(rule, pack[1], shift));
    const auto high = rule(pack_value(rule, pack[2], shift), pack_value(rule, pack[3], shift));
    total = rule(total, rule(low, high));
  }
  for (; block < last; block += lanes) {
    total = rule(total, block_value(rule, run, block * kPack - skew, size, shift));
  }
  return total;
}

template <class R>
__global__ __launch_bounds__(kThreads, kResident) void reduce_rows_kernel(ReducePlan<typename R::A> plan) {
  using A = typename R::A;
  auto& storage = shared_storage<ReduceStorage<A, kThreads>>();
  const R rule{plan.op};
  const int per_block = kThreads / plan.lanes, lane = static_cast<int>(threadIdx.x) % plan.lanes;
  const std::int64_t unit = std::int64_t{blockIdx.x} * per_block + static_cast<int>(threadIdx.x) / plan.lanes;
  const bool counts = unit < plan.kept.size * plan.splits;
  A total = rule.identity();
  Offsets<2> place{};
  if (counts) {
    const std::int64_t split = plan.splits == 1 ? 0 : unit / plan.results;
    place = locate(plan.kept, unit - split * plan.kept.size);
    const auto* x = static_cast<const typename R::Source*>(plan.x) + place.at[0];
    const A shift = rule.shift(plan.shift, place.at[1]);
    const std::int64_t blocks = plan.blocks.value * plan.reduced.size;
    std::int64_t first = split * plan.length;
    const std::int64_t last = first + plan.length < blocks ? first + plan.length : blocks;
    first += lane;
    if (plan.reduced.size == 1) {
      total = reduce_run(rule, x, plan.run, first, last, plan.lanes, shift);
    } else {
      for (; first < last; first += plan.lanes) {
        const std::int64_t index = first / plan.blocks;
        const auto* run = x + locate(plan.reduced, index).at[0];
        const std::int64_t begin = (first - index * plan.blocks.value) * kPackSize<typename R::Source> - skew_of(run);
        total = rule(total, block_value(rule, run, begin, plan.run, shift));
      }
    }
  }
  total = group_reduce(total, rule, plan.lanes, storage);
  if (!counts || lane != 0) return;
  if (plan.partial) {
    plan.partial[unit] = total;
  } else {
    store_reduced(plan, place.at[1], total);
  }
}

// Rows first, first + parts, … before `last` of kPack columns.
template <class R, int kPack>
__device__ __forceinline__ void reduce_rows_of(const R& rule, const Strided<1>& nest, const typename R::Source* x,
                                               std::int64_t first, std::int64_t last, int parts,
                                               const typename R::A* shift, typename R::A* total) {
  using A = typename R::A;
  std::int64_t row = first;
  if (nest.dims <= 1) {
    const std::int64_t stride = nest.stride[0][0];
    for (; row + (kUnroll - 1) * parts < last; row += kUnroll * parts) {
      Pack<typename R::Source, kPack> pack[kUnroll];
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) pack[u] = load_pack<kPack>(x + (row + u * parts) * stride);
#pragma unroll
      for (int k = 0; k < kPack; ++k) {
        const A low = rule(rule.map(pack[0].element[k], shift[k]), rule.map(pack[1].element[k], shift[k]));
        const A high = rule(rule.map(pack[2].element[k], shift[k]), rule.map(pack[3].element[k], shift[k]));
        total[k] = rule(total[k], rule(low, high));
      }
    }
  }
  for (; row < last; row += parts) {
    const auto pack = load_pack<kPack>(x + locate(nest, row).at[0]);
#pragma unroll
    for (int k = 0; k < kPack; ++k) total[k] = rule(total[k], rule.map(pack.element[k], shift[k]));
  }
}

template <class A, int kPack>
struct ColumnStorage {
  A value[kPack][kThreads];
};

template <class R, int kPack>
__global__ __launch_bounds__(kThreads, kResident) void reduce_columns_kernel(ReducePlan<typename R::A> plan) {
  using A = typename R::A;
  auto& storage = shared_storage<ColumnStorage<A, kPack>>();
  const R rule{plan.op};
  const int thread = static_cast<int>(threadIdx.x), parts = kThreads / plan.lanes, part = thread / plan.lanes;
  const std::int64_t results = plan.kept.size, width = std::int64_t{plan.lanes} * kPack;
  const std::int64_t split = blockIdx.x / plan.tiles, first = (blockIdx.x - split * plan.tiles) * width;
  const std::int64_t result = first + thread % plan.lanes * kPack;
  A total[kPack];
#pragma unroll
  for (int k = 0; k < kPack; ++k) total[k] = rule.identity();
  if (result < results) {
    const Offsets<2> place = locate(plan.kept, result);
    const auto* x = static_cast<const typename R::Source*>(plan.x) + place.at[0];
    A shift[kPack];
#pragma unroll
    for (int k = 0; k < kPack; ++k) shift[k] = rule.shift(plan.shift, place.at[1] + k);
    const std::int64_t end = (split + 1) * plan.length, rows = plan.reduced.size;
    const std::int64_t last = end < rows ? end : rows;
    reduce_rows_of<R, kPack>(rule, plan.reduced, x, split * plan.length + part, last, parts, shift, total);
  }
#pragma unroll
  for (int k = 0; k < kPack; ++k) storage.value[k][thread] = total[k];
  for (int half = parts / 2; half > 0; half /= 2) {
    __syncthreads();
    if (part >= half) continue;
#pragma unroll
    for (int k = 0; k < kPack; ++k) {
      storage.value[k][thread] = rule(storage.value[k][thread], storage.value[k][thread + half * plan.lanes]);
    }
  }
  __syncthreads();
  for (int i = thread; i < width && first + i < results; i += kThreads) {
    const A value = storage.value[i % kPack][i / kPack];
    if (plan.partial) {
      plan.partial[split * results + first + i] = value;
    } else {
      store_reduced(plan, locate(plan.kept, first + i).at[1], value);
    }
  }
}

template <class R, int kPack>
void launch_columns(ReducePlan<typename R::A> plan, Stream stream, bool splits);

// What several splits found, (splits, results), to y.
template <class R>
void launch_second_pass(ReducePlan<typename R::A> plan, Stream stream) {
  using A = typename R::A;
  constexpr bool kExtremum = std::is_same_v<R, ReduceRule<ReduceKind::extremum, typename R::Source>>;
  constexpr bool kOther = std::is_same_v<R, ReduceRule<ReduceKind::other, typename R::Source>>;
  plan.x = plan.partial;
  plan.partial = nullptr;
  std::int64_t stride = 1;
  for (int d = plan.kept.dims - 1; d >= 0; --d) {
    plan.kept.stride[0][d] = stride;
    stride *= plan.kept.extent[d];
  }
  plan.reduced = Strided<1>(Loops{.shape = {plan.splits}, .strides = {Dims{plan.kept.size}}});
  plan.length = plan.splits;
  plan.splits = 1;
  if (kExtremum) plan.op = Reduction::max;
  launch_columns<ReduceRule<kExtremum ? ReduceKind::extremum
                            : kOther  ? ReduceKind::other
                                      : ReduceKind::sum,
                            A>,
                 1>(plan, stream, false);
}

template <class A>
std::shared_ptr<void> split_results(ReducePlan<A>& plan, Stream stream) {
  if (plan.splits == 1) return {};
  const auto count = static_cast<std::size_t>(plan.splits * plan.kept.size);
  auto scratch = allocate(count * sizeof(A), {DeviceType::cuda, stream.device});
  plan.partial = static_cast<A*>(scratch.get());
  return scratch;
}

template <class R, int kPack>
void launch_columns(ReducePlan<typename R::A> plan, Stream stream, bool splits) {
  const std::int64_t packs = (plan.kept.size + kPack - 1) / kPack, rows = plan.reduced.size;
  const int parts = choose_column_parts(packs, rows, kThreads);
  plan.lanes = kThreads / parts;
  plan.tiles = static_cast<unsigned>((packs + plan.lanes - 1) / plan.lanes);
  plan.length = splits ? choose_length((rows + parts - 1) / parts, plan.tiles, kMinSteps, kMaxSteps) * parts : rows;
  plan.splits = (rows + plan.length - 1) / plan.length;
  const auto scratch = split_results(plan, stream);
  launch<reduce_columns_kernel<R, kPack>>({.grid = {static_cast<unsigned>(plan.tiles * plan.splits)},
                                           .block = {kThreads},
                                           .shared_bytes = sizeof(ColumnStorage<typename R::A, kPack>)},
                                          stream, plan);
  if (plan.partial) launch_second_pass<R>(plan, stream);
}

template <class R>
void launch_rows(ReducePlan<typename R::A> plan, Stream stream) {
  const std::int64_t blocks = plan.blocks.value * plan.reduced.size;
  plan.lanes = choose_row_lanes(blocks, kThreads);
  plan.length = blocks;
  if (plan.lanes == kThreads) {
    const std::int64_t steps = (blocks + kThreads - 1) / kThreads;
    plan.length = choose_length(steps, plan.kept.size, kMinSteps, kMaxSteps) * kThreads;
  }
  plan.splits = (blocks + plan.length - 1) / plan.length;
  const auto scratch = split_results(plan, stream);
  launch<reduce_rows_kernel<R>>({.grid = {blocks_for(plan.kept.size * plan.splits, 1, kThreads / plan.lanes)},
                                 .block = {kThreads},
                                 .shared_bytes = sizeof(ReduceStorage<typename R::A, kThreads>)},
                                stream, plan);
  if (plan.partial) launch_second_pass<R>(plan, stream);
}

// Whether all strides but the innermost kept one are multiples of `pack`, and x begins at a multiple of 16 bytes.
template <class A>
bool keeps_aligned(const ReducePlan<A>& plan, std::int64_t pack, bool columns) {
  bool aligned = is_pack_aligned(plan.x);
  const int outer = columns ? plan.kept.dims - 1 : plan.kept.dims;
  for (int d = 0; d < outer; ++d) aligned = aligned && plan.kept.stride[0][d] % pack == 0;
  for (int d = 0; d < plan.reduced.dims; ++d) aligned = aligned && plan.reduced.stride[0][d] % pack == 0;
  return aligned;
}

template <ReduceKind kKind, class S>
void run(const ReduceArgs& args, Stream stream) {
  using R = ReduceRule<kKind, S>;
  using A = typename R::A;
  ReducePlan<A> plan{};
  plan.x = args.x;
  plan.y = args.y;
  plan.shift = static_cast<const A*>(args.shift);
  plan.kept = Strided<2>(args.kept);
  plan.results = Divisor(plan.kept.size);
  plan.op = args.op;
  plan.negated = kKind == ReduceKind::extremum && args.op == Reduction::min;
  plan.finish = args.finish;
  plan.divisor = static_cast<A>(args.divisor);
  plan.y_dtype = args.y_dtype;
  constexpr int kPack = kPackSize<S>;
  if (args.columns) {
    plan.reduced = Strided<1>(args.reduced);
    if constexpr (kKind != ReduceKind::other) {
      if (keeps_aligned(plan, kPack, true) && args.kept.shape.back() % kPack == 0) {
        return launch_columns<R, kPack>(plan, stream, true);
      }
    }
    return launch_columns<R, 1>(plan, stream, true);
  }
  Loops outer{.shape = args.reduced.shape, .strides = {args.reduced.strides[0]}};
  plan.run = 1;
  if (!outer.shape.empty()) {
    plan.run = outer.shape.back();
    outer.shape.pop_back();
    outer.strides[0].pop_back();
  }
  plan.reduced = Strided<1>(outer);
  const std::int64_t skewed = keeps_aligned(plan, kPack, false) ? 0 : kPack - 1;
  plan.blocks = Divisor((plan.run + skewed + kPack - 1) / kPack);
  launch_rows<R>(plan, stream);
}

template <class S>
void run_float(const ReduceArgs& args, Stream stream) {
  switch (args.op) {
    case Reduction::sum:
      return run<ReduceKind::sum, S>(args, stream);
    case Reduction::max:
    case Reduction::min:
      return run<ReduceKind::extremum, S>(args, stream);
    case Reduction::sum_squares:
      return run<ReduceKind::squares, S>(args, stream);
    case Reduction::sum_exp:
      return run<ReduceKind::exponentials, S>(args, stream);
    default:
      return run<ReduceKind::other, S>(args, stream);
  }
}

}  // namespace

void reduce(const ReduceArgs& args, Stream stream) {
  dispatch_any(args.dtype, [&]<class S>() {
    if constexpr (std::is_floating_point_v<Accumulator<S>>) {
      run_float<S>(args, stream);
    } else {
      run<ReduceKind::other, std::conditional_t<std::is_same_v<S, bool>, std::uint8_t, S>>(args, stream);
    }
  });
}

}  // namespace drupe::cuda
