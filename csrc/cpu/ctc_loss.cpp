// Connectionist temporal classification. A task owns a row of the batch. Forward over the steps: the sum of
// exponentials of the classes, the probabilities of the labels, and alpha, what all beginnings of alignments that end
// in a state are worth together. Backward: beta, the same of their ends, kept for one step alone; alpha beta over the
// likelihood is what the state takes from the softmax, and the step's gradient is done. States are vectors of two
// kinds: blank k, before label k, and label k. All are extended numbers: no logarithms. Bytes: the logits twice, the
// gradient, and six numbers a label and step, of one row at a time. Worklog: bench/worklog/ctc_loss.md.
#include "ops/ctc_loss.h"

#include <cmath>
#include <cstring>

#include "core/dispatch.h"
#include "core/memory.h"
#include "core/parallel.h"
#include "cpu/extended.h"
#include "cpu/lanes.h"

namespace drupe::cpu {
namespace {

constexpr std::int64_t kRenew = 8;  // steps until mantissas are brought back: they change by 2^17 at most

template <class T>
struct Step {
  T top, inverse;        // of the softmax: the largest logit, 1 / the sum of exponentials
  T blank_m, blank_e;    // the blank's probability
  T mantissa, exponent;  // 1 / mantissa of the sum, and its exponent
};

// Where a step's arrays lie, in elements: the states' mantissas and exponents, then the labels' probabilities. The
// labels' states have a 0 before them, and all states one behind them, for neighbours that are not there.
struct Layout {
  std::int64_t lanes, K, blank_e, label_m, label_e, probability_m, probability_e, size;
  DRUPE_INLINE Layout(std::int64_t L, std::int64_t lanes)
      : lanes(lanes),
        K((L + lanes) / lanes * lanes),
        blank_e(K + lanes),
        label_m(blank_e + K + 2 * lanes),
        label_e(label_m + K + 2 * lanes),
        probability_m(label_e + K + lanes),
        probability_e(probability_m + K),
        size(probability_e + K) {}
};

template <Isa I, class S>
class Row {
  using T = Accumulator<S>;
  using V = Vec<T, I>;
  using X = Extended<T, I>;
  static constexpr T kInfinity = std::numeric_limits<T>::infinity();

 public:
  DRUPE_INLINE Row(const CtcLossArgs& args, std::int64_t b)
      : args_(args),
        b_(b),
        T_(args.input_lengths[b]),
        L_(args.target_lengths[b]),
        labels_(args.labels + (args.offsets ? args.offsets[b] : b * args.label_stride)),
        keep_(args.gradient != nullptr),
        at_(L_, V::kLanes),
        states_(static_cast<std::size_t>((keep_ ? T_ + 1 : 2) * at_.size)),
        steps_(static_cast<std::size_t>(T_ + 1)),
        skips_(static_cast<std::size_t>(at_.K + V::kLanes)),
        logits_(static_cast<std::size_t>(at_.K)) {
    for (std::int64_t k = 0; k < at_.K + V::kLanes; ++k) {
      skips_[index(k)] = T(k > 0 && k < L_ && labels_[k] != labels_[k - 1]);
    }
    for (std::int64_t k = L_; k < at_.K; ++k) logits_[index(k)] = -kInfinity;
    T tail[V::kLanes];
    for (int lane = 0; lane < V::kLanes; ++lane) tail[lane] = lane < args.C % V::kLanes ? T(0) : -kInfinity;
    tail_ = V::load(tail);
  }

  // The loss; writes the gradient where it is wanted.
  DRUPE_INLINE double run() {
    double loss = forward();
    const bool hopeless = loss == std::numeric_limits<double>::infinity();
    if (hopeless && args_.zero_infinity) loss = 0;
    if (!keep_) return loss;
    if (hopeless || std::isnan(loss)) {
      fill_gradient(0, T_, std::isnan(loss) || !args_.zero_infinity ? std::numeric_limits<T>::quiet_NaN() : T(0));
    } else {
      backward();
    }
    fill_gradient(T_, args_.T, T(0));
    return loss;
  }

 private:
  DRUPE_INLINE static std::size_t index(std::int64_t i) { return static_cast<std::size_t>(i); }
  DRUPE_INLINE const S* logits(std::int64_t t) const {
    return static_cast<const S*>(args_.logits) + (t * args_.B + b_) * args_.C;
  }
  DRUPE_INLINE T* gradient(std::int64_t t) const {
    return static_cast<T*>(args_.gradient) + (t * args_.B + b_) * args_.C;
  }
  // The states after `steps` steps, and the probabilities of the last of these.
  DRUPE_INLINE T* states(std::int64_t steps) const { return states_.data() + (keep_ ? steps : steps % 2) * at_.size; }

  DRUPE_INLINE V classes(const S* z, AllLanes) const { return V::load(z); }
  DRUPE_INLINE V classes(const S* z, FirstLanes lanes) const { return V::load(z, lanes.count) + tail_; }

