// Connectionist temporal classification. A warp for each step of each row of the batch finds the sum of exponentials of
// the classes and the probabilities of the row's labels. Then a block for each row walks the steps: alpha forward, the
// likelihood, and beta backward, whose product with alpha over the likelihood takes alpha's place: the states' shares.
// The states of a step pass from thread to thread in shared memory where they fit. Last a warp for each step writes
// softmax - shares; equal labels are a chain that one lane adds up. Bytes: the logits twice, the gradient, and 6
// numbers a label and step written and read. Worklog: bench/worklog/ctc_loss.md.
#include "ops/ctc_loss.h"

#include "core/cuda.h"
#include "core/dispatch.h"
#include "cuda/tile/extended.cuh"
#include "cuda/tile/grid.cuh"
#include "cuda/tile/map.cuh"
#include "cuda/tile/reduce.cuh"

namespace drupe::cuda {
namespace {

constexpr int kStepThreads = 128;            // a warp for each step
constexpr int kWalkThreads = 256;            // at most
constexpr std::int64_t kSharedStates = 256;  // of each kind
constexpr std::int64_t kRenew = 8;           // steps until mantissas are brought back
constexpr int kTotalThreads = 256;

// Blank k comes before label k; K = L + 1 of each. Of a step (b, t): its probabilities, label k's at k and the blank's
// at L; and where a gradient is wanted its states.
template <class A>
struct Plan {
  CtcLossArgs args;
  std::int64_t K;
  A* softmax;        // (B, T, 2): the largest logit, 1 / the sum of exponentials
  A* probabilities;  // (B, T, 2, K)
  A* kept;           // (B, T, 4, K): blanks' mantissas and exponents, labels' mantissas and exponents
  A* passing;        // (B, 2, 4, K) where shared memory does not hold them
  A* likelihoods;    // (B, 2)
  std::int64_t*
      chains;  // (B, L): 1 + the next position of the same label, 0 at the end; ~ of that unless it is the first
  double* losses;

