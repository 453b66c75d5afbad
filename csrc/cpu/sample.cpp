// sample. A task owns some rows. A row is widened into a buffer, its weights into another; integers below 2^63 are
// summed by chunks. The last token that top_k or top_p keeps is found by a radix search over the bits of the logits, by
// histograms of counts and masses, among those above a bound that is quick to find. The uniform picks a chunk, and then
// a token. Bytes: logits once; the buffers stay in cache.
#include "ops/sample.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "core/memory.h"
#include "core/parallel.h"
#include "cpu/lanes.h"
#include "cpu/philox.h"

namespace drupe::cpu {
namespace {

constexpr std::int64_t kGrain = 16384;  // elements a task
constexpr std::int64_t kChunk = 1024;
constexpr int kDigits = 2048;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

DRUPE_INLINE std::int64_t round_up_to_chunk(std::int64_t size) {
  return (size + kChunk - 1) / kChunk * kChunk;
}

// Numbers as integers of the same order; -0 and 0 are equal.
DRUPE_INLINE std::uint32_t key_of(float x) {
  const auto bits = std::bit_cast<std::uint32_t>(x + 0.0f);
  return bits ^ (bits >> 31 != 0 ? 0xffffffffu : 0x80000000u);
}
DRUPE_INLINE float value_of(std::uint32_t key) {
  return std::bit_cast<float>(key >> 31 != 0 ? key ^ 0x80000000u : ~key);
}

struct Bin {
  std::int64_t count, mass;
};
struct Token {
  std::uint32_t key;
  float weight;
};

// Where the kept tokens end: those above `last`, and of its equals the first `ties`.
struct Cut {
  float last = -kInfinity;
  std::int64_t ties = 0;
  std::int64_t mass = 0;  // of the kept
};

template <Isa I>
class Row {
  using V = Vec<float, I>;

 public:
  // Two buffers of round_up_to_chunk(size) floats, and as many chunks' sums.
  Row(const SampleArgs& args, float* values, float* weights, std::int64_t* sums)
      : args_(args), values_(values), weights_(weights), sums_(sums), padded_(round_up_to_chunk(args.size)) {}

  template <class S>
  std::int64_t draw(const S* logits, std::int64_t row) {
    if (const std::int64_t fault = load(logits); fault != 0) return fault;
    if (args_.factor == 0) return find_top();
    weigh();
    if (args_.k < args_.size || args_.p < 1 || args_.least > -kInfinity) restrict_to(find_cut());
    return pick(uniform(row));
  }

 private:
  DRUPE_INLINE double uniform(std::int64_t row) const {
    float u[Philox<I>::kUniforms];
    Philox<I>{args_.seed, 0}(static_cast<std::uint64_t>(row) + args_.offset, u);
    return static_cast<double>(u[0]) + static_cast<double>(u[1]) * 0x1p-24;
  }

  // Widens, pads by -infinity, and finds the largest. Returns a fault, or 0.
  template <class S>
  std::int64_t load(const S* logits) {
    V top = V::set(-kInfinity);
    auto numbers = top == top;
    for_vectors<I, float>(args_.size, [&](std::int64_t i, auto lanes) {
      const V x = cpu::load<V>(logits + i, lanes);
      store(x, values_ + i, lanes);
      numbers = numbers & (x == x);
    });
    if ((~numbers).any()) return static_cast<std::int64_t>(SampleFault::nan);
    std::fill(values_ + args_.size, values_ + padded_, -kInfinity);
    for (std::int64_t i = 0; i < padded_; i += V::kLanes) top = max(top, V::load(values_ + i));
    top_ = reduce_max(top);
    if (top_ == kInfinity) return static_cast<std::int64_t>(SampleFault::infinite);
    return top_ == -kInfinity ? static_cast<std::int64_t>(SampleFault::empty) : 0;
  }

  std::int64_t find_top() const {
    const V top = V::set(top_);
    std::int64_t i = 0;
    while (!(V::load(values_ + i) == top).any()) i += V::kLanes;
    while (values_[i] != top_) ++i;
    return i;
  }

  // a b + c, rounded once.
  DRUPE_INLINE static V fused(V a, V b, V c) {
    if constexpr (V::kLanes == 1) return V::set(std::fma(a.v, b.v, c.v));
    return fma(a, b, c);
  }

