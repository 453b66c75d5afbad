// The walk over the steps of a recurrent layer, for both passes: a state is multiplied by the recurrent weight, and
// what that gives is finished by the caller, unit by unit, into the state of the next step.
//
// Units are cut into blocks as wide as gemm_core's panels of B. The weight is packed once, a block's panels one after
// the other; the state lies in panels of A, where the product reads it. Of two copies, a step reads one and writes the
// other, so that its blocks can be made in any order, by any thread. Bytes of a step: the weight, from L2 or L3.
#pragma once

#include <algorithm>
#include <cstring>

#include "core/memory.h"
#include "core/parallel.h"
#include "cpu/gemm_core.h"
#include "cpu/gemm_few_rows.h"
#include "ops/recurrent.h"

namespace drupe::cpu {

enum class Pass { forward, backward };

// Forward, the state is h and a block's sums are of its G gates; backward, it is the G gates' gradients, of which each
// adds to the gradient of h.
template <Isa I, class S, Pass kPass>
class Recurrence {
 public:
  using T = Accumulator<S>;
  using Tile = GemmTile<I, T>;
  static constexpr std::int64_t kWidth = Tile::kCols;
  static_assert(Tile::kDepth % kWidth == 0, "a block lies within one slice of the sum");

  explicit Recurrence(const RecurrentArgs& args)
      : args_(args),
        gates_(gates_of(args.cell)),
        parts_(kPass == Pass::forward ? 1 : gates_),
        outputs_(gates_ / parts_),
        blocks_((args.H + kWidth - 1) / kWidth),
        slices_((args.H + Tile::kDepth - 1) / Tile::kDepth),
        rows_((args.B + Tile::kRows - 1) / Tile::kRows * Tile::kRows),
        panel_(kWidth * std::min(Tile::kDepth, args.H)),
        weight_(static_cast<std::size_t>(args.directions * blocks_ * gates_ * slices_ * panel_)),
        state_(static_cast<std::size_t>(2 * args.directions * parts_ * state_size())) {
    pack_weight();
    const std::int64_t used = args.directions * parts_ * state_size();
    std::memset(state_.data(), 0, static_cast<std::size_t>(used) * sizeof(T));
  }

  // From one of a sequence's outputs to the next, among the sums of a block.
  static constexpr std::int64_t gate_stride() { return kWidth; }

  // Where the state has the numbers of a sequence from a block's first unit on.
  T* state(std::int64_t step, int d, int part, std::int64_t b, std::int64_t unit) const {
    const std::int64_t copy = (step % 2 * args_.directions + d) * parts_ + part;
    return state_.data() + copy * state_size() + (unit / Tile::kDepth * rows_ + b) * Tile::kPanelStride +
           unit % Tile::kDepth;
  }

  // body(d, b, unit, width) for each block of each sequence.
  template <class Body>
  void for_blocks(const Body& body) const {
    for (int d = 0; d < args_.directions; ++d) {
      for (std::int64_t b = 0; b < args_.B; ++b) {
        for (std::int64_t unit = 0; unit < args_.H; unit += kWidth) body(d, b, unit, std::min(kWidth, args_.H - unit));
      }
    }
  }

  // finish(d, step, b, unit, width, sums) takes `width` sums of each output of a sequence, kWidth apart. While those of
  // a gate are made, or of its share of the gradient, finish.fetch(fetch, gate, d, step, b, rows, unit, width) adds
  // what it will need beside them of sequences b … b + rows - 1.
  template <class Finish>
  void run(std::int64_t steps, const Finish& finish) const {
    constexpr std::int64_t kTaskBlocks = std::max<std::int64_t>(1, 32 / kWidth);
    constexpr std::int64_t kLeastWork = 1 << 20;  // products in a step that are worth a meeting of the threads
    const std::int64_t tasks = (blocks_ + kTaskBlocks - 1) / kTaskBlocks;
    const auto advance_all = [&](int d, std::int64_t step, std::int64_t begin, std::int64_t end) {
      for (std::int64_t block = begin; block < end; ++block) advance(d, step, block, finish);
    };
    if (num_threads() <= args_.directions || gates_ * args_.B * args_.H * args_.H < kLeastWork) {
      parallel_for(args_.directions, [&](std::int64_t d) {
        for (std::int64_t step = 0; step < steps; ++step) advance_all(static_cast<int>(d), step, 0, blocks_);
      });
      return;
    }
    for (std::int64_t step = 0; step < steps; ++step) {
      parallel_for(args_.directions * tasks, [&](std::int64_t task) {
        const std::int64_t begin = task % tasks * kTaskBlocks;
        advance_all(static_cast<int>(task / tasks), step, begin, std::min(blocks_, begin + kTaskBlocks));
      });
    }
  }

 private:
  std::int64_t state_size() const { return slices_ * rows_ * Tile::kPanelStride; }