  // Whether the classes have a distribution.
  DRUPE_INLINE bool normalise(const S* z, Step<T>& step) const {
    V top = V::set(std::numeric_limits<T>::lowest()), total = V::zero();
    for_vectors<I, T>(args_.C, [&](std::int64_t c, auto lanes) { top = max(top, classes(z + c, lanes)); });
    step.top = reduce_max(top);
    top = V::set(step.top);
    for_vectors<I, T>(args_.C, [&](std::int64_t c, auto lanes) { total = total + exp(classes(z + c, lanes) - top); });
    const T sum = reduce_add(total);
    step.inverse = T(1) / sum;
    T spread[V::kLanes];
    mantissa(V::set(sum)).store(spread);
    step.mantissa = T(1) / spread[0];
    exponent(V::set(sum)).store(spread);
    step.exponent = spread[0];
    return sum > T(0) && sum < kInfinity;
  }

  DRUPE_INLINE X probability(V logit, const Step<T>& step) const {
    const X e = extended_exp(logit - V::set(step.top));
    return {e.m * V::set(step.mantissa), e.e - V::set(step.exponent)};
  }

  // The labels' and the blank's probabilities.
  DRUPE_INLINE void emit(const S* z, Step<T>& step, T* to) const {
    for (std::int64_t k = 0; k < L_; ++k) logits_[index(k)] = static_cast<T>(z[labels_[k]]);
    for (std::int64_t k = 0; k < at_.K; k += V::kLanes) {
      probability(V::load(logits_.data() + k), step).store(to + at_.probability_m + k, to + at_.probability_e + k);
    }
    T m[V::kLanes], e[V::kLanes];
    probability(V::set(static_cast<T>(z[args_.blank])), step).store(m, e);
    step.blank_m = m[0];
    step.blank_e = e[0];
  }

  // Only the blank before all labels, or behind them.
  DRUPE_INLINE void start(T* states, std::int64_t at) const {
    std::fill(states, states + at_.blank_e, T(0));
    std::fill(states + at_.blank_e, states + at_.label_m - at_.lanes, kNever<T>);
    std::fill(states + at_.label_m - at_.lanes, states + at_.label_e - at_.lanes, T(0));
    std::fill(states + at_.label_e - at_.lanes, states + at_.probability_m, kNever<T>);
    states[at] = T(1);
    states[at_.blank_e + at] = T(0);
  }
  DRUPE_INLINE void mark_before(T* states) const {
    states[at_.label_m - 1] = T(0);
    states[at_.label_e - 1] = kNever<T>;
  }

  template <bool kNormal>
  DRUPE_INLINE void advance(const T* from, T* to, const Step<T>& step) const {
    const X blank_probability = X::set(step.blank_m, step.blank_e);
    mark_before(to);
    for (std::int64_t k = 0; k < at_.K; k += V::kLanes) {
      const X blank = X::load(from + k, from + at_.blank_e + k);
      const X label = X::load(from + at_.label_m + k, from + at_.label_e + k);
      const X before = X::load(from + at_.label_m + k - 1, from + at_.label_e + k - 1);
      const auto skips = V::zero() < V::load(skips_.data() + k);
      X next_blank = (blank + before) * blank_probability;
      X next_label =
          sum(label, blank, only(skips, before)) * X::load(to + at_.probability_m + k, to + at_.probability_e + k);
      if constexpr (kNormal) next_blank = normal(next_blank), next_label = normal(next_label);
      next_blank.store(to + k, to + at_.blank_e + k);
      next_label.store(to + at_.label_m + k, to + at_.label_e + k);
    }
  }

  DRUPE_INLINE double forward() {
    start(states(0), 0);
    for (std::int64_t t = 0; t < T_; ++t) {
      Step<T>& step = steps_[index(t)];
      T* to = states(t + 1);
      if (!normalise(logits(t), step)) return std::numeric_limits<double>::quiet_NaN();
      emit(logits(t), step, to);
      t % kRenew == kRenew - 1 ? advance<true>(states(t), to, step) : advance<false>(states(t), to, step);
    }
    const T* last = states(T_);
    const std::int64_t label = L_ - 1;  // the element before the first one is 0
    const X likelihood =
        normal(X::set(last[L_], last[at_.blank_e + L_]) + X::set(last[at_.label_m + label], last[at_.label_e + label]));
    T m[V::kLanes], e[V::kLanes];
    likelihood.store(m, e);
    likelihood_m_ = m[0];
    likelihood_e_ = e[0];
    if (m[0] == T(0) || e[0] < kNever<T> / 2) return std::numeric_limits<double>::infinity();
    return -(static_cast<double>(e[0]) * 0.69314718055994531 + std::log(static_cast<double>(m[0])));
  }

  // a b over the likelihood, times the weight; a probability, whatever rounding makes of it.
  DRUPE_INLINE V share(X a, X b, V inverse, V weight) const {
    const V e = min(V::set(100), (a.e + b.e) - V::set(likelihood_e_));
    return min(V::set(1), scaled(a.m * b.m * inverse, e)) * weight;
  }

