// Sums per row. Contributions are sorted by row; then each task takes a fixed number of them, whichever rows they
// belong to. A row that lies within one task is summed straight into the result. One that crosses tasks leaves a
// partial sum in each (`open` where it starts, `carry` where it goes on), which are added in order at the end: one
// long row costs no more than many short ones. Bytes: the contributions once, the result once. With a step
// (row_step.h), a row's sum goes through the task's own `open` into the table, while it is in cache.
#include "ops/sparse_rows.h"

#include <algorithm>
#include <cstring>

#include "core/dispatch.h"
#include "core/memory.h"
#include "core/parallel.h"
#include "cpu/lanes.h"
#include "cpu/radix_sort.h"
#include "cpu/row_step.h"
#include "cpu/row_sum.h"
#include "ops/bag_order.h"

namespace drupe::cpu {
namespace {

constexpr std::int64_t kTaskElements = 16384;  // of contributions, summed by one task
constexpr std::int64_t kFewestEntries = 32;
constexpr std::int64_t kIndexGrain = 32768;

enum class Factor { none, bag, contribution, argmax };

// The place of contribution i's bag, for a walk that only goes forward.
template <Isa>
class BagCursor {
 public:
  BagCursor(const SumRowsArgs& args, std::int64_t i)
      : offsets_(args.offsets), length_(args.length), order_{args.bags, args.lists} {
    if (!offsets_) {
      bag_ = length_ ? i / length_ : 0;
      end_ = (bag_ + 1) * length_;
    } else {
      bag_ = std::upper_bound(offsets_, offsets_ + args.bags + 1, i) - offsets_ - 1;
      end_ = offsets_[bag_ + 1];
    }
    place_ = order_.place(bag_);
  }
  DRUPE_INLINE std::int64_t place_of(std::int64_t i) {
    while (i >= end_) {
      ++bag_;
      place_ = order_.next(place_);
      end_ = offsets_ ? offsets_[bag_ + 1] : end_ + length_;
    }
    return place_;
  }

 private:
  const std::int64_t* offsets_;
  std::int64_t length_;
  BagOrder order_;
  std::int64_t bag_;
  std::int64_t end_;
  std::int64_t place_;
};

// The sorted contributions as rows to sum. An entry's payload is its bag where that says all, else its position.
template <Isa I, class S, class Entry, Factor F>
struct EntrySource {
  using T = Accumulator<S>;
  using V = Vec<T, I>;
  const Entry* entries;
  std::int64_t size, width;
  const S* source;
  const std::int64_t* bag_of;  // (size,) where the payload is a position
  const S* scale;
  const T* bag_scale;
  const T* argmax;
  const std::int64_t* offsets;
  std::int64_t length;
  bool straddles;

  static constexpr bool kByPosition = F == Factor::contribution || F == Factor::argmax;

  struct Row {
    const S* data;
    const T* argmax;
    V factor;  // or the place within the bag that argmax must name
  };

  DRUPE_INLINE Row row(std::int64_t e) const {
    const std::int64_t payload = entries[e].payload();
    if constexpr (F == Factor::none) return {source + payload * width, nullptr, V::zero()};
    if constexpr (F == Factor::bag) return {source + payload * width, nullptr, V::set(bag_scale[payload])};
    if constexpr (kByPosition) {
      const std::int64_t bag = bag_of[payload];
      if constexpr (F == Factor::contribution) {
        return {source + bag * width, nullptr, V::set(static_cast<T>(scale[payload]))};
      } else {
        const std::int64_t place = payload - (offsets ? offsets[bag] : bag * length);
        return {source + bag * width, argmax + bag * width, V::set(static_cast<T>(place))};
      }
    }
  }
  DRUPE_INLINE V load(const Row& row, std::int64_t column, auto lanes) const {
    const V x = cpu::load<V>(row.data + column, lanes);
    if constexpr (F == Factor::none) return x;
    if constexpr (F == Factor::argmax) {
      return select(cpu::load<V>(row.argmax + column, lanes) == row.factor, x, V::zero());
    }
    return x * row.factor;
  }
  DRUPE_INLINE const S* at(std::int64_t e) const {
    const std::int64_t payload = entries[e].payload();
    return source + (kByPosition ? bag_of[payload] : payload) * width;
  }
};

// The sum of sorted entries by rows; `open` and `carry` hold one row of accumulators for each task.
template <Isa I, class S, class Entry, Factor F>
class SegmentSum {
  using T = Accumulator<S>;
  using V = Vec<T, I>;

