// lstm and gru: the cells' arithmetic on what the recurrent product gives (recurrence.h), in registers. Gates that are
// kept take the place of the input's share. Worklog: bench/worklog/recurrent.md.
#include "ops/recurrent.h"

#include "core/dispatch.h"
#include "cpu/lanes.h"
#include "cpu/recurrence.h"
#include "cpu/simd_math.h"

namespace drupe::cpu {
namespace {

// Some lanes of a row.
template <Isa I, class T, class Lanes>
struct Access {
  using V = Vec<T, I>;
  std::int64_t at;
  Lanes lanes;
  DRUPE_INLINE V get(const auto* row) const { return load<V>(row + at, lanes); }
  DRUPE_INLINE void put(auto* row, V value) const { store(value, row + at, lanes); }
};

template <Isa I, class T, class Body>
DRUPE_INLINE void for_access(std::int64_t size, const Body& body) {
  for_vectors<I, T>(size, [&](std::int64_t at, auto lanes) { body(Access<I, T, decltype(lanes)>{at, lanes}); });
}

// to[i] = from[i], rounded where need be.
template <Isa I, class T>
void convert(const auto* from, auto* to, std::int64_t size) {
  for_access<I, T>(size, [&](const auto& lanes) { lanes.put(to, lanes.get(from)); });
}

// Where a sequence's units from `unit` on lie, at one step of one direction.
template <class S>
struct Place {
  using T = Accumulator<S>;
  const RecurrentArgs& args;
  int d;
  std::int64_t t, b, unit;

  std::int64_t row() const { return t * args.B + b; }
  bool active() const { return !args.lengths || t < args.lengths[b]; }
  // Elements of (T, B, D H) and of (D, B, H).
  std::int64_t output() const { return (row() * args.directions + d) * args.H + unit; }
  std::int64_t output_row() const { return args.directions * args.H; }  // to the next sequence's, as
  std::int64_t gate_row() const { return gates_of(args.cell) * args.H; }
  std::int64_t state() const { return (d * args.B + b) * args.H + unit; }
  // Of an array (T, B, G H).
  S* gate(void* data, int gate) const {
    return static_cast<S*>(data) + (row() * gates_of(args.cell) + gate) * args.H + unit;
  }
  S* hidden() const { return static_cast<S*>(args.direction[d].hidden) + row() * args.H + unit; }
  T* memory() const { return static_cast<T*>(args.direction[d].memory) + row() * args.H + unit; }
  S* kept_gate(int index) const { return gate(args.direction[d].gates, index); }
};

// The biases of each direction, (D, 4, H): of each gate both together; of gru's n that of the input's share, and then
// that of the recurrent one, by which r multiplies.
template <Isa I, class S>
struct Biases {
  using T = Accumulator<S>;
  static constexpr int kSlots = 4;
  std::int64_t H;
  Scratch<T> values;

  explicit Biases(const RecurrentArgs& args) : H(args.H), values(static_cast<std::size_t>(2 * kSlots * H)) {
    const bool gru = args.cell == Cell::gru;
    for (int d = 0; d < args.directions; ++d) {
      const auto* input = static_cast<const S*>(args.direction[d].input_bias);
      const auto* recurrent = static_cast<const S*>(args.direction[d].bias);
      for (int slot = 0; slot < kSlots; ++slot) {
        const bool own = !gru || slot < 2;
        const bool with_input = input && (own || slot == 2), with_recurrent = recurrent && (own || slot == 3);
        sum(with_input ? input + slot * H : nullptr, with_recurrent ? recurrent + (own ? slot : 2) * H : nullptr,
            at(d, slot));
      }
    }
  }
  T* at(int d, int slot) const { return values.data() + (d * kSlots + slot) * H; }

