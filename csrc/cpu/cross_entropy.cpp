// Cross entropy. A task owns a range of rows. Forward: one sweep, in chunks of 16 vectors that are read twice in cache:
// for each lane's maximum, then for the sum of exponentials below it; a lane whose maximum grew rescales its sum.
// Backward: one sweep writes (softmax - target) dloss; the label's own element is put right at the end of its row.
// Bytes: the logits once; the logits and their gradient. Worklog: bench/worklog/cross_entropy.md.
#include "ops/cross_entropy.h"

#include "core/dispatch.h"
#include "core/memory.h"
#include "core/parallel.h"
#include "cpu/lanes.h"
#include "cpu/simd_math.h"

namespace drupe::cpu {
namespace {

constexpr std::int64_t kGrainElements = 16384;  // of a task

// Over a row: the maximum m of z, sum e^(z - m), and if kSmooth sum weight (z - base) (weight 1 where null).
template <Isa I, class S, bool kSmooth>
struct RowSums {
  using T = Accumulator<S>;
  using V = Vec<T, I>;
  static constexpr T kLowest = std::numeric_limits<T>::lowest();
  static constexpr int kChunk = 16;
  static constexpr int kAhead = 2 * kChunk * V::kLanes;  // elements to prefetch ahead

  V maximum = V::set(kLowest), sum = V::zero(), weighted = V::zero();
  const T* weight;
  V base;

  DRUPE_INLINE RowSums(const T* weight, T base) : weight(weight), base(V::set(base)) {}

  DRUPE_INLINE void raise(V top) {
    if ((maximum < top).any()) {
      sum = sum * exp(maximum - top);
      maximum = top;
    }
  }

  template <class Lanes>
  DRUPE_INLINE void add_weighted(V z, std::int64_t c, Lanes lanes) {
    if constexpr (kSmooth) {
      const V distance = only(z - base, lanes);
      weighted = weight ? fma(load<V>(weight + c, lanes), distance, weighted) : weighted + distance;
    }
  }

  DRUPE_INLINE void add_vectors(const S* z, std::int64_t c, int count) {
    V top = maximum;
    for (int k = 0; k < count; ++k) {
      const S* p = z + c + k * V::kLanes;
      __builtin_prefetch(p + kAhead);
      top = max(top, V::load(p));
    }
    raise(top);
    for (int k = 0; k < count; ++k) {
      const V value = V::load(z + c + k * V::kLanes);
      sum = sum + exp(value - maximum);
      add_weighted(value, c + k * V::kLanes, AllLanes{});
    }
  }

  DRUPE_INLINE void add_rest(const S* z, std::int64_t c, int count) {
    T position[V::kLanes];
    for (int k = 0; k < V::kLanes; ++k) position[k] = static_cast<T>(k);
    const auto counts = V::load(position) < V::set(static_cast<T>(count));
    const V value = select(counts, V::load(z + c, count), V::set(-std::numeric_limits<T>::infinity()));
    raise(max(maximum, value));
    sum = sum + exp(value - maximum);
    if constexpr (kSmooth) add_weighted(V::load(z + c, count), c, FirstLanes{count});
  }

