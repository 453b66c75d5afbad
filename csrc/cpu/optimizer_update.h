// An optimizer's rule on elements that lie side by side.
#pragma once

#include <algorithm>

#include "cpu/optimizer_rules.h"
#include "cpu/stochastic_store.h"

namespace drupe::cpu {

// Elements side by side, of the gradient and of all that a step writes.
template <class S, class G = S>
struct Stretch {
  S* param;
  float* master;  // null where there is none
  const G* grad;
  Accumulator<S>* state[kMaxStates];
  std::int64_t size;
};

// store(i, p, lanes) puts new elements where they belong.
template <Isa I, class S, class G, class Rule, class P, class Store>
DRUPE_INLINE void update(const Rule& given, const Stretch<S, G>& at, const P* param, std::int64_t begin,
                         std::int64_t end, const Store& store_param) {
  using V = Vec<Accumulator<S>, I>;
  const Rule rule = given;  // in registers: what is stored might be its, for all that the compiler knows
  for_vectors<I, Accumulator<S>>(end - begin, [&](std::int64_t k, auto lanes) {
    const std::int64_t i = begin + k;
    V state[kMaxStates];
    for (int n = 0; n < Rule::kStates; ++n) state[n] = load<V>(at.state[n] + i, lanes);
    store_param(i, rule(load<V>(param + i, lanes), load<V>(at.grad + i, lanes), state), lanes);
    for (int n = 0; n < Rule::kStates; ++n) store(state[n], at.state[n] + i, lanes);
  });
}

// `place` is that of the first element in the parameter, `block` the parameter's first in the stream.
template <Isa I, class S, class G, class Rule>
DRUPE_INLINE void update_drawn(const Rule& rule, const Stretch<S, G>& at, std::int64_t place, std::uint64_t block,
                               const Rounding& rounding) {
  StochasticStore<I, S> drawn(rounding, block);
  for (std::int64_t begin = 0; begin < at.size;) {
    const std::int64_t end = std::min(at.size, begin + drawn.room(place + begin));
    update<I>(rule, at, at.param, begin, end,
              [&](std::int64_t i, auto p, auto lanes) { store(p, drawn.values + (i - begin), lanes); });
    drawn.store(place + begin, end - begin, at.param + begin);
    begin = end;
  }
}

}  // namespace drupe::cpu
