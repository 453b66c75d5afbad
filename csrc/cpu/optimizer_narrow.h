// An optimizer's rule on tensors whose states are narrow (core/narrow_state.h), block by block. Blocks in 8 bits are
// widened, updated and kept in L1 until their scale is known, and then encoded: adam moves 16 bytes an element.
#pragma once

#include <algorithm>
#include <bit>
#include <limits>
#include <type_traits>

#include "core/narrow_state.h"
#include "cpu/optimizer_update.h"
#include "cpu/philox.h"
#include "cpu/simd_bits.h"

namespace drupe::cpu {

// The words that the elements of a block draw.
template <Isa I>
class StateDraws {
 public:
  DRUPE_INLINE StateDraws(const Rounding& rounding, std::int64_t tensor)
      : philox_{rounding.seed, rounding.offset},
        first_((static_cast<std::uint64_t>(tensor) << kRoundingTensorShift) + (std::uint64_t{1} << kDrawShift)) {}

  // Good until the next call.
  DRUPE_INLINE const std::uint32_t* operator()(std::int64_t block) {
    if (block / kAhead != held_) {
      held_ = block / kAhead;
      philox_(first_ + static_cast<std::uint64_t>(held_ * kAhead * kDrawWords / 4), drawn_);
    }
    const std::uint32_t* from = drawn_ + block % kAhead * kDrawWords;
    for (std::int64_t i = 0; i < kStateBlock; i += kDrawWords) {
      const auto shift = static_cast<std::uint32_t>(i / kDrawWords) * kDrawStep;
      for (int k = 0; k < kDrawWords; ++k) words_[i + k] = from[k] + shift;
    }
    return words_;
  }

 private:
  static constexpr std::int64_t kAhead = 4;  // blocks drawn at once
  static constexpr int kGroups = static_cast<int>(kAhead * kDrawWords / 4 / Words<I>::kLanes);

  alignas(64) std::uint32_t words_[kStateBlock];
  alignas(64) std::uint32_t drawn_[kAhead * kDrawWords];
  Philox<I, kGroups> philox_;
  std::uint64_t first_;
  std::int64_t held_ = -1;
};

// The two logarithms, and back.
template <bool kSigned, Isa I>
DRUPE_INLINE Bits<I> taper(Vec<float, I> y) {
  using V = Vec<float, I>;
  const V octaves = (Bits<I>::set(kOneBits) - Bits<I>::of(y)).to_float() * V::set(TaperedCode<kSigned>::kSlope);
  return Bits<I>::of(octaves + V::set(1)) - Bits<I>::set(kOneBits);
}
template <bool kSigned, Isa I>
DRUPE_INLINE Vec<float, I> untaper(Bits<I> code) {
  using V = Vec<float, I>;
  const V u = (code.template left<TaperedCode<kSigned>::kShift>() + Bits<I>::set(kOneBits)).as_float();
  const V distance = (u - V::set(1)) * V::set(1 / TaperedCode<kSigned>::kSlope);
  return (Bits<I>::set(kOneBits) - Bits<I>::from_float(distance)).as_float();
}

inline constexpr std::uint32_t kSignBit = 0x80000000u;

template <bool kSigned, Isa I>
DRUPE_INLINE Vec<float, I> decode(Bits<I> code, float scale) {
  using V = Vec<float, I>;
  if constexpr (!kSigned) return untaper<false>(code) * V::set(scale);
  const V magnitude = fused(untaper<true>(code & Bits<I>::set(0x7f)), V::set(scale), V::set(-kTaperedZero * scale));
  return copysign(magnitude, code.template left<24>().as_float());
}

template <bool kSigned, Isa I>
DRUPE_INLINE Bits<I> encode(Vec<float, I> value, float inverse, Bits<I> draw) {
  using V = Vec<float, I>;
  using B = Bits<I>;
  using Code = TaperedCode<kSigned>;
  if constexpr (!kSigned) {
    return (taper<false>(value * V::set(inverse)) + draw.template right<32 - Code::kShift>()).template right<Code::kShift>();
  } else {
    const B place = taper<true>(fused(abs(value), V::set(inverse), V::set(kTaperedZero)));
    const B random = draw & B::set((1u << Code::kShift) - 1);
    const B code = min((place + random).template right<Code::kShift>(), B::set(Code::kLast));
    return code | (B::of(value).template right<24>() & B::set(0x80));
  }
}

// A block's states in bfloat16.
template <Isa I, class Rule>
class BrainStates {
  using V = Vec<float, I>;
  using B = Bits<I>;