 public:
  SegmentSum(SumRowsArgs& args, const EntrySource<I, S, Entry, F>& source, const RowStep<I, S>& step)
      : args_(args),
        source_(source),
        step_(step),
        grain_(std::max(kFewestEntries, kTaskElements / std::max<std::int64_t>(1, args.width))),
        tasks_((source.size + grain_ - 1) / grain_),
        first_(static_cast<std::size_t>(tasks_ + 1)),
        partials_(static_cast<std::size_t>(2 * tasks_ * args.width)) {}

  void run() {
    number_segments();
    if (args_.dense) {
      const auto bytes = args_.limit * args_.width * static_cast<std::int64_t>(sizeof(S));
      parallel_ranges(bytes, std::int64_t{1} << 20, [&](std::int64_t begin, std::int64_t end) {
        std::memset(static_cast<char*>(args_.values) + begin, 0, static_cast<std::size_t>(end - begin));
      });
    }
    parallel_for(tasks_, [&](std::int64_t task) { sum_task(task); });
    join_tasks();
  }

 private:
  bool starts(std::int64_t e) const { return e == 0 || row(e) != row(e - 1); }
  std::int64_t row(std::int64_t e) const { return source_.entries[e].row(); }
  std::int64_t begin(std::int64_t task) const { return task * grain_; }
  std::int64_t end(std::int64_t task) const { return std::min(source_.size, begin(task) + grain_); }
  T* carry(std::int64_t task) const { return partials_.data() + 2 * task * args_.width; }
  T* open(std::int64_t task) const { return carry(task) + args_.width; }
  S* result(std::int64_t segment, std::int64_t row) const {
    return static_cast<S*>(args_.values) + (args_.dense ? row : segment) * args_.width;
  }

  // first_[task]: how many segments start before the task.
  void number_segments() {
    parallel_for(tasks_, [&](std::int64_t task) {
      std::int64_t count = 0;
      for (std::int64_t e = begin(task); e < end(task); ++e) count += starts(e);
      first_[static_cast<std::size_t>(task)] = count;
    });
    std::int64_t total = 0;
    for (std::int64_t task = 0; task <= tasks_; ++task) {
      const std::int64_t count = task < tasks_ ? first_[static_cast<std::size_t>(task)] : 0;
      first_[static_cast<std::size_t>(task)] = total;
      total += count;
    }
    if (!args_.step) args_.allocate(args_, total);
  }

  std::int64_t run_end(std::int64_t e, std::int64_t limit) const {
    const std::int64_t here = row(e);
    while (++e < limit && row(e) == here) {
    }
    return e;
  }

  template <class Out>
  void sum(std::int64_t from, std::int64_t to, Out* out) const {
    sum_rows_in_order<V>(source_, from, to, args_.width,
                         [out](std::int64_t column, V value, auto lanes) { store(value, out + column, lanes); });
  }

  void sum_task(std::int64_t task) const {
    std::int64_t e = begin(task);
    const std::int64_t stop = end(task);
    if (!starts(e)) {
      const std::int64_t next = run_end(e, stop);
      sum(e, next, carry(task));
      e = next;
    }
    std::int64_t segment = first_[static_cast<std::size_t>(task)];
    while (e < stop) {
      const std::int64_t next = run_end(e, stop);
      if (args_.indices) args_.indices[segment] = row(e);
      if (args_.step) step_.prefetch(row(std::min(next + step_.ahead(), source_.size - 1)));
      if (goes_on(task, next)) {
        sum(e, next, open(task));
      } else if (args_.step) {
        sum(e, next, open(task));
        step_(row(e), open(task));
      } else {
        sum(e, next, result(segment, row(e)));
      }
      ++segment;
      e = next;
    }
  }

