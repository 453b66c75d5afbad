// A step of a table's optimizer by sums of sorted contributions. A group of lanes has a task of a few entries and whole
// rows, the columns across its lanes: it sums each segment in registers and puts the new row into the table at once.
// For row-wise rules the group first needs the mean square of the row; one wider than its lanes is summed a second time
// for that, from cache. A row that crosses tasks leaves partial sums (segment_sum.cuh), which one block adds up and
// steps by. Bytes: the contributions once, a touched row of the table and its states twice.
#include "ops/embedding_step.h"

#include <type_traits>

#include "cuda/optimizer_rules.cuh"
#include "cuda/segment_sum.cuh"
#include "cuda/tile/stochastic.cuh"

namespace drupe::cuda {
namespace {

template <class S>
struct RowStep {
  using A = Accumulator<S>;
  RowRule rule;
  S* weight;
  std::int64_t row_stride, width;
  A* state[2];
  SgdRule<A> sgd;
  AdamRule<A> adam;
  A lr, eps;
  Rounding rounding;

  RowStep(const RowStepArgs& args, std::int64_t columns)
      : rule(args.rule),
        weight(static_cast<S*>(args.weight)),
        row_stride(args.row_stride),
        width(columns),
        state{static_cast<A*>(args.state[0]), static_cast<A*>(args.state[1])},
        sgd(args.sgd()),
        adam(args.options),
        lr(static_cast<A>(args.options.lr)),
        eps(static_cast<A>(args.options.eps)),
        rounding(args.rounding) {}

  __device__ __forceinline__ bool by_row() const { return rule == RowRule::rowwise_adagrad; }

  // A row-wise rule's gradient, with its decay, given the sum of contributions; gives the sum of its squares.
  template <int kPack>
  __device__ __forceinline__ A complete(WidePack<S, kPack>& g, std::int64_t row, std::int64_t column) const {
    const auto p = WidePack<S, kPack>::load(weight + row * row_stride + column);
    A squares = 0;
#pragma unroll
    for (int k = 0; k < kPack; ++k) {
      g.element[k] = sgd.penalty(p.element[k], g.element[k]);
      squares = std::fma(g.element[k], g.element[k], squares);
    }
    return squares;
  }

  // The row's new state.
  __device__ __forceinline__ A add_squares(std::int64_t row, A squares) const {
    return state[0][row] + squares / static_cast<A>(width);
  }

