// Two ways through memory, both reading x once and in order. Rows: the reduced dimension is contiguous; four vector
// accumulators run over leaves of a fixed number of steps, whose results are merged pairwise. Columns: the kept
// dimension is contiguous; blocks of rows are added into a row of accumulators in L1, four rows at a time. Work is cut
// into chunks by size alone; the partial results of the chunks of one output are merged as a tree.
#include "ops/reduce.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>

#include "core/dispatch.h"
#include "core/memory.h"
#include "core/parallel.h"
#include "cpu/simd_integers.h"
#include "cpu/simd_math.h"
#include "cpu/simd_transpose.h"

namespace drupe::cpu {
namespace {

constexpr std::int64_t kChunk = 16384;   // elements of a chunk of rows
constexpr std::int64_t kColumns = 1024;  // columns of a chunk of columns
constexpr int kLeafSteps = 32;           // vectors per accumulator that are added one after another

// The arithmetic of one reduction: A accumulates, V is a vector of A.
template <Reduction Op, class A, Isa I>
struct Rule {
  using V = Vec<A, I>;

  static constexpr A identity() {
    using Limits = std::numeric_limits<A>;
    if constexpr (Op == Reduction::prod || Op == Reduction::all) return A(1);
    if constexpr (Op == Reduction::max) return Limits::has_infinity ? -Limits::infinity() : Limits::lowest();
    if constexpr (Op == Reduction::min) return Limits::has_infinity ? Limits::infinity() : Limits::max();
    return A(0);
  }

  DRUPE_INLINE static V map(V x, V shift) {
    if constexpr (Op == Reduction::any || Op == Reduction::all) return select(x == V::zero(), V::zero(), V::set(A(1)));
    if constexpr (Op == Reduction::sum_squares) return (x - shift) * (x - shift);
    if constexpr (Op == Reduction::sum_exp) return exp(x - shift);
    return x;
  }

  DRUPE_INLINE static V merge(V a, V b) {
    // max and min give their second operand where either is NaN.
    if constexpr (Op == Reduction::max) return select(a == a, max(a, b), a);
    if constexpr (Op == Reduction::min) return select(a == a, min(a, b), a);
    if constexpr (Op == Reduction::any) return max(a, b);
    if constexpr (Op == Reduction::all) return min(a, b);
    if constexpr (Op == Reduction::prod) return a * b;
    return a + b;
  }

  DRUPE_INLINE static A merge(A a, A b) {
    if constexpr (Op == Reduction::max) return a == a ? (a > b ? a : b) : a;
    if constexpr (Op == Reduction::min) return a == a ? (a < b ? a : b) : a;
    if constexpr (Op == Reduction::any) return a > b ? a : b;
    if constexpr (Op == Reduction::all) return a < b ? a : b;
    if constexpr (Op == Reduction::prod) return a * b;
    return a + b;
  }

  // Across lanes, as a tree.
  DRUPE_INLINE static A fold(V v) {
    if constexpr (std::is_floating_point_v<A> && (Op == Reduction::max || Op == Reduction::min)) {
      if (!(~(v == v)).any()) return Op == Reduction::max ? reduce_max(v) : reduce_min(v);
    }
    A lanes[V::kLanes];
    v.store(lanes);
    for (int width = V::kLanes / 2; width > 0; width /= 2) {
      for (int i = 0; i < width; ++i) lanes[i] = merge(lanes[i], lanes[i + width]);
    }
    return lanes[0];
  }

  // For kReducedRows vectors, each by itself.
  DRUPE_INLINE static void fold_rows(const V* rows, A* to) {
    constexpr bool kExtremum = Op == Reduction::max || Op == Reduction::min;
    if constexpr (std::is_floating_point_v<A> && kExtremum) {
      Op == Reduction::max ? ReduceRows<I, A>::maximum(rows, to) : ReduceRows<I, A>::minimum(rows, to);
      for (int i = 0; i < kReducedRows; ++i) {
        if ((~(rows[i] == rows[i])).any()) to[i] = fold(rows[i]);  // NaN
      }
    } else if constexpr (std::is_floating_point_v<A> && Op != Reduction::prod && Op != Reduction::any &&
                         Op != Reduction::all) {
      ReduceRows<I, A>::sum(rows, to);
    } else {
      for (int i = 0; i < kReducedRows; ++i) to[i] = fold(rows[i]);
    }
  }

