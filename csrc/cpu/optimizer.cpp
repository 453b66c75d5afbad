// Multi-tensor optimizer steps. The tensors lie side by side in one range that is cut into chunks of fixed size; each
// chunk is one task, whatever tensors it crosses. An element is read and written once by one rule, in registers: adam
// moves 7 accumulators an element, sgd 3 (5 with momentum), rmsprop 5 to 9; a master 2 more; narrow states move less
// (cpu/optimizer_narrow.h). Elements, or blocks of narrow states, do not see each other, so the cut leaves no trace in
// the bits. Rows of a sparse gradient are prefetched, and narrow ones gathered.
#include "ops/optimizer.h"

#include <algorithm>
#include <type_traits>

#include "core/dispatch.h"
#include "core/parallel.h"
#include "cpu/optimizer_narrow.h"
#include "cpu/optimizer_update.h"
#include "cpu/row_sum.h"

namespace drupe::cpu {
namespace {

constexpr std::int64_t kChunk = 32768;      // elements a task
constexpr std::int64_t kAheadBytes = 2048;  // of the parameter and of each state, asked for before they are needed

// The rows that a sparse gradient names lie scattered: those a while ahead are asked for early.
template <Isa I, class S, class Rule>
class RowPrefetch {
 public:
  explicit RowPrefetch(const StepTensor& tensor)
      : tensor_(tensor),
        last_(tensor.size / std::max<std::int64_t>(1, tensor.width) - 1),
        plan_(PrefetchPlan::make<I>(tensor.param, row_bytes(), row_bytes(), kAheadBytes)) {}

  DRUPE_INLINE void operator()(std::int64_t row) const {
    const std::int64_t place = tensor_.rows[std::min(row + plan_.ahead, last_)] * tensor_.width;
    plan_(static_cast<const S*>(tensor_.param) + place);
    for (int k = 0; k < Rule::kStates; ++k) plan_(static_cast<const Accumulator<S>*>(tensor_.state[k]) + place);
  }

 private:
  std::int64_t row_bytes() const { return tensor_.width * static_cast<std::int64_t>(sizeof(S)); }

