// Backward of softmax and log_softmax; softmax.cuh says who owns what. Bytes: y, dy and dx once; long rows and columns
// read y and dy a second time, mostly from L2.
#include "cuda/softmax.cuh"

namespace drupe::cuda {
namespace {

// What the sum of backward takes in of an element, and dx.
template <class A>
__device__ __forceinline__ A product_of(A y, A dy, bool log) {
  return log ? dy : y * dy;
}
template <class A>
__device__ __forceinline__ A gradient_of(A y, A dy, A total, bool log) {
  return log ? dy - std::exp(y) * total : y * (dy - total);
}

template <class S, int kItems>
__global__ __launch_bounds__(kSoftmaxThreads) void softmax_row_backward_kernel(SoftmaxRows plan) {
  using A = Accumulator<S>;
  constexpr int kPack = kPackSize<S>;
  auto& storage = shared_storage<SoftmaxRowStorage<A>>();
  const SoftmaxRowPart<S> part(plan);
  const std::int64_t size = part.counts ? plan.size : 0;
  A y[kItems], dy[kItems];
#pragma unroll
  for (int i = 0; i < kItems; i += kPack) {
    const std::int64_t begin = (i / kPack * plan.lanes + part.lane) * kPack - part.skew;
    load_block<kPack>(static_cast<const S*>(plan.x) + part.offset, begin, size, plan.aligned, A(0), y + i);
    load_block<kPack>(static_cast<const S*>(plan.dy) + part.offset, begin, size, plan.aligned, A(0), dy + i);
  }
  A total = A(0);
#pragma unroll
  for (int i = 0; i < kItems; ++i) total += product_of(y[i], dy[i], plan.log);
  total = group_reduce(total, Sum{}, plan.lanes, storage.first);
#pragma unroll
  for (int i = 0; i < kItems; i += kPack) {
#pragma unroll
    for (int k = 0; k < kPack; ++k) y[i + k] = gradient_of(y[i + k], dy[i + k], total, plan.log);
    const std::int64_t begin = (i / kPack * plan.lanes + part.lane) * kPack - part.skew;
    store_block<kPack>(static_cast<S*>(plan.y) + part.offset, begin, size, plan.aligned, y + i);
  }
}

template <class S>
__global__ __launch_bounds__(kSoftmaxThreads,
                             kSoftmaxResident) void softmax_long_row_backward_kernel(SoftmaxRows plan) {
  using A = Accumulator<S>;
  constexpr int kPack = kPackSize<S>;
  auto& storage = shared_storage<SoftmaxRowStorage<A>>();
  const SoftmaxRowPart<S> part(plan);
  const S* saved = static_cast<const S*>(plan.x) + part.offset;
  const S* gradient = static_cast<const S*>(plan.dy) + part.offset;
  constexpr std::int64_t kStep = std::int64_t{kSoftmaxThreads} * kPack;
  const std::int64_t first = part.lane * kPack - part.skew;
  A total = A(0);
  for (std::int64_t begin = first; begin < plan.size; begin += kStep) {
    A y[kPack], dy[kPack], sum = A(0);
    load_block<kPack>(saved, begin, plan.size, plan.aligned, A(0), y);
    load_block<kPack>(gradient, begin, plan.size, plan.aligned, A(0), dy);
#pragma unroll
    for (int k = 0; k < kPack; ++k) sum += product_of(y[k], dy[k], plan.log);
    total += sum;
  }
  total = block_reduce<kSoftmaxThreads>(total, Sum{}, storage.first);
  for (std::int64_t begin = first; begin < plan.size; begin += kStep) {
    A y[kPack], dy[kPack];
    load_block<kPack>(saved, begin, plan.size, plan.aligned, A(0), y);
    load_block<kPack>(gradient, begin, plan.size, plan.aligned, A(0), dy);
#pragma unroll
    for (int k = 0; k < kPack; ++k) y[k] = gradient_of(y[k], dy[k], total, plan.log);
    store_block<kPack>(static_cast<S*>(plan.y) + part.offset, begin, plan.size, plan.aligned, y);
  }
}

template <class A, int kPack>
struct ColumnStorage {
  A sum[kPack][kSoftmaxThreads];
};

template <class S, int kPack>
__global__ __launch_bounds__(kSoftmaxThreads,
                             kSoftmaxResident) void softmax_columns_backward_kernel(SoftmaxColumns plan) {
  using A = Accumulator<S>;
  auto& storage = shared_storage<ColumnStorage<A, kPack>>();
  const SoftmaxColumnPart<kPack> own(plan);
  const S* saved = static_cast<const S*>(plan.x) + own.offset;
  const S* gradient = static_cast<const S*>(plan.dy) + own.offset;
  A total[kPack] = {};
  for (std::int64_t i = own.begin; i < plan.size; i += own.parts) {
    const auto y = load_pack<kPack>(saved + i * plan.inner.value),
               dy = load_pack<kPack>(gradient + i * plan.inner.value);
#pragma unroll
    for (int k = 0; k < kPack; ++k) total[k] += product_of(widen(y.element[k]), widen(dy.element[k]), plan.log);
  }
#pragma unroll
  for (int k = 0; k < kPack; ++k) storage.sum[k][own.thread] = total[k];
  for (int half = own.parts / 2; half > 0; half /= 2) {
    __syncthreads();
    if (own.part >= half) continue;
#pragma unroll
    for (int k = 0; k < kPack; ++k) storage.sum[k][own.thread] += storage.sum[k][own.thread + half * plan.lanes];
  }
  __syncthreads();
#pragma unroll
  for (int k = 0; k < kPack; ++k) total[k] = storage.sum[k][own.thread % plan.lanes];
  S* dx = static_cast<S*>(plan.y) + own.offset;
  for (std::int64_t i = own.begin; i < plan.size; i += own.parts) {
    auto y = load_pack<kPack>(saved + i * plan.inner.value);
    const auto dy = load_pack<kPack>(gradient + i * plan.inner.value);
#pragma unroll
    for (int k = 0; k < kPack; ++k) {
      y.element[k] = narrow<S>(gradient_of(widen(y.element[k]), widen(dy.element[k]), total[k], plan.log));
    }
    store_pack(dx + i * plan.inner.value, y);
  }
}

template <class S, int kPack>
void run_columns(const SoftmaxArgs& args, Stream stream) {
  const std::int64_t packs = args.outer * args.inner / kPack;
  const SoftmaxColumns plan = plan_softmax_columns(args, packs);
  launch<softmax_columns_backward_kernel<S, kPack>>(
      config_of(plan, packs, sizeof(ColumnStorage<Accumulator<S>, kPack>)), stream, plan);
}

}  // namespace

void softmax_backward(const SoftmaxArgs& args, Stream stream) {
  dispatch_softmax(
      args,
      [&]<class S>(const SoftmaxRows& plan, int items) {
        const LaunchConfig config = config_of(plan, sizeof(SoftmaxRowStorage<Accumulator<S>>));
        if (items == kSoftmaxFew) return launch<softmax_row_backward_kernel<S, kSoftmaxFew>>(config, stream, plan);
        if (items == kSoftmaxMany) return launch<softmax_row_backward_kernel<S, kSoftmaxMany>>(config, stream, plan);
        launch<softmax_long_row_backward_kernel<S>>(config, stream, plan);
      },
      [&]<class S, int kPack>() { run_columns<S, kPack>(args, stream); });
}

}  // namespace drupe::cuda
