// Ids of T tables to rows, a thread an id. The tables' bounds are among the kernel's arguments, so that one launch sees
// to so many tables. The first id out of range does not depend on the order of the threads. Bytes: the ids once, the
// rows once.
#include "ops/table_rows.h"

#include "core/dispatch.h"
#include "cuda/tile/row_groups.cuh"
#include "cuda/tile/scan.cuh"
#include "ops/index_range.h"

namespace drupe::cuda {
namespace {

constexpr int kTables = 448;  // of one launch, within the 4096 bytes that arguments may take

// Tables [first, first + count) of all.
struct TableSlice {
  std::int64_t starts[kTables + 1];
  std::int64_t first, count, all;
  std::int64_t length;
  const std::int64_t* offsets;
  std::int64_t bags;
  bool merged, hashed;
  std::uint64_t seed;

  // Where the offsets have the positions of a table begin.
  __device__ __forceinline__ std::int64_t begin(std::int64_t table) const { return offsets[(first + table) * bags]; }
  // The table, counted in the slice, of the slice's i-th id; i becomes its position.
  __device__ __forceinline__ std::int64_t find(std::int64_t& i) const {
    if (!offsets) {
      const std::int64_t run = quotient(i, length), example = quotient(run, count), table = run - example * count;
      i = (example * all + first + table) * length + (i - run * length);
      return table;
    }
    i += begin(0);
    std::int64_t low = 0, high = count;
    while (high - low > 1) {
      const std::int64_t middle = (low + high) / 2;
      (begin(middle) <= i ? low : high) = middle;
    }
    return low;
  }
  // How many ids there are in the slice, of `size` in all.
  __device__ __forceinline__ std::int64_t ids(std::int64_t size) const {
    return offsets ? begin(count) - begin(0) : quotient(size, all) * count;
  }
};

template <class Id>
__global__ __launch_bounds__(kMapThreads) void table_rows_kernel(__grid_constant__ const TableSlice slice,
                                                                 const Id* ids, std::int64_t size, std::int64_t* rows,
                                                                 unsigned long long* remaining) {
  const std::int64_t count = slice.ids(size);
  for (std::int64_t k = global_thread(); k < count; k += global_threads()) {
    std::int64_t i = k;
    const std::int64_t table = slice.find(i), start = slice.starts[table], rows_here = slice.starts[table + 1] - start;
    const auto id = static_cast<std::int64_t>(ids[i]);
    std::int64_t row = slice.hashed ? hash_row(id, rows_here, slice.seed) : id;
    if (row < 0 || row >= rows_here) {
      row = 0;
      atomicMax(remaining, static_cast<unsigned long long>(size - i));
    }
    rows[i] = slice.merged ? start + row : row;
  }
}

TableSlice slice_of(const TableRowsArgs& args, std::int64_t first) {
  TableSlice slice{.starts = {},
                   .first = first,
                   .count = std::min<std::int64_t>(kTables, args.tables - first),
                   .all = args.tables,
                   .length = args.length,
                   .offsets = args.offsets,
                   .bags = args.bags,
                   .merged = args.merged,
                   .hashed = args.hashed,
                   .seed = args.seed};
  std::copy_n(args.starts + first, slice.count + 1, slice.starts);
  return slice;
}

}  // namespace

void table_rows(TableRowsArgs& args, Stream stream) {
  const Device here{DeviceType::cuda, stream.device};
  const auto remaining = scratch<std::int64_t>(stream, 1);
  zero_bytes(remaining.get(), sizeof(std::int64_t), here);
  dispatch_index(args.id_dtype, [&]<class Id>() {
    for (std::int64_t first = 0; first < args.tables; first += kTables) {
      launch<table_rows_kernel<Id>>({.grid = {blocks_for(args.size)}, .block = {kMapThreads}}, stream,
                                    slice_of(args, first), static_cast<const Id*>(args.ids), args.size, args.rows,
                                    reinterpret_cast<unsigned long long*>(remaining.get()));
    }
  });
  args.outside = -1;
  if (args.hashed) return;
  if (args.deferred) {
    report_remaining({.indices = args.ids,
                      .count = args.size,
                      .size = 0,
                      .allowed = {},
                      .remaining = remaining.get(),
                      .dtype = args.id_dtype},
                     *args.deferred, stream);
    return;
  }
  std::int64_t left = 0;
  copy_bytes(&left, Device{}, remaining.get(), here, sizeof left);
  if (left > 0) args.outside = args.size - left;
}

}  // namespace drupe::cuda