  void weigh() {
    const V top = V::set(top_), factor = V::set(args_.factor), least = V::set(kLeastExponent);
    const V bits = V::set(static_cast<float>(args_.scale_bits));
    for (std::int64_t i = 0; i < padded_; i += V::kLanes) {
      const V distance = V::load(values_ + i) - top;
      const V exponent = distance * factor;
      const V n = round(max(exponent, least));
      const V f = fused(distance, factor, -n);
      constexpr Exp2Series kSeries;
      V power = V::set(kSeries.term[Exp2Series::kTerms - 1]);
#pragma GCC unroll 8
      for (int t = Exp2Series::kTerms - 2; t >= 0; --t) power = fused(power, f, V::set(kSeries.term[t]));
      select(exponent < least, V::zero(), round(ldexp(power, n + bits))).store(weights_ + i);
    }
    sum_chunks();
  }

  void sum_chunks() {
    total_ = 0;
    for (std::int64_t c = 0; c < padded_ / kChunk; ++c) {
      constexpr int kSums = 8;
      double sum[kSums] = {};  // of integers, exact
      const float* w = weights_ + c * kChunk;
      for (std::int64_t i = 0; i < kChunk; i += kSums) {
#pragma GCC unroll 8
        for (int s = 0; s < kSums; ++s) sum[s] += static_cast<double>(w[i + s]);
      }
      double whole = 0;
      for (const double part : sum) whole += part;
      sums_[c] = static_cast<std::int64_t>(whole);
      total_ += sums_[c];
    }
  }

  Cut find_cut() const {
    Cut cut{.mass = total_};
    if (args_.k == args_.size && args_.p >= 1) return cut;
    const Scratch<Bin> bins(kDigits);
    const auto most = static_cast<std::size_t>(padded_);
    const Scratch<Token> tokens(most), left(most);
    const float bound = args_.k < args_.size ? bound_by_count(bins.data(), tokens.data()) : bound_by_mass();
    const std::int64_t size = gather(bound, tokens.data());
    if (args_.k < args_.size) cut = search<false>(tokens.data(), size, args_.k, bins.data(), left.data());
    if (args_.p < 1) {
      const auto need = static_cast<std::int64_t>(std::ceil(args_.p * static_cast<double>(cut.mass)));
      cut = search<true>(tokens.data(), size, std::clamp<std::int64_t>(need, 1, cut.mass), bins.data(), left.data());
    }
    return cut;
  }

  // What k tokens are not below: the k-th of the largest of each stretch.
  float bound_by_count(Bin* bins, Token* largest) const {
    constexpr std::int64_t kStretch = 64;
    static_assert(kStretch % V::kLanes == 0 && kChunk % kStretch == 0);
    const std::int64_t stretches = args_.size / kStretch;
    if (args_.k > stretches) return -kInfinity;
    for (std::int64_t s = 0; s < stretches; ++s) {
      V top = V::load(values_ + s * kStretch);
      for (std::int64_t i = V::kLanes; i < kStretch; i += V::kLanes)
        top = max(top, V::load(values_ + s * kStretch + i));
      largest[s] = {key_of(reduce_max(top)), 0};
    }
    return search<false>(largest, stretches, args_.k, bins, largest).last;
  }

  // All that weigh less than half the mean of what top_p takes away, or round to 0, weigh less than that together.
  float bound_by_mass() const {
    const double mean = (1 - args_.p) * static_cast<double>(total_) / static_cast<double>(args_.size);
    const double exponent = std::log2(std::max(mean / 2, 0.4)) - args_.scale_bits - 0.1;
    const double bound = static_cast<double>(top_) + exponent / static_cast<double>(args_.factor);
    return static_cast<float>(std::max(bound, static_cast<double>(std::numeric_limits<float>::lowest())));
  }

  // The tokens from `bound` on.
  std::int64_t gather(float bound, Token* tokens) const {
    const V least = V::set(bound);
    std::int64_t size = 0;
    for (std::int64_t i = 0; i < args_.size; i += V::kLanes) {
      if (!(V::load(values_ + i) >= least).any()) continue;
      for (std::int64_t j = i; j < std::min(i + V::kLanes, args_.size); ++j) {
        tokens[size] = {key_of(values_[j]), weights_[j]};
        size += values_[j] >= bound;
      }
    }
    return size;
  }

