// Multi-tensor optimizer steps. A launch takes as many tensors as fit into a kernel's arguments (kTableSlots), cut into
// chunks of fixed size that the blocks share out. An element is read and written once by one rule, in registers, 16
// bytes at a time where a tensor's arrays are aligned alike, with single elements before and after: adam moves 7
// accumulators an element, sgd 3 (5 with momentum), rmsprop 5 to 9. Rules spell out their fused multiply-adds, so that
// an element gets the same bits wherever it lies. Squares are summed chunk by chunk, then the chunks by one block, in a
// fixed order.
#include "ops/optimizer.h"

#include <cmath>
#include <limits>

#include "core/dispatch.h"
#include "cuda/tile/chunks.cuh"
#include "cuda/tile/row_groups.cuh"
#include "cuda/tile/scan.cuh"

namespace drupe::cuda {
namespace {

constexpr std::int64_t kChunk = 4096;  // elements

// ---- chunks of tensors

// The first element whose address is a multiple of 16 in all the arrays, or -1: one by one.
template <class S>
int find_head(const StepTensor& tensor) {
  constexpr int kPack = kPackSize<S>;
  const auto aligned = [&](int head) {
    bool all = is_pack_aligned(static_cast<const S*>(tensor.param) + head, static_cast<const S*>(tensor.grad) + head);
    for (const void* state : tensor.state) {
      if (state) all = all && is_pack_aligned(static_cast<const Accumulator<S>*>(state) + head);
    }
    return all;
  };
  if (tensor.rows) return tensor.width % kPack == 0 && aligned(0) ? 0 : -1;
  for (int head = 0; head < kPack; ++head) {
    if (aligned(head)) return head;
  }
  return -1;
}

struct StepSlot {
  void* param;
  const void* grad;
  void* state[kMaxStates];
  const std::int64_t* rows;
  std::int64_t width;
  ChunkSpan span;

  // Where element i of the gradient belongs.
  __device__ __forceinline__ std::int64_t place(std::int64_t i) const {
    if (!rows) return i;
    const std::int64_t row =
        (i | width) >> 32 == 0 ? static_cast<std::uint32_t>(i) / static_cast<std::uint32_t>(width) : i / width;
    return (rows[row] - row) * width + i;
  }
};

struct SquaresSlot {
  const void* x;
  Dtype dtype;
  ChunkSpan span;
};

// ---- rules: operator()(p, g, states) makes an element's states new and gives the new p; order says which of the
// tensor's states the rule's are, -1 for one that it has no use for

template <class T>
struct Penalty {
  T grad_scale, l1, weight_decay;

  // grad_scale g + l1 sign(p) + weight_decay p
  __device__ __forceinline__ T operator()(T p, T g) const {
    g = l1 != T(0) ? std::fma(g, grad_scale, p == T(0) ? T(0) : std::copysign(l1, p)) : g * grad_scale;
    if (weight_decay != T(0)) g = std::fma(weight_decay, p, g);
    return g;
  }
};

template <class T>
struct SgdRule {
  static constexpr int kStates = 1;
  int order[kStates] = {0};
  Penalty<T> penalty;
  T minus_lr, momentum;
  bool nesterov;

  explicit SgdRule(const SgdArgs& args)
      : penalty{static_cast<T>(args.grad_scale), static_cast<T>(args.l1), static_cast<T>(args.weight_decay)},
        minus_lr(static_cast<T>(-args.lr)),
        momentum(static_cast<T>(args.momentum)),
        nesterov(args.nesterov) {}

  __device__ __forceinline__ T operator()(T p, T g, T* state) const {
    g = penalty(p, g);
    if (momentum != T(0)) {
      state[0] = std::fma(momentum, state[0], g);
      g = nesterov ? std::fma(momentum, state[0], g) : state[0];
    }
    return std::fma(minus_lr, g, p);
  }
};

template <class T>
struct AdamRule {
  static constexpr int kStates = 2;
  int order[kStates] = {0, 1};
  Penalty<T> penalty;
  T keep, beta1, one_minus_beta1, beta2, one_minus_beta2, minus_step_size, root_scale, eps;

