// Backward of layer_norm and rms_norm; row_norm.cuh says who owns what. A fixed number of blocks shares the rows. Each
// thread keeps the gradients of its columns' parameters in registers, over all of its rows; a block's sums go to
// scratch, and a second pass adds the blocks up. Bytes: x (and residual), dy and dx once. Rows that do not fit are
// swept twice for dx, and once more by columns for the parameters.
#include <memory>

#include "core/cuda.h"
#include "core/dispatch.h"
#include "cuda/row_norm.cuh"
#include "ops/reduce.h"

namespace drupe::cuda {
namespace {

constexpr int kFew = 8;
template <class A>
constexpr int kMany = sizeof(A) == 8 ? 16 : 32;  // a thread's elements of a row in registers
constexpr std::int64_t kBlocks = 264;            // that share the rows
constexpr std::int64_t kColumnBlocks = 1024;     // the least that the columns of long rows are cut into

template <class A, int kItems>
struct BackwardStorage {
  ReduceStorage<A, kNormThreads> g, gx;
  A gradient[kItems][kNormThreads];
};

// dx = rstd g + slope (h - mean) + shift
template <class A>
struct InputGradient {
  A mean, rstd, slope, shift;

  __device__ __forceinline__ InputGradient(const RowNormArgs& args, std::int64_t row, bool counts)
      : mean(counts && args.centered ? static_cast<const A*>(args.mean)[row] : A(0)),
        rstd(counts ? static_cast<const A*>(args.rstd)[row] : A(0)) {}
  // From the sums over the row of g and of g xhat.
  __device__ __forceinline__ void finish(const RowNormArgs& args, A sum_g, A sum_gx) {
    const A n = static_cast<A>(args.size);
    slope = -rstd * rstd * (sum_gx / n);
    shift = args.centered ? -rstd * (sum_g / n) : A(0);
  }
  __device__ __forceinline__ A operator()(A h, A g) const { return rstd * g + (slope * (h - mean) + shift); }
};

template <class S, class A>
__device__ __forceinline__ void load_norm_gradient(const NormPlan& plan, std::int64_t row, std::int64_t begin,
                                                   std::int64_t size, A* values) {
  load_block<kPackSize<S>>(static_cast<const S*>(plan.args.dy) + row * plan.args.size, begin, size, plan.aligned, A(0),
                           values);
}

// Adds up what the groups of a block found for the same columns, in order, and writes it to the block's partial.
template <class A, int kItems, int kPack>
__device__ __forceinline__ void store_partial(const NormPlan& plan, int which, const A* found,
                                              BackwardStorage<A, kItems>& storage) {
  const int thread = static_cast<int>(threadIdx.x);
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kItems; ++i) storage.gradient[i][thread] = found[i];
  __syncthreads();
  const std::int64_t size = plan.args.size, width = plan.args.centered ? 2 * size : size;
  A* partial = static_cast<A*>(plan.partial) + blockIdx.x * width + which * size;
  for (int place = thread; place < plan.lanes * kItems; place += kNormThreads) {
    const int item = place / plan.lanes, lane = place % plan.lanes;
    const std::int64_t column = (item / kPack * plan.lanes + lane) * kPack + item % kPack;
    if (column >= size) continue;
    A sum = A(0);
    for (int other = lane; other < kNormThreads; other += plan.lanes) sum += storage.gradient[item][other];
    partial[column] = sum;
  }
}

template <class S, int kItems>
__global__ __launch_bounds__(kNormThreads) void row_norm_backward_kernel(NormPlan plan) {
  using A = Accumulator<S>;
  constexpr int kPack = kPackSize<S>;
  auto& storage = shared_storage<BackwardStorage<A, kItems>>();
  const int lane = static_cast<int>(threadIdx.x) % plan.lanes, group = static_cast<int>(threadIdx.x) / plan.lanes;
  const std::int64_t groups = kNormThreads / plan.lanes;
  A dweight[kItems] = {}, dbias[kItems] = {};
  for (std::int64_t base = blockIdx.x * groups; base < plan.args.rows; base += gridDim.x * groups) {
    const std::int64_t row = base + group;
    const bool counts = row < plan.args.rows;
    const std::int64_t size = counts ? plan.args.size : 0;
    A h[kItems], dy[kItems];
#pragma unroll
    for (int i = 0; i < kItems; i += kPack) {
      const std::int64_t begin = (i / kPack * plan.lanes + lane) * kPack;
      load_norm_input<S>(plan, row, begin, size, h + i);
      load_norm_gradient<S>(plan, row, begin, size, dy + i);
    }
    InputGradient<A> dx(plan.args, row, counts);
    A sum_g = A(0), sum_gx = A(0);
#pragma unroll
    for (int i = 0; i < kItems; i += kPack) {
      A weight[kPack];
      load_norm_parameter<kPack>(plan, plan.args.weight, (i / kPack * plan.lanes + lane) * kPack, A(1), weight);
#pragma unroll
      for (int k = 0; k < kPack; ++k) {
        const A xhat = (h[i + k] - dx.mean) * dx.rstd, d = dy[i + k];
        dweight[i + k] += d * xhat;
        dbias[i + k] += d;
        dy[i + k] = d * weight[k];
        sum_g += dy[i + k];
        sum_gx += dy[i + k] * xhat;
      }
    }
    sum_g = group_reduce(sum_g, Sum{}, plan.lanes, storage.g);
    sum_gx = group_reduce(sum_gx, Sum{}, plan.lanes, storage.gx);
    dx.finish(plan.args, sum_g, sum_gx);
#pragma unroll
    for (int i = 0; i < kItems; i += kPack) {
#pragma unroll
      for (int k = 0; k < kPack; ++k) h[i + k] = dx(h[i + k], dy[i + k]);
      store_block<kPack>(static_cast<S*>(plan.args.y) + row * plan.args.size, (i / kPack * plan.lanes + lane) * kPack,
                         size, plan.aligned, h + i);
    }
  }
  store_partial<A, kItems, kPack>(plan, 0, dweight, storage);
  if (plan.args.centered) store_partial<A, kItems, kPack>(plan, 1, dbias, storage);
}

template <class S>
__global__ __launch_bounds__(kNormThreads) void row_norm_backward_long_kernel(NormPlan plan) {
  using A = Accumulator<S>;
  constexpr int kPack = kPackSize<S>;
  auto& storage = shared_storage<BackwardStorage<A, 1>>();
  const std::int64_t row = blockIdx.x, size = plan.args.size;
  const std::int64_t first = std::int64_t{threadIdx.x} * kPack, step = std::int64_t{kNormThreads} * kPack;
  InputGradient<A> dx(plan.args, row, true);
  A h[kPack], dy[kPack], weight[kPack], sum_g = A(0), sum_gx = A(0);
  for (std::int64_t begin = first; begin < size; begin += step) {
    load_norm_input<S>(plan, row, begin, size, h);
    load_norm_gradient<S>(plan, row, begin, size, dy);
    load_norm_parameter<kPack>(plan, plan.args.weight, begin, A(1), weight);
    A some_g = A(0), some_gx = A(0);
#pragma unroll
    for (int k = 0; k < kPack; ++k) {
      const A g = dy[k] * weight[k];
      some_g += g;
      some_gx += g * ((h[k] - dx.mean) * dx.rstd);
    }
    sum_g += some_g;
    sum_gx += some_gx;
  }
  sum_g = block_reduce<kNormThreads>(sum_g, Sum{}, storage.g);
  sum_gx = block_reduce<kNormThreads>(sum_gx, Sum{}, storage.gx);
  dx.finish(plan.args, sum_g, sum_gx);
  for (std::int64_t begin = first; begin < size; begin += step) {
    load_norm_input<S>(plan, row, begin, size, h);
    load_norm_gradient<S>(plan, row, begin, size, dy);
    load_norm_parameter<kPack>(plan, plan.args.weight, begin, A(1), weight);
#pragma unroll
    for (int k = 0; k < kPack; ++k) h[k] = dx(h[k], dy[k] * weight[k]);
    store_block<kPack>(static_cast<S*>(plan.args.y) + row * size, begin, size, plan.aligned, h);
  }
}

// A thread owns a pack of columns, over its block's share of the rows.
template <class S>
__global__ __launch_bounds__(kNormThreads) void row_norm_parameters_kernel(NormPlan plan) {
  using A = Accumulator<S>;
  constexpr int kPack = kPackSize<S>;
  const std::int64_t size = plan.args.size, step = std::int64_t{kNormThreads} * kPack;
  const std::int64_t share = blockIdx.x / plan.tiles;
  const std::int64_t begin = (blockIdx.x - share * plan.tiles) * step + std::int64_t{threadIdx.x} * kPack;
  if (begin >= size) return;
  A dweight[kPack] = {}, dbias[kPack] = {};
  for (std::int64_t row = share; row < plan.args.rows; row += plan.blocks) {
    const InputGradient<A> dx(plan.args, row, true);
    A h[kPack], dy[kPack];
    load_norm_input<S>(plan, row, begin, size, h);
    load_norm_gradient<S>(plan, row, begin, size, dy);
#pragma unroll
    for (int k = 0; k < kPack; ++k) {
      dweight[k] += dy[k] * ((h[k] - dx.mean) * dx.rstd);
      dbias[k] += dy[k];
    }
  }
  A* partial = static_cast<A*>(plan.partial) + share * (plan.args.centered ? 2 * size : size);
  for (int k = 0; k < kPack && begin + k < size; ++k) {
    partial[begin + k] = dweight[k];
    if (plan.args.centered) partial[size + begin + k] = dbias[k];
  }
}

template <class A>
void add_partials(const NormPlan& plan, Stream stream) {
  const std::int64_t size = plan.args.size, width = plan.args.centered ? 2 * size : size;
  if (size == 0) return;
  void* const gradients[] = {plan.args.dweight, plan.args.dbias};
  for (int which = 0; which < (plan.args.centered ? 2 : 1); ++which) {
    reduce({.x = static_cast<const A*>(plan.partial) + which * size,
            .y = gradients[which],
            .kept = {.shape = {size}, .strides = {Dims{1}, Dims{1}}},
            .reduced = {.shape = {plan.blocks}, .strides = {Dims{width}}},
            .columns = true,
            .dtype = dtype_of<A>,
            .y_dtype = dtype_of<A>,
            .op = Reduction::sum},
           stream);
  }
}

template <class S>
void run(const RowNormArgs& args, Stream stream) {
  using A = Accumulator<S>;
  NormPlan plan = plan_norm<S>(args, kFew, kMany<A>);
  const std::int64_t items = norm_items<S>(args), groups = kNormThreads / plan.lanes;
  plan.tiles = static_cast<unsigned>((items + kNormThreads * kPackSize<S> - 1) / (kNormThreads * kPackSize<S>));
  const bool fits = plan.kept > 0;
  plan.blocks = fits
                    ? std::clamp<std::int64_t>((args.rows + groups - 1) / groups, 1, kBlocks)
                    : std::clamp<std::int64_t>(kColumnBlocks / plan.tiles, 1, std::max<std::int64_t>(1, args.rows / 4));
  const auto width = static_cast<std::size_t>((args.centered ? 2 : 1) * args.size);
  const auto scratch =
      allocate(static_cast<std::size_t>(plan.blocks) * width * sizeof(A), {DeviceType::cuda, stream.device});
  plan.partial = scratch.get();
  const auto config = [&](std::int64_t blocks, std::size_t bytes) -> LaunchConfig {
    return {.grid = {static_cast<unsigned>(blocks)}, .block = {kNormThreads}, .shared_bytes = bytes};
  };
  if (plan.kept == kFew) {
    launch<row_norm_backward_kernel<S, kFew>>(config(plan.blocks, sizeof(BackwardStorage<A, kFew>)), stream, plan);
  } else if (fits) {
    launch<row_norm_backward_kernel<S, kMany<A>>>(config(plan.blocks, sizeof(BackwardStorage<A, kMany<A>>)), stream,
                                                  plan);
  } else {
    if (args.rows > 0) {
      launch<row_norm_backward_long_kernel<S>>(config(args.rows, sizeof(BackwardStorage<A, 1>)), stream, plan);
    }
    launch<row_norm_parameters_kernel<S>>(config(plan.tiles * plan.blocks, 0), stream, plan);
  }
  add_partials<A>(plan, stream);
}

}  // namespace

void row_norm_backward(const RowNormArgs& args, Stream stream) {
  dispatch_float(args.dtype, [&]<class S>() { run<S>(args, stream); });
}

}  // namespace drupe::cuda