  template <class S>
  DRUPE_INLINE static V mapped(const S* p, V shift) {
    return map(V::load(p), shift);
  }

  // The first n elements, identities behind them.
  template <class S>
  DRUPE_INLINE static V mapped(const S* p, int n, V shift) {
    A lanes[V::kLanes];
    V::set(identity()).store(lanes);
    map(V::load(p, n), shift).store(lanes, n);
    return V::load(lanes);
  }
};

// Subtracting an infinite maximum would make NaN of the others.
template <class A>
DRUPE_INLINE A finite_or_zero(A shift) {
  return std::abs(shift) <= std::numeric_limits<A>::max() ? shift : A(0);
}

template <Reduction Op, class A>
DRUPE_INLINE A load_shift(const ReduceArgs& args, std::int64_t at) {
  if constexpr (Op == Reduction::sum_exp) return finite_or_zero(static_cast<const A*>(args.shift)[at]);
  if constexpr (Op == Reduction::sum_squares) return static_cast<const A*>(args.shift)[at];
  return A(0);
}

// Finishes `count` neighbouring results and writes them at y + at.
template <Isa, class A>
void emit(const ReduceArgs& args, const A* values, std::int64_t at, std::int64_t count) {
  dispatch_any(args.y_dtype, [&]<class Y>() {
    Y* y = static_cast<Y*>(args.y) + at;
    for (std::int64_t i = 0; i < count; ++i) {
      A value = values[i];
      if constexpr (std::is_floating_point_v<A>) {
        if (args.finish == Finish::divide) value /= static_cast<A>(args.divisor);
        if (args.finish == Finish::log_shift) {
          value = std::log(value) + finite_or_zero(static_cast<const A*>(args.shift)[at + i]);
        }
      }
      y[i] = static_cast<Y>(value);
    }
  });
}

// Where element `index` of the first `dims` dimensions lies.
DRUPE_INLINE std::int64_t locate(const Dims& shape, const Dims& strides, int dims, std::int64_t index) {
  std::int64_t offset = 0;
  for (int d = dims - 1; d > 0; --d) {
    offset += index % shape[d] * strides[d];
    index /= shape[d];
  }
  return dims > 0 ? offset + index * strides[0] : 0;
}

std::int64_t product(const Dims& shape, int dims) {
  std::int64_t count = 1;
  for (int d = 0; d < dims; ++d) count *= shape[d];
  return count;
}

// Merges parts[0], parts[1], …, each of `width` values, into parts[0], as a tree.
template <class R, class A>
void merge_parts(A* parts, std::int64_t count, std::int64_t stride, std::int64_t width) {
  while (count > 1) {
    const std::int64_t half = (count + 1) / 2;
    for (std::int64_t j = 0; j + half < count; ++j) {
      A* a = parts + j * stride;
      const A* b = parts + (j + half) * stride;
      for (std::int64_t i = 0; i < width; ++i) a[i] = R::merge(a[i], b[i]);
    }
    count = half;
  }
}

// Of a run of at most kLeaf elements, a vector whose lanes are still to be merged.
template <class R, class S, class A>
DRUPE_INLINE typename R::V reduce_leaf(const S* p, std::int64_t n, A shift) {
  using V = typename R::V;
  constexpr std::int64_t L = V::kLanes;
  const V s = V::set(shift);
  V acc[4];
  for (V& a : acc) a = V::set(R::identity());
  std::int64_t i = 0;
  for (; i + 4 * L <= n; i += 4 * L) {
    for (int k = 0; k < 4; ++k) acc[k] = R::merge(acc[k], R::mapped(p + i + k * L, s));
  }
  for (; i + L <= n; i += L) acc[0] = R::merge(acc[0], R::mapped(p + i, s));
  if (i < n) acc[1] = R::merge(acc[1], R::mapped(p + i, static_cast<int>(n - i), s));
  return R::merge(R::merge(acc[0], acc[2]), R::merge(acc[1], acc[3]));
}

template <class R>
inline constexpr std::int64_t kLeaf = 4 * kLeafSteps * R::V::kLanes;

template <class R, class S, class A>
A reduce_run(const S* p, std::int64_t n, A shift) {
  if (n <= kLeaf<R>) return R::fold(reduce_leaf<R>(p, n, shift));
  const std::int64_t half = (n / 2 + kLeaf<R> - 1) / kLeaf<R> * kLeaf<R>;
  const A left = reduce_run<R>(p, half, shift);  // before the right half: arguments of one call have no order
  return R::merge(left, reduce_run<R>(p + half, n - half, shift));
}

// Runs first … last - 1 of the reduced loops, columns [begin, begin + n) of each.
template <class R, class S, class A>
A reduce_runs(const ReduceArgs& args, const S* x, std::int64_t first, std::int64_t last, std::int64_t begin,
              std::int64_t n, A shift) {
  constexpr std::int64_t kRuns = 8;
  if (last - first > kRuns) {
    const std::int64_t middle = first + (last - first + 1) / 2;
    const A left = reduce_runs<R>(args, x, first, middle, begin, n, shift);
    return R::merge(left, reduce_runs<R>(args, x, middle, last, begin, n, shift));
  }
  const Loops& loops = args.reduced;
  A total = R::identity();
  for (std::int64_t r = first; r < last; ++r) {
    const std::int64_t offset = locate(loops.shape, loops.strides[0], loops.shape.size() - 1, r);
    total = R::merge(total, reduce_run<R>(x + offset + begin, n, shift));
  }
  return total;
}

template <Reduction Op, class A, class S, Isa I>
void reduce_rows(const ReduceArgs& args) {
  using R = Rule<Op, A, I>;
  const int outer = std::max(args.reduced.shape.size() - 1, 0);
  const std::int64_t n = args.reduced.shape.empty() ? 1 : args.reduced.shape[outer];
  const std::int64_t runs = product(args.reduced.shape, outer);
  const int kept_dims = args.kept.shape.size();
  const std::int64_t outputs = product(args.kept.shape, kept_dims);
  // A chunk is a piece of one run, or several whole runs.
  const std::int64_t pieces = (n + kChunk - 1) / kChunk;
  const std::int64_t piece = pieces > 1 ? kChunk : n;
  const std::int64_t runs_per_chunk = std::max<std::int64_t>(1, kChunk / n);
  const std::int64_t chunks = (runs + runs_per_chunk - 1) / runs_per_chunk * pieces;
  // Chunk c of the output at y + at, whose elements begin at x.
  const auto chunk = [&](const S* x, std::int64_t at, std::int64_t c) {
    const std::int64_t first = c / pieces * runs_per_chunk, begin = c % pieces * piece;
    return reduce_runs<R>(args, x, first, std::min(runs, first + runs_per_chunk), begin, std::min(piece, n - begin),
                          load_shift<Op, A>(args, at));
  };
  const auto place = [&](std::int64_t output, std::size_t operand) {
    return locate(args.kept.shape, args.kept.strides[operand], kept_dims, output);
  };
  const S* x = static_cast<const S*>(args.x);
  if (chunks == 1) {
    // Outputs that are neighbours in y, a few at a time.
    constexpr std::int64_t kFew = 64;
    const std::int64_t inner = kept_dims > 0 ? args.kept.shape[kept_dims - 1] : 1;
    const std::int64_t step = kept_dims > 0 ? args.kept.strides[0][kept_dims - 1] : 0;
    const std::int64_t grain = std::max<std::int64_t>(1, kChunk / (n * runs));
    parallel_ranges(outputs, grain, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t o = begin, count; o < end; o += count) {
        count = std::min({kFew, end - o, inner - o % inner});
        const S* from = x + place(o, 0);
        const std::int64_t at = place(o, 1);
        A values[kFew];
        if (runs == 1 && n <= kLeaf<R>) {
          for (std::int64_t i = 0; i < count; i += kReducedRows) {
            typename R::V rows[kReducedRows];
            for (std::int64_t r = 0; r < kReducedRows; ++r) {
              const std::int64_t row = i + r;
              rows[r] = row < count ? reduce_leaf<R>(from + row * step, n, load_shift<Op, A>(args, at + row)) : rows[0];
            }
            R::fold_rows(static_cast<const typename R::V*>(rows), values + i);
          }
        } else {
          for (std::int64_t i = 0; i < count; ++i) values[i] = chunk(from + i * step, at + i, 0);
        }
        emit<I>(args, values, at, count);
      }
    });
    return;
  }
  const Scratch<A> parts(static_cast<std::size_t>(outputs * chunks));
  parallel_for(outputs * chunks, [&](std::int64_t task) {
    const std::int64_t output = task / chunks;
    parts.data()[task] = chunk(x + place(output, 0), place(output, 1), task % chunks);
  });
  for (std::int64_t o = 0; o < outputs; ++o) {
    merge_parts<R>(parts.data() + o * chunks, chunks, 1, 1);
    emit<I>(args, parts.data() + o * chunks, place(o, 1), 1);
  }
}

