// Ids of T tables to rows, for a stretch of positions: cut into runs of one table each, or for one id a table, of all
// tables.
#pragma once

#include <algorithm>

#include "core/dispatch.h"
#include "cpu/simd.h"
#include "ops/table_rows.h"

namespace drupe::cpu {

template <Isa I, class Id>
class TableRowFinder {
 public:
  explicit TableRowFinder(const TableRowsArgs& args) : args_(args), ids_(static_cast<const Id*>(args.ids)) {}

  // Whether the ids at [begin, end) lie in their tables, unless they are hashed; writes their rows to `rows` on. Of
  // offsets nothing need be known.
  bool operator()(std::int64_t begin, std::int64_t end, std::int64_t* rows) const {
    if (begin == end) return true;
    return args_.hashed ? find<true>(begin, end, rows) : find<false>(begin, end, rows);
  }

 private:
  template <bool kHashed>
  bool find(std::int64_t begin, std::int64_t end, std::int64_t* rows) const {
    if (!args_.offsets && args_.length == 1) return find_each<kHashed>(begin, end, rows);
    std::int64_t table = args_.offsets ? 0 : begin / args_.length % args_.tables;
    bool inside = true;
    for (std::int64_t at = begin; at < end;) {
      const std::int64_t stop =
          std::min(end, args_.offsets ? end_of_table(table, at) : (at / args_.length + 1) * args_.length);
      const std::int64_t bounds[] = {args_.starts[table], args_.starts[table + 1]};
      inside &= walk<kHashed, 0>(ids_ + at, stop - at, bounds, rows + (at - begin));
      if (!args_.offsets && ++table == args_.tables) table = 0;
      at = stop;
    }
    return inside;
  }

  template <bool kHashed>
  bool find_each(std::int64_t begin, std::int64_t end, std::int64_t* rows) const {
    std::int64_t table = begin % args_.tables;
    bool inside = true;
    for (std::int64_t at = begin; at < end;) {
      const std::int64_t size = std::min(args_.tables - table, end - at);
      inside &= walk<kHashed, 1>(ids_ + at, size, args_.starts + table, rows + (at - begin));
      table = 0;
      at += size;
    }
    return inside;
  }

  // Moves on to the table that position `at` belongs to; gives the end of its positions.
  std::int64_t end_of_table(std::int64_t& table, std::int64_t at) const {
    for (; table + 1 < args_.tables; ++table) {
      const std::int64_t end = args_.offsets[(table + 1) * args_.bags];
      if (end > at) return end;
    }
    return args_.size;
  }

  // kStep tables from one id to the next.
  template <bool kHashed, int kStep>
  bool walk(const Id* ids, std::int64_t size, const std::int64_t* starts, std::int64_t* rows) const {
    constexpr std::int64_t kBlock = 8;
    const bool merged = args_.merged;
    const std::uint64_t seed = args_.seed;
    std::uint64_t failures = 0;
    const auto find_one = [&](std::int64_t i) {
      const auto id = static_cast<std::int64_t>(ids[i]);
      const std::int64_t start = starts[kStep * i], size_here = starts[kStep * i + 1] - start;
      const std::int64_t row = kHashed ? hash_row(id, size_here, seed) : id;
      if (!kHashed)
        failures |=
            static_cast<std::uint64_t>(!(static_cast<std::uint64_t>(id) < static_cast<std::uint64_t>(size_here)));
      rows[i] = merged ? start + row : row;
    };
    std::int64_t i = 0;
    for (; i + kBlock <= size; i += kBlock) {
      for (std::int64_t k = 0; k < kBlock; ++k) find_one(i + k);
    }
    for (; i < size; ++i) find_one(i);
    return failures == 0;
  }

  const TableRowsArgs args_;
  const Id* ids_;
};

}  // namespace drupe::cpu