  __device__ __forceinline__ std::int64_t steps(std::int64_t b) const {
    return args.input_lengths[b] < args.T ? args.input_lengths[b] : args.T;
  }
  __device__ __forceinline__ std::int64_t length(std::int64_t b) const {
    return args.target_lengths[b] < args.L ? args.target_lengths[b] : args.L;
  }
  __device__ __forceinline__ const std::int64_t* labels(std::int64_t b) const {
    return args.labels + (args.offsets ? args.offsets[b] : b * args.label_stride);
  }
  __device__ __forceinline__ bool is_class(std::int64_t label) const { return label >= 0 && label < args.C; }
  __device__ __forceinline__ A weight(std::int64_t b) const { return static_cast<A>(args.weight(length(b))); }
  __device__ __forceinline__ Extended<A> probability(std::int64_t b, std::int64_t t, std::int64_t k) const {
    const A* at = probabilities + (b * args.T + t) * 2 * K + k;
    return {at[0], at[K]};
  }
  __device__ __forceinline__ A* states(std::int64_t b, std::int64_t t) const { return kept + (b * args.T + t) * 4 * K; }
};

template <class A>
struct Passing {
  A states[2 * 4 * kSharedStates];
};

template <class A>
__device__ __forceinline__ Extended<A> blank_at(const A* states, std::int64_t K, std::int64_t k) {
  return {states[k], states[K + k]};
}
template <class A>
__device__ __forceinline__ Extended<A> label_at(const A* states, std::int64_t K, std::int64_t k) {
  return {states[2 * K + k], states[3 * K + k]};
}
template <class A>
__device__ __forceinline__ void put(A* states, std::int64_t K, std::int64_t k, Extended<A> blank, Extended<A> label) {
  states[k] = blank.m;
  states[K + k] = blank.e;
  states[2 * K + k] = label.m;
  states[3 * K + k] = label.e;
}

// The warp's step, or one past the last.
__device__ __forceinline__ std::int64_t step_of_warp() {
  return block_number() * (kStepThreads / kWarp) + static_cast<int>(threadIdx.x) / kWarp;
}

template <class S>
__global__ __launch_bounds__(kStepThreads) void ctc_softmax_kernel(Plan<Accumulator<S>> plan) {
  using A = Accumulator<S>;
  const CtcLossArgs& args = plan.args;
  const std::int64_t row = step_of_warp(), b = row % args.B, t = row / args.B;
  if (row >= args.T * args.B || t >= plan.steps(b)) return;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const S* z = static_cast<const S*>(args.logits) + row * args.C;
  A top = -std::numeric_limits<A>::infinity(), sum = A(0);
  for (std::int64_t c = lane; c < args.C; c += kWarp) top = Maximum{}(top, widen(z[c]));
  top = warp_reduce(top, Maximum{});
  for (std::int64_t c = lane; c < args.C; c += kWarp) sum += std::exp(widen(z[c]) - top);
  sum = warp_reduce(sum, Sum{});
  const bool bad = !(sum > A(0) && sum <= std::numeric_limits<A>::max());
  if (lane == 0) {
    A* softmax = plan.softmax + (b * args.T + t) * 2;
    softmax[0] = top;
    softmax[1] = A(1) / sum;
  }
  const Extended<A> total = normal(Extended<A>{sum, A(0)});
  const Extended<A> inverse{A(1) / total.m, -total.e};
  A* to = plan.probabilities + (b * args.T + t) * 2 * plan.K;
  const std::int64_t* labels = plan.labels(b);
  const std::int64_t L = plan.length(b);
  for (std::int64_t k = lane; k < plan.K; k += kWarp) {
    std::int64_t label = args.blank;
    if (k < args.L) label = k < L ? labels[k] : -1;
    Extended<A> p = Extended<A>::zero();
    if (plan.is_class(label)) p = extended_exp(widen(z[label]) - top) * inverse;
    if (k == args.L && bad) p.m = std::numeric_limits<A>::quiet_NaN();  // the blank's tells
    to[k] = p.m;
    to[plan.K + k] = p.e;
  }
}

// Threads of a block share the states of row blockIdx.x; `states` are those of the steps by turns.
template <class A>
struct Walk {
  const Plan<A>& plan;
  std::int64_t b, K, T, L, first, stride;
  const std::int64_t* labels;
  A* states;

