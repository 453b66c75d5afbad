// Sparse times dense. A task is a range of rows with about as many entries and rows as any other, for one block of
// columns; blocks come one after another, so that what the entries gather from stays in cache for longer. A row's sum
// is in registers while the rows it names stream by, those some way ahead asked for early. Long rows come first, in
// segments whose sums go to memory and are joined in a second pass. Where only some rows of x are stored, or of y
// wanted, a task first picks the entries that count, and walks over these. Bytes: the entries once for each block, a
// block of x's row for each entry (from cache, where x fits), y and z once.
#include "ops/spmm.h"

#include <algorithm>

#include "core/dispatch.h"
#include "core/memory.h"
#include "core/parallel.h"
#include "cpu/row_sum.h"

namespace drupe::cpu {
namespace {

constexpr std::int64_t kBlockBytes = 512;  // of accumulators, in a block of columns: eight of the largest registers
constexpr std::int64_t kMostAhead = 64;    // rows of x to ask for early, which lie on few pages
constexpr std::int64_t kAheadOfZ = 8;      // rows of z, likewise
constexpr std::int64_t kTaskElements = 131072;  // read by one task

// The entries, and the columns of x that they are multiplied with.
template <Isa I, class S, class Index, bool Scaled>
struct Entries {
  using T = Accumulator<S>;
  using V = Vec<T, I>;
  const S* x;  // at the first of the columns
  std::int64_t stride;
  const Index* indices;
  const T* values;
  std::int64_t size;

  DRUPE_INLINE const S* row(std::int64_t i) const { return x + static_cast<std::int64_t>(indices[i]) * stride; }

  // finish(column, sum, lanes) takes each of N registers of the sum of entries [begin, end).
  template <int N, class Lanes, class Finish>
  DRUPE_INLINE void sum_columns(std::int64_t begin, std::int64_t end, std::int64_t column, Lanes lanes,
                                const Finish& finish) const {
    constexpr std::int64_t kBytes = N * V::kLanes * static_cast<std::int64_t>(sizeof(S));
    V sum[N];
#pragma GCC unroll 8
    for (int k = 0; k < N; ++k) sum[k] = V::zero();
    for (std::int64_t i = begin; i < end; ++i) {
      prefetch_ahead<kBytes, kMostAhead>([&](std::int64_t entry) { return row(entry) + column; }, i, size, false);
      const S* from = row(i) + column;
      const V factor = Scaled ? V::set(values[i]) : V::zero();
#pragma GCC unroll 8
      for (int k = 0; k < N; ++k) {
        const V part = load<V>(from + k * V::kLanes, lanes);
        sum[k] = Scaled ? fma(part, factor, sum[k]) : sum[k] + part;
      }
    }
#pragma GCC unroll 8
    for (int k = 0; k < N; ++k) finish(column + k * V::kLanes, sum[k], lanes);
  }

  // The same for all of `width` columns, as many registers at a time as there are.
  template <class Finish>
  DRUPE_INLINE void sum(std::int64_t begin, std::int64_t end, std::int64_t width, const Finish& finish) const {
    constexpr int kLanes = V::kLanes;
    std::int64_t column = 0;
    const auto whole = [&]<int N>(std::integral_constant<int, N>) {
      sum_columns<N>(begin, end, column, AllLanes{}, finish);
      column += N * kLanes;
    };
    while (column + 8 * kLanes <= width) whole(std::integral_constant<int, 8>());
    if (column + 4 * kLanes <= width) whole(std::integral_constant<int, 4>());
    if (column + 2 * kLanes <= width) whole(std::integral_constant<int, 2>());
    if (column + kLanes <= width) whole(std::integral_constant<int, 1>());
    const FirstLanes rest{static_cast<int>(width - column)};
    if (rest.count > 0) sum_columns<1>(begin, end, column, rest, finish);
  }
};

// The product, for `width` columns from `column` on.
template <Isa I, class S>
struct Block {
  using T = Accumulator<S>;
  using V = Vec<T, I>;
  const SpmmArgs& args;
  std::int64_t column, width;
  bool stream;  // y goes past the caches: the caller owes a stream_fence

