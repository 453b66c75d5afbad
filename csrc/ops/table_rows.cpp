#include "ops/table_rows.h"

#include <algorithm>
#include <string>

#include "core/check.h"
#include "ops/backend.h"
#include "ops/copy.h"
#include "ops/embedding_bag.h"
#include "ops/index_range.h"
#include "ops/sparse_rows.h"

namespace drupe::ops {
namespace {

// For a message.
std::int64_t table_of(const TableRowsArgs& args, std::int64_t position, const Tensor& offsets) {
  if (!args.offsets) return position / args.length % args.tables;
  std::int64_t table = args.tables - 1;
  while (table > 0 && index_at(offsets, table * args.bags) > position) --table;
  return table;
}

[[noreturn]] void refuse_id(const char* op, const char* name, const Dims& shape, std::int64_t position, std::int64_t id,
                            std::int64_t table, std::int64_t rows) {
  fail<std::out_of_range>(op, name, subscript(position, shape), " is ", id, ": table ", table, " has ", rows, " rows");
}

// What `wanted` says of the ids of many tables.
Tensor run(const char* op, const Tensor& ids, const std::optional<Tensor>& offsets,
           const std::vector<std::int64_t>& tables, const TableRowsArgs& wanted) {
  if (offsets) common_device(op, {&ids, &*offsets});
  const std::vector<std::int64_t> starts = table_starts(op, tables);
  TableRowsArgs args = describe_tables(op, "ids", ids, offsets, starts);
  args.merged = wanted.merged;
  args.hashed = wanted.hashed;
  args.seed = wanted.seed;
  return rows_of_tables(op, "ids", ids, offsets ? read_offsets(op, *offsets, ids.numel()).begins : Tensor(), args);
}

}  // namespace

std::vector<std::int64_t> table_starts(const char* op, const std::vector<std::int64_t>& tables) {
  check(!tables.empty(), op, "tables is empty");
  std::vector<std::int64_t> starts{0};
  for (std::size_t t = 0; t < tables.size(); ++t) {
    check(tables[t] >= 0, op, "tables[", t, "] is ", tables[t], ": expected a number of rows");
    std::int64_t end = 0;
    check(!__builtin_add_overflow(starts.back(), tables[t], &end), op, "tables have more than 2^63 rows");
    starts.push_back(end);
  }
  return starts;
}

TableRowsArgs describe_tables(const char* op, const char* name, const Tensor& ids, const std::optional<Tensor>& offsets,
                              const std::vector<std::int64_t>& starts) {
  TableRowsArgs args{.starts = starts.data(), .tables = static_cast<std::int64_t>(starts.size()) - 1};
  const std::int64_t T = args.tables;
  if (offsets) {
    check(offsets->ndim() == 2 && offsets->size(0) == T, op, "offsets is ", offsets->shape(), ": expected (", T,
          ", B) for ", T, " tables");
    check(ids.ndim() == 1, op, name, " is ", ids.shape(), ": expected (N,) beside offsets");
    args.bags = offsets->size(1);
    return args;
  }
  check((ids.ndim() == 2 || ids.ndim() == 3) && ids.size(1) == T, op, name, " is ", ids.shape(), ": expected (B, ", T,
        ") or (B, ", T, ", L), or (N,) and offsets, for ", T, " tables");
  if (ids.ndim() == 3) args.length = ids.size(2);
  return args;
}

Tensor rows_of_tables(const char* op, const char* name, const Tensor& ids, const Tensor& offsets, TableRowsArgs args) {
  const Tensor flat = take_indices(op, name, ids);
  Tensor rows = empty(ids.shape(), Dtype::i64, ids.device());
  args.ids = flat.raw();
  args.id_dtype = flat.dtype();
  args.size = flat.numel();
  args.offsets = offsets.defined() ? offsets.data<std::int64_t>() : nullptr;
  args.rows = rows.data<std::int64_t>();
  if (args.size == 0) return rows;
  const auto rows_in = [starts = args.starts](std::int64_t t) { return starts[t + 1] - starts[t]; };
  const bool capturing = cuda::is_capturing(ids.device());
  for (std::int64_t t = 0; (args.hashed || capturing) && t < args.tables; ++t) {
    check_index(rows_in(t) > 0, op, "table ", t, " has 0 rows");
  }
  std::optional<cuda::DeferredCheck> deferred;
  if (capturing && !args.hashed) {
    // Bags between offsets are not captured.
    deferred = cuda::defer_check(ids.device(), [op, name = std::string(name), shape = ids.shape(), length = args.length,
                                                starts = std::vector(args.starts, args.starts + args.tables + 1)](
                                                   std::int64_t id, std::int64_t position) {
      const auto t = static_cast<std::size_t>(position / length) % (starts.size() - 1);
      refuse_id(op, name.c_str(), shape, position, id, static_cast<std::int64_t>(t), starts[t + 1] - starts[t]);
    });
    args.deferred = &*deferred;
  }
  dispatch(
      ids.device(), [&]<Isa I>() { cpu::table_rows<I>(args); }, [&](auto stream) { cuda::table_rows(args, stream); });
  if (args.outside >= 0) {
    const std::int64_t t = table_of(args, args.outside, offsets);
    refuse_id(op, name, ids.shape(), args.outside, index_at(flat, args.outside), t, rows_in(t));
  }
  return rows;
}

Tensor table_rows(const Tensor& ids, const std::optional<Tensor>& offsets, const std::vector<std::int64_t>& tables,
                  std::optional<std::uint64_t> seed) {
  return run("table_rows", ids, offsets, tables,
             {.merged = true, .hashed = seed.has_value(), .seed = seed.value_or(0)});
}

Tensor hash_ids(const Tensor& ids, const std::optional<Tensor>& offsets, const std::vector<std::int64_t>& tables,
                std::uint64_t seed) {
  return run("hash_ids", ids, offsets, tables, {.merged = false, .hashed = true, .seed = seed});
}

Tensor hash_ids(const Tensor& ids, std::int64_t rows, std::uint64_t seed) {
  const char* op = "hash_ids";
  check(rows >= 0, op, "rows is ", rows);
  const std::int64_t starts[] = {0, rows};
  return rows_of_tables(op, "ids", ids, {},
                        {.starts = starts,
                         .tables = 1,
                         .merged = false,
                         .length = std::max<std::int64_t>(1, ids.numel()),
                         .hashed = true,
                         .seed = seed});
}

}  // namespace drupe::ops