  // From beta after this step, times the probabilities of the next one, to the same a step before, in place. The shares
  // of the labels go to `labels`; gives that of the blank.
  template <bool kNormal>
  DRUPE_INLINE T retreat(const T* alpha, T* beta, const Step<T>& step, T* labels, T weight) const {
    const X blank_probability = X::set(step.blank_m, step.blank_e);
    const V inverse = V::set(T(1) / likelihood_m_), factor = V::set(weight);
    V blanks = V::zero();
    for (std::int64_t k = 0; k < at_.K; k += V::kLanes) {
      const X blank = X::load(beta + k, beta + at_.blank_e + k);
      const X label = X::load(beta + at_.label_m + k, beta + at_.label_e + k);
      const X next_blank = X::load(beta + k + 1, beta + at_.blank_e + k + 1);
      const X next_label = X::load(beta + at_.label_m + k + 1, beta + at_.label_e + k + 1);
      const auto skips = V::zero() < V::load(skips_.data() + k + 1);
      const X from_blank = blank + label, from_label = sum(label, next_blank, only(skips, next_label));
      blanks = blanks + share(X::load(alpha + k, alpha + at_.blank_e + k), from_blank, inverse, factor);
      share(X::load(alpha + at_.label_m + k, alpha + at_.label_e + k), from_label, inverse, factor).store(labels + k);
      X new_blank = from_blank * blank_probability;
      X new_label = from_label * X::load(alpha + at_.probability_m + k, alpha + at_.probability_e + k);
      if constexpr (kNormal) new_blank = normal(new_blank), new_label = normal(new_label);
      new_blank.store(beta + k, beta + at_.blank_e + k);
      new_label.store(beta + at_.label_m + k, beta + at_.label_e + k);
    }
    return reduce_add(blanks);
  }

  DRUPE_INLINE void backward() {
    const Scratch<T> shares(index(at_.K)), row(index(args_.C + V::kLanes));
    const Scratch<T> beta(index(at_.probability_m));
    start(beta.data(), L_);
    const T weight = static_cast<T>(args_.weight(L_));
    for (std::int64_t t = T_ - 1; t >= 0; --t) {
      const Step<T>& step = steps_[index(t)];
      const T blanks = t % kRenew == 0 ? retreat<true>(states(t + 1), beta.data(), step, shares.data(), weight)
                                       : retreat<false>(states(t + 1), beta.data(), step, shares.data(), weight);
      const S* z = logits(t);
      const V top = V::set(step.top), factor = V::set(step.inverse * weight);
      for_vectors<I, T>(args_.C, [&](std::int64_t c, auto lanes) {
        (exp(load<V>(z + c, lanes) - top) * factor).store(row.data() + c);
      });
      row[index(args_.blank)] -= blanks;
      for (std::int64_t k = 0; k < L_; ++k) row[index(labels_[k])] -= shares[index(k)];
      copy_row(row.data(), gradient(t));
    }
  }

  // Whole vectors, of which the last may overlap the one before: masked stores are slow.
  DRUPE_INLINE void copy_row(const T* from, T* to) const {
    if (args_.C < V::kLanes) {
      for (std::int64_t c = 0; c < args_.C; ++c) to[c] = from[c];
      return;
    }
    for (std::int64_t c = 0; c + V::kLanes <= args_.C; c += V::kLanes) V::load(from + c).store(to + c);
    V::load(from + args_.C - V::kLanes).store(to + args_.C - V::kLanes);
  }

  DRUPE_INLINE void fill_gradient(std::int64_t begin, std::int64_t end, T value) const {
    for (std::int64_t t = begin; t < end; ++t) std::fill_n(gradient(t), args_.C, value);
  }

  const CtcLossArgs& args_;
  const std::int64_t b_, T_, L_;
  const std::int64_t* labels_;
  const bool keep_;
  const Layout at_;
  const Scratch<T> states_;
  const Scratch<Step<T>> steps_;
  const Scratch<T> skips_;   // 1 where a label follows the one before without a blank
  const Scratch<T> logits_;  // of the labels at a step
  V tail_;
  T likelihood_m_ = 0, likelihood_e_ = 0;
};

}  // namespace

template <Isa I>
void ctc_loss(const CtcLossArgs& args) {
  dispatch_float(args.dtype, [&]<class S>() {
    using T = Accumulator<S>;
    const Scratch<double> losses(static_cast<std::size_t>(args.B));
    parallel_for(args.B, [&](std::int64_t b) { losses[static_cast<std::size_t>(b)] = Row<I, S>(args, b).run(); });
    double total = 0;
    for (std::int64_t b = 0; b < args.B; ++b) {
      const double loss = losses[static_cast<std::size_t>(b)];
      if (args.reduction == Reduction::none) static_cast<T*>(args.loss)[b] = static_cast<T>(loss);
      total += loss * args.weight(args.target_lengths[b]);
    }
    if (args.reduction != Reduction::none) *static_cast<T*>(args.loss) = static_cast<T>(total);
  });
}

template void ctc_loss<Isa::DRUPE_ISA>(const CtcLossArgs&);

}  // namespace drupe::cpu