  template <class Index, bool Scaled>
  DRUPE_INLINE Entries<I, S, Index, Scaled> entries(const Index* indices, const T* values, std::int64_t size) const {
    return {static_cast<const S*>(args.x) + column, args.x_stride, indices, values, size};
  }

  DRUPE_INLINE bool is_wanted(std::int64_t row) const { return !args.y_places || args.y_places[row] >= 0; }

  // A row's sum as it goes to y.
  DRUPE_INLINE auto to_result(std::int64_t row) const {
    const std::int64_t z_row = args.z_places ? args.z_places[row] : row;
    const std::int64_t y_row = args.y_places ? args.y_places[row] : row;
    const S* z = args.z && z_row >= 0 ? static_cast<const S*>(args.z) + z_row * args.z_stride + column : nullptr;
    if (z && !args.z_places) {
      const auto* ahead = reinterpret_cast<const char*>(z + kAheadOfZ * args.z_stride);
      for (std::int64_t byte = 0; byte < width * std::int64_t{sizeof(S)}; byte += kCacheLine) {
        __builtin_prefetch(ahead + byte);
      }
    }
    return [z, y = static_cast<S*>(args.y) + y_row * args.width + column, alpha = V::set(static_cast<T>(args.alpha)),
            beta = V::set(static_cast<T>(args.beta)), stream = stream](std::int64_t c, V sum, auto lanes) {
      sum = sum * alpha;
      if (z) sum = fma(cpu::load<V>(z + c, lanes), beta, sum);
      if constexpr (std::is_same_v<S, T> && std::is_same_v<decltype(lanes), AllLanes>) {
        if (stream) return sum.stream(y + c);
      }
      store(sum, y + c, lanes);
    };
  }

  T* partial(std::int64_t segment) const { return static_cast<T*>(args.partial) + segment * args.width + column; }

  // The sums of rows [first, last), where they have no segments, or of one segment.
  template <class Index, bool Scaled>
  void rows(std::int64_t first, std::int64_t last) const {
    const CsrView& a = args.a;
    sums<Index, Scaled>(
        first, last, [&](std::int64_t row) { return std::pair(a.indptr[row], a.indptr[row + 1]); },
        [&](std::int64_t row, std::int64_t count) { return count <= a.segment && is_wanted(row); },
        [&](std::int64_t row) { return to_result(row); });
  }

  template <class Index, bool Scaled>
  void segment(std::int64_t s) const {
    const CsrView& a = args.a;
    const std::int64_t owner = a.segment_owner[s], row = a.long_row[owner];
    sums<Index, Scaled>(
        s, s + 1,
        [&](std::int64_t) {
          const std::int64_t begin = a.indptr[row] + (s - a.first_segment[owner]) * a.segment;
          return std::pair(begin, std::min(begin + a.segment, a.indptr[row + 1]));
        },
        [&](std::int64_t, std::int64_t) { return is_wanted(row); },
        [&](std::int64_t) {
          return [to = partial(s)](std::int64_t c, V sum, auto lanes) { store(sum, to + c, lanes); };
        });
  }

  void join(std::int64_t owner) const {
    const CsrView& a = args.a;
    if (!is_wanted(a.long_row[owner])) return;
    const auto finish = to_result(a.long_row[owner]);
    for_vectors<I, T>(width, [&](std::int64_t c, auto lanes) {
      V sum = V::zero();
      for (std::int64_t s = a.first_segment[owner]; s < a.first_segment[owner + 1]; ++s) {
        sum = sum + cpu::load<V>(partial(s) + c, lanes);
      }
      finish(c, sum, lanes);
    });
  }