  // A block's panels follow one another by the part of the state, the slice of it, and the output.
  T* panel(int d, std::int64_t block, int part, std::int64_t slice, int output) const {
    const std::int64_t index = ((d * blocks_ + block) * parts_ + part) * slices_ + slice;
    return weight_.data() + (index * outputs_ + output) * panel_;
  }

  void pack_weight() {
    parallel_for(args_.directions * blocks_, [&](std::int64_t task) {
      const int d = static_cast<int>(task / blocks_);
      const std::int64_t block = task % blocks_, unit = block * kWidth;
      for (int gate = 0; gate < gates_; ++gate) {
        const auto* data = static_cast<const S*>(args_.direction[d].weight) + gate * args_.H * args_.H;
        StridedMatrix<I, S> matrix{data, args_.H, 1};
        if (kPass == Pass::backward) std::swap(matrix.row, matrix.col);
        for (std::int64_t slice = 0; slice < slices_; ++slice) {
          const std::int64_t first = slice * Tile::kDepth;
          T* to = kPass == Pass::forward ? panel(d, block, 0, slice, gate) : panel(d, block, gate, slice, 0);
          matrix.pack_cols(to, unit, std::min(kWidth, args_.H - unit), first, std::min(Tile::kDepth, args_.H - first));
        }
      }
    });
  }

  template <class Finish>
  void advance(int d, std::int64_t step, std::int64_t block, const Finish& finish) const {
    constexpr int kMostGates = 4;
    alignas(64) T sums[Tile::kRows * kMostGates * kWidth];
    const std::int64_t cols = outputs_ * kWidth, unit = block * kWidth;
    for (std::int64_t b0 = 0; b0 < args_.B; b0 += Tile::kRows) {
      const std::int64_t rows = std::min<std::int64_t>(Tile::kRows, args_.B - b0);
      for (int part = 0; part < parts_; ++part) {
        for (std::int64_t slice = 0; slice < slices_; ++slice) {
          const std::int64_t first = slice * Tile::kDepth;
          gemm_block<I>(
              rows, cols, std::min(Tile::kDepth, args_.H - first), state(step, d, part, b0, first), Tile::kPanelStride,
              panel(d, block, part, slice, 0), panel_, sums, cols, part + slice > 0, [](auto...) {},
              [&](Fetch& fetch, std::int64_t, std::int64_t col, auto...) {
                if (slice > 0) return;
                finish.fetch(fetch, part + static_cast<int>(col / kWidth), d, step, b0, rows, unit,
                             std::min(kWidth, args_.H - unit));
              });
        }
      }
      for (std::int64_t i = 0; i < rows; ++i) {
        finish(d, step, b0 + i, unit, std::min(kWidth, args_.H - unit), sums + i * cols);
      }
    }
  }

  const RecurrentArgs& args_;
  int gates_, parts_, outputs_;
  std::int64_t blocks_, slices_, rows_, panel_;
  Scratch<T> weight_, state_;
};

// The walk of a single step forward, as in decoding, of few sequences: the weight is read once, as it lies. A
// sequence's units are one block.
template <Isa I, class S>
class SingleStep {
 public:
  using T = Accumulator<S>;

  explicit SingleStep(const RecurrentArgs& args)
      : args_(args), state_(static_cast<std::size_t>(2 * args.directions * args.B * args.H)) {}
  static bool suits(const RecurrentArgs& args) { return args.T == 1 && args.B <= kFewRows; }

  std::int64_t gate_stride() const { return args_.H; }
  T* state(std::int64_t step, int d, int, std::int64_t b, std::int64_t unit) const {
    return state_.data() + ((step % 2 * args_.directions + d) * args_.B + b) * args_.H + unit;
  }
  template <class Body>
  void for_blocks(const Body& body) const {
    for (int d = 0; d < args_.directions; ++d) {
      for (std::int64_t b = 0; b < args_.B; ++b) body(d, b, 0, args_.H);
    }
  }

  template <class Finish>
  void run(std::int64_t, const Finish& finish) const {
    const std::int64_t B = args_.B, H = args_.H, cols = gates_of(args_.cell) * H;
    const Scratch<T> sums(static_cast<std::size_t>(B * cols));
    for (int d = 0; d < args_.directions; ++d) {
      gemm_few_rows<I, S>(
          B, cols, H, static_cast<const S*>(args_.h0) + d * B * H, H, 1,
          static_cast<const S*>(args_.direction[d].weight), 1, H, [](auto...) {}, sums.data(), cols);
      parallel_for(B, [&](std::int64_t b) { finish(d, 0, b, 0, H, sums.data() + b * cols); });
    }
  }

 private:
  const RecurrentArgs& args_;
  Scratch<T> state_;
};

}  // namespace drupe::cpu
