// An optimizer's rule on tensors whose states are narrow (core/narrow_state.h), by whole blocks: a tensor's last one in
// copies, filled up with its last element. Blocks in 8 bits are widened, updated and kept in L1 until their scale is
// known, and then encoded: adam moves 16 bytes an element of the 28 of float32, and 20 in bfloat16.
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

inline constexpr std::uint32_t kLargestNan = 0x7fc00000;  // to which the largest word may be added

// What the elements of a block draw.
template <Isa I>
class StateDraws {
 public:
  DRUPE_INLINE StateDraws(const Rounding& rounding, std::int64_t tensor)
      : philox_{rounding.seed, rounding.offset},
        first_((static_cast<std::uint64_t>(tensor) << kRoundingTensorShift) + (std::uint64_t{1} << kDrawShift)) {}

  // The words of the block's first elements, good until the next call.
  DRUPE_INLINE const std::uint32_t* operator()(std::int64_t block) {
    if (block / kAhead != held_) {
      held_ = block / kAhead;
      philox_(first_ + static_cast<std::uint64_t>(held_ * kAhead * kDrawWords / 4), words_);
    }
    return words_ + block % kAhead * kDrawWords;
  }

 private:
  static constexpr std::int64_t kAhead = 4;  // blocks drawn at once
  static constexpr int kGroups = static_cast<int>(kAhead * kDrawWords / 4 / Words<I>::kLanes);

  alignas(64) std::uint32_t words_[kAhead * kDrawWords];
  Philox<I, kGroups> philox_;
  std::uint64_t first_;
  std::int64_t held_ = -1;
};

// body(i, draw) for each vector of a block, given the words of its first elements.
template <Isa I, class Body>
DRUPE_INLINE void for_block(const std::uint32_t* words, const Body& body) {
  Bits<I> shift = Bits<I>::set(0);
  for (std::int64_t row = 0; row < kStateBlock; row += kDrawWords) {
#pragma GCC unroll 2
    for (int k = 0; k < kDrawWords; k += Vec<float, I>::kLanes) body(row + k, Bits<I>::load(words + k) + shift);
    shift = shift + Bits<I>::set(kDrawStep);
  }
}

// The scale of a block, given the bits of its largest magnitude.
DRUPE_INLINE float scale_of(std::uint32_t largest) {
  if (largest >= kScaleLimitBits) return std::numeric_limits<float>::quiet_NaN();
  return std::max(std::bit_cast<float>(largest), kLeastScale) * kScaleMargin;
}

template <Isa I, bool kSigned>
struct TaperedVector {
  using V = Vec<float, I>;
  using B = Bits<I>;
  using Code = TaperedCode<kSigned>;

  // x = (y's bits as a number) is linear in u: see core/narrow_state.h. All of this but the scaling is exact.
  DRUPE_INLINE static V decode(const std::uint8_t* codes, V scale, V zero) {
    if constexpr (kSigned) {
      const B code = B::load(reinterpret_cast<const std::int8_t*>(codes));
      const B place = code.template left<Code::kShift>() & B::set(Code::kLast << Code::kShift);
      return copysign(fused(untaper(place), scale, zero), code.as_float());
    } else {
      return untaper(B::load(codes).template left<Code::kShift>()) * scale;
    }
  }

  DRUPE_INLINE static B encode(V value, V inverse, B draw) {
    if constexpr (kSigned) {
      const B place = taper(fused(abs(value), inverse, V::set(kTaperedZero)));
      const B code = finish(place + (draw & B::set((1u << Code::kShift) - 1)));
      return code | (B::of(value).template right<24>() & B::set(0x80));
    } else {
      return finish(taper(value * inverse) + draw.template right<32 - Code::kShift>());
    }
  }

 private:
  DRUPE_INLINE static V untaper(B place) {
    const V u = (place | B::set(kTaperedBase)).as_float();
    const V x = fma(u, V::set(-1 / Code::kSlope), V::set(static_cast<float>(kOneBits) + 2 / Code::kSlope));
    return B::from_float(x).as_float();
  }
  // The place, above kTaperedBase.
  DRUPE_INLINE static B taper(V y) {
    return B::of(fma((B::set(kOneBits) - B::of(y)).to_float(), V::set(Code::kSlope), V::set(2)));
  }
  DRUPE_INLINE static B finish(B place) {
    return min(place, B::set(kTaperedBase + (Code::kLast << Code::kShift))).template right<Code::kShift>();
  }
};

