// Sums per row. Contributions are sorted by row (tile/radix_sort.cuh) and cut into segments of one row each. Then a
// group of lanes sums a fixed number of entries, whichever rows they belong to, with the columns across its lanes. A
// row that crosses groups leaves a partial sum in each (`open` where it starts, `carry` where it goes on), which one
// block adds up in a fixed order: a long row costs no more than many short ones. The host waits once, for the number of
// rows, unless a graph is captured: a dense result then has memory for as many as there may be. Bytes: the
// contributions once, the result once, and the sort's passes.
#include "ops/sparse_rows.h"

#include <type_traits>

#include "core/dispatch.h"
#include "cuda/segment_sum.cuh"

namespace drupe::cuda {
namespace {

using Count = unsigned long long;

// ---- inspection

// Zero where nothing is found, so that the largest of each is the answer.
struct Findings {
  Count outside, disorder;  // size - place
  Count largest;            // index + 1
};

template <class Index>
__global__ __launch_bounds__(kMapThreads) void inspect_rows_kernel(const Index* indices, std::int64_t packed,
                                                                   std::int64_t size, std::int64_t limit, bool full,
                                                                   Findings* findings) {
  constexpr int kPack = kPackSize<Index>;
  Count outside = 0, disorder = 0, largest = 0;
  const auto look = [&](std::int64_t i, Index index) {
    const Count left = static_cast<Count>(size - i);
    const auto value = static_cast<std::int64_t>(index);
    if (static_cast<std::uint64_t>(value) >= static_cast<std::uint64_t>(limit))
      outside = left > outside ? left : outside;
    if (!full || value < 0) return;
    if (i > 0 && index <= indices[i - 1]) disorder = left > disorder ? left : disorder;
    const auto one_past = static_cast<Count>(value) + 1;
    largest = one_past > largest ? one_past : largest;
  };
  for (std::int64_t i = global_thread() * kPack; i < packed; i += global_threads() * kPack) {
    const Pack<Index, kPack> pack = load_pack<kPack>(indices + i);
#pragma unroll
    for (int k = 0; k < kPack; ++k) look(i + k, pack.element[k]);
  }
  for (std::int64_t i = packed + global_thread(); i < size; i += global_threads()) look(i, indices[i]);
  if (outside) atomicMax(&findings->outside, outside);
  if (!full) return;
  if (disorder) atomicMax(&findings->disorder, disorder);
  largest = warp_reduce(largest, Maximum{});
  if (largest && threadIdx.x % kWarp == 0) atomicMax(&findings->largest, largest);
}

// ---- entries

// An entry carries its bag, or with bag_of its position. Those to skip get the largest row.
template <class Entry>
__global__ __launch_bounds__(kMapThreads) void make_entries_kernel(IndexArray rows, std::int64_t size,
                                                                   std::int64_t limit, std::int64_t skip, BagMap bags,
                                                                   Entry* entries, std::int64_t* bag_of) {
  for (std::int64_t i = global_thread(); i < size; i += global_threads()) {
    const std::int64_t row = rows[i], bag = bags.order.place(bags.bag_of(i));
    if (bag_of) bag_of[i] = bag;
    entries[i] = Entry::make(row == skip ? limit : row, bag_of ? i : bag);
  }
}

// ---- sums

// Of the entries a task: a step does more for each, and has nothing to gain from neighbours.
constexpr int kFewestLogEntries = 4, kFewestLogStepEntries = 2;

// One task's columns: walks its entries, and its segments along with them.
template <class S, int kPack>
__device__ __forceinline__ void sum_task(const SegmentSum<S>& sum, std::int64_t task, std::int64_t column) {
  const std::int64_t begin = task << sum.segments.log_task, end = (task + 1) << sum.segments.log_task;
  const std::int64_t size = sum.totals->entries, stop = end < size ? end : size;
  if (begin >= size) {
    if (column == 0) sum.open_segment[task] = -1;
    return;
  }
  std::int64_t segment = sum.segments.of_task[task];
  std::int64_t next = sum.segments.begins[segment + 1];
  bool carried = sum.segments.begins[segment] < begin;
  auto total = WidePack<S, kPack>::zero();
  sum.template for_each_term<kPack>(begin, stop, column, [&](std::int64_t e, const WidePack<S, kPack>& term) {
    if (e == next) {
      if (carried) {
        total.store_wide(sum.carry(task) + column);
      } else {
        total.store(sum.result(segment) + column);
      }
      total = WidePack<S, kPack>::zero();
      carried = false;
      next = sum.segments.begins[++segment + 1];
    }
#pragma unroll
    for (int j = 0; j < kPack; ++j) total.element[j] += term.element[j];
  });
  if (carried) {
    total.store_wide(sum.carry(task) + column);
  } else if (next > stop) {
    total.store_wide(sum.open(task) + column);
  } else {
    total.store(sum.result(segment) + column);
  }
  if (column == 0) sum.open_segment[task] = !carried && next > stop ? segment : -1;
}

template <class S, int kPack>
__global__ __launch_bounds__(kMapThreads) void sum_segments_kernel(SegmentSum<S> sum, RowGroups groups) {
  if (groups.first() >= groups.count) return;
  const RowPiece at = groups.piece(groups.first());
  if (at.unit < groups.units) sum_task<S, kPack>(sum, at.row, at.unit * kPack);
}

// A block adds up one segment that crosses tasks.
template <class S>
__global__ __launch_bounds__(kJoinThreads) void join_segments_kernel(SegmentSum<S> sum, int log_lanes) {
  auto& storage = shared_storage<JoinStorage<Accumulator<S>>>();
  const JoinThread thread(log_lanes);
  for (std::int64_t task = blockIdx.x; task < sum.tasks; task += gridDim.x) {
    const std::int64_t segment = sum.open_segment[task];
    if (segment < 0) continue;
    for (std::int64_t base = 0; base < sum.width; base += thread.lanes) {
      const std::int64_t column = base + thread.lane;
      const Accumulator<S> total = join_column(sum, thread, task, segment, column, storage);
      if (thread.part == 0 && column < sum.width) sum.result(segment)[column] = narrow<S>(total);
    }
  }
}

// ---- launchers

template <class S>
void sum_segments(SegmentSum<S> sum, Stream stream) {
  constexpr int kPack = kPackSize<S>;
  const bool in_packs =
      sum.width % kPack == 0 && is_pack_aligned(sum.source, sum.values, sum.argmax) && sum.width >= kPack;
  const RowGroups groups(sum.tasks, in_packs ? sum.width / kPack : sum.width);
  const auto partials = scratch<Accumulator<S>>(stream, 2 * sum.tasks * sum.width);
  const auto open = scratch<std::int64_t>(stream, sum.tasks);
  sum.partials = partials.get();
  sum.open_segment = open.get();
  const LaunchConfig config{.grid = {blocks_for(groups.threads())}, .block = {kMapThreads}};
  if (in_packs) {
    launch<sum_segments_kernel<S, kPack>>(config, stream, sum, groups);
  } else {
    launch<sum_segments_kernel<S, 1>>(config, stream, sum, groups);
  }
  if (sum.tasks == 1) return;
  const auto blocks = static_cast<unsigned>(std::min(sum.tasks, kJoinBlocks));
  launch<join_segments_kernel<S>>(
      {.grid = {blocks}, .block = {kJoinThreads}, .shared_bytes = sizeof(JoinStorage<Accumulator<S>>)}, stream, sum,
      RowGroups(1, sum.width).log_lanes);
}

int bits_for(std::int64_t largest) {
  int bits = 0;
  while (bits < 63 && largest >> bits) ++bits;
  return bits;
}

void zero_values(const SumRowsArgs& args, Stream stream) {
  const auto elements = static_cast<std::size_t>(args.limit * args.width);
  zero_bytes(args.values, elements * size_of(args.dtype), {DeviceType::cuda, stream.device});
}

template <class Entry>
void sum_entries(SumRowsArgs& args, Stream stream) {
  const std::int64_t size = args.size;
  const auto first = scratch<Entry>(stream, size), second = scratch<Entry>(stream, size);
  const auto bag_of = scratch<std::int64_t>(stream, args.scale || args.argmax ? size : 0);
  const BagMap bags{args.offsets, args.length, {args.bags, args.lists}};
  launch<make_entries_kernel<Entry>>({.grid = {blocks_for(size)}, .block = {kMapThreads}}, stream,
                                     IndexArray(args.rows, args.row_dtype), size, args.limit, args.skip, bags,
                                     first.get(), bag_of.get());
  const int bits = bits_for(args.skip >= 0 ? args.limit : args.limit - 1);
  const Sorted<Entry> sorted{radix_sort(stream, first.get(), second.get(), size, bits), size, args.limit};
  const auto before = scratch<std::int64_t>(stream, head_tiles(size));
  const auto found = count_segments(stream, sorted, before.get());
  SegmentTotals totals{.segments = std::min(size, args.limit), .entries = size};  // at most
  const Device here{DeviceType::cuda, stream.device};
  if (!args.dense || !is_capturing(here)) copy_bytes(&totals, Device{}, found.get(), here, sizeof totals);
  if (!args.step) args.allocate(args, totals.segments);
  if (args.dense) zero_values(args, stream);
  if (totals.segments == 0) return;

  const auto row_bytes = args.width * static_cast<std::int64_t>(size_of(args.dtype));
  // Not the totals', which a captured graph lacks.
  const int log_task = choose_log_task(size, row_bytes, args.step ? kFewestLogStepEntries : kFewestLogEntries);
  const std::int64_t tasks = ((totals.entries - 1) >> log_task) + 1;
  const auto begins = scratch<std::int64_t>(stream, totals.segments + 1),
             of_task = scratch<std::int64_t>(stream, tasks);
  const auto rows = scratch<std::int64_t>(stream, args.indices ? 0 : totals.segments);
  const Segments segments{.begins = begins.get(),
                          .rows = args.indices ? args.indices : rows.get(),
                          .of_task = of_task.get(),
                          .log_task = log_task};
  write_segments(stream, sorted, found.get(), before.get(), segments);
  if (args.width == 0) return;
  dispatch_float(args.dtype, [&]<class S>() {
    using A = Accumulator<S>;
    SegmentSum<S> sum{.segments = segments,
                      .entries = sorted.entries,
                      .packed = std::is_same_v<Entry, PackedEntry>,
                      .totals = found.get(),
                      .tasks = tasks,
                      .source = static_cast<const S*>(args.source),
                      .width = args.width,
                      .bag_of = bag_of.get(),
                      .scale = static_cast<const S*>(args.scale),
                      .bag_scale = static_cast<const A*>(args.bag_scale),
                      .argmax = static_cast<const A*>(args.argmax),
                      .bags = bags,
                      .values = static_cast<S*>(args.values),
                      .dense = args.dense,
                      .partials = nullptr,
                      .open_segment = nullptr};
    if (args.step) {
      step_segments<S>(sum, *args.step, stream);
    } else {
      sum_segments<S>(sum, stream);
    }
  });
}

template <class S, int kPack>
__global__ __launch_bounds__(kMapThreads) void add_rows_kernel(S* dense, const std::int64_t* indices, const S* values,
                                                               RowGroups groups) {
  const std::int64_t width = groups.units * kPack;
  for (std::int64_t i = groups.first(); i < groups.count; i += groups.step()) {
    const RowPiece at = groups.piece(i);
    if (at.unit >= groups.units) continue;
    S* to = dense + indices[at.row] * width + at.unit * kPack;
    auto sum = WidePack<S, kPack>::load(to);
    const auto more = WidePack<S, kPack>::load(values + at.row * width + at.unit * kPack);
#pragma unroll
    for (int k = 0; k < kPack; ++k) sum.element[k] += more.element[k];
    sum.store(to);
  }
}

}  // namespace

void inspect_rows(InspectRowsArgs& args, Stream stream) {
  const Device here{DeviceType::cuda, stream.device};
  const auto there = scratch<Findings>(stream, 1);
  zero_bytes(there.get(), sizeof(Findings), here);
  dispatch_index(args.dtype, [&]<class Index>() {
    constexpr int kPack = kPackSize<Index>;
    const auto* indices = static_cast<const Index*>(args.indices);
    const std::int64_t packed = is_pack_aligned(indices) ? args.size / kPack * kPack : 0;
    launch<inspect_rows_kernel<Index>>({.grid = {blocks_for(args.size, kPack * kMapPacks)}, .block = {kMapThreads}},
                                       stream, indices, packed, args.size, args.limit, args.full, there.get());
  });
  Findings found;
  copy_bytes(&found, Device{}, there.get(), here, sizeof found);
  const auto place = [&](Count left) { return left ? args.size - static_cast<std::int64_t>(left) : -1; };
  args.outside = place(found.outside);
  args.disorder = place(found.disorder);
  args.largest = static_cast<std::int64_t>(found.largest) - 1;
}

void sum_rows(SumRowsArgs& args, Stream stream) {
  constexpr std::int64_t kPacked = std::int64_t{1} << 32;
  if (args.size == 0) {
    args.allocate(args, 0);
    if (args.dense) zero_values(args, stream);
  } else if (args.limit < kPacked && args.size < kPacked && args.bags < kPacked) {
    sum_entries<PackedEntry>(args, stream);
  } else {
    sum_entries<WideEntry>(args, stream);
  }
}

void add_rows(const AddRowsArgs& args, Stream stream) {
  if (args.size == 0 || args.width == 0) return;
  dispatch_float(args.dtype, [&]<class S>() {
    auto* dense = static_cast<S*>(args.dense);
    const auto* values = static_cast<const S*>(args.values);
    const auto run = [&]<int kPack>() {
      const RowGroups groups(args.size, args.width / kPack);
      launch<add_rows_kernel<S, kPack>>({.grid = {blocks_for(groups.threads())}, .block = {kMapThreads}}, stream, dense,
                                        args.indices, values, groups);
    };
    if (args.width % kPackSize<S> == 0 && is_pack_aligned(dense, values)) {
      run.template operator()<kPackSize<S>>();
    } else {
      run.template operator()<1>();
    }
  });
}

}  // namespace drupe::cuda
