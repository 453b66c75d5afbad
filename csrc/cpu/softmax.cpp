// softmax and log_softmax, forward and backward. A task owns some rows (inner = 1) or some columns of an outer slice
// (inner > 1: lanes are neighbouring columns). Three sweeps over a row that stays in cache: maximum, sum of
// exponentials (kept apart), result; rows of up to kShort vectors stay in registers instead.
// Bytes from memory: x read once, y written once; backward reads two and writes one. Worklog: bench/worklog/softmax.md.
#include "ops/softmax.h"

#include <algorithm>
#include <limits>

#include "core/dispatch.h"
#include "core/memory.h"
#include "core/parallel.h"
#include "cpu/lanes.h"
#include "cpu/simd_math.h"

namespace drupe::cpu {
namespace {

constexpr std::int64_t kGrain = 16384;     // elements a task
constexpr int kShort = 8;                  // vectors of a row that registers hold
constexpr std::int64_t kMaxAhead = 16384;  // elements to prefetch ahead: the row after the next, if it is that near
constexpr int kUnroll = 4;                 // independent chains of a reduction; neighbouring vectors of a column task

// The lanes from n on are `fill`.
template <class T, Isa I, class S>
DRUPE_INLINE Vec<T, I> load_filled(const S* p, std::int64_t n, T fill) {
  using V = Vec<T, I>;
  if (n >= V::kLanes) return V::load(p);
  constexpr T kIota[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  return select(V::load(kIota) < V::set(static_cast<T>(n)), V::load(p, static_cast<int>(n)), V::set(fill));
}

template <class T>
constexpr T kLowest = -std::numeric_limits<T>::infinity();

// How many rows of so many vectors are worked on together, where registers hold them: their reductions overlap.
template <Isa I, bool kLog>
constexpr int rows_at_once(int vectors) {
  return std::clamp(kRegisters<I> / (kLog ? 4 : 2) / vectors, 1, 2);
}

// kRows rows of exactly kVectors vectors, the last one perhaps in part.
template <class S, Isa I, bool kLog, int kVectors, int kRows>
DRUPE_INLINE void short_rows(const S* x, S* y, std::int64_t size) {
  using T = Accumulator<S>;
  using V = Vec<T, I>;
  constexpr std::int64_t kFull = (kVectors - 1) * V::kLanes;
  const std::int64_t rest = size - kFull;
  V v[kRows][kVectors], shift[kRows], sum[kRows], by[kRows];
#pragma GCC unroll 2
  for (int r = 0; r < kRows; ++r) {
    const S* from = x + r * size;
#pragma GCC unroll 8
    for (int i = 0; i < kVectors - 1; ++i) v[r][i] = V::load(from + i * V::kLanes);
    v[r][kVectors - 1] = load_filled<T, I>(from + kFull, rest, kLowest<T>);
    V top = v[r][0];
#pragma GCC unroll 8
    for (int i = 1; i < kVectors; ++i) top = max(top, v[r][i]);
    shift[r] = V::set(reduce_max(top));
  }
#pragma GCC unroll 2
  for (int r = 0; r < kRows; ++r) {
    sum[r] = V::zero();
#pragma GCC unroll 8
    for (int i = 0; i < kVectors; ++i) {
      v[r][i] = v[r][i] - shift[r];
      const V e = exp_nonpositive(v[r][i]);
      sum[r] = sum[r] + e;
      if constexpr (!kLog) v[r][i] = e;
    }
  }
#pragma GCC unroll 2
  for (int r = 0; r < kRows; ++r) {
    const T total = reduce_add(sum[r]);
    by[r] = kLog ? log(V::set(total)) : V::set(T(1) / total);
  }
#pragma GCC unroll 2
  for (int r = 0; r < kRows; ++r) {
    S* to = y + r * size;
#pragma GCC unroll 8
    for (int i = 0; i < kVectors; ++i) {
      const V result = kLog ? v[r][i] - by[r] : v[r][i] * by[r];
      if (i < kVectors - 1) {
        result.store(to + i * V::kLanes);
      } else {
        result.store(to + kFull, static_cast<int>(rest));
      }
    }
  }
}

// `kept` takes a row's exponentials, so that x comes from memory once and y goes there once.
template <class S, Isa I, bool kLog>
void long_row(const S* x, S* y, std::int64_t size, Accumulator<S>* kept, bool stream) {
  using T = Accumulator<S>;
  using V = Vec<T, I>;
  constexpr std::int64_t kStep = kUnroll * V::kLanes;
  const std::int64_t ahead = 2 * size <= kMaxAhead ? 2 * size : 0;
  V top[kUnroll], sum[kUnroll];
  for (int u = 0; u < kUnroll; ++u) top[u] = V::set(kLowest<T>), sum[u] = V::zero();
  std::int64_t i = 0;
  for (; i + kStep <= size; i += kStep) {
    for (int u = 0; u < kUnroll; ++u) top[u] = max(top[u], V::load(x + i + u * V::kLanes));
  }
  for (; i < size; i += V::kLanes) top[0] = max(top[0], load_filled<T, I>(x + i, size - i, kLowest<T>));
  const V shift = V::set(reduce_max(max(max(top[0], top[1]), max(top[2], top[3]))));

  for (i = 0; i + kStep <= size; i += kStep) {
    for (int u = 0; u < kUnroll; ++u) {
      const std::int64_t at = i + u * V::kLanes;
      __builtin_prefetch(x + at + ahead, 0, 2);  // the next rows wait for memory while this one computes
      const V e = exp_nonpositive(V::load(x + at) - shift);
      sum[u] = sum[u] + e;
      if constexpr (!kLog) e.store(kept + at);
    }
  }
  for (; i < size; i += V::kLanes) {
    const V e = exp_nonpositive(load_filled<T, I>(x + i, size - i, kLowest<T>) - shift);
    sum[0] = sum[0] + e;
    if constexpr (!kLog) e.store(kept + i, static_cast<int>(std::min<std::int64_t>(V::kLanes, size - i)));
  }
  const T total = reduce_add((sum[0] + sum[1]) + (sum[2] + sum[3]));
  const V by = kLog ? log(V::set(total)) : V::set(T(1) / total);
  const auto result = [&](std::int64_t j, auto lanes) {
    if constexpr (kLog) return load<V>(x + j, lanes) - shift - by;
    return load<V>(kept + j, lanes) * by;
  };
  write_vectors<I>(y, size, result, stream);
}

template <class S, Isa I, bool kLog, int kVectors = kShort>
void rows(const S* x, S* y, std::int64_t count, std::int64_t size, bool stream) {
  using T = Accumulator<S>;
  constexpr std::int64_t kLanes = Vec<T, I>::kLanes;
  if constexpr (kVectors == kShort) {
    if (size > kShort * kLanes) {
      const Scratch<T> kept(kLog ? 0 : static_cast<std::size_t>(size));
      for (std::int64_t i = 0; i < count * size; i += size) {
        long_row<S, I, kLog>(x + i, y + i, size, kept.data(), stream);
      }
      if (stream) stream_fence<I>();
      return;
    }
  }
  if constexpr (kVectors > 1) {
    if (size <= (kVectors - 1) * kLanes) return rows<S, I, kLog, kVectors - 1>(x, y, count, size, stream);
  }
  constexpr int kRows = rows_at_once<I, kLog>(kVectors);
  std::int64_t row = 0;
  for (; row + kRows <= count; row += kRows) {
    short_rows<S, I, kLog, kVectors, kRows>(x + row * size, y + row * size, size);
  }
  for (; row < count; ++row) short_rows<S, I, kLog, kVectors, 1>(x + row * size, y + row * size, size);
}

template <class S, Isa I, bool kLog>
void row_backward(const S* y, const S* dy, S* dx, std::int64_t size) {
  using V = Vec<Accumulator<S>, I>;
  V sum[kUnroll];
  for (int u = 0; u < kUnroll; ++u) sum[u] = V::zero();
  const auto add = [&](V& to, std::int64_t at, auto lanes) {
    const V g = load<V>(dy + at, lanes);
    to = kLog ? to + g : fma(g, load<V>(y + at, lanes), to);
  };
  constexpr std::int64_t kStep = kUnroll * V::kLanes;
  std::int64_t i = 0;
  for (; i + kStep <= size; i += kStep) {
    for (int u = 0; u < kUnroll; ++u) add(sum[u], i + u * V::kLanes, AllLanes{});
  }
  for_vectors<I, Accumulator<S>>(size - i, [&](std::int64_t j, auto lanes) { add(sum[0], i + j, lanes); });
  const V total = V::set(reduce_add((sum[0] + sum[1]) + (sum[2] + sum[3])));
  for_vectors<I, Accumulator<S>>(size, [&](std::int64_t j, auto lanes) {
    const V g = load<V>(dy + j, lanes), p = load<V>(y + j, lanes);
    store(kLog ? g - exp(p) * total : p * (g - total), dx + j, lanes);
  });
}

// kVectors vectors of neighbouring columns; a row follows after `stride` elements.
template <class S, Isa I, bool kLog, int kVectors, class Lanes>
void column_vectors(const S* x, S* y, std::int64_t size, std::int64_t stride, Lanes lanes) {
  using T = Accumulator<S>;
  using V = Vec<T, I>;
  constexpr bool kKeep = !kLog && std::is_same_v<S, T>;
  V top[kVectors], sum[kVectors], by[kVectors];
  for (int v = 0; v < kVectors; ++v) top[v] = V::set(kLowest<T>), sum[v] = V::zero();
  for (std::int64_t i = 0; i < size; ++i) {
    const S* from = x + i * stride;
    for (int v = 0; v < kVectors; ++v) top[v] = max(top[v], load<V>(from + v * V::kLanes, lanes));
  }
  for (std::int64_t i = 0; i < size; ++i) {
    const S* from = x + i * stride;
    for (int v = 0; v < kVectors; ++v) {
      const V e = exp_nonpositive(load<V>(from + v * V::kLanes, lanes) - top[v]);
      sum[v] = sum[v] + e;
      if constexpr (kKeep) store(e, y + i * stride + v * V::kLanes, lanes);
    }
  }
  for (int v = 0; v < kVectors; ++v) by[v] = kLog ? log(sum[v]) : V::set(1) / sum[v];
  for (std::int64_t i = 0; i < size; ++i) {
    for (int v = 0; v < kVectors; ++v) {
      const std::int64_t at = i * stride + v * V::kLanes;
      if constexpr (kKeep) {
        store(load<V>(y + at, lanes) * by[v], y + at, lanes);
      } else {
        const V shifted = load<V>(x + at, lanes) - top[v];
        store(kLog ? shifted - by[v] : exp_nonpositive(shifted) * by[v], y + at, lanes);
      }
    }
  }
}

template <class S, Isa I, bool kLog, int kVectors, class Lanes>
void column_vectors_backward(const S* y, const S* dy, S* dx, std::int64_t size, std::int64_t stride, Lanes lanes) {
  using V = Vec<Accumulator<S>, I>;
  V sum[kVectors];
  for (int v = 0; v < kVectors; ++v) sum[v] = V::zero();
  for (std::int64_t i = 0; i < size; ++i) {
    for (int v = 0; v < kVectors; ++v) {
      const std::int64_t at = i * stride + v * V::kLanes;
      const V g = load<V>(dy + at, lanes);
      sum[v] = kLog ? sum[v] + g : fma(g, load<V>(y + at, lanes), sum[v]);
    }
  }
  for (std::int64_t i = 0; i < size; ++i) {
    for (int v = 0; v < kVectors; ++v) {
      const std::int64_t at = i * stride + v * V::kLanes;
      const V g = load<V>(dy + at, lanes), p = load<V>(y + at, lanes);
      store(kLog ? g - exp(p) * sum[v] : p * (g - sum[v]), dx + at, lanes);
    }
  }
}

// Calls f.operator()<kVectors>(column, lanes) over `cols` columns.
template <Isa I, class T, class F>
DRUPE_INLINE void for_columns(std::int64_t cols, const F& f) {
  constexpr int kStep = kUnroll * Vec<T, I>::kLanes;
  std::int64_t c = 0;
  for (; c + kStep <= cols; c += kStep) f.template operator()<kUnroll>(c, AllLanes{});
  for_vectors<I, T>(cols - c, [&](std::int64_t i, auto lanes) { f.template operator()<1>(c + i, lanes); });
}

template <class S, Isa I, bool kLog>
void columns(const S* x, S* y, std::int64_t size, std::int64_t stride, std::int64_t cols) {
  for_columns<I, Accumulator<S>>(cols, [&]<int kVectors>(std::int64_t c, auto lanes) {
    column_vectors<S, I, kLog, kVectors>(x + c, y + c, size, stride, lanes);
  });
}

template <class S, Isa I, bool kLog>
void columns_backward(const S* y, const S* dy, S* dx, std::int64_t size, std::int64_t stride, std::int64_t cols) {
  for_columns<I, Accumulator<S>>(cols, [&]<int kVectors>(std::int64_t c, auto lanes) {
    column_vectors_backward<S, I, kLog, kVectors>(y + c, dy + c, dx + c, size, stride, lanes);
  });
}

// Calls along_rows(offset, count) for ranges of rows, or along_columns(offset, cols) for each group of columns.
template <std::int64_t kColumns, class Rows, class Columns>
void for_each(const SoftmaxArgs& args, const Rows& along_rows, const Columns& along_columns) {
  if (args.inner == 1) {
    parallel_ranges(args.outer, std::max<std::int64_t>(1, kGrain / args.size),
                    [&](std::int64_t begin, std::int64_t end) { along_rows(begin * args.size, end - begin); });
    return;
  }
  const std::int64_t groups = (args.inner + kColumns - 1) / kColumns;
  const std::int64_t grain = std::max<std::int64_t>(1, kGrain / (args.size * std::min(kColumns, args.inner)));
  parallel_ranges(args.outer * groups, grain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      const std::int64_t column = i % groups * kColumns;
      along_columns(i / groups * args.size * args.inner + column, std::min(kColumns, args.inner - column));
    }
  });
}

template <class F>
void dispatch_log(bool log, F&& f) {
  if (log) return f.template operator()<true>();
  f.template operator()<false>();
}

}  // namespace

