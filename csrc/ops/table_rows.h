// Ids of T tables as rows:  rows[i] = the row that id i has in its table, counted there, or in all tables one after
// another
//
//   tables  how many rows each table has
//   ids     int32 or int64; (B, T) or (B, T, L): column t is table t's. Or (N,) beside offsets (T, B), int32 or int64:
//           bag (t, b) begins at offsets[t, b] and ends where the next one begins, all of t's before those of t + 1
//   rows    of ids' shape, int64
//
// An id is its row: in [0, rows of its table), IndexError otherwise. Or it is hashed: any id has a row,
//
//   floor(h n / 2^64) of n, where h is output `seed`, counted from 0, of SplitMix64 with the id as its state
//
// (Steele, Lea, Flood 2014, "Fast Splittable Pseudorandom Number Generators"; Lemire 2019, "Fast Random Integer
// Generation in an Interval").
#pragma once

#include <optional>
#include <vector>

#include "core/cuda.h"
#include "core/stream.h"
#include "core/tensor.h"
#include "cpu/isa.h"

namespace drupe {

struct TableRowsArgs {
  const void* ids = nullptr;
  Dtype id_dtype = Dtype::i64;
  std::int64_t size = 0;

  const std::int64_t* starts = nullptr;  // (tables + 1,), on the host: the first row of each, and the end
  std::int64_t tables = 0;
  bool merged = true;  // rows count from the first table's on

  // Positions [k length, (k + 1) length) are table k % tables'. With offsets, table t's begin at offsets[t * bags].
  std::int64_t length = 1;
  const std::int64_t* offsets = nullptr;
  std::int64_t bags = 0;

  bool hashed = false;
  std::uint64_t seed = 0;

  std::int64_t* rows = nullptr;
  const cuda::DeferredCheck* deferred = nullptr;  // reports what is outside; on a device that has its table's first row

  std::int64_t outside = -1;  // found: the first position whose id is not in its table
};

constexpr std::uint64_t splitmix64(std::uint64_t state, std::uint64_t output) {
  std::uint64_t z = state + (output + 1) * 0x9e3779b97f4a7c15u;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
  z = (z ^ z >> 27) * 0x94d049bb133111ebu;
  return z ^ z >> 31;
}

constexpr std::int64_t hash_row(std::int64_t id, std::int64_t rows, std::uint64_t seed) {
  const unsigned __int128 h = splitmix64(static_cast<std::uint64_t>(id), seed);
  return static_cast<std::int64_t>(h * static_cast<std::uint64_t>(rows) >> 64);
}

namespace ops {

// Where tables begin that lie one after another, and their end, for describe_tables.
std::vector<std::int64_t> table_starts(const char* op, const std::vector<std::int64_t>& tables);

// The ids' layout, checked, but for what offsets hold.
TableRowsArgs describe_tables(const char* op, const char* name, const Tensor& ids, const std::optional<Tensor>& offsets,
                              const std::vector<std::int64_t>& starts);
// Runs the kernel on ids of that layout, and offsets that were checked (embedding_bag.h), undefined where there are
// none; throws for an id that is not in its table.
Tensor rows_of_tables(const char* op, const char* name, const Tensor& ids, const Tensor& offsets, TableRowsArgs args);

// Rows of all tables one after another; with a seed, of hashed ids. Offsets as the caller has them.
Tensor table_rows(const Tensor& ids, const std::optional<Tensor>& offsets, const std::vector<std::int64_t>& tables,
                  std::optional<std::uint64_t> seed);
// Hashed ids as rows of their own tables, ...
Tensor hash_ids(const Tensor& ids, const std::optional<Tensor>& offsets, const std::vector<std::int64_t>& tables,
                std::uint64_t seed);
// ... or, of any shape, of one table.
Tensor hash_ids(const Tensor& ids, std::int64_t rows, std::uint64_t seed);

}  // namespace ops

namespace cpu {
template <Isa>
void table_rows(TableRowsArgs& args);
}  // namespace cpu

namespace cuda {
void table_rows(TableRowsArgs& args, Stream stream);
}  // namespace cuda

}  // namespace drupe