  // New elements of the table. For a row-wise rule g is complete, and `sum` the row's new state.
  template <int kPack>
  __device__ __forceinline__ void apply(const WidePack<S, kPack>& g, std::int64_t row, std::int64_t column,
                                        A sum) const {
    S* const to = weight + row * row_stride + column;
    const std::int64_t place = row * width + column;
    auto p = WidePack<S, kPack>::load(to);
    if (rule == RowRule::adam) {
      auto m = WidePack<S, kPack>::load_wide(state[0] + place), v = WidePack<S, kPack>::load_wide(state[1] + place);
#pragma unroll
      for (int k = 0; k < kPack; ++k) {
        A here[2] = {m.element[k], v.element[k]};
        p.element[k] = adam(p.element[k], g.element[k], here);
        m.element[k] = here[0];
        v.element[k] = here[1];
      }
      m.store_wide(state[0] + place);
      v.store_wide(state[1] + place);
    } else {
      const A minus_rate = by_row() ? -lr / (std::sqrt(sum) + eps) : sgd.minus_lr;
#pragma unroll
      for (int k = 0; k < kPack; ++k) {
        const A here = by_row() ? g.element[k] : sgd.penalty(p.element[k], g.element[k]);
        p.element[k] = std::fma(minus_rate, here, p.element[k]);
      }
    }
    if constexpr (!std::is_same_v<S, A>) {
      if (rounding.stochastic) return store_drawn(p, rounding, 0, place, to);
    }
    p.store(to);
  }
};

// The sum of entries [from, to) of one row.
template <class S, int kPack>
__device__ __forceinline__ WidePack<S, kPack> sum_entries(const SegmentSum<S>& sum, std::int64_t from, std::int64_t to,
                                                          std::int64_t column) {
  auto total = WidePack<S, kPack>::zero();
  sum.template for_each_term<kPack>(from, to, column, [&](std::int64_t, const WidePack<S, kPack>& term) {
#pragma unroll
    for (int j = 0; j < kPack; ++j) total.element[j] += term.element[j];
  });
  return total;
}

// A segment, or the task's part of it. The lanes of the group come together.
template <class S, int kPack>
__device__ __forceinline__ void step_segment(const SegmentSum<S>& sum, const RowStep<S>& step, const RowGroups& groups,
                                             std::int64_t from, std::int64_t to, std::int64_t row,
                                             Accumulator<S>* partial) {
  using A = Accumulator<S>;
  const int lanes = 1 << groups.log_lanes;
  const bool by_row = step.by_row() && !partial;
  auto g = WidePack<S, kPack>::zero();
  A squares = 0, state = 0;
  for (int pass = by_row ? 0 : 1; pass < 2; ++pass) {
    for (std::int64_t unit = groups.lane(); unit < groups.units; unit += lanes) {
      const std::int64_t column = unit * kPack;
      if (!by_row || pass == 0 || groups.pieces > 1) {
        g = sum_entries<S, kPack>(sum, from, to, column);
        if (by_row) squares += step.template complete<kPack>(g, row, column);
      }
      if (pass == 0) continue;
      if (partial) {
        g.store_wide(partial + column);
      } else {
        step.template apply<kPack>(g, row, column, state);
      }
    }
    if (pass > 0) break;
    const unsigned first = threadIdx.x % kWarp & ~(lanes - 1u);
    const unsigned mask = (kFullMask >> (kWarp - lanes)) << first;
    state = step.add_squares(row, group_sum(squares, groups.log_lanes, mask));
    __syncwarp(mask);  // all have read the row's state
    if (groups.lane() == 0) step.state[0][row] = state;
  }
}

// A task by a group.
template <class S, int kPack>
__global__ __launch_bounds__(kMapThreads, 2) void step_segments_kernel(SegmentSum<S> sum, RowStep<S> step,
                                                                       RowGroups groups) {
  const std::int64_t task = groups.first();
  if (task >= sum.tasks) return;
  const std::int64_t begin = task << sum.segments.log_task, end = (task + 1) << sum.segments.log_task;
  const std::int64_t size = sum.totals->entries, stop = end < size ? end : size;
  std::int64_t segment = sum.segments.of_task[task];
  bool carried = sum.segments.begins[segment] < begin, open = false;
  for (std::int64_t from = begin; from < stop; ++segment) {
    const std::int64_t next = sum.segments.begins[segment + 1], to = next < stop ? next : stop;
    open = !carried && next > stop;
    step_segment<S, kPack>(sum, step, groups, from, to, sum.segments.rows[segment],
                           carried ? sum.carry(task)
                           : open  ? sum.open(task)
                                   : nullptr);
    carried = false;
    from = to;
  }
  if (groups.lane() == 0) sum.open_segment[task] = open ? segment - 1 : -1;
}

// A block steps by one segment that crosses tasks.
template <class S>
__global__ __launch_bounds__(kJoinThreads, 4) void join_steps_kernel(SegmentSum<S> sum, RowStep<S> step,
                                                                     int log_lanes) {
  using A = Accumulator<S>;
  auto& storage = shared_storage<JoinStorage<A>>();
  const JoinThread thread(log_lanes);
  for (std::int64_t task = blockIdx.x; task < sum.tasks; task += gridDim.x) {
    const std::int64_t segment = sum.open_segment[task];
    if (segment < 0) continue;
    const std::int64_t row = sum.segments.rows[segment];
    A squares = 0;
    for (std::int64_t base = 0; base < sum.width; base += thread.lanes) {
      const std::int64_t column = base + thread.lane;
      WidePack<S, 1> g{join_column(sum, thread, task, segment, column, storage)};
      if (thread.part > 0 || column >= sum.width) continue;
      if (step.by_row()) {
        squares += step.template complete<1>(g, row, column);
        sum.open(task)[column] = g.element[0];  // until all of the row is there
      } else {
        step.template apply<1>(g, row, column, 0);
      }
    }
    if (!step.by_row()) continue;
    const A state = step.add_squares(row, group_sum(squares, log_lanes));
    __syncthreads();  // all have read the row's state
    if (thread.part > 0) continue;
    if (thread.lane == 0) step.state[0][row] = state;
    for (std::int64_t column = thread.lane; column < sum.width; column += thread.lanes) {
      step.template apply<1>(WidePack<S, 1>{sum.open(task)[column]}, row, column, state);
    }
  }
}

}  // namespace

template <class S>
void step_segments(SegmentSum<S> sum, const RowStepArgs& args, Stream stream) {
  constexpr int kPack = kPackSize<S>;
  const RowStep<S> step(args, sum.width);
  const bool by_row = args.rule == RowRule::rowwise_adagrad;
  const bool in_packs = sum.width % kPack == 0 && step.row_stride % kPack == 0 &&
                        is_pack_aligned(sum.source, step.weight) &&
                        (by_row || is_pack_aligned(step.state[0], step.state[1]));
  const RowGroups groups(sum.tasks, in_packs ? sum.width / kPack : sum.width);
  const auto partials = scratch<Accumulator<S>>(stream, 2 * sum.tasks * sum.width);
  const auto open = scratch<std::int64_t>(stream, sum.tasks);
  sum.partials = partials.get();
  sum.open_segment = open.get();
  const LaunchConfig config{.grid = {blocks_for(sum.tasks << groups.log_lanes)}, .block = {kMapThreads}};
  if (in_packs) {
    launch<step_segments_kernel<S, kPack>>(config, stream, sum, step, groups);
  } else {
    launch<step_segments_kernel<S, 1>>(config, stream, sum, step, groups);
  }
  if (sum.tasks == 1) return;
  launch<join_steps_kernel<S>>({.grid = {static_cast<unsigned>(std::min(sum.tasks, kJoinBlocks))},
                                .block = {kJoinThreads},
                                .shared_bytes = sizeof(JoinStorage<Accumulator<S>>)},
                               stream, sum, step, RowGroups(1, sum.width).log_lanes);
}

template void step_segments(SegmentSum<float>, const RowStepArgs&, Stream);
template void step_segments(SegmentSum<double>, const RowStepArgs&, Stream);
template void step_segments(SegmentSum<Float16>, const RowStepArgs&, Stream);
template void step_segments(SegmentSum<BFloat16>, const RowStepArgs&, Stream);

}  // namespace drupe::cuda