// What a block of 16-bit parameters becomes, rounded stochastically.
template <Isa I, class S>
void store_drawn(const float* values, std::int64_t place, S* to, const Rounding& rounding, std::int64_t tensor) {
  StochasticStore<I, S> drawn(rounding, static_cast<std::uint64_t>(tensor) << kRoundingTensorShift);
  for (std::int64_t i = 0; i < kStateBlock; i += drawn.kTile) {
    std::copy_n(values + i, drawn.kTile, drawn.values);
    drawn.store(place + i, drawn.kTile, to + i);
  }
}

// The arrays of a block, or copies of them.
template <class S, class State>
struct NarrowBlock {
  S* param;
  float* master;
  const S* grad;
  State* state[kMaxStates];
  float* scale[kMaxStates];
};

// One block with states in bfloat16; store_param(i, p) puts its new elements where they belong.
template <Isa I, class S, class Rule, class P, class Store>
DRUPE_INLINE void update_block(const Rule& given, const NarrowBlock<S, BFloat16>& at, const P* param,
                               const std::uint32_t* words, const Store& store_param) {
  using V = Vec<float, I>;
  using B = Bits<I>;
  const Rule rule = given;  // in registers: what is stored might be its, for all that the compiler knows
  for_block<I>(words, [&](std::int64_t i, B draw) __attribute__((always_inline)) {
    V state[kMaxStates];
#pragma GCC unroll 2
    for (int n = 0; n < Rule::kStates; ++n) state[n] = V::load(at.state[n] + i);
    store_param(i, rule(V::load(param + i), V::load(at.grad + i), state));
#pragma GCC unroll 2
    for (int n = 0; n < Rule::kStates; ++n) {
      const B random = Rule::is_signed(n) ? draw & B::set(0xffff) : draw.template right<16>();
      const B bits = B::of(state[n]), magnitude = min(bits & B::set(0x7fffffff), B::set(kLargestNan));
      ((magnitude + random) | (bits & B::set(0x80000000))).store_high(at.state[n] + i);
    }
  });
}

// In 8 bits: the first pass widens and advances the states, the second, which knows their scales, moves the parameters
// and encodes them, and fetches what the block after the next reads. So the divisions overlap with the encoding, and
// either pass leaves the other half as much to do.
template <Isa I, class S, class Rule, class P, class Store>
DRUPE_INLINE void update_block(const Rule& given, const NarrowBlock<S, std::uint8_t>& at, const P* param,
                               const std::uint32_t* words, const Store& store_param) {
  using V = Vec<float, I>;
  using B = Bits<I>;
  constexpr int kStates = Rule::kStates;
  constexpr std::int64_t kAhead = 2 * kStateBlock;
  const Rule rule = given;
  alignas(64) float values[kStates][kStateBlock];
  V scale[kStates], zero[kStates];
  B largest[kStates];
#pragma GCC unroll 2
  for (int n = 0; n < kStates; ++n) {
    scale[n] = V::set(*at.scale[n]);
    zero[n] = V::set(-kTaperedZero * *at.scale[n]);
    largest[n] = B::set(0);
  }
  for (std::int64_t i = 0; i < kStateBlock; i += V::kLanes) {
    V state[kStates];
#pragma GCC unroll 2
    for (int n = 0; n < kStates; ++n) {
      const std::uint8_t* codes = at.state[n] + i;
      state[n] = Rule::is_signed(n) ? TaperedVector<I, true>::decode(codes, scale[n], zero[n])
                                    : TaperedVector<I, false>::decode(codes, scale[n], zero[n]);
    }
    rule.advance(rule.penalty(V::load(param + i), V::load(at.grad + i)), state);
#pragma GCC unroll 2
    for (int n = 0; n < kStates; ++n) {
      state[n].store(values[n] + i);
      largest[n] = max(largest[n], B::of(Rule::is_signed(n) ? abs(state[n]) : state[n]));
    }
  }
#pragma GCC unroll 2
  for (int n = 0; n < kStates; ++n) {
    *at.scale[n] = scale_of(largest[n].largest());
    scale[n] = V::set(1 / *at.scale[n]);
  }
  for_block<I>(words, [&](std::int64_t i, B draw) __attribute__((always_inline)) {
    V state[kStates];
#pragma GCC unroll 2
    for (int n = 0; n < kStates; ++n) {
      state[n] = V::load(values[n] + i);
      const B code = Rule::is_signed(n) ? TaperedVector<I, true>::encode(state[n], scale[n], draw)
                                        : TaperedVector<I, false>::encode(state[n], scale[n], draw);
      code.store_low(at.state[n] + i);
    }
    __builtin_prefetch(param + i + kAhead, 1, 2);
    __builtin_prefetch(at.grad + i + kAhead, 0, 2);
#pragma GCC unroll 2
    for (int n = 0; n < kStates; ++n) __builtin_prefetch(at.state[n] + i + kAhead, 1, 2);
    const V p = V::load(param + i);
    store_param(i, rule.move(p, rule.penalty(p, V::load(at.grad + i)), state));
  });
}