  // The fewest of the tokens that are `need`, or with kByMass have that mass. `left` gets those still in question.
  template <bool kByMass>
  static Cut search(const Token* tokens, std::int64_t size, std::int64_t need, Bin* bins, Token* left) {
    std::int64_t above = 0;  // the mass of the tokens that come before
    std::uint32_t known = 0;
    for (const int shift : {21, 10, 0}) {
      const std::uint32_t mask = shift == 0 ? 1023 : 2047;
      std::fill(bins, bins + kDigits, Bin{});
      for (std::int64_t i = 0; i < size; ++i) {
        Bin& bin = bins[tokens[i].key >> shift & mask];
        ++bin.count;
        bin.mass += static_cast<std::int64_t>(tokens[i].weight);
      }
      std::uint32_t digit = mask;
      for (;; --digit) {
        const std::int64_t step = kByMass ? bins[digit].mass : bins[digit].count;
        if (step >= need || digit == 0) break;
        need -= step;
        above += bins[digit].mass;
      }
      known = known * (mask + 1) + digit;
      std::int64_t kept = 0;
      for (std::int64_t i = 0; i < size; ++i) {
        left[kept] = tokens[i];
        kept += left[kept].key >> shift == known;
      }
      tokens = left;
      size = kept;
    }
    const auto weight = static_cast<std::int64_t>(left[0].weight);  // of all that are left
    const std::int64_t ties = kByMass ? (need + weight - 1) / weight : need;
    return {value_of(known), ties, above + ties * weight};
  }

  // Takes the weights of all others away.
  void restrict_to(Cut cut) {
    const V last = V::set(cut.last), top = V::set(top_), factor = V::set(args_.factor), least = V::set(args_.least);
    for (std::int64_t i = 0; i < padded_; i += V::kLanes) {
      const V x = V::load(values_ + i), weight = V::load(weights_ + i);
      const auto likely = (x - top) * factor >= least;
      select((x > last) & likely, weight, V::zero()).store(weights_ + i);
      if (cut.ties == 0 || !((x == last) & likely).any()) continue;
      float weights[V::kLanes];
      weight.store(weights);
      for (int lane = 0; lane < V::kLanes && cut.ties > 0; ++lane) {
        if (values_[i + lane] != cut.last) continue;
        weights_[i + lane] = weights[lane];
        --cut.ties;
      }
    }
    sum_chunks();
  }

  std::int64_t pick(double u) const {
    std::int64_t target = std::min(static_cast<std::int64_t>(u * static_cast<double>(total_)), total_ - 1);
    std::int64_t c = 0;
    for (; target >= sums_[c]; ++c) target -= sums_[c];
    std::int64_t i = c * kChunk;
    for (; target >= static_cast<std::int64_t>(weights_[i]); ++i) target -= static_cast<std::int64_t>(weights_[i]);
    return i;
  }

  const SampleArgs& args_;
  float* const values_;
  float* const weights_;
  std::int64_t* const sums_;
  const std::int64_t padded_;
  float top_ = 0;
  std::int64_t total_ = 0;
};

template <class S, Isa I>
void run(const SampleArgs& args) {
  parallel_ranges(args.rows, std::max<std::int64_t>(1, kGrain / args.size), [&](std::int64_t begin, std::int64_t end) {
    const auto padded = static_cast<std::size_t>(round_up_to_chunk(args.size));
    const Scratch<float> values(padded), weights(padded);
    const Scratch<std::int64_t> sums(padded / kChunk);
    Row<I> row(args, values.data(), weights.data(), sums.data());
    for (std::int64_t r = begin; r < end; ++r) {
      args.indices[r] = row.draw(static_cast<const S*>(args.logits) + r * args.size, r);
    }
  });
}

}  // namespace

template <Isa I>
void sample(const SampleArgs& args) {
  switch (args.dtype) {
    case Dtype::f32:
      return run<float, I>(args);
    case Dtype::f16:
      return run<Float16, I>(args);
    default:
      return run<BFloat16, I>(args);
  }
}

template void sample<Isa::DRUPE_ISA>(const SampleArgs&);

}  // namespace drupe::cpu