  DRUPE_INLINE void finish(T& top, T& total) const {
    top = reduce_max(maximum);
    total = reduce_add(sum * exp(maximum - V::set(top)));
  }
};

template <Isa I, class S, bool kSmooth>
void sum_row(const S* z, std::int64_t C, RowSums<I, S, kSmooth>& sums) {
  using Sums = RowSums<I, S, kSmooth>;
  constexpr std::int64_t kLanes = Sums::V::kLanes;
  std::int64_t c = 0;
  for (; c + Sums::kChunk * kLanes <= C; c += Sums::kChunk * kLanes) sums.add_vectors(z, c, Sums::kChunk);
  if (const int count = static_cast<int>((C - c) / kLanes); count > 0) {
    sums.add_vectors(z, c, count);
    c += count * kLanes;
  }
  if (c < C) sums.add_rest(z, c, static_cast<int>(C - c));
}

template <class T>
T label_weight(const CrossEntropyArgs& args, std::int64_t label) {
  return args.weight ? static_cast<const T*>(args.weight)[label] : T(1);
}

std::int64_t rows_per_task(const CrossEntropyArgs& args) {
  return std::max<std::int64_t>(1, kGrainElements / std::max<std::int64_t>(1, args.C));
}

template <Isa I, class S, class L, bool kSmooth>
void forward(const CrossEntropyArgs& args) {
  using T = Accumulator<S>;
  const std::int64_t grain = rows_per_task(args);
  const std::int64_t tasks = (args.rows + grain - 1) / grain;
  const Scratch<double> partial(static_cast<std::size_t>(2 * tasks));  // sums of losses and of their weights
  const L* labels = static_cast<const L*>(args.labels);
  const T* weight = static_cast<const T*>(args.weight);
  const T own = static_cast<T>(1 - args.label_smoothing);
  const T spread = static_cast<T>(args.label_smoothing / static_cast<double>(std::max<std::int64_t>(1, args.C)));
  parallel_ranges(args.rows, grain, [&](std::int64_t begin, std::int64_t end) {
    double total_loss = 0, total_weight = 0;
    for (std::int64_t row = begin; row < end; ++row) {
      const std::int64_t label = labels[row];
      T loss = 0;
      if (label != args.ignore_index) {
        const S* z = static_cast<const S*>(args.logits) + row * args.C;
        const T at_label = static_cast<T>(z[label]);
        const T base = std::isfinite(at_label) ? at_label : T(0);
        RowSums<I, S, kSmooth> sums(weight, base);
        sum_row(z, args.C, sums);
        T* saved = static_cast<T*>(args.sums) + 2 * row;
        sums.finish(saved[0], saved[1]);
        const T w = label_weight<T>(args, label);
        const T log_sum = std::log(saved[1]);
        loss = own * w * ((saved[0] - at_label) + log_sum);
        if constexpr (kSmooth) {
          loss +=
              spread * (static_cast<T>(args.weight_sum) * ((saved[0] - base) + log_sum) - reduce_add(sums.weighted));
        }
        total_loss += static_cast<double>(loss);
        total_weight += static_cast<double>(w);
      }
      if (args.reduction == Reduction::none) static_cast<T*>(args.loss)[row] = loss;
    }
    partial[static_cast<std::size_t>(2 * (begin / grain))] = total_loss;
    partial[static_cast<std::size_t>(2 * (begin / grain) + 1)] = total_weight;
  });
  double loss = 0, total = 0;
  for (std::int64_t task = 0; task < tasks; ++task) {
    loss += partial[static_cast<std::size_t>(2 * task)];
    total += partial[static_cast<std::size_t>(2 * task + 1)];
  }
  *args.total = total;
  if (args.reduction == Reduction::sum) *static_cast<T*>(args.loss) = static_cast<T>(loss);
  if (args.reduction == Reduction::mean) *static_cast<T*>(args.loss) = static_cast<T>(total == 0 ? 0 : loss / total);
}

// dz = p scale - uniform weight; then the label's own share comes off.
template <Isa I, class S, bool kSmooth>
void backward_row(const CrossEntropyArgs& args, std::int64_t row, std::int64_t label, Accumulator<S> dloss) {
  using T = Accumulator<S>;
  using V = Vec<T, I>;
  const S* z = static_cast<const S*>(args.logits) + row * args.C;
  S* dz = static_cast<S*>(args.dlogits) + row * args.C;
  const T* weight = static_cast<const T*>(args.weight);
  const T w = label_weight<T>(args, label);
  const T own = static_cast<T>(1 - args.label_smoothing) * w;
  const T spread = static_cast<T>(args.label_smoothing / static_cast<double>(args.C));
  const T* sums = static_cast<const T*>(args.sums) + 2 * row;
  const V maximum = V::set(sums[0]);
  const V scale = V::set(dloss * (own + spread * static_cast<T>(args.weight_sum)) / sums[1]);
  const V uniform = V::set(dloss * spread);
  const auto gradient = [&](std::int64_t c, auto lanes) {
    __builtin_prefetch(z + c + RowSums<I, S, kSmooth>::kAhead);
    const V p = exp(load<V>(z + c, lanes) - maximum);
    if constexpr (!kSmooth) return p * scale;
    return p * scale - (weight ? uniform * load<V>(weight + c, lanes) : uniform);
  };
  write_vectors<I>(dz, args.C, gradient, passes_caches<S>(args.rows * args.C));
  const V at_label = gradient(label, FirstLanes{1}) - V::set(dloss * own);
  at_label.store(dz + label, 1);
}

template <Isa I, class S, class L, bool kSmooth>
void backward(const CrossEntropyArgs& args) {
  using T = Accumulator<S>;
  const L* labels = static_cast<const L*>(args.labels);
  const T* dloss = static_cast<const T*>(args.dloss);
  const bool mean = args.reduction == Reduction::mean;
  const double share = mean ? (*args.total == 0 ? 0 : 1 / *args.total) : 1;
  parallel_ranges(args.rows, rows_per_task(args), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; ++row) {
      const std::int64_t label = labels[row];
      if (label == args.ignore_index) {
        std::fill_n(static_cast<S*>(args.dlogits) + row * args.C, args.C, S(0));
        continue;
      }
      const T outer = dloss[args.reduction == Reduction::none ? row : 0];
      backward_row<I, S, kSmooth>(args, row, label, static_cast<T>(static_cast<double>(outer) * share));
    }
    if (passes_caches<S>(args.rows * args.C)) stream_fence<I>();
  });
}

// Calls f.operator()<S, L, kSmooth>().
template <class F>
DRUPE_INLINE void dispatch_cross_entropy(const CrossEntropyArgs& args, F&& f) {
  dispatch_float(args.dtype, [&]<class S>() {
    dispatch_index(args.label_dtype, [&]<class L>() {
      args.label_smoothing > 0 ? f.template operator()<S, L, true>() : f.template operator()<S, L, false>();
    });
  });
}

}  // namespace

template <Isa I>
void cross_entropy(const CrossEntropyArgs& args) {
  dispatch_cross_entropy(args, [&]<class S, class L, bool kSmooth>() { forward<I, S, L, kSmooth>(args); });
}

template <Isa I>
void cross_entropy_backward(const CrossEntropyArgs& args) {
  dispatch_cross_entropy(args, [&]<class S, class L, bool kSmooth>() { backward<I, S, L, kSmooth>(args); });
}

template void cross_entropy<Isa::DRUPE_ISA>(const CrossEntropyArgs&);
template void cross_entropy_backward<Isa::DRUPE_ISA>(const CrossEntropyArgs&);

}  // namespace drupe::cpu