  // Whether the segment that reaches `next` within the task has more entries in the following one.
  bool goes_on(std::int64_t task, std::int64_t next) const {
    return next == end(task) && next < source_.size && !starts(next);
  }

  void join_tasks() const {
    for (std::int64_t task = 0; task < tasks_; ++task) {
      const std::int64_t last = end(task) - 1;
      const std::int64_t segments = first_[static_cast<std::size_t>(task + 1)] - first_[static_cast<std::size_t>(task)];
      if (segments == 0 || !goes_on(task, last + 1)) continue;
      T* total = open(task);
      for (std::int64_t next = task + 1; next < tasks_ && !starts(begin(next)); ++next) {
        const T* more = carry(next);
        for (std::int64_t i = 0; i < args_.width; ++i) total[i] += more[i];
        if (row(begin(next)) != row(end(next) - 1)) break;
      }
      if (args_.step) {
        step_(row(last), total);
        continue;
      }
      S* out = result(first_[static_cast<std::size_t>(task + 1)] - 1, row(last));
      for (std::int64_t i = 0; i < args_.width; ++i) out[i] = static_cast<S>(total[i]);
    }
  }

  SumRowsArgs& args_;
  const EntrySource<I, S, Entry, F>& source_;
  const RowStep<I, S>& step_;
  std::int64_t grain_, tasks_;
  Scratch<std::int64_t> first_;
  Scratch<T> partials_;
};

int bits_for(std::int64_t largest) {
  int bits = 0;
  while (bits < 63 && largest >> bits) ++bits;
  return bits;
}

// Writes the entries, those to skip with the largest row; gives how many of those there are.
template <Isa I, class Entry, class Index>
std::int64_t make_entries(const SumRowsArgs& args, Entry* entries, std::int64_t* bag_of) {
  const auto* rows = static_cast<const Index*>(args.rows);
  const std::int64_t blocks = (args.size + kSortBlock - 1) / kSortBlock;
  Scratch<std::int64_t> skipped(static_cast<std::size_t>(blocks));
  parallel_ranges(args.size, kSortBlock, [&](std::int64_t begin, std::int64_t end) {
    BagCursor<I> cursor(args, begin);
    std::int64_t count = 0;
    for (std::int64_t i = begin; i < end; ++i) {
      const auto row = static_cast<std::int64_t>(rows[i]);
      const std::int64_t bag = cursor.place_of(i);
      const bool skip = row == args.skip;
      count += skip;
      if (bag_of) bag_of[i] = bag;
      entries[i] = Entry::make(skip ? args.limit : row, bag_of ? i : bag);
    }
    skipped[static_cast<std::size_t>(begin / kSortBlock)] = count;
  });
  std::int64_t total = 0;
  for (std::int64_t block = 0; block < blocks; ++block) total += skipped[static_cast<std::size_t>(block)];
  return total;
}

template <Isa I, class S, class Entry>
void sum_entries(SumRowsArgs& args) {
  using T = Accumulator<S>;
  const auto size = static_cast<std::size_t>(args.size);
  const bool by_position = args.scale || args.argmax;
  Scratch<Entry> entries(size), spare(size);
  Scratch<std::int64_t> bag_of(by_position ? size : 0);
  std::int64_t skipped = 0;
  dispatch_index(args.row_dtype, [&]<class Index>() {
    skipped = make_entries<I, Entry, Index>(args, entries.data(), by_position ? bag_of.data() : nullptr);
  });
  const int bits = bits_for(skipped ? args.limit : args.limit - 1);
  const RowStep<I, S> step(args.step ? *args.step : RowStepArgs{}, args.width);
  const Entry* sorted = radix_sort<I>(entries.data(), spare.data(), args.size, bits);
  const auto row_bytes = args.width * static_cast<std::int64_t>(sizeof(S));
  const auto run = [&]<Factor F>() {
    const EntrySource<I, S, Entry, F> source{.entries = sorted,
                                             .size = args.size - skipped,
                                             .width = args.width,
                                             .source = static_cast<const S*>(args.source),
                                             .bag_of = bag_of.data(),
                                             .scale = static_cast<const S*>(args.scale),
                                             .bag_scale = static_cast<const T*>(args.bag_scale),
                                             .argmax = static_cast<const T*>(args.argmax),
                                             .offsets = args.offsets,
                                             .length = args.length,
                                             .straddles = straddles_lines<I>(args.source, row_bytes, row_bytes)};
    SegmentSum<I, S, Entry, F>(args, source, step).run();
  };
  if (args.scale) {
    run.template operator()<Factor::contribution>();
  } else if (args.argmax) {
    run.template operator()<Factor::argmax>();
  } else if (args.bag_scale) {
    run.template operator()<Factor::bag>();
  } else {
    run.template operator()<Factor::none>();
  }
}

}  // namespace

template <Isa I>
void sum_rows(SumRowsArgs& args) {
  constexpr std::int64_t kPacked = std::int64_t{1} << 32;
  dispatch_float(args.dtype, [&]<class S>() {
    if (args.limit < kPacked && args.size < kPacked && args.bags < kPacked) {
      sum_entries<I, S, PackedEntry<I>>(args);
    } else {
      sum_entries<I, S, WideEntry<I>>(args);
    }
  });
}

template <Isa I>
void add_rows(const AddRowsArgs& args) {
  dispatch_float(args.dtype, [&]<class S>() {
    using V = Vec<Accumulator<S>, I>;
    const std::int64_t grain = std::max<std::int64_t>(1, kTaskElements / std::max<std::int64_t>(1, args.width));
    parallel_ranges(args.size, grain, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t u = begin; u < end; ++u) {
        S* to = static_cast<S*>(args.dense) + args.indices[u] * args.width;
        const S* from = static_cast<const S*>(args.values) + u * args.width;
        for_vectors<I, Accumulator<S>>(args.width, [&](std::int64_t i, auto lanes) {
          store(load<V>(to + i, lanes) + load<V>(from + i, lanes), to + i, lanes);
        });
      }
    });
  });
}