 private:
  void sum(const S* a, const S* b, T* to) const {
    for_access<I, T>(H, [&](const auto& lanes) {
      auto total = Vec<T, I>::zero();
      if (a) total = total + lanes.get(a);
      if (b) total = total + lanes.get(b);
      lanes.put(to, total);
    });
  }
};

template <Isa I, class S, class Walk>
struct Forward {
  using T = Accumulator<S>;
  using V = Vec<T, I>;
  const RecurrentArgs& args;
  const Walk& walk;
  const Biases<I, S>& biases;
  T* cells;  // (D, B, H), of lstm

  void fetch(Fetch& fetch, int gate, int d, std::int64_t step, std::int64_t b, std::int64_t rows, std::int64_t unit,
             std::int64_t width) const {
    const Place<S> place{args, d, args.time(d, step), b, unit};
    fetch.add_rows(place.kept_gate(gate), place.gate_row(), rows, width);
    if (gate > 0) return;
    if (args.keep) {
      fetch.add_rows(place.hidden(), args.H, rows, width);
      fetch.add_rows(place.memory(), args.H, rows, width);
    }
    fetch.add_rows(static_cast<const S*>(args.y) + place.output(), place.output_row(), rows, width);
  }

  void operator()(int d, std::int64_t step, std::int64_t b, std::int64_t unit, std::int64_t width,
                  const T* sums) const {
    const Place<S> place{args, d, args.time(d, step), b, unit};
    const bool lstm = args.cell == Cell::lstm;
    T* cell = lstm ? cells + place.state() : nullptr;
    const T* h = walk.state(step, d, 0, b, unit);
    T* next = walk.state(step + 1, d, 0, b, unit);
    S* y = static_cast<S*>(args.y) + place.output();
    for_access<I, T>(width, [&](const auto& lanes) {
      const V before = lanes.get(h);
      if (place.active()) {
        lanes.put(y, lstm ? lstm_cell(place, lanes, sums, cell) : gru_cell(place, lanes, sums, before));
        lanes.put(next, lanes.get(y));  // as rounded
      } else {
        if (lstm && args.keep) lanes.put(place.memory(), lanes.get(cell));
        lanes.put(y, V::zero());
        lanes.put(next, before);
      }
      if (args.keep) lanes.put(place.hidden(), before);
    });
  }

 private:
  // Shares of a gate: of the input, as it is, and of h, with a bias.
  DRUPE_INLINE V recurrent_share(const Place<S>& place, const auto& lanes, const T* sums, int gate, int slot) const {
    return lanes.get(sums + gate * walk.gate_stride()) + lanes.get(biases.at(place.d, slot) + place.unit);
  }
  DRUPE_INLINE V total(const Place<S>& place, const auto& lanes, const T* sums, int gate) const {
    return lanes.get(place.kept_gate(gate)) + recurrent_share(place, lanes, sums, gate, gate);
  }

  // Reads and writes c, gives h.
  DRUPE_INLINE V lstm_cell(const Place<S>& place, const auto& lanes, const T* sums, T* cell) const {
    const auto sum = [&](int gate) { return total(place, lanes, sums, gate); };
    const V before = lanes.get(cell);
    const V a_i = sum(0), a_f = sum(1), a_g = sum(2), a_o = sum(3);
    const V i = sigmoid(a_i), f = sigmoid(a_f), g = tanh(a_g), o = sigmoid(a_o);
    const V c = fma(f, before, i * g);
    if (args.keep) {
      lanes.put(place.memory(), before);
      lanes.put(place.kept_gate(0), i);
      lanes.put(place.kept_gate(1), f);
      lanes.put(place.kept_gate(2), g);
      lanes.put(place.kept_gate(3), o);
    }
    lanes.put(cell, c);
    return o * tanh(c);
  }

