// Sparse times dense. A group of lanes (tile/row_groups.cuh) has a row, or 32 packs of a wide one's columns, and walks
// its entries with the sum in registers and kInFlight rows of x on their way. Long rows are shared out in segments,
// whose sums go to memory and are joined by a second kernel. Bytes: the entries once for each group, a row of x for
// each entry (from L2, where x fits), y and z once.
#include "ops/spmm.h"

#include "core/dispatch.h"
#include "cuda/tile/row_groups.cuh"

namespace drupe::cuda {
namespace {

constexpr int kInFlight = 4;

template <class S>
struct Product {
  using A = Accumulator<S>;
  CsrView a;
  IndexArray indices;
  const A* values;
  const S *x, *z;
  std::int64_t x_stride, z_stride, width;
  A alpha, beta;
  S* y;
  A* partial;
  const std::int32_t *x_places, *z_places, *y_places;

  explicit Product(const SpmmArgs& args)
      : a(args.a),
        indices(args.a.indices, args.a.index_dtype),
        values(static_cast<const A*>(args.values)),
        x(static_cast<const S*>(args.x)),
        z(static_cast<const S*>(args.z)),
        x_stride(args.x_stride),
        z_stride(args.z_stride),
        width(args.width),
        alpha(static_cast<A>(args.alpha)),
        beta(static_cast<A>(args.beta)),
        y(static_cast<S*>(args.y)),
        partial(static_cast<A*>(args.partial)),
        x_places(args.x_places),
        z_places(args.z_places),
        y_places(args.y_places) {}

  __device__ __forceinline__ bool is_wanted(std::int64_t row) const { return !y_places || y_places[row] >= 0; }

  // Where the entry's row of x lies, or null.
  __device__ __forceinline__ const S* row(std::int64_t entry) const {
    std::int64_t at = indices[entry];
    if (x_places) at = x_places[at];
    return at < 0 ? nullptr : x + at * x_stride;
  }

  template <int kPack>
  bool takes_packs() const {
    return width % kPack == 0 && x_stride % kPack == 0 && z_stride % kPack == 0 && is_pack_aligned(x, z, y, partial);
  }

  template <int kPack>
  __device__ __forceinline__ void finish(std::int64_t row, std::int64_t column, WidePack<S, kPack> sum) const {
    const std::int64_t z_row = z_places ? z_places[row] : row;
    const bool adds = z && z_row >= 0;
    auto addend = WidePack<S, kPack>::zero();
    if (adds) addend = WidePack<S, kPack>::load(z + z_row * z_stride + column);
#pragma unroll
    for (int j = 0; j < kPack; ++j) {
      sum.element[j] *= alpha;
      if (adds) sum.element[j] = std::fma(addend.element[j], beta, sum.element[j]);
    }
    sum.store(y + (y_places ? y_places[row] : row) * width + column);
  }
};

template <class S, int kPack>
__device__ __forceinline__ WidePack<S, kPack> sum_entries(const Product<S>& p, std::int64_t begin, std::int64_t end,
                                                          std::int64_t column) {
  using A = Accumulator<S>;
  auto total = WidePack<S, kPack>::zero();
  for (std::int64_t i = begin; i < end; i += kInFlight) {
    WidePack<S, kPack> rows[kInFlight];
    bool counts[kInFlight];
#pragma unroll
    for (int k = 0; k < kInFlight; ++k) {
      const S* row = i + k < end ? p.row(i + k) : nullptr;
      counts[k] = row != nullptr;
      if (counts[k]) rows[k] = WidePack<S, kPack>::load(row + column);
    }
#pragma unroll
    for (int k = 0; k < kInFlight; ++k) {
      if (!counts[k]) continue;
      const A factor = p.values ? p.values[i + k] : A(1);
#pragma unroll
      for (int j = 0; j < kPack; ++j) total.element[j] = std::fma(rows[k].element[j], factor, total.element[j]);
    }
  }
  return total;
}

// The segments of long rows, then the other rows.
template <class S, int kPack>
__global__ __launch_bounds__(kMapThreads, 4) void spmm_kernel(Product<S> p, RowGroups groups) {
  if (groups.first() >= groups.count) return;
  const RowPiece at = groups.piece(groups.first());
  if (at.unit >= groups.units) return;
  const std::int64_t column = at.unit * kPack;
  if (at.row < p.a.segments) {
    const std::int64_t owner = p.a.segment_owner[at.row], row = p.a.long_row[owner];
    if (!p.is_wanted(row)) return;
    const std::int64_t begin = p.a.indptr[row] + (at.row - p.a.first_segment[owner]) * p.a.segment;
    const std::int64_t end = std::min(begin + p.a.segment, p.a.indptr[row + 1]);
    sum_entries<S, kPack>(p, begin, end, column).store_wide(p.partial + at.row * p.width + column);
    return;
  }
  const std::int64_t row = at.row - p.a.segments, begin = p.a.indptr[row], end = p.a.indptr[row + 1];
  if (end - begin > p.a.segment || !p.is_wanted(row)) return;
  p.finish(row, column, sum_entries<S, kPack>(p, begin, end, column));
}

template <class S, int kPack>
__global__ __launch_bounds__(kMapThreads) void spmm_join_kernel(Product<S> p, RowGroups groups) {
  if (groups.first() >= groups.count) return;
  const RowPiece at = groups.piece(groups.first());
  if (at.unit >= groups.units) return;
  const std::int64_t column = at.unit * kPack;
  if (!p.is_wanted(p.a.long_row[at.row])) return;
  auto total = WidePack<S, kPack>::zero();
  for (std::int64_t s = p.a.first_segment[at.row]; s < p.a.first_segment[at.row + 1]; ++s) {
    const auto part = WidePack<S, kPack>::load_wide(p.partial + s * p.width + column);
#pragma unroll
    for (int j = 0; j < kPack; ++j) total.element[j] += part.element[j];
  }
  p.finish(p.a.long_row[at.row], column, total);
}

}  // namespace

void spmm(const SpmmArgs& args, Stream stream) {
  dispatch_float(args.dtype, [&]<class S>() {
    const Product<S> product(args);
    const auto run = [&]<int kPack>() {
      const RowGroups groups(args.a.segments + args.a.rows, args.width / kPack);
      launch<spmm_kernel<S, kPack>>({.grid = {blocks_for(groups.threads())}, .block = {kMapThreads}}, stream, product,
                                    groups);
      if (args.a.long_rows == 0) return;
      const RowGroups joined(args.a.long_rows, args.width / kPack);
      launch<spmm_join_kernel<S, kPack>>({.grid = {blocks_for(joined.threads())}, .block = {kMapThreads}}, stream,
                                         product, joined);
    };
    if (product.template takes_packs<kPackSize<S>>()) {
      run.template operator()<kPackSize<S>>();
    } else {
      run.template operator()<1>();
    }
  });
}

}  // namespace drupe::cuda