  explicit AdamRule(const AdamArgs& args)
      : penalty{static_cast<T>(args.grad_scale), static_cast<T>(args.l1),
                static_cast<T>(args.decoupled ? 0 : args.weight_decay)},
        keep(static_cast<T>(args.decoupled ? 1 - args.lr * args.weight_decay : 1)),
        beta1(static_cast<T>(args.beta1)),
        one_minus_beta1(static_cast<T>(1 - args.beta1)),
        beta2(static_cast<T>(args.beta2)),
        one_minus_beta2(static_cast<T>(1 - args.beta2)),
        eps(static_cast<T>(args.eps)) {
    const auto step = static_cast<double>(args.step);
    minus_step_size = static_cast<T>(-args.lr / (1 - std::pow(args.beta1, step)));
    root_scale = static_cast<T>(1 / std::sqrt(1 - std::pow(args.beta2, step)));
  }

  __device__ __forceinline__ T operator()(T p, T g, T* state) const {
    g = penalty(p, g);
    state[0] = std::fma(beta1, state[0], one_minus_beta1 * g);
    state[1] = std::fma(beta2, state[1], one_minus_beta2 * g * g);
    return std::fma(minus_step_size, state[0] / std::fma(std::sqrt(state[1]), root_scale, eps), p * keep);
  }
};

// States: the mean of squares, the mean where centered, the buffer where there is momentum.
template <class T>
struct RmspropRule {
  static constexpr int kStates = 3;
  int order[kStates];
  Penalty<T> penalty;
  T alpha, one_minus_alpha, minus_lr, momentum, eps;
  bool centered;

  explicit RmspropRule(const RmspropArgs& args)
      : order{0, args.centered ? 1 : -1,
              args.momentum == 0 ? -1
              : args.centered    ? 2
                                 : 1},
        penalty{static_cast<T>(args.grad_scale), static_cast<T>(args.l1), static_cast<T>(args.weight_decay)},
        alpha(static_cast<T>(args.alpha)),
        one_minus_alpha(static_cast<T>(1 - args.alpha)),
        minus_lr(static_cast<T>(-args.lr)),
        momentum(static_cast<T>(args.momentum)),
        eps(static_cast<T>(args.eps)),
        centered(args.centered) {}