  const StepTensor& tensor_;
  std::int64_t last_;
  PrefetchPlan plan_;
};

// Rows [begin, end) narrower than a register: gathered, updated side by side, and put back.
template <Isa I, class S, class Rule>
void update_narrow_rows(const Rule& rule, const StepTensor& tensor, const RowPrefetch<I, S, Rule>& prefetch,
                        std::int64_t begin, std::int64_t end) {
  constexpr std::int64_t kGathered = 256;
  alignas(64) S values[1 + Rule::kStates][kGathered];
  const std::int64_t width = tensor.width, block = kGathered / width;
  const auto base = [&](int k) { return static_cast<S*>(k ? tensor.state[k - 1] : tensor.param); };
  for (; begin < end; begin += block) {
    const std::int64_t count = std::min(block, end - begin);
    for (std::int64_t u = 0; u < count; ++u) {
      prefetch(begin + u);
      const std::int64_t place = tensor.rows[begin + u] * width;
      for (int k = 0; k <= Rule::kStates; ++k) {
        for (std::int64_t i = 0; i < width; ++i) values[k][u * width + i] = base(k)[place + i];
      }
    }
    Stretch<S> at{.param = values[0],
                  .master = nullptr,
                  .grad = static_cast<const S*>(tensor.grad) + begin * width,
                  .state = {},
                  .size = count * width};
    for (int k = 0; k < Rule::kStates; ++k) at.state[k] = values[k + 1];
    update<I>(rule, at, at.param, 0, at.size,
              [&](std::int64_t i, auto p, auto lanes) { store(p, at.param + i, lanes); });
    for (std::int64_t u = 0; u < count; ++u) {
      const std::int64_t place = tensor.rows[begin + u] * width;
      for (int k = 0; k <= Rule::kStates; ++k) {
        for (std::int64_t i = 0; i < width; ++i) base(k)[place + i] = values[k][u * width + i];
      }
    }
  }
}

// Elements [begin, end) of one tensor's gradient.
template <Isa I, class S, class Rule>
void update_range(const Rule& rule, const StepTensor& tensor, const Rounding& rounding, std::int64_t begin,
                  std::int64_t end) {
  using T = Accumulator<S>;
  using V = Vec<T, I>;
  // From element `from` of the gradient, whose place in the parameter is `place`.
  const auto run = [&](std::int64_t from, std::int64_t place, std::int64_t size) {
    Stretch<S> at{.param = static_cast<S*>(tensor.param) + place,
                  .master = tensor.master ? tensor.master + place : nullptr,
                  .grad = static_cast<const S*>(tensor.grad) + from,
                  .state = {},
                  .size = size};
    for (int k = 0; k < Rule::kStates; ++k) at.state[k] = static_cast<T*>(tensor.state[k]) + place;
    if constexpr (!std::is_same_v<S, T>) {
      if (rounding.stochastic) {
        const auto block = static_cast<std::uint64_t>(tensor.number) << kRoundingTensorShift;
        return update_drawn<I>(rule, at, place, block, rounding);
      }
      if (at.master) {
        return update<I>(rule, at, at.master, 0, size, [&](std::int64_t i, auto p, auto lanes) {
          store(p, at.master + i, lanes);
          store(p, at.param + i, lanes);
        });
      }
    }
    update<I>(rule, at, at.param, 0, size, [&](std::int64_t i, auto p, auto lanes) { store(p, at.param + i, lanes); });
  };
  if (!tensor.rows) {
    run(begin, begin, end - begin);
    return;
  }
  const auto prefetch = RowPrefetch<I, S, Rule>(tensor);
  std::int64_t row = begin / tensor.width, column = begin % tensor.width;
  while (begin < end) {
    if constexpr (std::is_same_v<S, T>) {
      if (const std::int64_t whole = (end - begin) / tensor.width;
          column == 0 && tensor.width < V::kLanes && whole > 0) {
        update_narrow_rows<I>(rule, tensor, prefetch, row, row + whole);
        row += whole;
        begin += whole * tensor.width;
        continue;
      }
    }
    prefetch(row);
    const std::int64_t size = std::min(end - begin, tensor.width - column);
    run(begin, tensor.rows[row] * tensor.width + column, size);
    begin += size;
    ++row;
    column = 0;
  }
}

// MakeRule::operator()<T>() gives the rule for an accumulator type.
template <Isa I, class MakeRule>
void sweep(const StepList& list, const MakeRule& make_rule) {
  parallel_ranges(list.starts[list.count], kChunk, [&](std::int64_t begin, std::int64_t end) {
    std::int64_t low = 0, high = list.count;  // the last tensor that starts at or before `begin`
    while (high - low > 1) {
      const std::int64_t middle = (low + high) / 2;
      (list.starts[middle] <= begin ? low : high) = middle;
    }
    for (std::int64_t i = low; i < list.count && list.starts[i] < end; ++i) {
      const StepTensor& tensor = list.tensors[i];
      const std::int64_t from = std::max<std::int64_t>(begin - list.starts[i], 0);
      const std::int64_t to = std::min(end - list.starts[i], tensor.size);
      if (from >= to) continue;
      dispatch_float(tensor.dtype, [&]<class S>() {
        auto rule = make_rule.template operator()<Accumulator<S>>();
        if constexpr (std::is_same_v<Accumulator<S>, float> && decltype(rule)::kNarrow) {
          if (tensor.state_dtype == Dtype::bf16) {
            return update_narrow<I, S, BFloat16>(rule, tensor, list.rounding, from, to);
          }
          if (tensor.state_dtype == Dtype::u8) {
            return update_narrow<I, S, std::uint8_t>(rule, tensor, list.rounding, from, to);
          }
        }
        update_range<I, S>(rule, tensor, list.rounding, from, to);
      });
    }
  });
}

}  // namespace

template <Isa I>
void sgd(const SgdArgs& args) {
  if (args.momentum != 0) {
    sweep<I>(args.list, [&]<class T>() { return SgdRule<T, I, true>(args); });
  } else {
    sweep<I>(args.list, [&]<class T>() { return SgdRule<T, I, false>(args); });
  }
}

template <Isa I>
void adam(const AdamArgs& args) {
  sweep<I>(args.list, [&]<class T>() { return AdamRule<T, I>(args); });
}

template <Isa I>
void rmsprop(const RmspropArgs& args) {
  const bool momentum = args.momentum != 0;
  if (args.centered && momentum) {
    sweep<I>(args.list, [&]<class T>() { return RmspropRule<T, I, true, true>(args); });
  } else if (args.centered) {
    sweep<I>(args.list, [&]<class T>() { return RmspropRule<T, I, true, false>(args); });
  } else if (momentum) {
    sweep<I>(args.list, [&]<class T>() { return RmspropRule<T, I, false, true>(args); });
  } else {
    sweep<I>(args.list, [&]<class T>() { return RmspropRule<T, I, false, false>(args); });
  }
}

template <Isa I>
void sum_of_squares(const SumOfSquaresArgs& args) {
  dispatch_float(args.dtype, [&]<class S>() {
    using T = Accumulator<S>;
    using V = Vec<T, I>;
    const auto* x = static_cast<const S*>(args.x);
    parallel_ranges(args.size, kSquaresChunk, [&](std::int64_t begin, std::int64_t end) {
      double& partial = args.partials[begin / kSquaresChunk];
      if (args.wide) {
        partial = 0;
        for (std::int64_t i = begin; i < end; ++i) {
          const auto value = static_cast<double>(static_cast<T>(x[i]));
          partial += value * value;
        }
        return;
      }
      constexpr int kChains = 4;  // independent sums, to hide the latency of fma
      V sums[kChains] = {V::zero(), V::zero(), V::zero(), V::zero()};
      std::int64_t i = begin;
      for (; i + kChains * V::kLanes <= end; i += kChains * V::kLanes) {
        for (int k = 0; k < kChains; ++k) {
          const V value = V::load(x + i + k * V::kLanes);
          sums[k] = fma(value, value, sums[k]);
        }
      }
      for (; i < end; i += V::kLanes) {
        const V value = V::load(x + i, static_cast<int>(std::min<std::int64_t>(V::kLanes, end - i)));
        sums[0] = fma(value, value, sums[0]);
      }
      partial = static_cast<double>(reduce_add((sums[0] + sums[1]) + (sums[2] + sums[3])));
    });
  });
}

template void sgd<Isa::DRUPE_ISA>(const SgdArgs&);
template void adam<Isa::DRUPE_ISA>(const AdamArgs&);
template void rmsprop<Isa::DRUPE_ISA>(const RmspropArgs&);
template void sum_of_squares<Isa::DRUPE_ISA>(const SumOfSquaresArgs&);

}  // namespace drupe::cpu