  DRUPE_INLINE V gru_cell(const Place<S>& place, const auto& lanes, const T* sums, V h) const {
    const V r = sigmoid(total(place, lanes, sums, 0));
    const V z = sigmoid(total(place, lanes, sums, 1));
    const V u = recurrent_share(place, lanes, sums, 2, 3);
    const V n = tanh(fma(r, u, lanes.get(place.kept_gate(2)) + lanes.get(biases.at(place.d, 2) + place.unit)));
    if (args.keep) {
      lanes.put(place.memory(), u);
      lanes.put(place.kept_gate(0), r);
      lanes.put(place.kept_gate(1), z);
      lanes.put(place.kept_gate(2), n);
    }
    return fma(z, h, (V::set(1) - z) * n);
  }
};

template <Isa I, class S>
struct Backward {
  using T = Accumulator<S>;
  using V = Vec<T, I>;
  using Walk = Recurrence<I, S, Pass::backward>;
  const RecurrentBackwardArgs& args;
  const Walk& walk;
  T* carried;  // (D, B, H): of the gradient of h, what does not pass the product
  T* dcells;   // (D, B, H), of lstm

  void fetch(Fetch& fetch, int gate, int d, std::int64_t step, std::int64_t b, std::int64_t rows, std::int64_t unit,
             std::int64_t width) const {
    const RecurrentArgs& forward = args.forward;
    if (step == forward.T) return;
    const Place<S> place{forward, d, forward.time(d, forward.T - 1 - step), b, unit};
    const bool gru = forward.cell == Cell::gru;
    fetch.add_rows(place.kept_gate(gate), place.gate_row(), rows, width);
    fetch.add_rows(place.gate(args.dinput[d], gate), place.gate_row(), rows, width);
    if (gru) fetch.add_rows(place.gate(args.drecurrent[d], gate), place.gate_row(), rows, width);
    if (gate > 0) return;
    if (gru) fetch.add_rows(place.hidden(), forward.H, rows, width);
    fetch.add_rows(place.memory(), forward.H, rows, width);
    fetch.add_rows(static_cast<const S*>(args.dy) + place.output(), place.output_row(), rows, width);
  }

  void operator()(int d, std::int64_t step, std::int64_t b, std::int64_t unit, std::int64_t width,
                  const T* sums) const {
    const RecurrentArgs& forward = args.forward;
    const Place<S> place{forward, d, forward.time(d, forward.T - 1 - step), b, unit};
    T* carry = carried + place.state();
    for_access<I, T>(width, [&](const auto& lanes) {
      const V dh = lanes.get(sums) + lanes.get(carry);
      if (step == forward.T) {
        lanes.put(static_cast<S*>(args.dh0) + place.state(), dh);
      } else if (!place.active()) {
        lanes.put(carry, dh);
        for (int gate = 0; gate < gates_of(forward.cell); ++gate) put_gate(place, lanes, step, gate, V::zero());
      } else if (forward.cell == Cell::lstm) {
        lstm_cell(place, lanes, step, dh + lanes.get(static_cast<const S*>(args.dy) + place.output()));
      } else {
        gru_cell(place, lanes, step, dh + lanes.get(static_cast<const S*>(args.dy) + place.output()));
      }
    });
  }

 private:
  // The gradients of both shares of a gate, where they are one number.
  DRUPE_INLINE void put_gate(const Place<S>& place, const auto& lanes, std::int64_t step, int gate, V value) const {
    put_gate(place, lanes, step, gate, value, value);
  }
  DRUPE_INLINE void put_gate(const Place<S>& place, const auto& lanes, std::int64_t step, int gate, V input,
                             V recurrent) const {
    lanes.put(walk.state(step + 1, place.d, gate, place.b, place.unit), recurrent);
    lanes.put(place.gate(args.dinput[place.d], gate), input);
    if (args.drecurrent[place.d] != args.dinput[place.d]) {
      lanes.put(place.gate(args.drecurrent[place.d], gate), recurrent);
    }
  }

