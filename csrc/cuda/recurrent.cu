// lstm and gru: for each step a product by the recurrent weight in each direction, by gemm's kernels, and one kernel
// for the cells of both directions, a thread for each unit of each sequence. The gates take the place of the input's
// share; the states before each step are where the product reads them. Bytes of a step: the weights, and of each unit
// its gates twice, the product's share and the states. Worklog: bench/worklog/recurrent.md.
#include "ops/recurrent.h"

#include "core/cuda.h"
#include "core/dispatch.h"
#include "cuda/tile/activation.cuh"
#include "cuda/tile/map.cuh"
#include "ops/gemm.h"

namespace drupe::cuda {
namespace {

// A unit of a sequence at one step of one direction.
template <class S>
struct Unit {
  int d;
  std::int64_t b, unit, t;

  __device__ __forceinline__ Unit(const RecurrentArgs& args, std::int64_t index, std::int64_t step) {
    unit = index % args.H;
    b = index / args.H % args.B;
    d = static_cast<int>(index / (args.H * args.B));
    t = args.time(d, step);
  }
  __device__ __forceinline__ bool active(const RecurrentArgs& args) const {
    return args.lengths == nullptr || t < args.lengths[b];
  }
  // Elements of (T, B, D H), (T, B, H) at any step, and (T, B, G H).
  __device__ __forceinline__ std::int64_t output(const RecurrentArgs& args) const {
    return ((t * args.B + b) * args.directions + d) * args.H + unit;
  }
  __device__ __forceinline__ std::int64_t value(const RecurrentArgs& args, std::int64_t time) const {
    return (time * args.B + b) * args.H + unit;
  }
  __device__ __forceinline__ std::int64_t gate(const RecurrentArgs& args, int gate) const {
    return ((t * args.B + b) * gates_of(args.cell) + gate) * args.H + unit;
  }
};

// product: (D, B, G H), W_hh h + b_hh.
template <class S>
__global__ __launch_bounds__(kMapThreads) void recurrent_kernel(RecurrentArgs args, std::int64_t step,
                                                                const S* product) {
  using A = Accumulator<S>;
  const bool lstm = args.cell == Cell::lstm, first = step == 0, last = step + 1 == args.T;
  const int G = gates_of(args.cell);
  const std::int64_t states = args.directions * args.B * args.H;
  for (std::int64_t i = global_thread(); i < states; i += global_threads()) {
    const Unit<S> at(args, i, step);
    const RecurrentDirection& direction = args.direction[at.d];
    auto* gates = static_cast<S*>(direction.gates);
    auto* hidden = static_cast<S*>(direction.hidden);
    auto* memory = static_cast<A*>(direction.memory);
    const std::int64_t now = at.value(args, at.t);
    const S h = first ? static_cast<const S*>(args.h0)[i] : hidden[now];
    A c = A(0);
    if (lstm) c = first ? widen(static_cast<const S*>(args.c0)[i]) : memory[now];
    if (first) {
      hidden[now] = h;
      if (lstm) memory[now] = c;
    }
    S next = h;
    if (at.active(args)) {
      const auto input = [&](int gate) { return widen(gates[at.gate(args, gate)]); };
      const auto recurrent = [&](int gate) {
        return widen(product[((at.d * args.B + at.b) * G + gate) * args.H + at.unit]);
      };
      const A first_gate = logistic(input(0) + recurrent(0)), second_gate = logistic(input(1) + recurrent(1));
      gates[at.gate(args, 0)] = narrow<S>(first_gate);
      gates[at.gate(args, 1)] = narrow<S>(second_gate);
      if (lstm) {
        const A g = std::tanh(input(2) + recurrent(2)), o = logistic(input(3) + recurrent(3));
        gates[at.gate(args, 2)] = narrow<S>(g);
        gates[at.gate(args, 3)] = narrow<S>(o);
        c = second_gate * c + first_gate * g;
        next = narrow<S>(o * std::tanh(c));
      } else {
        const A u = recurrent(2);
        const A n = std::tanh(input(2) + first_gate * u);
        gates[at.gate(args, 2)] = narrow<S>(n);
        memory[now] = u;
        next = narrow<S>((A(1) - second_gate) * n + second_gate * widen(h));
      }
      static_cast<S*>(args.y)[at.output(args)] = next;
    } else {
      static_cast<S*>(args.y)[at.output(args)] = narrow<S>(0);
    }
    if (last) {
      static_cast<S*>(args.h)[i] = next;
      if (lstm) static_cast<S*>(args.c)[i] = narrow<S>(c);
    } else {
      const std::int64_t then = at.value(args, args.time(at.d, step + 1));
      hidden[then] = next;
      if (lstm) memory[then] = c;
    }
  }
}

// A unit's gates' gradients, of both shares.
template <class S>
struct GateGradients {
  using A = Accumulator<S>;
  const RecurrentBackwardArgs& args;
  const Unit<S>& at;