 public:
  BrainStates(const StepTensor& tensor, std::int64_t place, std::int64_t, const std::uint32_t* draws) : draws_(draws) {
    for (int n = 0; n < Rule::kStates; ++n) state_[n] = static_cast<BFloat16*>(tensor.state[n]) + place;
  }

  template <class Lanes>
  DRUPE_INLINE V load_state(int n, std::int64_t i, Lanes lanes) const {
    return load<V>(state_[n] + i, lanes);
  }
  template <class Lanes>
  DRUPE_INLINE void store_state(V value, int n, std::int64_t i, Lanes lanes) {
    const B draw = B::load(draws_ + i);
    const B random = Rule::is_signed(n) ? draw & B::set(0xffff) : draw.template right<16>();
    const B rounded = B::of(value) + random;
    if constexpr (std::is_same_v<Lanes, AllLanes>) {
      rounded.store_high(state_[n] + i);
    } else {
      BFloat16 some[V::kLanes];
      rounded.store_high(some);
      std::copy_n(some, lanes.count, state_[n] + i);
    }
  }
  DRUPE_INLINE void finish() {}

 private:
  BFloat16* state_[kMaxStates];
  const std::uint32_t* draws_;
};

// A block's states in 8 bits.
template <Isa I, class Rule>
class CodedStates {
  using V = Vec<float, I>;
  using B = Bits<I>;

 public:
  DRUPE_INLINE CodedStates(const StepTensor& tensor, std::int64_t place, std::int64_t size, const std::uint32_t* draws)
      : size_(size), draws_(draws) {
    for (int n = 0; n < Rule::kStates; ++n) {
      codes_[n] = static_cast<std::uint8_t*>(tensor.state[n]) + place;
      scale_[n] = tensor.scales_of(n) + place / kStateBlock;
      old_scale_[n] = *scale_[n];
      largest_[n] = B::set(0);
    }
  }

  template <class Lanes>
  DRUPE_INLINE V load_state(int n, std::int64_t i, Lanes lanes) const {
    if constexpr (std::is_same_v<Lanes, AllLanes>) {
      return widen(n, codes_[n] + i);
    } else {
      std::uint8_t some[V::kLanes] = {};
      std::copy_n(codes_[n] + i, lanes.count, some);
      return only(widen(n, some), lanes);
    }
  }
  template <class Lanes>
  DRUPE_INLINE void store_state(V value, int n, std::int64_t i, Lanes lanes) {
    value = only(value, lanes);
    value.store(values_[n] + i);
    const B bits = B::of(value);
    largest_[n] = max(largest_[n], Rule::is_signed(n) ? bits & B::set(~kSignBit) : bits);
  }

  DRUPE_INLINE void finish() {
#pragma GCC unroll 2
    for (int n = 0; n < Rule::kStates; ++n) {
      const std::uint32_t largest = largest_[n].largest();
      const float scale = largest < kScaleLimitBits
                              ? std::max(std::bit_cast<float>(largest), kLeastScale) * kScaleMargin
                              : std::numeric_limits<float>::quiet_NaN();
      *scale_[n] = scale;
      const float inverse = 1 / scale;
      for_vectors<I, float>(size_, [&](std::int64_t i, auto lanes) {
        const V value = V::load(values_[n] + i);
        const B draw = B::load(draws_ + i);
        const B code = Rule::is_signed(n) ? encode<true>(value, inverse, draw) : encode<false>(value, inverse, draw);
        if constexpr (std::is_same_v<decltype(lanes), AllLanes>) {
          code.store(codes_[n] + i);
        } else {
          std::uint8_t some[V::kLanes];
          code.store(some);
          std::copy_n(some, lanes.count, codes_[n] + i);
        }
      });
    }
  }

