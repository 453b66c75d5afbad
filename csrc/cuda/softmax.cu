// softmax and log_softmax; softmax.cuh says who owns what. Bytes: x and y once; long rows and columns read x a second
// time, mostly from L2.
#include "cuda/softmax.cuh"

#include <limits>

#include "cuda/tile/online.cuh"

namespace drupe::cuda {
namespace {

template <class A>
struct Scale {
  A top, by;
  bool log;
  __device__ __forceinline__ Scale(A top, A sum, bool log) : top(top), by(log ? std::log(sum) : A(1) / sum), log(log) {}
  __device__ __forceinline__ A operator()(A x) const { return log ? x - top - by : std::exp(x - top) * by; }
};

template <class S, int kItems>
__global__ __launch_bounds__(kSoftmaxThreads) void softmax_row_kernel(SoftmaxRows plan) {
  using A = Accumulator<S>;
  constexpr int kPack = kPackSize<S>;
  auto& storage = shared_storage<SoftmaxRowStorage<A>>();
  const SoftmaxRowPart<S> part(plan);
  const std::int64_t size = part.counts ? plan.size : 0;
  const S* x = static_cast<const S*>(plan.x) + part.offset;
  A value[kItems];
  A top = -std::numeric_limits<A>::infinity();
#pragma unroll
  for (int i = 0; i < kItems; i += kPack) {
    const std::int64_t begin = (i / kPack * plan.lanes + part.lane) * kPack - part.skew;
    load_block<kPack>(x, begin, size, plan.aligned, -std::numeric_limits<A>::infinity(), value + i);
  }
#pragma unroll
  for (int i = 0; i < kItems; ++i) top = Maximum{}(top, value[i]);
  top = group_reduce(top, Maximum{}, plan.lanes, storage.first);
  A sum = A(0);
#pragma unroll
  for (int i = 0; i < kItems; ++i) sum += std::exp(value[i] - top);
  sum = group_reduce(sum, Sum{}, plan.lanes, storage.second);
  const Scale<A> scale(top, sum, plan.log);
#pragma unroll
  for (int i = 0; i < kItems; i += kPack) {
#pragma unroll
    for (int k = 0; k < kPack; ++k) value[i + k] = scale(value[i + k]);
    const std::int64_t begin = (i / kPack * plan.lanes + part.lane) * kPack - part.skew;
    store_block<kPack>(static_cast<S*>(plan.y) + part.offset, begin, size, plan.aligned, value + i);
  }
}

template <class S>
__global__ __launch_bounds__(kSoftmaxThreads, kSoftmaxResident) void softmax_long_row_kernel(SoftmaxRows plan) {
  using A = Accumulator<S>;
  constexpr int kPack = kPackSize<S>;
  auto& storage = shared_storage<SoftmaxRowStorage<A>>();
  const SoftmaxRowPart<S> part(plan);
  const S* x = static_cast<const S*>(plan.x) + part.offset;
  constexpr std::int64_t kStep = std::int64_t{kSoftmaxThreads} * kPack;
  const std::int64_t first = part.lane * kPack - part.skew;
  constexpr A kLowest = -std::numeric_limits<A>::infinity();
  Online<A> own;
  A next[kPack];
  load_block<kPack>(x, first, plan.size, plan.aligned, kLowest, next);
  for (std::int64_t begin = first; begin < plan.size; begin += kStep) {
    A value[kPack];
#pragma unroll
    for (int k = 0; k < kPack; ++k) value[k] = next[k];
    // Arrives while the exponentials are computed.
    load_block<kPack>(x, begin + kStep, plan.size, plan.aligned, kLowest, next);
    A top = value[0];
#pragma unroll
    for (int k = 1; k < kPack; ++k) top = Maximum{}(top, value[k]);
    own.raise(top);
#pragma unroll
    for (int k = 0; k < kPack; ++k) own.sum += std::exp(value[k] - own.top);
  }
  const A top = block_reduce<kSoftmaxThreads>(own.top, Maximum{}, storage.first);
  own.raise(top);
  const Scale<A> scale(top, block_reduce<kSoftmaxThreads>(own.sum, Sum{}, storage.second), plan.log);
  for (std::int64_t begin = first; begin < plan.size; begin += kStep) {
    A value[kPack];
    load_block<kPack>(x, begin, plan.size, plan.aligned, A(0), value);
#pragma unroll
    for (int k = 0; k < kPack; ++k) value[k] = scale(value[k]);
    store_block<kPack>(static_cast<S*>(plan.y) + part.offset, begin, plan.size, plan.aligned, value);
  }
}

template <class A, int kPack>
struct ColumnStorage {
  A top[kPack][kSoftmaxThreads], sum[kPack][kSoftmaxThreads];
};

template <class S, int kPack>
__global__ __launch_bounds__(kSoftmaxThreads, kSoftmaxResident) void softmax_columns_kernel(SoftmaxColumns plan) {
  using A = Accumulator<S>;
  auto& storage = shared_storage<ColumnStorage<A, kPack>>();
  const SoftmaxColumnPart<kPack> own(plan);
  const S* x = static_cast<const S*>(plan.x) + own.offset;
  Online<A> found[kPack];
  for (std::int64_t i = own.begin; i < plan.size; i += own.parts) {
    const auto pack = load_pack<kPack>(x + i * plan.inner.value);
#pragma unroll
    for (int k = 0; k < kPack; ++k) {
      const A value = widen(pack.element[k]);
      found[k].raise(value);
      found[k].sum += std::exp(value - found[k].top);
    }
  }
#pragma unroll
  for (int k = 0; k < kPack; ++k) {
    storage.top[k][own.thread] = found[k].top;
    storage.sum[k][own.thread] = found[k].sum;
  }
  for (int half = own.parts / 2; half > 0; half /= 2) {
    __syncthreads();
    if (own.part >= half) continue;
#pragma unroll
    for (int k = 0; k < kPack; ++k) {
      const int other = own.thread + half * plan.lanes;
      found[k].merge({storage.top[k][other], storage.sum[k][other]});
      storage.top[k][own.thread] = found[k].top;
      storage.sum[k][own.thread] = found[k].sum;
    }
  }
  __syncthreads();
  A top[kPack], by[kPack];
#pragma unroll
  for (int k = 0; k < kPack; ++k) {
    const int merged = own.thread % plan.lanes;
    const Scale<A> scale(storage.top[k][merged], storage.sum[k][merged], plan.log);
    top[k] = scale.top;
    by[k] = scale.by;
  }
  S* y = static_cast<S*>(plan.y) + own.offset;
  for (std::int64_t i = own.begin; i < plan.size; i += own.parts) {
    auto pack = load_pack<kPack>(x + i * plan.inner.value);
#pragma unroll
    for (int k = 0; k < kPack; ++k) {
      const A shifted = widen(pack.element[k]) - top[k];
      pack.element[k] = narrow<S>(plan.log ? shifted - by[k] : std::exp(shifted) * by[k]);
    }
    store_pack(y + i * plan.inner.value, pack);
  }
}

template <class S, int kPack>
void run_columns(const SoftmaxArgs& args, Stream stream) {
  const std::int64_t packs = args.outer * args.inner / kPack;
  const SoftmaxColumns plan = plan_softmax_columns(args, packs);
  launch<softmax_columns_kernel<S, kPack>>(config_of(plan, packs, sizeof(ColumnStorage<Accumulator<S>, kPack>)), stream,
                                           plan);
}

}  // namespace

void softmax(const SoftmaxArgs& args, Stream stream) {
  dispatch_softmax(
      args,
      [&]<class S>(const SoftmaxRows& plan, int items) {
        const LaunchConfig config = config_of(plan, sizeof(SoftmaxRowStorage<Accumulator<S>>));
        if (items == kSoftmaxFew) return launch<softmax_row_kernel<S, kSoftmaxFew>>(config, stream, plan);
        if (items == kSoftmaxMany) return launch<softmax_row_kernel<S, kSoftmaxMany>>(config, stream, plan);
        launch<softmax_long_row_kernel<S>>(config, stream, plan);
      },
      [&]<class S, int kPack>() { run_columns<S, kPack>(args, stream); });
}

}  // namespace drupe::cuda