  __device__ __forceinline__ void put(int gate, A input, A recurrent) const {
    const std::int64_t index = at.gate(args.forward, gate);
    static_cast<S*>(args.dinput[at.d])[index] = narrow<S>(input);
    static_cast<S*>(args.drecurrent[at.d])[index] = narrow<S>(recurrent);
  }
};

// Gives what c's gradient becomes.
template <class S, class A>
__device__ __forceinline__ A lstm_gradients(const GateGradients<S>& out, A dh, A dc) {
  const RecurrentArgs& forward = out.args.forward;
  const RecurrentDirection& direction = forward.direction[out.at.d];
  A gate[4];
#pragma unroll
  for (int k = 0; k < 4; ++k) gate[k] = widen(static_cast<const S*>(direction.gates)[out.at.gate(forward, k)]);
  const A i = gate[0], f = gate[1], g = gate[2], o = gate[3];
  const A c = static_cast<const A*>(direction.memory)[out.at.value(forward, out.at.t)];
  const A squashed = std::tanh(f * c + i * g);
  dc += dh * o * (A(1) - squashed * squashed);
  const A gradient[4] = {dc * g * i * (A(1) - i), dc * c * f * (A(1) - f), dc * i * (A(1) - g * g),
                         dh * squashed * o * (A(1) - o)};
#pragma unroll
  for (int k = 0; k < 4; ++k) out.put(k, gradient[k], gradient[k]);
  return dc * f;
}

// Gives what of h's gradient does not pass the product.
template <class S, class A>
__device__ __forceinline__ A gru_gradients(const GateGradients<S>& out, A dh) {
  const RecurrentArgs& forward = out.args.forward;
  const RecurrentDirection& direction = forward.direction[out.at.d];
  const std::int64_t now = out.at.value(forward, out.at.t);
  A gate[3];
#pragma unroll
  for (int k = 0; k < 3; ++k) gate[k] = widen(static_cast<const S*>(direction.gates)[out.at.gate(forward, k)]);
  const A r = gate[0], z = gate[1], n = gate[2];
  const A h = widen(static_cast<const S*>(direction.hidden)[now]);
  const A dn = dh * (A(1) - z) * (A(1) - n * n);
  const A dr = dn * static_cast<const A*>(direction.memory)[now] * r * (A(1) - r);
  const A dz = dh * (h - n) * z * (A(1) - z);
  out.put(0, dr, dr);
  out.put(1, dz, dz);
  out.put(2, dn, dn * r);
  return dh * z;
}

// product: (D, B, H), of the gates' gradients by W_hh, read from the second step on. carried and dcells: (D, B, H), of
// h's gradient what does not pass the product, and c's gradient, from step to step.
template <class S>
__global__ __launch_bounds__(kMapThreads) void recurrent_backward_kernel(RecurrentBackwardArgs args, std::int64_t step,
                                                                         const S* product, Accumulator<S>* carried,
                                                                         Accumulator<S>* dcells) {
  using A = Accumulator<S>;
  const RecurrentArgs& forward = args.forward;
  const bool lstm = forward.cell == Cell::lstm, first = step == 0;
  const std::int64_t states = forward.directions * forward.B * forward.H;
  for (std::int64_t i = global_thread(); i < states; i += global_threads()) {
    A dh = first ? widen(static_cast<const S*>(args.dh)[i]) : carried[i] + widen(product[i]);
    A dc = A(0);
    if (lstm) dc = first ? widen(static_cast<const S*>(args.dc)[i]) : dcells[i];
    if (step == forward.T) {
      static_cast<S*>(args.dh0)[i] = narrow<S>(dh);
      if (lstm) static_cast<S*>(args.dc0)[i] = narrow<S>(dc);
      continue;
    }
    const Unit<S> at(forward, i, forward.T - 1 - step);
    const GateGradients<S> out{args, at};
    if (!at.active(forward)) {
      for (int gate = 0; gate < gates_of(forward.cell); ++gate) out.put(gate, A(0), A(0));
    } else {
      dh += widen(static_cast<const S*>(args.dy)[at.output(forward)]);
      if (lstm) {
        dc = lstm_gradients(out, dh, dc);
        dh = A(0);
      } else {
        dh = gru_gradients(out, dh);
      }
    }
    carried[i] = dh;
    if (lstm) dcells[i] = dc;
  }
}

// y (M, N) = a (M, K) b + bias; element (k, n) of b at b[k * b_row + n * b_col].
void multiply(Dtype dtype, std::int64_t M, std::int64_t N, std::int64_t K, const void* a, const void* b,
              std::int64_t b_row, std::int64_t b_col, const void* bias, void* y, Stream stream) {
  gemm({.M = M,
        .N = N,
        .K = K,
        .a = a,
        .a_row = K,
        .a_col = 1,
        .b = b,
        .b_row = b_row,
        .b_col = b_col,
        .y = y,
        .bias = bias,
        .batch_shape = {},
        .a_batch = {},
        .b_batch = {},
        .residual_batch = {},
        .dtype = dtype},
       stream);
}

LaunchConfig config_of(const RecurrentArgs& args) {
  return {.grid = {blocks_for(args.directions * args.B * args.H)}, .block = {kMapThreads}};
}

}  // namespace

void recurrent(const RecurrentArgs& args, Stream stream) {
  const Device device{DeviceType::cuda, stream.device};
  const std::int64_t states = args.directions * args.B * args.H, cols = gates_of(args.cell) * args.H;
  dispatch_float(args.dtype, [&]<class S>() {
    if (args.T == 0) {
      const auto bytes = static_cast<std::size_t>(states) * sizeof(S);
      copy_bytes(args.h, device, args.h0, device, bytes);
      if (args.c) copy_bytes(args.c, device, args.c0, device, bytes);
      return;
    }
    const auto memory = allocate(static_cast<std::size_t>(args.directions * args.B * cols) * sizeof(S), device);
    auto* product = static_cast<S*>(memory.get());
    for (std::int64_t step = 0; step < args.T; ++step) {
      for (int d = 0; d < args.directions; ++d) {
        const RecurrentDirection& direction = args.direction[d];
        const auto* h = step == 0 ? static_cast<const S*>(args.h0) + d * args.B * args.H
                                  : static_cast<const S*>(direction.hidden) + args.time(d, step) * args.B * args.H;
        multiply(args.dtype, args.B, cols, args.H, h, direction.weight, 1, args.H, direction.bias,
                 product + d * args.B * cols, stream);
      }
      launch<recurrent_kernel<S>>(config_of(args), stream, args, step, static_cast<const S*>(product));
    }
  });
}

void recurrent_backward(const RecurrentBackwardArgs& args, Stream stream) {
  const RecurrentArgs& forward = args.forward;
  const Device device{DeviceType::cuda, stream.device};
  const std::int64_t states = forward.B * forward.H, cols = gates_of(forward.cell) * forward.H;
  const auto count = static_cast<std::size_t>(forward.directions * states);
  dispatch_float(forward.dtype, [&]<class S>() {
    using A = Accumulator<S>;
    const auto memory = allocate(count * sizeof(S), device);
    const auto carried = allocate(count * sizeof(A), device), dcells = allocate(count * sizeof(A), device);
    auto* product = static_cast<S*>(memory.get());
    for (std::int64_t step = 0; step <= forward.T; ++step) {
      for (int d = 0; d < forward.directions && step > 0; ++d) {
        const auto* gradients =
            static_cast<const S*>(args.drecurrent[d]) + forward.time(d, forward.T - step) * forward.B * cols;
        multiply(forward.dtype, forward.B, forward.H, cols, gradients, forward.direction[d].weight, forward.H, 1,
                 nullptr, product + d * states, stream);
      }
      launch<recurrent_backward_kernel<S>>(config_of(forward), stream, args, step, static_cast<const S*>(product),
                                           static_cast<A*>(carried.get()), static_cast<A*>(dcells.get()));
    }
  });
}

}  // namespace drupe::cuda
