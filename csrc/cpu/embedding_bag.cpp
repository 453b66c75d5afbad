// Reductions over bags. A task is a range of bags; a bag's sum stays in registers, up to 8 of them for a block of
// columns, while its rows stream by. Rows are scattered over the table, so those a few steps ahead are asked for early,
// past the ends of bags too. A task checks its indices and offsets first, which it then finds in cache; with many
// tables it keeps the rows that these mean. Bytes: the indices and the named rows once, the result once. Backward:
// sparse_rows.cpp.
#include "ops/embedding_bag.h"

#include <algorithm>
#include <atomic>

#include "core/dispatch.h"
#include "core/memory.h"
#include "core/parallel.h"
#include "cpu/row_check.h"
#include "cpu/row_sum.h"
#include "cpu/table_rows.h"
#include "ops/bag_order.h"

namespace drupe::cpu {
namespace {

constexpr std::int64_t kTaskElements = 32768;  // of the rows, read by one task
constexpr std::int64_t kOffsetsGrain = 32768;

// The rows that the indices name, in order (row_sum.h).
template <Isa I, class S, class Index, bool Scaled>
struct TableSource {
  using T = Accumulator<S>;
  using V = Vec<T, I>;
  static constexpr auto kItem = static_cast<std::int64_t>(sizeof(S));
  const S* weight;
  std::int64_t row_stride;
  const Index* indices;
  const S* scale;
  std::int64_t first, size, skip;
  PrefetchPlan plan;
  bool straddles;

  struct Row {
    const S* data;
    V factor;
  };

  explicit TableSource(const EmbeddingBagArgs& args)
      : weight(static_cast<const S*>(args.weight)),
        row_stride(args.row_stride),
        indices(static_cast<const Index*>(args.indices)),
        scale(static_cast<const S*>(args.scale)),
        first(args.first),
        size(args.size),
        skip(args.skip),
        plan(PrefetchPlan::make<I>(args.weight, row_stride * kItem, args.width * kItem)),
        straddles(plan.straddles) {}

