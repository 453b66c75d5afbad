// Strided copy with conversion. Bytes: each element read once and written once. The innermost dimension is
// the one the destination walks fastest; where the source walks another one fastest, small blocks are transposed in
// registers. Elements that are not converted are moved by their size alone.
#include <algorithm>
#include <cstddef>
#include <cstring>
#include <limits>
#include <type_traits>

#include "core/dispatch.h"
#include "core/parallel.h"
#include "cpu/lanes.h"
#include "cpu/simd_transpose.h"
#include "ops/copy.h"

namespace drupe::cpu {
namespace {

constexpr std::int64_t kGrainElements = 32768;
constexpr std::int64_t kBlock = 64;  // elements of a fixed-length loop

// Every step is computed for every value, so that loops over it become vector code.
template <class To, class From>
DRUPE_INLINE To convert(From value) {
  if constexpr (std::is_same_v<To, bool>) {
    return value != From(0);
  } else if constexpr (std::is_floating_point_v<From> && std::is_integral_v<To>) {
    // Both bounds are exact: the lower is a power of two, and one past the upper is too.
    constexpr auto kLow = static_cast<From>(std::numeric_limits<To>::min());
    constexpr auto kPastHigh = static_cast<From>(2) * static_cast<From>(std::numeric_limits<To>::max() / 2 + 1);
    using Wide = std::conditional_t<(sizeof(To) < 4), std::int32_t, To>;
    const From held = value >= kLow && value < kPastHigh ? value : From(0);
    const To inside = static_cast<To>(static_cast<Wide>(held));
    const To below = value < kLow ? std::numeric_limits<To>::min() : inside;
    return value >= kPastHigh ? std::numeric_limits<To>::max() : below;
  } else {
    return static_cast<To>(value);
  }
}

// to[i] = from[i], both in different memory.
template <class To, class From>
DRUPE_INLINE void convert_block(To* to, const From* from, std::int64_t count) {
  if (count == kBlock) {
#pragma GCC ivdep
    for (int i = 0; i < kBlock; ++i) to[i] = convert<To>(from[i]);
  } else {
    for (std::int64_t i = 0; i < count; ++i) to[i] = convert<To>(from[i]);
  }
}

// Between a 16-bit float and its accumulator T.
template <Isa I, class T, class To, class From>
DRUPE_INLINE void copy_vectors(To* to, const From* from, std::int64_t count) {
  for_vectors<I, T>(count, [&](std::int64_t i, auto lanes) { store(load<Vec<T, I>>(from + i, lanes), to + i, lanes); });
}

// Elements of a row from one place to the other, whose strides count elements.
using RowCopy = void (*)(void* to, std::int64_t to_stride, const void* from, std::int64_t from_stride,
                         std::int64_t count);

template <class T>
void move_row(void* to, std::int64_t to_stride, const void* from, std::int64_t from_stride, std::int64_t count) {
  auto* dst = static_cast<T*>(to);
  const auto* src = static_cast<const T*>(from);
  if (to_stride == 1 && from_stride == 1) {
    std::memcpy(dst, src, static_cast<std::size_t>(count) * sizeof(T));
  } else {
    for (std::int64_t i = 0; i < count; ++i) dst[i * to_stride] = src[i * from_stride];
  }
}

// A block after the other, 16-bit floats by way of their accumulators.
template <class To, class From, Isa I>
void convert_row(void* to, std::int64_t to_stride, const void* from, std::int64_t from_stride, std::int64_t count) {
  using Result = Accumulator<To>;
  using Value = Accumulator<From>;
  for (std::int64_t begin = 0; begin < count; begin += kBlock) {
    const std::int64_t n = std::min(kBlock, count - begin);
    const From* src = static_cast<const From*>(from) + begin * from_stride;
    To* dst = static_cast<To*>(to) + begin * to_stride;
    From gathered[kBlock];
    To scattered[kBlock];
    if (from_stride != 1) {
      move_row<From>(gathered, 1, src, from_stride, n);
      src = gathered;
    }
    To* out = to_stride == 1 ? dst : scattered;
    const Value* values;
    Value widened[kBlock];
    if constexpr (std::is_same_v<Value, From>) {
      values = src;
    } else {
      copy_vectors<I, Value>(widened, src, n);
      values = widened;
    }
    if constexpr (std::is_same_v<Result, To>) {
      convert_block(out, values, n);
    } else if constexpr (std::is_same_v<Result, Value>) {
      copy_vectors<I, Value>(out, values, n);
    } else {
      Result results[kBlock];
      convert_block(results, values, n);
      copy_vectors<I, Result>(out, results, n);
    }
    if (to_stride != 1) move_row<To>(dst, to_stride, scattered, 1, n);
  }
}

// to[j * to_row + i] = from[i * from_row + j] for i < rows, j < cols.
using Transposition = void (*)(const void* from, std::int64_t from_row, void* to, std::int64_t to_row,
                               std::int64_t rows, std::int64_t cols);

template <class T, Isa I>
void transpose_elements(const void* from, std::int64_t from_row, void* to, std::int64_t to_row, std::int64_t rows,
                        std::int64_t cols) {
  constexpr std::int64_t kTile = 32;  // rows that are read side by side
  for (std::int64_t i = 0; i < rows; i += kTile) {
    transpose_small<I>(static_cast<const T*>(from) + i * from_row, from_row, static_cast<T*>(to) + i, to_row,
                       std::min(kTile, rows - i), cols);
  }
}

struct Plane {
  std::int64_t rows, cols;  // the two innermost dimensions
  std::int64_t dst_row, dst_col, src_row, src_col;
  std::int64_t outer;  // how many planes
};

// Moves elements of so many bytes by `row`, or by `transposed` the blocks for which a row would be strided.
void run(const CopyArgs& args, std::int64_t from_size, std::int64_t to_size, RowCopy row_copy,
         Transposition transposed) {
  const int ndim = args.shape.size();
  const int c = ndim - 1;
  Plane p{1, 1, 0, 1, 0, 1, 1};
  if (ndim >= 1) p.cols = args.shape[c], p.dst_col = args.dst_strides[c], p.src_col = args.src_strides[c];
  // The row dimension: the one that src walks by 1 if there is one, else the next.
  int row = ndim - 2;
  for (int i = 0; i < ndim - 1; ++i) {
    if (args.src_strides[i] == 1) row = i;
  }
  if (ndim >= 2) p.rows = args.shape[row], p.dst_row = args.dst_strides[row], p.src_row = args.src_strides[row];
  for (int i = 0; i < ndim - 1; ++i) {
    if (i != row) p.outer *= args.shape[i];
  }
  const std::int64_t grain = std::max<std::int64_t>(4, kGrainElements / std::max<std::int64_t>(1, p.cols) / 4 * 4);
  const std::int64_t row_tasks = (p.rows + grain - 1) / grain;
  // One long row is cut along the columns instead.
  const std::int64_t col_grain = p.rows == 1 ? kGrainElements : p.cols;
  const std::int64_t col_tasks =
      std::max<std::int64_t>(1, (p.cols + col_grain - 1) / std::max<std::int64_t>(1, col_grain));
  parallel_for(p.outer * row_tasks * col_tasks, [&](std::int64_t task) {
    const std::int64_t c0 = task % col_tasks * col_grain;
    const std::int64_t cols = std::min(p.cols, c0 + col_grain) - c0;
    const std::int64_t r0 = task / col_tasks % row_tasks * grain;
    const std::int64_t rows = std::min(p.rows, r0 + grain) - r0;
    std::int64_t rest = task / col_tasks / row_tasks;
    std::int64_t from = r0 * p.src_row + c0 * p.src_col;
    std::int64_t to = r0 * p.dst_row + c0 * p.dst_col;
    for (int i = ndim - 2; i >= 0; --i) {
      if (i == row) continue;
      from += rest % args.shape[i] * args.src_strides[i];
      to += rest % args.shape[i] * args.dst_strides[i];
      rest /= args.shape[i];
    }
    const auto* src = static_cast<const std::byte*>(args.src) + from * from_size;
    auto* dst = static_cast<std::byte*>(args.dst) + to * to_size;
    if (transposed && p.src_row == 1 && p.dst_col == 1 && p.src_col != 1) {
      return transposed(src, p.src_col, dst, p.dst_row, cols, rows);
    }
    for (std::int64_t r = 0; r < rows; ++r) {
      row_copy(dst + r * p.dst_row * to_size, p.dst_col, src + r * p.src_row * from_size, p.src_col, cols);
    }
  });
}

template <class T, Isa I>
void move(const CopyArgs& args) {
  run(args, sizeof(T), sizeof(T), move_row<T>, transpose_elements<T, I>);
}

}  // namespace

template <Isa I>
void copy(const CopyArgs& args) {
  const Dtype from = args.src_dtype == Dtype::boolean ? Dtype::u8 : args.src_dtype;  // 0 or 1
  if (from == args.dst_dtype || args.src_dtype == args.dst_dtype) {
    switch (size_of(from)) {
      case 1:
        return move<std::uint8_t, I>(args);
      case 2:
        return move<std::uint16_t, I>(args);
      case 4:
        return move<float, I>(args);
      default:
        return move<std::uint64_t, I>(args);
    }
  }
  dispatch_any(from, [&]<class From>() {
    dispatch_any(args.dst_dtype, [&]<class To>() {
      if constexpr (!std::is_same_v<To, From> && !std::is_same_v<From, bool>)
        run(args, sizeof(From), sizeof(To), convert_row<To, From, I>, nullptr);
    });
  });
}

template void copy<Isa::DRUPE_ISA>(const CopyArgs&);

}  // namespace drupe::cpu