 private:
  DRUPE_INLINE V widen(int n, const std::uint8_t* codes) const {
    const B code = B::load(codes);
    return Rule::is_signed(n) ? decode<true>(code, old_scale_[n]) : decode<false>(code, old_scale_[n]);
  }

  alignas(64) float values_[Rule::kStates][kStateBlock];
  std::uint8_t* codes_[kMaxStates];
  float* scale_[kMaxStates];
  float old_scale_[kMaxStates];
  B largest_[kMaxStates];
  std::int64_t size_;
  const std::uint32_t* draws_;
};

// What a block of 16-bit parameters becomes, rounded stochastically.
template <Isa I, class S>
void store_drawn(const float* values, std::int64_t place, std::int64_t size, S* to, const Rounding& rounding,
                 std::int64_t tensor) {
  StochasticStore<I, S> drawn(rounding, static_cast<std::uint64_t>(tensor) << kRoundingTensorShift);
  for (std::int64_t i = 0; i < size; i += drawn.kTile) {
    const std::int64_t count = std::min(drawn.kTile, size - i);
    std::copy_n(values + i, count, drawn.values);
    drawn.store(place + i, count, to + i);
  }
}

// One block, of `size` elements from `place` on; store_param(i, p, lanes) puts its new elements where they belong.
template <class States, Isa I, class S, class Rule, class P, class Store>
DRUPE_INLINE void update_block(const Rule& rule, States& states, const P* param, const S* grad, std::int64_t size,
                               const Store& store_param) {
  using V = Vec<float, I>;
  for_vectors<I, float>(size, [&](std::int64_t i, auto lanes) {
    V state[kMaxStates];
#pragma GCC unroll 2
    for (int n = 0; n < Rule::kStates; ++n) state[n] = states.load_state(n, i, lanes);
    store_param(i, rule(load<V>(param + i, lanes), load<V>(grad + i, lanes), state), lanes);
#pragma GCC unroll 2
    for (int n = 0; n < Rule::kStates; ++n) states.store_state(state[n], n, i, lanes);
  });
  states.finish();
}

// Elements [begin, end) of one tensor: whole blocks, but for its last.
template <template <Isa, class> class States, Isa I, class S, class Rule>
void update_narrow(const Rule& rule, const StepTensor& tensor, const Rounding& rounding, std::int64_t begin,
                   std::int64_t end) {
  StateDraws<I> draws(rounding, tensor.number);
  for (std::int64_t place = begin; place < end; place += kStateBlock) {
    const std::int64_t size = std::min(kStateBlock, end - place);
    S* param = static_cast<S*>(tensor.param) + place;
    const S* grad = static_cast<const S*>(tensor.grad) + place;
    States<I, Rule> states(tensor, place, size, draws(place / kStateBlock));
    const auto run = [&](const auto* from, const auto& store_param) {
      update_block<States<I, Rule>, I>(rule, states, from, grad, size, store_param);
    };
    if constexpr (!std::is_same_v<S, float>) {
      if (rounding.stochastic) {
        alignas(64) float values[kStateBlock];
        run(param, [&](std::int64_t i, auto p, auto lanes) { store(p, values + i, lanes); });
        store_drawn<I>(values, place, size, param, rounding, tensor.number);
        continue;
      }
      if (tensor.master) {
        float* master = tensor.master + place;
        run(master, [&](std::int64_t i, auto p, auto lanes) {
          store(p, master + i, lanes);
          store(p, param + i, lanes);
        });
        continue;
      }
    }
    run(param, [&](std::int64_t i, auto p, auto lanes) { store(p, param + i, lanes); });
  }
}

}  // namespace drupe::cpu
