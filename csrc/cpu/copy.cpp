// Strided copy with conversion. Bytes: each element read once and written once. The innermost dimension is
// the one the destination walks fastest; where the source walks another one fastest, blocks of 4 x 4 are transposed in
// registers.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include "core/dispatch.h"
#include "core/parallel.h"
#include "cpu/simd_transpose.h"
#include "ops/copy.h"

namespace drupe::cpu {
namespace {

constexpr std::int64_t kGrainElements = 32768;

template <class To, class From>
DRUPE_INLINE To convert(From value) {
  if constexpr (std::is_same_v<To, From>) {
    return value;
  } else if constexpr (std::is_same_v<To, bool>) {
    return static_cast<Accumulator<From>>(value) != Accumulator<From>(0);
  } else if constexpr (std::is_floating_point_v<Accumulator<From>> && std::is_integral_v<To>) {
    const auto x = static_cast<Accumulator<From>>(value);
    // Both bounds are exact: the lower is a power of two, and one past the upper is too.
    constexpr auto kLow = static_cast<Accumulator<From>>(std::numeric_limits<To>::min());
    constexpr auto kPastHigh =
        static_cast<Accumulator<From>>(2) * static_cast<Accumulator<From>>(std::numeric_limits<To>::max() / 2 + 1);
    if (x != x) return To(0);
    if (x < kLow) return std::numeric_limits<To>::min();
    if (x >= kPastHigh) return std::numeric_limits<To>::max();
    return static_cast<To>(x);
  } else if constexpr (std::is_same_v<Accumulator<To>, To>) {
    return static_cast<To>(static_cast<Accumulator<From>>(value));
  } else {
    return To(static_cast<float>(static_cast<Accumulator<From>>(value)));
  }
}

template <class To, class From, Isa I>
void copy_row(To* dst, std::int64_t dst_stride, const From* src, std::int64_t src_stride, std::int64_t count) {
  if (dst_stride == 1 && src_stride == 1) {
    if constexpr (std::is_same_v<To, From>) {
      std::memcpy(dst, src, static_cast<std::size_t>(count) * sizeof(To));
      return;
    }
    constexpr bool kVector = std::is_same_v<Accumulator<To>, float> && std::is_same_v<Accumulator<From>, float>;
    if constexpr (kVector) {
      using V = Vec<float, I>;
      std::int64_t i = 0;
      for (; i + V::kLanes <= count; i += V::kLanes) V::load(src + i).store(dst + i);
      if (i < count) {
        const int rest = static_cast<int>(count - i);
        V::load(src + i, rest).store(dst + i, rest);
      }
      return;
    }
    for (std::int64_t i = 0; i < count; ++i) dst[i] = convert<To>(src[i]);
    return;
  }
  for (std::int64_t i = 0; i < count; ++i) dst[i * dst_stride] = convert<To>(src[i * src_stride]);
}

struct Plane {
  std::int64_t rows, cols;  // the two innermost dimensions
  std::int64_t dst_row, dst_col, src_row, src_col;
  std::int64_t outer;  // how many planes
};

template <class To, class From, Isa I>
void run(const CopyArgs& args) {
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
    const From* src = static_cast<const From*>(args.src) + from;
    To* dst = static_cast<To*>(args.dst) + to;
    if constexpr (std::is_same_v<To, From>) {
      if (p.src_row == 1 && p.dst_col == 1 && p.src_col != 1) {
        constexpr std::int64_t kTile = 32;
        for (std::int64_t c = 0; c < cols; c += kTile) {
          transpose_by_4<I>(src + c * p.src_col, p.src_col, dst + c, p.dst_row, std::min(kTile, cols - c), rows);
        }
        return;
      }
    }
    for (std::int64_t r = 0; r < rows; ++r) {
      copy_row<To, From, I>(dst + r * p.dst_row, p.dst_col, src + r * p.src_row, p.src_col, cols);
    }
  });
}

}  // namespace

template <Isa I>
void copy(const CopyArgs& args) {
  dispatch_any(args.src_dtype,
               [&]<class From>() { dispatch_any(args.dst_dtype, [&]<class To>() { run<To, From, I>(args); }); });
}

template void copy<Isa::DRUPE_ISA>(const CopyArgs&);

}  // namespace drupe::cpu