// Adds rows [first, last) of `columns` columns into acc. x, shift and acc start at the first of these columns.
template <class R, class S, class A>
void reduce_block(const ReduceArgs& args, const S* x, std::int64_t first, std::int64_t last, std::int64_t columns,
                  const A* shift, A* acc) {
  using V = typename R::V;
  const Loops& loops = args.reduced;
  const int dims = loops.shape.size();
  const auto row = [&](std::int64_t r) { return x + locate(loops.shape, loops.strides[0], dims, r); };
  for (std::int64_t i = 0; i < columns; ++i) acc[i] = R::identity();
  std::int64_t r = first;
  const auto whole = [&](const S* p, std::int64_t i) { return R::mapped(p + i, V::load(shift + i)); };
  const auto part = [&](const S* p, std::int64_t i, int n) { return R::mapped(p + i, n, V::load(shift + i, n)); };
  const std::int64_t full = columns / V::kLanes * V::kLanes;
  const int rest = static_cast<int>(columns - full);
  constexpr std::int64_t kAhead = 4, kWideBytes = 512;  // rows to fetch into L2, where no prefetcher foresees them
  const bool wide = std::is_floating_point_v<A> && columns * static_cast<std::int64_t>(sizeof(S)) >= kWideBytes;
  for (; r + 4 <= last; r += 4) {
    const S *p0 = row(r), *p1 = row(r + 1), *p2 = row(r + 2), *p3 = row(r + 3);
    const std::int64_t ahead = wide && r + kAhead < last ? row(r + kAhead) - p0 : 0;
    for (std::int64_t i = 0; i < full; i += V::kLanes) {
      if (ahead != 0) {
        for (const S* p : {p0, p1, p2, p3}) __builtin_prefetch(p + ahead + i, 0, 2);
      }
      const V four = R::merge(R::merge(whole(p0, i), whole(p1, i)), R::merge(whole(p2, i), whole(p3, i)));
      R::merge(V::load(acc + i), four).store(acc + i);
    }
    if (rest == 0) continue;
    const V four = R::merge(R::merge(part(p0, full, rest), part(p1, full, rest)),
                            R::merge(part(p2, full, rest), part(p3, full, rest)));
    R::merge(V::load(acc + full, rest), four).store(acc + full, rest);
  }
  for (; r < last; ++r) {
    const S* p = row(r);
    for (std::int64_t i = 0; i < full; i += V::kLanes) {
      R::merge(V::load(acc + i), whole(p, i)).store(acc + i);
    }
    if (rest > 0) R::merge(V::load(acc + full, rest), part(p, full, rest)).store(acc + full, rest);
  }
}