  __device__ __forceinline__ Walk(const Plan<A>& plan, A* shared)
      : plan(plan),
        b(blockIdx.x),
        K(plan.K),
        T(plan.steps(b)),
        L(plan.length(b)),
        first(threadIdx.x),
        stride(blockDim.x),
        labels(plan.labels(b)),
        states(plan.passing ? plan.passing + b * 8 * K : shared) {}
  __device__ __forceinline__ A* at(std::int64_t step) const { return states + step % 2 * 4 * K; }
  // Whether label k follows the one before without a blank.
  __device__ __forceinline__ bool skips(std::int64_t k) const { return k > 0 && k < L && labels[k] != labels[k - 1]; }
  // Before the first step, or after the last: nothing but this blank.
  __device__ __forceinline__ void start(std::int64_t step, std::int64_t blank) const {
    for (std::int64_t k = first; k < K; k += stride) {
      const Extended<A> one{A(1), A(0)};
      put(at(step), K, k, k == blank ? one : Extended<A>::zero(), Extended<A>::zero());
    }
    __syncthreads();
  }
  __device__ __forceinline__ Extended<A> blank_probability(std::int64_t t) const {
    return plan.probability(b, t, plan.args.L);
  }
};

// See Plan::chains.
template <class A>
__device__ __forceinline__ void chain_labels(const Walk<A>& walk) {
  for (std::int64_t k = walk.first; k < walk.L; k += walk.stride) {
    std::int64_t before = k - 1, after = k + 1;
    while (before >= 0 && walk.labels[before] != walk.labels[k]) --before;
    while (after < walk.L && walk.labels[after] != walk.labels[k]) ++after;
    const std::int64_t link = after < walk.L ? after + 1 : 0;
    walk.plan.chains[walk.b * walk.plan.args.L + k] = before < 0 ? link : ~link;
  }
}

template <class A>
__global__ __launch_bounds__(kWalkThreads) void ctc_alpha_kernel(Plan<A> plan) {
  auto& storage = shared_storage<Passing<A>>();
  const Walk<A> walk(plan, storage.states);
  const std::int64_t K = plan.K, b = walk.b;
  using X = Extended<A>;
  walk.start(0, 0);
  if (plan.kept) chain_labels(walk);
  bool bad = false;
  X blank_ahead = X::zero(), label_ahead = X::zero();
  const auto look_ahead = [&](std::int64_t t) {
    if (t >= walk.T) return;
    blank_ahead = walk.blank_probability(t);
    if (walk.first < walk.L) label_ahead = plan.probability(b, t, walk.first);
  };
  look_ahead(0);
  for (std::int64_t t = 0; t < walk.T; ++t) {
    const A* from = walk.at(t);
    A* to = walk.at(t + 1);
    const X blank_probability = blank_ahead, first_probability = label_ahead;
    look_ahead(t + 1);  // arrives while this step is computed
    bad = bad || blank_probability.m != blank_probability.m;
    for (std::int64_t k = walk.first; k < K; k += walk.stride) {
      const X before = k > 0 ? label_at(from, K, k - 1) : X::zero(), blank = blank_at(from, K, k);
      X new_blank = (blank + before) * blank_probability, new_label = X::zero();
      if (k < walk.L) {
        X sum = label_at(from, K, k) + blank;
        if (walk.skips(k)) sum = sum + before;
        new_label = sum * (k == walk.first ? first_probability : plan.probability(b, t, k));
      }
      if (t % kRenew == kRenew - 1) new_blank = normal(new_blank), new_label = normal(new_label);
      put(to, K, k, new_blank, new_label);
      if (plan.kept) put(plan.states(b, t), K, k, new_blank, new_label);
    }
    __syncthreads();
  }
  if (threadIdx.x != 0) return;
  const A* last = walk.at(walk.T);
  X likelihood = blank_at(last, K, walk.L);
  if (walk.L > 0) likelihood = likelihood + label_at(last, K, walk.L - 1);
  likelihood = normal(likelihood);
  plan.likelihoods[2 * b] = likelihood.m;
  plan.likelihoods[2 * b + 1] = likelihood.e;
  double loss =
      -(static_cast<double>(likelihood.e) * 0.69314718055994531 + std::log(static_cast<double>(likelihood.m)));
  if (likelihood.m == A(0) || likelihood.e < kNever<A> / 2) loss = std::numeric_limits<double>::infinity();
  plan.losses[b] = bad ? std::numeric_limits<double>::quiet_NaN() : loss;
}

template <class A>
__global__ __launch_bounds__(kWalkThreads) void ctc_beta_kernel(Plan<A> plan) {
  auto& storage = shared_storage<Passing<A>>();
  const Walk<A> walk(plan, storage.states);
  const std::int64_t K = plan.K, b = walk.b;
  using X = Extended<A>;
  const double loss = plan.losses[b];
  if (!(loss <= std::numeric_limits<double>::max())) return;
  const A inverse = A(1) / plan.likelihoods[2 * b], exponent = plan.likelihoods[2 * b + 1], weight = plan.weight(b);
  const auto share = [&](X alpha, X beta) {
    const A n = alpha.e + beta.e - exponent, value = scaled(alpha.m * beta.m * inverse, n < A(100) ? n : A(100));
    return (value < A(1) ? value : A(1)) * weight;
  };
  walk.start(walk.T, walk.L);
  for (std::int64_t t = walk.T - 1; t >= 0; --t) {
    const A* from = walk.at(t + 1);
    A* to = walk.at(t);
    A* alpha = plan.states(b, t);
    const X blank_probability = walk.blank_probability(t);
    for (std::int64_t k = walk.first; k <= walk.L; k += walk.stride) {
      const X blank_alpha = blank_at(alpha, K, k), label_alpha = label_at(alpha, K, k);
      const X label = label_at(from, K, k), from_blank = blank_at(from, K, k) + label;
      X new_blank = from_blank * blank_probability, new_label = X::zero();
      alpha[k] = share(blank_alpha, from_blank);
      if (k < walk.L) {
        X sum = label + blank_at(from, K, k + 1);
        if (walk.skips(k + 1)) sum = sum + label_at(from, K, k + 1);
        alpha[2 * K + k] = share(label_alpha, sum);
        new_label = sum * plan.probability(b, t, k);
      }
      if (t % kRenew == 0) new_blank = normal(new_blank), new_label = normal(new_label);
      put(to, K, k, new_blank, new_label);
    }
    __syncthreads();
  }
}

// What the states of label k and of those equal to it take.
template <class A>
__device__ __forceinline__ A chain_sum(const Plan<A>& plan, const A* shares, std::int64_t b, std::int64_t k) {
  A sum = A(0);
  const std::int64_t* chain = plan.chains + b * plan.args.L;
  for (;;) {
    sum += shares[2 * plan.K + k];
    const std::int64_t link = chain[k] < 0 ? ~chain[k] : chain[k];
    if (link == 0) return sum;
    k = link - 1;
  }
}

template <class S>
__global__ __launch_bounds__(kStepThreads) void ctc_gradient_kernel(Plan<Accumulator<S>> plan) {
  using A = Accumulator<S>;
  const CtcLossArgs& args = plan.args;
  const std::int64_t row = step_of_warp(), b = row % args.B, t = row / args.B;
  if (row >= args.T * args.B) return;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  A* gradient = static_cast<A*>(args.gradient) + row * args.C;
  const double loss = plan.losses[b];
  const bool counts = t < plan.steps(b), finite = loss <= std::numeric_limits<double>::max();
  if (!counts || !finite) {
    const bool zero = !counts || (loss == loss && args.zero_infinity);
    for (std::int64_t c = lane; c < args.C; c += kWarp) {
      gradient[c] = zero ? A(0) : std::numeric_limits<A>::quiet_NaN();
    }
    return;
  }
  const S* z = static_cast<const S*>(args.logits) + row * args.C;
  const A* softmax = plan.softmax + (b * args.T + t) * 2;
  const A* shares = plan.states(b, t);
  const A top = softmax[0], scale = softmax[1] * plan.weight(b);
  const std::int64_t L = plan.length(b);
  A blanks = A(0);
  for (std::int64_t k = lane; k <= L; k += kWarp) blanks += shares[k];
  blanks = warp_reduce(blanks, Sum{});
  for (std::int64_t c = lane; c < args.C; c += kWarp) {
    const A p = std::exp(widen(z[c]) - top) * scale;
    gradient[c] = c == args.blank ? p - blanks : p;
  }
  __syncwarp();
  const std::int64_t* labels = plan.labels(b);
  for (std::int64_t k = lane; k < L; k += kWarp) {
    if (plan.chains[b * args.L + k] < 0 || !plan.is_class(labels[k])) continue;
    gradient[labels[k]] -= chain_sum(plan, shares, b, k);
  }
}

// One block.
template <class A>
__global__ __launch_bounds__(kTotalThreads) void ctc_total_kernel(Plan<A> plan) {
  auto& storage = shared_storage<ReduceStorage<double, kTotalThreads>>();
  const CtcLossArgs& args = plan.args;
  double total = 0;
  for (std::int64_t b = threadIdx.x; b < args.B; b += kTotalThreads) {
    double loss = plan.losses[b];
    if (args.zero_infinity && loss > std::numeric_limits<double>::max()) loss = 0;
    if (args.reduction == Reduction::none) static_cast<A*>(args.loss)[b] = static_cast<A>(loss);
    total += loss * args.weight(plan.length(b));
  }
  total = block_reduce<kTotalThreads>(total, Sum{}, storage);
  if (threadIdx.x == 0 && args.reduction != Reduction::none) *static_cast<A*>(args.loss) = static_cast<A>(total);
}

__global__ __launch_bounds__(kMapThreads) void ctc_labels_kernel(CtcLabelsArgs args) {
  for (std::int64_t i = global_thread(); i < args.B * args.L; i += global_threads()) {
    const std::int64_t label = args.targets[i];
    const bool counts = i % args.L < args.lengths[i / args.L];
    args.labels[i] = !counts ? 0 : label == args.blank ? kBlankLabel : label;
  }
}

template <class A>
int walk_threads(const Plan<A>& plan) {
  const std::int64_t warps = (plan.K + kWarp - 1) / kWarp;
  return static_cast<int>(std::min<std::int64_t>(warps * kWarp, kWalkThreads));
}

template <class S>
void run(const CtcLossArgs& args, Stream stream) {
  using A = Accumulator<S>;
  const Device device{DeviceType::cuda, stream.device};
  const std::int64_t K = args.L + 1, steps = args.B * args.T;
  const auto scratch = [&](std::int64_t count, std::size_t size) {
    return allocate(static_cast<std::size_t>(count) * size, device);
  };
  const auto losses = scratch(args.B, sizeof(double)), chains = scratch(args.B * args.L, sizeof(std::int64_t));
  const auto numbers = scratch(steps * 2 * (1 + K) + 2 * args.B, sizeof(A));
  const auto kept = args.gradient ? scratch(steps * 4 * K, sizeof(A)) : nullptr;
  const auto passing = K > kSharedStates ? scratch(args.B * 8 * K, sizeof(A)) : nullptr;
  auto* softmax = static_cast<A*>(numbers.get());
  const Plan<A> plan{.args = args,
                     .K = K,
                     .softmax = softmax,
                     .probabilities = softmax + 2 * steps,
                     .kept = static_cast<A*>(kept.get()),
                     .passing = static_cast<A*>(passing.get()),
                     .likelihoods = softmax + 2 * steps * (1 + K),
                     .chains = static_cast<std::int64_t*>(chains.get()),
                     .losses = static_cast<double*>(losses.get())};
  const LaunchConfig each_step{.grid = grid_of((steps + kStepThreads / kWarp - 1) / (kStepThreads / kWarp)),
                               .block = {kStepThreads}};
  const LaunchConfig walk{.grid = {static_cast<unsigned>(args.B)},
                          .block = {static_cast<unsigned>(walk_threads(plan))},
                          .shared_bytes = sizeof(Passing<A>)};
  if (steps > 0) launch<ctc_softmax_kernel<S>>(each_step, stream, plan);
  if (args.B > 0) launch<ctc_alpha_kernel<A>>(walk, stream, plan);
  launch<ctc_total_kernel<A>>(
      {.grid = {1}, .block = {kTotalThreads}, .shared_bytes = sizeof(ReduceStorage<double, kTotalThreads>)}, stream,
      plan);
  if (steps == 0 || !args.gradient) return;
  launch<ctc_beta_kernel<A>>(walk, stream, plan);
  launch<ctc_gradient_kernel<S>>(each_step, stream, plan);
}

}  // namespace

void ctc_loss(const CtcLossArgs& args, Stream stream) {
  dispatch_float(args.dtype, [&]<class S>() { run<S>(args, stream); });
}

void ctc_labels(const CtcLabelsArgs& args, Stream stream) {
  launch<ctc_labels_kernel>({.grid = {blocks_for(args.B * args.L)}, .block = {kMapThreads}}, stream, args);
}

}  // namespace drupe::cuda
