// Ids of T tables to rows, task by task. Bytes: the ids once, the rows once.
#include "cpu/table_rows.h"

#include "core/memory.h"
#include "core/parallel.h"

namespace drupe::cpu {
namespace {

constexpr std::int64_t kGrain = 16384;

}  // namespace

template <Isa I>
void table_rows(TableRowsArgs& args) {
  const std::int64_t tasks = (args.size + kGrain - 1) / kGrain;
  Scratch<bool> inside(static_cast<std::size_t>(tasks));
  args.outside = -1;
  dispatch_index(args.id_dtype, [&]<class Id>() {
    const TableRowFinder<I, Id> find(args);
    parallel_ranges(args.size, kGrain, [&](std::int64_t begin, std::int64_t end) {
      inside[static_cast<std::size_t>(begin / kGrain)] = find(begin, end, args.rows + begin);
    });
    for (std::int64_t task = 0; task < tasks && args.outside < 0; ++task) {
      for (std::int64_t i = task * kGrain; !inside[static_cast<std::size_t>(task)] && args.outside < 0; ++i) {
        if (!find(i, i + 1, args.rows + i)) args.outside = i;
      }
    }
  });
}

template void table_rows<Isa::DRUPE_ISA>(TableRowsArgs&);

}  // namespace drupe::cpu
