// Multi-tensor optimizer steps. A launch takes as many tensors as fit into a kernel's arguments (kTableSlots), cut into
// chunks of fixed size that the blocks share out. An element is read and written once by one rule, in registers, 16
// bytes at a time where a tensor's arrays are aligned alike, with single elements before and after: adam moves 7
// accumulators an element, sgd 3 (5 with momentum), rmsprop 5 to 9, a master 2 more. Squares are summed chunk by chunk,
// then the chunks by one block, in a fixed order. Where the learning rate and the counts of steps lie on the device,
// one thread a tensor makes its rule's factors of them first.
#include "ops/optimizer.h"

#include <limits>
#include <type_traits>

#include "core/dispatch.h"
#include "cuda/optimizer_rules.cuh"
#include "cuda/tile/chunks.cuh"
#include "cuda/tile/row_groups.cuh"
#include "cuda/tile/scan.cuh"
#include "cuda/tile/stochastic.cuh"

namespace drupe::cuda {
namespace {

constexpr std::int64_t kChunk = 4096;  // elements

// ---- chunks of tensors

// The first element whose address is a multiple of 16 in all the arrays, or -1: one by one. What is drawn goes in whole
// Philox blocks of 4.
template <class S>
int find_head(const StepTensor& tensor, bool drawn) {
  constexpr int kPack = kPackSize<S>;
  const auto aligned = [&](int head) {
    bool all = is_pack_aligned(static_cast<const S*>(tensor.param) + head, static_cast<const S*>(tensor.grad) + head);
    if (tensor.master) all = all && is_pack_aligned(tensor.master + head);
    if (drawn) all = all && head % 4 == 0;
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
  float* master;
  const void* grad;
  void* state[kMaxStates];
  const std::int64_t* rows;
  std::int64_t width;
  std::uint64_t first_block;  // of the stream
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

// ---- factors that come from the device

template <class Slot>
struct FactorTable {
  std::int64_t* steps[kTableSlots<Slot>] = {};
  int count = 0;
};

constexpr int kFactorThreads = 64;

template <class T>
__global__ __launch_bounds__(kFactorThreads) void optimizer_factors_kernel(FactorTable<StepSlot> table, FactorRule rule,
                                                                           const double* lr, const double* grad_scale,
                                                                           Factors<T>* factors) {
  const int i = static_cast<int>(threadIdx.x);
  if (i >= table.count) return;
  std::int64_t step = rule.step;
  if (table.steps[i]) step = *table.steps[i] += 1;
  const double rate = lr ? *lr : rule.lr, scale = grad_scale ? *grad_scale * rule.grad_scale : rule.grad_scale;
  const auto count = static_cast<double>(step);
  factors[i] = {.grad_scale = static_cast<T>(scale),
                .minus_lr = static_cast<T>(-rate / (1 - std::pow(rule.beta1, count))),
                .root_scale = static_cast<T>(1 / std::sqrt(1 - std::pow(rule.beta2, count))),
                .keep = static_cast<T>(1 - rate * rule.decay)};
}

// ---- steps

// The parameter's elements, from the master where there is one, ...
template <int kPack, class S>
__device__ __forceinline__ WidePack<S, kPack> load_param(const StepSlot& slot, std::int64_t place) {
  if constexpr (!std::is_same_v<S, Accumulator<S>>) {
    if (slot.master) return WidePack<S, kPack>::load_wide(slot.master + place);
  }
  return WidePack<S, kPack>::load(static_cast<const S*>(slot.param) + place);
}

// ... and back.
template <int kPack, class S>
__device__ __forceinline__ void store_param(const WidePack<S, kPack>& p, const StepSlot& slot, const Rounding& rounding,
                                            std::int64_t place) {
  S* to = static_cast<S*>(slot.param) + place;
  if constexpr (!std::is_same_v<S, Accumulator<S>>) {
    if (rounding.stochastic) return store_drawn(p, rounding, slot.first_block, place, to);
    if (slot.master) p.store_wide(slot.master + place);
  }
  p.store(to);
}

template <int kPack, class S, class Rule>
__device__ __forceinline__ void update(const StepSlot& slot, const Rule& rule, const Rounding& rounding,
                                       std::int64_t i) {
  using A = Accumulator<S>;
  const std::int64_t place = slot.place(i);
  auto p = load_param<kPack, S>(slot, place);
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
  store_param(p, slot, rounding, place);
#pragma unroll
  for (int k = 0; k < Rule::kStates; ++k) {
    if (slot.state[k]) state[k].store_wide(static_cast<A*>(slot.state[k]) + place);
  }
}

// Blocks a multiprocessor: said for doubles, which ptxas would spill for the sake of more; 0 leaves it to choose.
template <class S>
inline constexpr int kStepBlocks = sizeof(S) == 8 ? 2 : 0;

template <class S, class Rule>
__global__ __launch_bounds__(kMapThreads,
                             kStepBlocks<S>) void optimizer_step_kernel(const ChunkTable<StepSlot> table, Rule rule,
                                                                        const Rounding rounding,
                                                                        const Factors<Accumulator<S>>* factors) {
  constexpr int kPack = kPackSize<S>;
  const int index = table.find(blockIdx.x);
  const StepSlot& slot = table.slots[index];
  if (factors) rule.take(factors[index]);
  walk_chunk<kPack>(
      slot.span, blockIdx.x - slot.span.first_chunk, kChunk,
      [&](std::int64_t i) { update<kPack, S>(slot, rule, rounding, i); },
      [&](std::int64_t i) { update<1, S>(slot, rule, rounding, i); });
}

// The factors of a table's tensors, where they come from the device.
template <class T>
std::shared_ptr<Factors<T>> make_factors(const StepScalars& scalars, const FactorRule& rule,
                                         const FactorTable<StepSlot>& table, Stream stream) {
  static_assert(kTableSlots<StepSlot> <= kFactorThreads);
  if (!scalars.any()) return nullptr;
  auto factors = scratch<Factors<T>>(stream, table.count);
  launch<optimizer_factors_kernel<T>>({.grid = {1}, .block = {kFactorThreads}}, stream, table, rule, scalars.lr,
                                      scalars.grad_scale, factors.get());
  return factors;
}

template <class S, class Rule, class Args>
void step_tensors(const Args& args, const Rule& rule, Stream stream) {
  const StepList& list = args.list;
  const bool drawn = list.rounding.stochastic && !std::is_same_v<S, Accumulator<S>>;
  ChunkTable<StepSlot> table;
  FactorTable<StepSlot> steps;
  const auto flush = [&] {
    if (table.count == 0) return;
    const auto factors = make_factors<Accumulator<S>>(args.scalars, Rule::factor_rule(args), steps, stream);
    launch<optimizer_step_kernel<S, Rule>>({.grid = {table.chunks}, .block = {kMapThreads}}, stream, table, rule,
                                           list.rounding, factors.get());
    table = {};
    steps = {};
  };
  for (std::int64_t i = 0; i < list.count; ++i) {
    const StepTensor& tensor = list.tensors[i];
    if (tensor.dtype != dtype_of<S> || (tensor.size == 0 && !args.scalars.steps)) continue;  // its step counts
    StepSlot slot{.param = tensor.param,
                  .master = tensor.master,
                  .grad = tensor.grad,
                  .state = {},
                  .rows = tensor.rows,
                  .width = tensor.width,
                  .first_block = static_cast<std::uint64_t>(tensor.number) << kRoundingTensorShift,
                  .span = {.size = tensor.size, .head = find_head<S>(tensor, drawn), .first_chunk = 0}};
    for (int k = 0; k < Rule::kStates; ++k) slot.state[k] = rule.order[k] < 0 ? nullptr : tensor.state[rule.order[k]];
    table.add(slot, kChunk);
    steps.steps[steps.count++] = args.scalars.steps ? args.scalars.steps[i] : nullptr;
    if (table.is_full()) flush();
  }
  flush();
}

// Tensors of one dtype at a time.
template <template <class> class Rule, class Args>
void step_all(const Args& args, Stream stream) {
  for (const Dtype dtype : {Dtype::f32, Dtype::f64, Dtype::f16, Dtype::bf16}) {
    dispatch_float(dtype, [&]<class S>() { step_tensors<S>(args, Rule<Accumulator<S>>(args), stream); });
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

// {norm, the factor that clips it}
__global__ __launch_bounds__(kWarp) void clip_factor_kernel(const double* total, double max_norm, double* result) {
  if (threadIdx.x > 0) return;
  const double norm = std::sqrt(*total);
  result[0] = norm;
  result[1] = norm > max_norm && norm <= std::numeric_limits<double>::max() ? max_norm / norm : 1;
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
  if (chunks == 0 && !list.clip) return;
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
  if (list.clip) {
    launch<clip_factor_kernel>({.grid = {1}, .block = {kWarp}}, stream, partials.get() + chunks, list.max_norm,
                               list.clip);
    return;
  }
  copy_bytes(&list.sum, Device{}, partials.get() + chunks, {DeviceType::cuda, stream.device}, sizeof list.sum);
}

}  // namespace drupe::cuda