  DRUPE_INLINE std::int64_t index(std::int64_t i) const { return static_cast<std::int64_t>(indices[i - first]); }
  DRUPE_INLINE const S* at(std::int64_t i) const { return weight + index(i) * row_stride; }
  DRUPE_INLINE Row row(std::int64_t i) const {
    const S* data = index(i) == skip ? nullptr : at(i);
    if constexpr (Scaled) {
      return {data, V::set(static_cast<T>(scale[i]))};
    } else {
      return {data, V::zero()};
    }
  }
  DRUPE_INLINE V load(const Row& row, std::int64_t column, auto lanes) const {
    const V x = cpu::load<V>(row.data + column, lanes);
    if constexpr (Scaled) return x * row.factor;
    return x;
  }
  DRUPE_INLINE void prefetch(std::int64_t i) const {
    if (i + plan.ahead < size) plan(at(i + plan.ahead));
  }
};

DRUPE_INLINE std::int64_t bag_begin(const EmbeddingBagArgs& args, std::int64_t bag) {
  if (!args.offsets) return bag * args.length;
  return bag < args.bags ? args.offsets[bag] : args.size;
}

// Whether the offsets of bags [first, last) lie in order within the indices.
bool offsets_are_valid(const EmbeddingBagArgs& args, std::int64_t first, std::int64_t last) {
  if (!args.offsets) return true;
  const std::int64_t begin = bag_begin(args, first), end = bag_begin(args, last);
  if (begin < 0 || (first == 0 && begin != 0) || args.offsets[last - 1] > end || end > args.size) return false;
  const auto ascends = [from = args.offsets + first](std::int64_t b) { return from[b] <= from[b + 1]; };
  return all_of_blocks(last - first - 1, ascends);
}

template <Isa I, class Index>
std::int64_t count_rows(const EmbeddingBagArgs& args, std::int64_t begin, std::int64_t end) {
  if (args.skip < 0) return end - begin;
  const auto* indices = static_cast<const Index*>(args.indices);
  std::int64_t count = 0;
  for (std::int64_t i = begin; i < end; ++i) count += static_cast<std::int64_t>(indices[i]) != args.skip;
  return count;
}

// Whether each of the bags [first, last), whose offsets are valid, has one index.
bool all_single(const EmbeddingBagArgs& args, std::int64_t first, std::int64_t last) {
  const std::int64_t begin = bag_begin(args, first);
  if (bag_begin(args, last) - begin != last - first) return false;
  if (!args.offsets) return true;
  return all_of_blocks(last - first,
                       [from = args.offsets + first, begin](std::int64_t b) { return from[b] == begin + b; });
}

// N is the number of whole registers in a row, 0 where that is only known at run time. Single bags have one index each.
template <int N, bool Single, Isa I, class S, class Index, bool Scaled>
void sum_bags(const EmbeddingBagArgs& args, std::int64_t first, std::int64_t last) {
  using T = Accumulator<S>;
  using V = Vec<T, I>;
  const TableSource<I, S, Index, Scaled> source(args);
  const bool mean = !Single && args.mode == BagMode::mean;
  const std::int64_t* offsets = args.offsets;
  const std::int64_t length = args.length, width = args.width;
  const BagOrder order{args.bags, args.lists};
  std::int64_t begin = bag_begin(args, first), place = order.place(first);
  for (std::int64_t bag = first; bag < last; ++bag, place = order.next(place)) {
    const std::int64_t end = Single ? begin + 1 : offsets ? bag_begin(args, bag + 1) : begin + length;
    S* y = static_cast<S*>(args.y) + place * width;
    V divisor = V::zero();
    if (mean) {
      divisor = V::set(static_cast<T>(std::max<std::int64_t>(1, count_rows<I, Index>(args, begin, end))));
    }
    const auto finish = [=](std::int64_t column, V sum, auto lanes) {
      store(mean ? sum / divisor : sum, y + column, lanes);
    };
    if constexpr (N > 0) {
      sum_columns<N, V>(source, begin, end, 0, AllLanes{}, finish);
    } else {
      sum_rows_in_order<V>(source, begin, end, width, finish);
    }
    begin = end;
  }
}

template <Isa I, class S, class Index, bool Scaled>
void sum_bags(const EmbeddingBagArgs& args, std::int64_t first, std::int64_t last) {
  constexpr int kLanes = Vec<Accumulator<S>, I>::kLanes;
  const auto run = [&]<int N>() {
    if (N <= 2 && all_single(args, first, last)) return sum_bags<N, N <= 2, I, S, Index, Scaled>(args, first, last);
    sum_bags<N, false, I, S, Index, Scaled>(args, first, last);
  };
  switch (args.width) {
    case kLanes:
      return run.template operator()<1>();
    case 2 * kLanes:
      return run.template operator()<2>();
    case 4 * kLanes:
      return run.template operator()<4>();
    case 8 * kLanes:
      return run.template operator()<8>();
    default:
      return run.template operator()<0>();
  }
}

// The maximum of a register of columns over a bag, and its place.
template <Isa I, class S, class Index, class Lanes>
void max_columns(const EmbeddingBagArgs& args, const TableSource<I, S, Index, false>& source, std::int64_t bag,
                 std::int64_t column, Lanes lanes) {
  using T = Accumulator<S>;
  using V = Vec<T, I>;
  const std::int64_t begin = bag_begin(args, bag), end = bag_begin(args, bag + 1);
  V best = V::zero(), place = V::set(T(-1));
  bool any = false;
  for (std::int64_t i = begin; i < end; ++i) {
    if (column == 0) source.prefetch(i);
    const auto row = source.row(i);
    if (!row.data) continue;
    const V x = source.load(row, column, lanes);
    const V here = V::set(static_cast<T>(i - begin));
    if (!any) {
      best = x;
      place = here;
      any = true;
      continue;
    }
    const auto take = ~(x <= best) & (best == best);  // greater, or the first NaN
    best = select(take, x, best);
    place = select(take, here, place);
  }
  const std::int64_t at = bag * args.width + column;
  store(best, static_cast<S*>(args.y) + at, lanes);
  if (args.argmax) store(place, static_cast<T*>(args.argmax) + at, lanes);
}

template <Isa I, class S, class Index>
void max_bags(const EmbeddingBagArgs& args, std::int64_t first, std::int64_t last) {
  const TableSource<I, S, Index, false> source(args);
  for (std::int64_t bag = first; bag < last; ++bag) {
    for_vectors<I, Accumulator<S>>(args.width, [&](std::int64_t column, auto lanes) {
      max_columns<I, S, Index>(args, source, bag, column, lanes);
    });
  }
}

template <Isa I, class S, class Index>
void reduce_bags(const EmbeddingBagArgs& args, std::int64_t first, std::int64_t last) {
  if (args.mode == BagMode::max) {
    max_bags<I, S, Index>(args, first, last);
  } else if (args.scale) {
    sum_bags<I, S, Index, true>(args, first, last);
  } else {
    sum_bags<I, S, Index, false>(args, first, last);
  }
}

// Checks the bags [first, last) and reduces them; false if they, or the rows that are asked for ahead of them, are
// wrong.
template <Isa I, class S, class Index>
bool check_and_reduce(const EmbeddingBagArgs& args, std::int64_t first, std::int64_t last) {
  if (!offsets_are_valid(args, first, last)) return false;
  const std::int64_t begin = bag_begin(args, first);
  const std::int64_t asked = std::min(args.size, bag_begin(args, last) + kFarthestRow);
  if (!args.tables) {
    if (!all_below(static_cast<const Index*>(args.indices) + begin, asked - begin, args.limit)) return false;
    reduce_bags<I, S, Index>(args, first, last);
    return true;
  }
  const Scratch<std::int64_t> rows(static_cast<std::size_t>(asked - begin));
  if (!TableRowFinder<I, Index>(*args.tables)(begin, asked, rows.data())) return false;
  EmbeddingBagArgs found = args;
  found.indices = rows.data();
  found.first = begin;
  reduce_bags<I, S, std::int64_t>(found, first, last);
  return true;
}

std::int64_t bags_per_task(const EmbeddingBagArgs& args) {
  const std::int64_t rows = std::max<std::int64_t>(1, args.size / std::max<std::int64_t>(1, args.bags));
  return std::max<std::int64_t>(1, kTaskElements / (rows * std::max<std::int64_t>(16, args.width)));
}

// Whether no offset decreases and no bag is too long. Without sign, what decreases is too long as well.
template <Isa I>
bool all_bags_fit(const InspectBagsArgs& args) {
  const auto longest = static_cast<std::uint64_t>(args.longest);
  std::atomic<bool> fit = true;
  parallel_ranges(args.bags, kOffsetsGrain, [&](std::int64_t first, std::int64_t last) {
    std::uint64_t most = 0;  // a maximum fills whole registers, a bool would not
    for (std::int64_t b = first; b < last; ++b) {
      const auto here = static_cast<std::uint64_t>(args.offsets[b + 1]) - static_cast<std::uint64_t>(args.offsets[b]);
      most = here > most ? here : most;
    }
    if (most > longest) fit.store(false, std::memory_order_relaxed);
  });
  return fit.load(std::memory_order_relaxed);
}

}  // namespace

template <Isa I>
bool embedding_bag(const EmbeddingBagArgs& args) {
  std::atomic<bool> complete = true;
  dispatch_float(args.dtype, [&]<class S>() {
    dispatch_index(args.index_dtype, [&]<class Index>() {
      parallel_ranges(args.bags, bags_per_task(args), [&](std::int64_t first, std::int64_t last) {
        if (!check_and_reduce<I, S, Index>(args, first, last)) complete.store(false, std::memory_order_relaxed);
      });
    });
  });
  return complete.load(std::memory_order_relaxed);
}

template <Isa I>
void embedding_bag_counts(const EmbeddingBagArgs& args) {
  dispatch_float(args.dtype, [&]<class S>() {
    using T = Accumulator<S>;
    const BagOrder order{args.bags, args.lists};
    dispatch_index(args.index_dtype, [&]<class Index>() {
      parallel_ranges(args.bags, bags_per_task(args), [&](std::int64_t first, std::int64_t last) {
        for (std::int64_t bag = first; bag < last; ++bag) {
          const std::int64_t count = count_rows<I, Index>(args, bag_begin(args, bag), bag_begin(args, bag + 1));
          static_cast<T*>(args.bag_scale)[order.place(bag)] = count ? T(1) / static_cast<T>(count) : T(0);
        }
      });
    });
  });
}

template <Isa I>
void embedding_bag_backward_scale(const BagScaleArgs& args) {
  const EmbeddingBagArgs& bags = args.bag;
  dispatch_float(bags.dtype, [&]<class S>() {
    using T = Accumulator<S>;
    using V = Vec<T, I>;
    dispatch_index(bags.index_dtype, [&]<class Index>() {
      const TableSource<I, S, Index, false> source(bags);
      const BagOrder order{bags.bags, bags.lists};
      parallel_ranges(bags.bags, bags_per_task(bags), [&](std::int64_t first, std::int64_t last) {
        for (std::int64_t bag = first; bag < last; ++bag) {
          const S* dy = static_cast<const S*>(args.dy) + order.place(bag) * bags.width;
          for (std::int64_t i = bag_begin(bags, bag); i < bag_begin(bags, bag + 1); ++i) {
            source.prefetch(i);
            const auto row = source.row(i);
            V sum = V::zero();
            if (row.data) {
              for_vectors<I, T>(bags.width, [&](std::int64_t c, auto lanes) {
                sum = fma(load<V>(dy + c, lanes), source.load(row, c, lanes), sum);
              });
            }
            static_cast<S*>(args.dscale)[i] = static_cast<S>(reduce_add(sum));
          }
        }
      });
    });
  });
}

template <Isa I>
void inspect_bags(InspectBagsArgs& args) {
  args.first = args.offsets[0];
  args.decrease = args.too_long = -1;
  if (all_bags_fit<I>(args)) return;
  for (std::int64_t b = 1; b <= args.bags; ++b) {
    const std::int64_t before = args.offsets[b - 1], here = args.offsets[b];
    if (args.decrease < 0 && here < before) args.decrease = b;
    // Without sign: what decreases is too long as well, and has been found.
    const auto length = static_cast<std::uint64_t>(here) - static_cast<std::uint64_t>(before);
    if (args.too_long < 0 && length > static_cast<std::uint64_t>(args.longest)) args.too_long = b - 1;
  }
}

template bool embedding_bag<Isa::DRUPE_ISA>(const EmbeddingBagArgs&);
template void embedding_bag_counts<Isa::DRUPE_ISA>(const EmbeddingBagArgs&);
template void embedding_bag_backward_scale<Isa::DRUPE_ISA>(const BagScaleArgs&);
template void inspect_bags<Isa::DRUPE_ISA>(InspectBagsArgs&);

}  // namespace drupe::cpu
