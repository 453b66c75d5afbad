// Cross entropy. Forward: lanes of a warp, or a block, sweep a row once for its maximum and its sum of exponentials
// together; a fixed number of blocks shares the rows, and a last block adds up what they found. Backward: the same
// threads write (softmax - target) dloss. Rows are walked by the 16-byte blocks of memory that hold them. Bytes: the
// logits once; the logits and their gradient.
#include "ops/cross_entropy.h"

#include <memory>

#include "core/cuda.h"
#include "core/dispatch.h"
#include "cuda/tile/map.cuh"
#include "cuda/tile/online.cuh"
#include "cuda/tile/row.cuh"

namespace drupe::cuda {
namespace {

constexpr int kThreads = 256;
constexpr std::int64_t kBlocks = 2048;  // that share the rows in forward

struct Plan {
  CrossEntropyArgs args;
  int lanes;                 // of a row
  bool aligned;              // dlogits' rows begin as far into 16-byte blocks as the logits'
  const double* weight_sum;  // where it is not the number of classes, and matters
  double* partial;           // (blocks, 2): sums of losses and of their weights
};

struct Sums {
  ReduceStorage<double, kThreads> loss, weight;
};
template <class A>
struct RowStorage {
  ReduceStorage<A, kThreads> top, sum, weighted;
  Sums sums;
};

__device__ __forceinline__ std::int64_t label_of(const CrossEntropyArgs& args, std::int64_t row) {
  if (args.label_dtype == Dtype::i32) return static_cast<const std::int32_t*>(args.labels)[row];
  return static_cast<const std::int64_t*>(args.labels)[row];
}
// Labels have been checked; one that has changed since must not be followed out of the row.
__device__ __forceinline__ bool has_loss(const CrossEntropyArgs& args, std::int64_t label) {
  return label != args.ignore_index && label >= 0 && label < args.C;
}
template <class A>
__device__ __forceinline__ A weight_of(const CrossEntropyArgs& args, std::int64_t label) {
  return args.weight ? static_cast<const A*>(args.weight)[label] : A(1);
}
template <class A>
__device__ __forceinline__ A weight_sum_of(const Plan& plan) {
  return static_cast<A>(plan.weight_sum ? *plan.weight_sum : static_cast<double>(plan.args.C));
}
template <class A>
__device__ __forceinline__ A spread_of(const CrossEntropyArgs& args) {
  return static_cast<A>(args.label_smoothing / static_cast<double>(args.C));
}

// This thread's share of a row: its maximum, its sum of exponentials, and sum weight (z - base) where labels are
// smoothed.
template <class S, class A>
__device__ __forceinline__ void sum_row(const Plan& plan, const S* z, int lane, A base, Online<A>& online,
                                        A& weighted) {
  constexpr int kPack = kPackSize<S>;
  constexpr A kLowest = -std::numeric_limits<A>::infinity();
  const std::int64_t C = plan.args.C, step = std::int64_t{plan.lanes} * kPack;
  const bool smooth = plan.args.label_smoothing > 0;
  std::int64_t begin = lane * kPack - skew_of(z);
  A next[kPack];
  load_block<kPack>(z, begin, C, true, kLowest, next);
  for (; begin < C; begin += step) {
    A value[kPack];
#pragma unroll
    for (int k = 0; k < kPack; ++k) value[k] = next[k];
    load_block<kPack>(z, begin + step, C, true, kLowest, next);  // arrives while the exponentials are computed
    A top = value[0];
#pragma unroll
    for (int k = 1; k < kPack; ++k) top = Maximum{}(top, value[k]);
    online.raise(top);
    A sum = A(0);
#pragma unroll
    for (int k = 0; k < kPack; ++k) sum += std::exp(value[k] - online.top);
    online.sum += sum;
    if (!smooth) continue;
    for (int k = 0; k < kPack; ++k) {
      const std::int64_t c = begin + k;
      if (c >= 0 && c < C) weighted += weight_of<A>(plan.args, c) * (value[k] - base);
    }
  }
}

template <class S>
__global__ __launch_bounds__(kThreads, 2) void cross_entropy_kernel(Plan plan) {
  using A = Accumulator<S>;
  auto& storage = shared_storage<RowStorage<A>>();
  const CrossEntropyArgs& args = plan.args;
  const int lane = static_cast<int>(threadIdx.x) % plan.lanes, group = static_cast<int>(threadIdx.x) / plan.lanes;
  const std::int64_t groups = kThreads / plan.lanes;
  const A own = static_cast<A>(1 - args.label_smoothing);
  double total_loss = 0, total_weight = 0;
  for (std::int64_t first = blockIdx.x * groups; first < args.rows; first += gridDim.x * groups) {
    const std::int64_t row = first + group;
    const std::int64_t label = row < args.rows ? label_of(args, row) : args.ignore_index;
    const bool counts = has_loss(args, label);
    Online<A> online;
    A at_label = A(0), base = A(0), weighted = A(0);
    if (counts) {
      const S* z = static_cast<const S*>(args.logits) + row * args.C;
      at_label = widen(z[label]);
      base = std::fabs(at_label) <= std::numeric_limits<A>::max() ? at_label : A(0);
      sum_row(plan, z, lane, base, online, weighted);
    }
    const A top = group_reduce(online.top, Maximum{}, plan.lanes, storage.top);
    online.raise(top);
    const A sum = group_reduce(online.sum, Sum{}, plan.lanes, storage.sum);
    if (args.label_smoothing > 0) weighted = group_reduce(weighted, Sum{}, plan.lanes, storage.weighted);
    if (lane != 0 || row >= args.rows) continue;
    A loss = A(0);
    if (counts) {
      static_cast<A*>(args.sums)[2 * row] = top;
      static_cast<A*>(args.sums)[2 * row + 1] = sum;
      const A weight = weight_of<A>(args, label), log_sum = std::log(sum);
      loss = own * weight * ((top - at_label) + log_sum);
      if (args.label_smoothing > 0) {
        loss += spread_of<A>(args) * (weight_sum_of<A>(plan) * ((top - base) + log_sum) - weighted);
      }
      total_loss += static_cast<double>(loss);
      total_weight += static_cast<double>(weight);
    }
    if (args.reduction == Reduction::none) static_cast<A*>(args.loss)[row] = loss;
  }
  total_loss = block_reduce<kThreads>(total_loss, Sum{}, storage.sums.loss);
  total_weight = block_reduce<kThreads>(total_weight, Sum{}, storage.sums.weight);
  if (threadIdx.x != 0) return;
  plan.partial[2 * blockIdx.x] = total_loss;
  plan.partial[2 * blockIdx.x + 1] = total_weight;
}

// One block adds up what `blocks` of them found.
template <class A>
__global__ __launch_bounds__(kThreads) void cross_entropy_total_kernel(Plan plan, int blocks) {
  auto& storage = shared_storage<Sums>();
  const CrossEntropyArgs& args = plan.args;
  double loss = 0, weight = 0;
  for (int i = static_cast<int>(threadIdx.x); i < blocks; i += kThreads) {
    loss += plan.partial[2 * i];
    weight += plan.partial[2 * i + 1];
  }
  loss = block_reduce<kThreads>(loss, Sum{}, storage.loss);
  weight = block_reduce<kThreads>(weight, Sum{}, storage.weight);
  if (threadIdx.x != 0) return;
  *args.total = weight;
  if (args.reduction == Reduction::sum) *static_cast<A*>(args.loss) = static_cast<A>(loss);
  if (args.reduction == Reduction::mean) {
    *static_cast<A*>(args.loss) = static_cast<A>(weight == 0 ? 0 : loss / weight);
  }
}

// One block adds up the classes' weights.
template <class A>
__global__ __launch_bounds__(kThreads) void cross_entropy_weight_kernel(const A* weight, std::int64_t C, double* sum) {
  auto& storage = shared_storage<Sums>();
  double total = 0;
  for (std::int64_t c = threadIdx.x; c < C; c += kThreads) total += static_cast<double>(weight[c]);
  total = block_reduce<kThreads>(total, Sum{}, storage.weight);
  if (threadIdx.x == 0) *sum = total;
}

template <class S>
__global__ __launch_bounds__(kThreads) void cross_entropy_backward_kernel(Plan plan) {
  using A = Accumulator<S>;
  constexpr int kPack = kPackSize<S>;
  const CrossEntropyArgs& args = plan.args;
  const int lane = static_cast<int>(threadIdx.x) % plan.lanes;
  const std::int64_t row =
      std::int64_t{blockIdx.x} * (kThreads / plan.lanes) + static_cast<int>(threadIdx.x) / plan.lanes;
  if (row >= args.rows) return;
  const S* z = static_cast<const S*>(args.logits) + row * args.C;
  S* dz = static_cast<S*>(args.dlogits) + row * args.C;
  const std::int64_t label = label_of(args, row), C = args.C;
  const bool counts = has_loss(args, label), smooth = counts && args.label_smoothing > 0;
  A top = A(0), scale = A(0), uniform = A(0), share = A(0);
  if (counts) {
    const double total = args.reduction == Reduction::mean ? *args.total : 1;
    const A outer = static_cast<const A*>(args.dloss)[args.reduction == Reduction::none ? row : 0];
    const A dloss = static_cast<A>(total == 0 ? 0 : static_cast<double>(outer) / total);
    const A* sums = static_cast<const A*>(args.sums) + 2 * row;
    const A spread = smooth ? spread_of<A>(args) : A(0);
    const A own = static_cast<A>(1 - args.label_smoothing) * weight_of<A>(args, label);
    top = sums[0];
    scale = dloss * (own + (smooth ? spread * weight_sum_of<A>(plan) : A(0))) / sums[1];
    uniform = dloss * spread;
    share = dloss * own;
  }
  const std::int64_t step = std::int64_t{plan.lanes} * kPack;
  for (std::int64_t begin = lane * kPack - skew_of(z); begin < C; begin += step) {
    A value[kPack];
    load_block<kPack>(z, begin, C, true, A(0), value);
#pragma unroll
    for (int k = 0; k < kPack; ++k) {
      const std::int64_t c = begin + k;
      // An ignored row's logits may be anything.
      A gradient = counts ? std::exp(value[k] - top) * scale : A(0);
      if (smooth && c >= 0 && c < C) gradient -= uniform * weight_of<A>(args, c);
      value[k] = counts && c == label ? gradient - share : gradient;
    }
    store_block<kPack>(dz, begin, C, plan.aligned, value);
  }
}

template <class S>
Plan plan_rows(const CrossEntropyArgs& args) {
  constexpr std::int64_t kPack = kPackSize<S>;
  const auto place = [](const void* p) { return reinterpret_cast<std::uintptr_t>(p) % 16; };
  const std::int64_t blocks = (args.C + kPack - 1) / kPack;
  return {.args = args,
          .lanes = choose_row_lanes(blocks, kThreads),
          .aligned = place(args.logits) == place(args.dlogits),
          .weight_sum = nullptr,
          .partial = nullptr};
}

// Sums the weights where they matter, into sum.
template <class A>
void sum_weights(Plan& plan, double* sum, Stream stream) {
  if (!plan.args.weight || plan.args.label_smoothing == 0) return;
  launch<cross_entropy_weight_kernel<A>>({.grid = {1}, .block = {kThreads}, .shared_bytes = sizeof(Sums)}, stream,
                                         static_cast<const A*>(plan.args.weight), plan.args.C, sum);
  plan.weight_sum = sum;
}

}  // namespace

void cross_entropy(const CrossEntropyArgs& args, Stream stream) {
  dispatch_float(args.dtype, [&]<class S>() {
    using A = Accumulator<S>;
    Plan plan = plan_rows<S>(args);
    const std::int64_t groups = kThreads / plan.lanes;
    const std::int64_t blocks = std::clamp<std::int64_t>((args.rows + groups - 1) / groups, 1, kBlocks);
    const auto scratch =
        allocate(static_cast<std::size_t>(2 * blocks + 1) * sizeof(double), {DeviceType::cuda, stream.device});
    plan.partial = static_cast<double*>(scratch.get());
    sum_weights<A>(plan, plan.partial + 2 * blocks, stream);
    launch<cross_entropy_kernel<S>>(
        {.grid = {static_cast<unsigned>(blocks)}, .block = {kThreads}, .shared_bytes = sizeof(RowStorage<A>)}, stream,
        plan);
    launch<cross_entropy_total_kernel<A>>({.grid = {1}, .block = {kThreads}, .shared_bytes = sizeof(Sums)}, stream,
                                          plan, static_cast<int>(blocks));
  });
}

void cross_entropy_backward(const CrossEntropyArgs& args, Stream stream) {
  if (args.rows == 0 || args.C == 0) return;
  dispatch_float(args.dtype, [&]<class S>() {
    Plan plan = plan_rows<S>(args);
    const auto scratch = allocate(sizeof(double), {DeviceType::cuda, stream.device});
    sum_weights<Accumulator<S>>(plan, static_cast<double*>(scratch.get()), stream);
    launch<cross_entropy_backward_kernel<S>>(
        {.grid = {blocks_for(args.rows, 1, kThreads / plan.lanes)}, .block = {kThreads}}, stream, plan);
  });
}

}  // namespace drupe::cuda