template <Isa I>
void softmax(const SoftmaxArgs& args) {
  dispatch_float(args.dtype, [&]<class S>() {
    dispatch_log(args.log, [&]<bool kLog>() {
      const S* x = static_cast<const S*>(args.x);
      S* y = static_cast<S*>(args.y);
      for_each<kUnroll * Vec<Accumulator<S>, I>::kLanes>(
          args,
          [&](std::int64_t at, std::int64_t count) {
            rows<S, I, kLog>(x + at, y + at, count, args.size, passes_caches<S>(args.outer * args.size));
          },
          [&](std::int64_t at, std::int64_t cols) {
            columns<S, I, kLog>(x + at, y + at, args.size, args.inner, cols);
          });
    });
  });
}

template <Isa I>
void softmax_backward(const SoftmaxArgs& args) {
  dispatch_float(args.dtype, [&]<class S>() {
    dispatch_log(args.log, [&]<bool kLog>() {
      const S* y = static_cast<const S*>(args.x);
      const S* dy = static_cast<const S*>(args.dy);
      S* dx = static_cast<S*>(args.y);
      for_each<kUnroll * Vec<Accumulator<S>, I>::kLanes>(
          args,
          [&](std::int64_t at, std::int64_t count) {
            for (const std::int64_t end = at + count * args.size; at < end; at += args.size) {
              row_backward<S, I, kLog>(y + at, dy + at, dx + at, args.size);
            }
          },
          [&](std::int64_t at, std::int64_t cols) {
            columns_backward<S, I, kLog>(y + at, dy + at, dx + at, args.size, args.inner, cols);
          });
    });
  });
}

template void softmax<Isa::DRUPE_ISA>(const SoftmaxArgs&);
template void softmax_backward<Isa::DRUPE_ISA>(const SoftmaxArgs&);

}  // namespace drupe::cpu