// A block of fewer elements, filled up with its last one.
template <Isa, class S, class State, int kStates>
class LastBlock {
 public:
  LastBlock(const NarrowBlock<S, State>& original, std::int64_t size) : original_(original), size_(size) {
    fill(original.param, param_);
    fill(original.grad, grad_);
    if (original.master) fill(original.master, master_);
    for (int n = 0; n < kStates; ++n) fill(original.state[n], state_[n]);
  }
  NarrowBlock<S, State> copy() {
    NarrowBlock<S, State> here = original_;
    here.param = param_;
    here.grad = grad_;
    if (here.master) here.master = master_;
    for (int n = 0; n < kStates; ++n) here.state[n] = state_[n];
    return here;
  }
  void put_back() const {
    std::copy_n(param_, size_, original_.param);
    if (original_.master) std::copy_n(master_, size_, original_.master);
    for (int n = 0; n < kStates; ++n) std::copy_n(state_[n], size_, original_.state[n]);
  }

 private:
  template <class T>
  void fill(const T* from, T* to) {
    std::copy_n(from, size_, to);
    std::fill(to + size_, to + kStateBlock, from[size_ - 1]);
  }

  const NarrowBlock<S, State>& original_;
  std::int64_t size_;
  S param_[kStateBlock], grad_[kStateBlock];
  float master_[kStateBlock];
  State state_[kStates][kStateBlock];
};

template <Isa I, class S, class State, class Rule>
void update_block(const Rule& rule, const NarrowBlock<S, State>& at, const std::uint32_t* words,
                  const StepTensor& tensor, const Rounding& rounding, std::int64_t place) {
  if constexpr (!std::is_same_v<S, float>) {
    if (rounding.stochastic) {
      alignas(64) float values[kStateBlock];
      update_block<I>(rule, at, at.param, words, [&](std::int64_t i, auto p) { p.store(values + i); });
      return store_drawn<I>(values, place, at.param, rounding, tensor.number);
    }
    if (at.master) {
      return update_block<I>(rule, at, at.master, words, [&](std::int64_t i, auto p) {
        p.store(at.master + i);
        p.store(at.param + i);
      });
    }
  }
  update_block<I>(rule, at, at.param, words, [&](std::int64_t i, auto p) { p.store(at.param + i); });
}

// Elements [begin, end) of one tensor: whole blocks, but for its last.
template <Isa I, class S, class State, class Rule>
void update_narrow(const Rule& rule, const StepTensor& tensor, const Rounding& rounding, std::int64_t begin,
                   std::int64_t end) {
  StateDraws<I> draws(rounding, tensor.number);
  for (std::int64_t place = begin; place < end; place += kStateBlock) {
    NarrowBlock<S, State> at{.param = static_cast<S*>(tensor.param) + place,
                             .master = tensor.master ? tensor.master + place : nullptr,
                             .grad = static_cast<const S*>(tensor.grad) + place,
                             .state = {},
                             .scale = {}};
    for (int n = 0; n < Rule::kStates; ++n) {
      at.state[n] = static_cast<State*>(tensor.state[n]) + place;
      if (tensor.scales) at.scale[n] = tensor.scales_of(n) + place / kStateBlock;
    }
    const std::uint32_t* words = draws(place / kStateBlock);
    if (const std::int64_t size = end - place; size < kStateBlock) {
      LastBlock<I, S, State, Rule::kStates> last(at, size);
      update_block<I>(rule, last.copy(), words, tensor, rounding, place);
      last.put_back();
    } else {
      update_block<I>(rule, at, words, tensor, rounding, place);
    }
  }
}

}  // namespace drupe::cpu