template <Reduction Op, class A, class S, Isa I>
void reduce_columns(const ReduceArgs& args) {
  using R = Rule<Op, A, I>;
  const int outer = args.kept.shape.size() - 1;
  const std::int64_t columns = args.kept.shape[outer];
  const std::int64_t groups = product(args.kept.shape, outer);
  const std::int64_t rows = product(args.reduced.shape, args.reduced.shape.size());
  const std::int64_t pieces = (columns + kColumns - 1) / kColumns;
  const std::int64_t rows_per_block = std::clamp<std::int64_t>(kChunk / columns, 64, 512);
  const std::int64_t blocks = (rows + rows_per_block - 1) / rows_per_block;
  const Scratch<A> parts(static_cast<std::size_t>(blocks > 1 ? groups * blocks * columns : 0));
  const auto place = [&](std::int64_t group, int operand) {
    return locate(args.kept.shape, args.kept.strides[static_cast<std::size_t>(operand)], outer, group);
  };
  // Small blocks go several to a task.
  const std::int64_t block_elements = std::min(rows, rows_per_block) * std::min(columns, kColumns);
  const std::int64_t grain = std::max<std::int64_t>(1, kChunk / block_elements);
  parallel_ranges(groups * blocks * pieces, grain, [&](std::int64_t from, std::int64_t to) {
    for (std::int64_t task = from; task < to; ++task) {
      const std::int64_t c0 = task % pieces * kColumns, width = std::min(kColumns, columns - c0);
      const std::int64_t block = task / pieces % blocks, group = task / pieces / blocks;
      const std::int64_t first = block * rows_per_block, at = place(group, 1) + c0;
      A shift[kColumns], local[kColumns];
      for (std::int64_t i = 0; i < width; ++i) shift[i] = load_shift<Op, A>(args, at + i);
      A* acc = blocks > 1 ? parts.data() + (group * blocks + block) * columns + c0 : local;
      reduce_block<R>(args, static_cast<const S*>(args.x) + place(group, 0) + c0, first,
                      std::min(rows, first + rows_per_block), width, shift, acc);
      if (blocks == 1) emit<I>(args, local, at, width);
    }
  });
  if (blocks == 1) return;
  parallel_for(groups * pieces, [&](std::int64_t task) {
    const std::int64_t group = task / pieces, c0 = task % pieces * kColumns;
    A* part = parts.data() + group * blocks * columns + c0;
    const std::int64_t width = std::min(kColumns, columns - c0);
    merge_parts<R>(part, blocks, columns, width);
    emit<I>(args, part, place(group, 1) + c0, width);
  });
}