 private:
  // For each r in [first, last) that takes(r, count): the sum of the entries in range(r), to result(r).
  template <class Index, bool Scaled, class Range, class Takes, class Result>
  DRUPE_INLINE void sums(std::int64_t first, std::int64_t last, const Range& range, const Takes& takes,
                         const Result& result) const {
    const auto* indices = static_cast<const Index*>(args.a.indices);
    const auto* values = static_cast<const T*>(args.values);
    if (!args.x_places && !args.y_places) {
      const auto all = entries<Index, Scaled>(indices, values, args.a.size);
      for (std::int64_t r = first; r < last; ++r) {
        const auto [begin, end] = range(r);
        if (takes(r, end - begin)) all.sum(begin, end, width, result(r));
      }
      return;
    }
    if (first == last) return;
    const auto most = static_cast<std::size_t>(range(last - 1).second - range(first).first);
    const Scratch<Index> picked(most);
    const Scratch<T> factors(Scaled ? most : 0);
    const Scratch<std::int64_t> ends(static_cast<std::size_t>(last - first));
    std::int64_t size = 0;
    for (std::int64_t r = first; r < last; ++r) {
      const auto [begin, all] = range(r);
      const std::int64_t end = takes(r, all - begin) ? all : begin;
      for (std::int64_t i = begin; i < end; ++i) {
        const Index place = args.x_places ? static_cast<Index>(args.x_places[indices[i]]) : indices[i];
        picked[size] = place;
        if constexpr (Scaled) factors[size] = values[i];
        size += place >= 0;
      }
      ends[r - first] = size;
    }
    const auto some = entries<Index, Scaled>(picked.data(), factors.data(), size);
    std::int64_t begin = 0;
    for (std::int64_t r = first; r < last; begin = ends[r - first], ++r) {
      const auto [from, to] = range(r);
      if (takes(r, to - from)) some.sum(begin, ends[r - first], width, result(r));
    }
  }
};

// The first row before which lie `work` entries and rows.
std::int64_t row_at(const CsrView& a, std::int64_t work) {
  std::int64_t low = 0, high = a.rows;
  while (low < high) {
    const std::int64_t middle = (low + high) / 2;
    if (a.indptr[middle] + middle < work) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

template <Isa I, class S, class Index, bool Scaled>
void multiply(const SpmmArgs& args) {
  const CsrView& a = args.a;
  constexpr std::int64_t kColumns = kBlockBytes / static_cast<std::int64_t>(sizeof(Accumulator<S>));
  const std::int64_t blocks = (args.width + kColumns - 1) / kColumns;
  const std::int64_t grain = kTaskElements / std::clamp<std::int64_t>(args.width, 16, kColumns);
  const std::int64_t ranges = (a.size + a.rows + grain - 1) / grain, tasks = a.segments + ranges;
  const bool stream = !args.y_places && passes_caches<S>(a.rows * args.width) &&
                      args.width * static_cast<std::int64_t>(sizeof(S)) % kCacheLine == 0;
  const auto block = [&](std::int64_t b) {
    return Block<I, S>{args, b * kColumns, std::min(kColumns, args.width - b * kColumns), stream};
  };
  parallel_for(blocks * tasks, [&](std::int64_t task) {
    const auto here = block(task / tasks);
    const std::int64_t t = task % tasks;
    if (t < a.segments) {
      here.template segment<Index, Scaled>(t);
    } else {
      const std::int64_t work = (t - a.segments) * grain;
      here.template rows<Index, Scaled>(row_at(a, work), row_at(a, work + grain));
    }
    if (stream) stream_fence<I>();
  });
  if (a.long_rows == 0) return;
  parallel_for(blocks * a.long_rows, [&](std::int64_t task) {
    block(task / a.long_rows).join(task % a.long_rows);
    if (stream) stream_fence<I>();
  });
}

}  // namespace

template <Isa I>
void spmm(const SpmmArgs& args) {
  dispatch_float(args.dtype, [&]<class S>() {
    dispatch_index(args.a.index_dtype, [&]<class Index>() {
      if (args.values) {
        multiply<I, S, Index, true>(args);
      } else {
        multiply<I, S, Index, false>(args);
      }
    });
  });
}

template void spmm<Isa::DRUPE_ISA>(const SpmmArgs&);

}  // namespace drupe::cpu
