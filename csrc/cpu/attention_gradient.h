// Where attention's backward pass puts its gradients.
#pragma once

#include <cstring>

#include "cpu/attention.h"

namespace drupe::cpu {

// Rows of an output, and where products that add up to them go: into the rows themselves if one product makes them
// whole and they fill whole panels, else into scratch that is stored at the end.
template <class S, Isa I>
class Gradient {
  using T = Accumulator<S>;
  using Tile = AttentionTile<I, T>;

 public:
  Gradient(const AttentionOperand& to, std::int64_t b, std::int64_t h, std::int64_t begin, std::int64_t count,
           std::int64_t width, double factor, bool whole)
      : rows_(to.data ? locate<S>(to, b, h, begin) : nullptr),
        row_(to.row),
        count_(rows_ ? count : 0),
        width_(width),
        padded_(round_up(width, Tile::kCols)),
        in_place_(std::is_same_v<S, T> && whole && width == padded_),
        scratch_(static_cast<std::size_t>(in_place_ ? 0 : count_ * padded_)) {
    fill<I>(factors_, 0, Tile::kMostRows, static_cast<T>(factor));
    if (!in_place_) std::memset(scratch_.data(), 0, static_cast<std::size_t>(count_ * padded_) * sizeof(T));
  }

  // For the products that rows from `first` on are due.
  Sums<T> from(std::int64_t first) const {
    if (!rows_) return {nullptr, 0, false};
    if (in_place_) return {reinterpret_cast<T*>(rows_ + first * row_), row_, false, factors_};
    return {scratch_.data() + first * padded_, padded_, true};
  }

  void store() const {
    for (std::int64_t r = 0; r < count_ && !in_place_; ++r) {
      store_row<I>(scratch_.data() + r * padded_, width_, factors_[0], rows_ + r * row_);
    }
  }

  // The rows without the factor, one after the other.
  void store_unscaled(T* to) const {
    for (std::int64_t r = 0; r < count_; ++r) {
      store_row<I>(scratch_.data() + r * padded_, width_, T(1), to + r * width_);
    }
  }

 private:
  S* rows_;
  std::int64_t row_, count_, width_, padded_;
  bool in_place_;
  Scratch<T> scratch_;
  T factors_[Tile::kMostRows];
};

}  // namespace drupe::cpu