template <Reduction Op, class A, class S, Isa I>
void run(const ReduceArgs& args) {
  if (args.columns) {
    reduce_columns<Op, A, S, I>(args);
  } else {
    reduce_rows<Op, A, S, I>(args);
  }
}

// Integers are summed without sign, where overflow wraps around. Bools are read as the bytes 0 and 1.
template <Reduction Op, Isa I>
void dispatch(const ReduceArgs& args) {
  constexpr bool kTruth = Op == Reduction::any || Op == Reduction::all;
  const bool bytes = args.dtype == Dtype::boolean || (kTruth && args.dtype == Dtype::i8);
  dispatch_any(bytes ? Dtype::u8 : args.dtype, [&]<class S>() {
    if constexpr (std::is_floating_point_v<Accumulator<S>>) {
      run<Op, Accumulator<S>, S, I>(args);
    } else if constexpr (Op == Reduction::sum_squares || Op == Reduction::sum_exp || std::is_same_v<S, bool> ||
                         (kTruth && std::is_same_v<S, std::int8_t>)) {
      unexpected_dtype(args.dtype);
    } else if constexpr (Op == Reduction::sum || Op == Reduction::prod) {
      run<Op, std::uint64_t, S, I>(args);
    } else {
      run<Op, S, S, I>(args);
    }
  });
}

}  // namespace

template <Isa I>
void reduce(const ReduceArgs& args) {
  switch (args.op) {
    case Reduction::sum:
      return dispatch<Reduction::sum, I>(args);
    case Reduction::prod:
      return dispatch<Reduction::prod, I>(args);
    case Reduction::max:
      return dispatch<Reduction::max, I>(args);
    case Reduction::min:
      return dispatch<Reduction::min, I>(args);
    case Reduction::any:
      return dispatch<Reduction::any, I>(args);
    case Reduction::all:
      return dispatch<Reduction::all, I>(args);
    case Reduction::sum_squares:
      return dispatch<Reduction::sum_squares, I>(args);
    case Reduction::sum_exp:
      return dispatch<Reduction::sum_exp, I>(args);
  }
}

template void reduce<Isa::DRUPE_ISA>(const ReduceArgs&);

}  // namespace drupe::cpu