  DRUPE_INLINE void lstm_cell(const Place<S>& place, const auto& lanes, std::int64_t step, V dh) const {
    const V one = V::set(1);
    const auto gate = [&](int index) { return lanes.get(place.kept_gate(index)); };
    const V i = gate(0), f = gate(1), g = gate(2), o = gate(3);
    const V c = lanes.get(place.memory());
    const V squashed = tanh(fma(f, c, i * g));
    T* dcell = dcells + place.state();
    const V dc = fma(dh * o, one - squashed * squashed, lanes.get(dcell));
    put_gate(place, lanes, step, 0, dc * g * i * (one - i));
    put_gate(place, lanes, step, 1, dc * c * f * (one - f));
    put_gate(place, lanes, step, 2, dc * i * (one - g * g));
    put_gate(place, lanes, step, 3, dh * squashed * o * (one - o));
    lanes.put(dcell, dc * f);
    lanes.put(carried + place.state(), V::zero());
  }

  DRUPE_INLINE void gru_cell(const Place<S>& place, const auto& lanes, std::int64_t step, V dh) const {
    const V one = V::set(1);
    const auto gate = [&](int index) { return lanes.get(place.kept_gate(index)); };
    const V r = gate(0), z = gate(1), n = gate(2);
    const V dn = dh * (one - z) * (one - n * n);
    put_gate(place, lanes, step, 0, dn * lanes.get(place.memory()) * r * (one - r));
    put_gate(place, lanes, step, 1, dh * (lanes.get(place.hidden()) - n) * z * (one - z));
    put_gate(place, lanes, step, 2, dn, dn * r);
    lanes.put(carried + place.state(), dh * z);
  }
};

template <Isa I, class S, class Walk>
void walk_forward(const RecurrentArgs& args) {
  using T = Accumulator<S>;
  const std::int64_t states = args.directions * args.B * args.H;
  const Scratch<T> cells(static_cast<std::size_t>(args.c0 ? states : 0));
  if (args.c0) convert<I, T>(static_cast<const S*>(args.c0), cells.data(), states);
  const Walk walk(args);
  walk.for_blocks([&](int d, std::int64_t b, std::int64_t unit, std::int64_t width) {
    const auto* h0 = static_cast<const S*>(args.h0) + (d * args.B + b) * args.H + unit;
    convert<I, T>(h0, walk.state(0, d, 0, b, unit), width);
  });
  const Biases<I, S> biases(args);
  walk.run(args.T, Forward<I, S, Walk>{args, walk, biases, cells.data()});
  walk.for_blocks([&](int d, std::int64_t b, std::int64_t unit, std::int64_t width) {
    auto* h = static_cast<S*>(args.h) + (d * args.B + b) * args.H + unit;
    convert<I, T>(walk.state(args.T, d, 0, b, unit), h, width);
  });
  if (args.c0) convert<I, T>(cells.data(), static_cast<S*>(args.c), states);
}

}  // namespace

template <Isa I>
void recurrent(const RecurrentArgs& args) {
  dispatch_float(args.dtype, [&]<class S>() {
    if (SingleStep<I, S>::suits(args)) return walk_forward<I, S, SingleStep<I, S>>(args);
    walk_forward<I, S, Recurrence<I, S, Pass::forward>>(args);
  });
}

template <Isa I>
void recurrent_backward(const RecurrentBackwardArgs& args) {
  dispatch_float(args.forward.dtype, [&]<class S>() {
    using T = Accumulator<S>;
    const RecurrentArgs& forward = args.forward;
    const std::int64_t states = forward.directions * forward.B * forward.H;
    const Scratch<T> carried(static_cast<std::size_t>(states));
    const Scratch<T> dcells(static_cast<std::size_t>(args.dc ? states : 0));
    convert<I, T>(static_cast<const S*>(args.dh), carried.data(), states);
    if (args.dc) convert<I, T>(static_cast<const S*>(args.dc), dcells.data(), states);
    const Recurrence<I, S, Pass::backward> walk(forward);
    walk.run(forward.T + 1, Backward<I, S>{args, walk, carried.data(), dcells.data()});
    if (args.dc) convert<I, T>(dcells.data(), static_cast<S*>(args.dc0), states);
  });
}

template void recurrent<Isa::DRUPE_ISA>(const RecurrentArgs&);
template void recurrent_backward<Isa::DRUPE_ISA>(const RecurrentBackwardArgs&);

}  // namespace drupe::cpu