template <Isa I>
void inspect_rows(InspectRowsArgs& args) {
  const std::int64_t tasks = (args.size + kIndexGrain - 1) / kIndexGrain;
  Scratch<std::int64_t> found(static_cast<std::size_t>(tasks));
  args.outside = args.disorder = args.largest = -1;
  dispatch_index(args.dtype, [&]<class Index>() {
    const auto* indices = static_cast<const Index*>(args.indices);
    const auto outside = [&](std::int64_t i) {
      return static_cast<std::uint64_t>(static_cast<std::int64_t>(indices[i])) >=
             static_cast<std::uint64_t>(args.limit);
    };
    parallel_ranges(args.size, kIndexGrain, [&](std::int64_t begin, std::int64_t end) {
      bool any = false;
      for (std::int64_t i = begin; i < end; ++i) any |= outside(i);
      std::int64_t first = -1;
      for (std::int64_t i = begin; any && first < 0; ++i) {
        if (outside(i)) first = i;
      }
      found[static_cast<std::size_t>(begin / kIndexGrain)] = first;
    });
    for (std::int64_t i = 0; args.full && i < args.size; ++i) {
      const auto index = static_cast<std::int64_t>(indices[i]);
      if (args.disorder < 0 && i > 0 && index <= static_cast<std::int64_t>(indices[i - 1])) args.disorder = i;
      args.largest = std::max(args.largest, index);
    }
  });
  for (std::int64_t task = 0; task < tasks && args.outside < 0; ++task) {
    args.outside = found[static_cast<std::size_t>(task)];
  }
}

template void sum_rows<Isa::DRUPE_ISA>(SumRowsArgs&);
template void add_rows<Isa::DRUPE_ISA>(const AddRowsArgs&);
template void inspect_rows<Isa::DRUPE_ISA>(InspectRowsArgs&);

}  // namespace drupe::cpu