  __device__ __forceinline__ T operator()(T p, T g, T* state) const {
    g = penalty(p, g);
    state[0] = std::fma(alpha, state[0], one_minus_alpha * g * g);
    T square = state[0];
    if (centered) {
      state[1] = std::fma(alpha, state[1], one_minus_alpha * g);
      square = std::fma(-state[1], state[1], square);
      square = square < T(0) ? T(0) : square;  // rounding may leave less than nothing; NaN stays
    }
    T update = g / (std::sqrt(square) + eps);
    if (momentum != T(0)) {
      update = state[2] = std::fma(momentum, state[2], update);
    }
    return std::fma(minus_lr, update, p);
  }
};

// ---- steps

template <int kPack, class S, class Rule>
__device__ __forceinline__ void update(const StepSlot& slot, const Rule& rule, std::int64_t i) {
  using A = Accumulator<S>;
  const std::int64_t place = slot.place(i);
  auto p = WidePack<S, kPack>::load(static_cast<const S*>(slot.param) + place);
  const auto g = WidePack<S, kPack>::load(static_cast<const S*>(slot.grad) + i);
  WidePack<S, kPack> state[Rule::kStates];
#pragma unroll
  for (int k = 0; k < Rule::kStates; ++k) {
    if (slot.state[k]) state[k] = WidePack<S, kPack>::load_wide(static_cast<const A*>(slot.state[k]) + place);
  }
#pragma unroll
  for (int j = 0; j < kPack; ++j) {
    A here[Rule::kStates];
#pragma unroll
    for (int k = 0; k < Rule::kStates; ++k) here[k] = slot.state[k] ? state[k].element[j] : A(0);
    p.element[j] = rule(p.element[j], g.element[j], here);
#pragma unroll
    for (int k = 0; k < Rule::kStates; ++k) state[k].element[j] = here[k];
  }
  p.store(static_cast<S*>(slot.param) + place);
#pragma unroll
  for (int k = 0; k < Rule::kStates; ++k) {
    if (slot.state[k]) state[k].store_wide(static_cast<A*>(slot.state[k]) + place);
  }
}

template <class S, class Rule>
__global__ __launch_bounds__(kMapThreads) void optimizer_step_kernel(const ChunkTable<StepSlot> table,
                                                                     const Rule rule) {
  constexpr int kPack = kPackSize<S>;
  const StepSlot& slot = table.slots[table.find(blockIdx.x)];
  walk_chunk<kPack>(
      slot.span, blockIdx.x - slot.span.first_chunk, kChunk, [&](std::int64_t i) { update<kPack, S>(slot, rule, i); },
      [&](std::int64_t i) { update<1, S>(slot, rule, i); });
}

template <class S, class Rule>
void step_tensors(const StepList& list, const Rule& rule, Stream stream) {
  ChunkTable<StepSlot> table;
  const auto flush = [&] {
    if (table.count == 0) return;
    launch<optimizer_step_kernel<S, Rule>>({.grid = {table.chunks}, .block = {kMapThreads}}, stream, table, rule);
    table = {};
  };
  for (std::int64_t i = 0; i < list.count; ++i) {
    const StepTensor& tensor = list.tensors[i];
    if (tensor.dtype != dtype_of<S> || tensor.size == 0) continue;
    StepSlot slot{.param = tensor.param,
                  .grad = tensor.grad,
                  .state = {},
                  .rows = tensor.rows,
                  .width = tensor.width,
                  .span = {.size = tensor.size, .head = find_head<S>(tensor), .first_chunk = 0}};
    for (int k = 0; k < Rule::kStates; ++k) slot.state[k] = rule.order[k] < 0 ? nullptr : tensor.state[rule.order[k]];
    table.add(slot, kChunk);
    if (table.is_full()) flush();
  }
  flush();
}

// Tensors of one dtype at a time.
template <template <class> class Rule, class Args>
void step_all(const Args& args, Stream stream) {
  for (const Dtype dtype : {Dtype::f32, Dtype::f64, Dtype::f16, Dtype::bf16}) {
    dispatch_float(dtype, [&]<class S>() { step_tensors<S>(args.list, Rule<Accumulator<S>>(args), stream); });
  }
}

// ---- sums of squares

constexpr int kTotalThreads = 1024;

template <int kThreads>
using SquaresStorage = ReduceStorage<double, kThreads>;

// In float where neither overflow nor underflow can matter, in double elsewhere.
template <class S>
__device__ __forceinline__ double pack_of_squares(const S* x) {
  using A = Accumulator<S>;
  constexpr A kTrusted = static_cast<A>(1e-25);
  constexpr int kPack = kPackSize<S>;
  const auto row = WidePack<S, kPack>::load(x);
  A sum = A(0);
#pragma unroll
  for (int k = 0; k < kPack; ++k) sum = std::fma(row.element[k], row.element[k], sum);
  if (sum >= kTrusted && sum <= std::numeric_limits<A>::max()) return static_cast<double>(sum);
  double exact = 0;
#pragma unroll
  for (int k = 0; k < kPack; ++k) {
    exact = std::fma(static_cast<double>(row.element[k]), static_cast<double>(row.element[k]), exact);
  }
  return exact;
}

template <class S>
__device__ __forceinline__ double chunk_of_squares(const SquaresSlot& slot, unsigned index) {
  const S* x = static_cast<const S*>(slot.x);
  double sum = 0;
  walk_chunk<kPackSize<S>>(
      slot.span, index, kSquaresChunk, [&](std::int64_t i) { sum += pack_of_squares(x + i); },
      [&](std::int64_t i) {
        const auto value = static_cast<double>(widen(x[i]));
        sum = std::fma(value, value, sum);
      });
  return sum;
}

__global__ __launch_bounds__(kMapThreads) void sum_of_squares_kernel(const ChunkTable<SquaresSlot> table,
                                                                     double* partials) {
  auto& storage = shared_storage<SquaresStorage<kMapThreads>>();
  const SquaresSlot& slot = table.slots[table.find(blockIdx.x)];
  const unsigned index = blockIdx.x - slot.span.first_chunk;
  double sum = 0;
  if (slot.dtype == Dtype::f32) sum = chunk_of_squares<float>(slot, index);
  if (slot.dtype == Dtype::f64) sum = chunk_of_squares<double>(slot, index);
  if (slot.dtype == Dtype::f16) sum = chunk_of_squares<Float16>(slot, index);
  if (slot.dtype == Dtype::bf16) sum = chunk_of_squares<BFloat16>(slot, index);
  sum = block_reduce<kMapThreads>(sum, Sum{}, storage);
  if (threadIdx.x == 0) partials[blockIdx.x] = sum;
}

__global__ __launch_bounds__(kTotalThreads) void total_kernel(const double* partials, std::int64_t count,
                                                              double* total) {
  auto& storage = shared_storage<SquaresStorage<kTotalThreads>>();
  double sum = 0;
  for (std::int64_t i = threadIdx.x; i < count; i += kTotalThreads) sum += partials[i];
  sum = block_reduce<kTotalThreads>(sum, Sum{}, storage);
  if (threadIdx.x == 0) *total = sum;
}

template <class S>
int squares_head(const void* x) {
  for (int head = 0; head < kPackSize<S>; ++head) {
    if (is_pack_aligned(static_cast<const S*>(x) + head)) return head;
  }
  return -1;
}

SquaresSlot squares_slot(const SquaresTensor& tensor) {
  int head = -1;
  dispatch_float(tensor.dtype, [&]<class S>() { head = squares_head<S>(tensor.x); });
  return {.x = tensor.x, .dtype = tensor.dtype, .span = {.size = tensor.size, .head = head, .first_chunk = 0}};
}

}  // namespace

void sgd(const SgdArgs& args, Stream stream) {
  step_all<SgdRule>(args, stream);
}

void adam(const AdamArgs& args, Stream stream) {
  step_all<AdamRule>(args, stream);
}

void rmsprop(const RmspropArgs& args, Stream stream) {
  step_all<RmspropRule>(args, stream);
}

void sum_of_squares(SquaresList& list, Stream stream) {
  std::int64_t chunks = 0;
  for (std::int64_t i = 0; i < list.count; ++i) {
    if (list.tensors[i].size > 0) chunks += squares_slot(list.tensors[i]).span.chunks(kSquaresChunk);
  }
  if (chunks == 0) return;
  const auto partials = scratch<double>(stream, chunks + 1);
  std::int64_t done = 0;
  ChunkTable<SquaresSlot> table;
  const auto flush = [&] {
    if (table.count == 0) return;
    launch<sum_of_squares_kernel>(
        {.grid = {table.chunks}, .block = {kMapThreads}, .shared_bytes = sizeof(SquaresStorage<kMapThreads>)}, stream,
        table, partials.get() + done);
    done += table.chunks;
    table = {};
  };
  for (std::int64_t i = 0; i < list.count; ++i) {
    if (list.tensors[i].size == 0) continue;
    table.add(squares_slot(list.tensors[i]), kSquaresChunk);
    if (table.is_full()) flush();
  }
  flush();
  launch<total_kernel>({.grid = {1}, .block = {kTotalThreads}, .shared_bytes = sizeof(SquaresStorage<kTotalThreads>)},
                       stream, partials.get(), chunks, partials.get() + chunks);
  copy_bytes(&list.sum, Device{}, partials.get() + chunks, {DeviceType::cuda, stream.device}, sizeof list.sum);
}

}  // namespace drupe::cuda
