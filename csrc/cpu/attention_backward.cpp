// attention, backward, in one sweep over blocks of kBlock queries by kBlock keys. A task owns a range of keys of one
// key/value head (all of them where heads are many) and every query that sees them. All products work on transposed
// logits, rows = keys, so that nothing needs packing twice. Per tile of kRows keys:
//   P^T = 2^(K Q^T - lse)   dV += P^T dO   dS^T = P^T (V dO^T - delta)   dK += dS^T Q
// and per block dQ += dS K, with dS^T read down its columns; delta = rowsum(dO y). Key ranges of one head give partial
// dQ that are added in order. The bias, whose gradient crosses heads, has a pass of its own that computes dS again. The
// products fetch the outputs and the next block's operands meanwhile (Ahead).
// Bytes: q, k, v, y, dy read and dq, dk, dv written once per key range. Worklog: bench/worklog/attention.md.
#include <cstring>

#include "core/dispatch.h"
#include "cpu/attention.h"
#include "cpu/attention_gradient.h"
#include "cpu/lanes.h"

namespace drupe::cpu {
namespace {

constexpr std::int64_t kBlock = 128;
constexpr std::int64_t kTasks = 64;              // key ranges are cut until there are about so many
constexpr std::int64_t kRangeKeys = 4 * kBlock;  // but not shorter than this

// A right operand of the products: rows of whole panels.
template <class T>
struct Rows {
  const T* data;
  std::int64_t row;
};

// One block of query rows, in every layout that the products want.
template <class T>
struct Queries {
  std::int64_t b, h, begin, count;
  Rows<T> rows, grads;  // Q and dO, where they lie or padded with zeros
  Scratch<T> padded, padded_grads;
  Scratch<T> rows_t, grads_t;    // Q^T and dO^T as panels of kCols queries
  Scratch<T> bias_t;             // bias^T of one block of keys, as panels of kCols queries
  T lse[kBlock], delta[kBlock];  // lse in units of log 2, +infinity where P is 0
};

// A range of key rows as left operands: K (times the scale and log2(e)) and V.
template <class T>
struct Keys {
  std::int64_t begin, count;
  Scratch<T> keys, values;
};

// What a block is computed in.
template <class T>
struct Workspace {
  Scratch<T> p;   // P^T of one tile
  Scratch<T> ds;  // dS^T of one block
};

template <class S, Isa I>
class Backward {
  using T = Accumulator<S>;
  using V = Vec<T, I>;
  using Tile = AttentionTile<I, T>;
  static constexpr T kInfinity = std::numeric_limits<T>::infinity();
  static_assert(kBlock <= Tile::kDepth && kBlock % Tile::kCols == 0 && Tile::kDepth % Tile::kCols == 0);

 public:
  explicit Backward(const AttentionBackwardArgs& args) : args_(args), f_(args.forward) {}

  void run() const {
    const std::int64_t heads = f_.B * f_.Hkv;
    if (heads > 0 && (args_.dq.data || args_.dk.data || args_.dv.data)) {
      const std::int64_t wanted = std::min(std::max<std::int64_t>(1, kTasks / heads), ceil_div(f_.Skv, kRangeKeys));
      const std::int64_t keys = round_up(ceil_div(f_.Skv, std::max<std::int64_t>(1, wanted)), kBlock);
      const std::int64_t ranges = keys > 0 ? ceil_div(f_.Skv, keys) : 1;
      const Scratch<T> partial(static_cast<std::size_t>(ranges > 1 ? ranges * f_.B * f_.Hq * f_.Sq * f_.D : 0));
      parallel_for(heads * ranges, [&](std::int64_t task) {
        sweep(task / ranges, task % ranges * keys, std::min(f_.Skv, (task % ranges + 1) * keys),
              ranges > 1 ? partial.data() + task % ranges * f_.B * f_.Hq * f_.Sq * f_.D : nullptr);
      });
      if (ranges > 1 && args_.dq.data) add_partials(partial.data(), ranges);
    }
    if (args_.dbias) bias_gradient();
  }

 private:
  // Rows that fill whole panels are read, and written, where they lie.
  bool keys_in_place() const { return std::is_same_v<S, T> && f_.D % Tile::kCols == 0; }
  bool values_in_place() const { return std::is_same_v<S, T> && f_.Dv % Tile::kCols == 0; }
  std::int64_t key_width() const { return round_up(f_.D, Tile::kCols); }
  std::int64_t value_width() const { return round_up(f_.Dv, Tile::kCols); }
  static std::size_t left_size(std::int64_t rows, std::int64_t depth) {
    return static_cast<std::size_t>(ceil_div(depth, Tile::kDepth) * rows * Tile::kStride);
  }
  static std::size_t size(std::int64_t rows, std::int64_t cols) { return static_cast<std::size_t>(rows * cols); }

  Queries<T> make_queries() const {
    return {.b = 0,
            .h = 0,
            .begin = 0,
            .count = 0,
            .rows = {},
            .grads = {},
            .padded = Scratch<T>(keys_in_place() ? 0 : size(kBlock, key_width())),
            .padded_grads = Scratch<T>(values_in_place() ? 0 : size(kBlock, value_width())),
            .rows_t = Scratch<T>(size(kBlock, f_.D)),
            .grads_t = Scratch<T>(size(kBlock, f_.Dv)),
            .bias_t = Scratch<T>(f_.bias ? size(kBlock, kBlock) : 0),
            .lse = {},
            .delta = {}};
  }
  Keys<T> make_keys(std::int64_t count) const {
    return {.begin = 0,
            .count = count,
            .keys = Scratch<T>(left_size(count, f_.D)),
            .values = Scratch<T>(left_size(count, f_.Dv))};
  }
  static Workspace<T> make_workspace() {
    return {.p = Scratch<T>(size(Tile::kRows, Tile::kStride)), .ds = Scratch<T>(size(kBlock, Tile::kStride))};
  }

  void load_queries(Queries<T>& q, std::int64_t b, std::int64_t h, std::int64_t begin) const {
    q.b = b, q.h = h, q.begin = begin, q.count = std::min(kBlock, f_.Sq - begin);
    const T* lse = static_cast<const T*>(f_.lse) + (b * f_.Hq + h) * f_.Sq + begin;
    for (std::int64_t r = 0; r < kBlock; ++r) {
      q.lse[r] = kInfinity;
      q.delta[r] = 0;
      if (r >= q.count) continue;
      if (lse[r] != -kInfinity) q.lse[r] = lse[r] * static_cast<T>(kLog2E);
      q.delta[r] = dot(locate<const S>(args_.dy, b, h, begin + r), locate<const S>(f_.y, b, h, begin + r));
    }
    q.rows = right_operand(f_.q, b, h, begin, q.count, f_.D, keys_in_place(), q.padded.data());
    q.grads = right_operand(args_.dy, b, h, begin, q.count, f_.Dv, values_in_place(), q.padded_grads.data());
    for (std::int64_t c = 0; c < q.count; c += Tile::kCols) {
      const std::int64_t cols = std::min<std::int64_t>(Tile::kCols, q.count - c);
      pack_panel<I>(locate<const S>(f_.q, b, h, begin + c), f_.q.row, cols, f_.D, q.rows_t.data() + c * f_.D);
      pack_panel<I>(locate<const S>(args_.dy, b, h, begin + c), args_.dy.row, cols, f_.Dv,
                    q.grads_t.data() + c * f_.Dv);
    }
  }

  static Rows<T> right_operand(const AttentionOperand& from, std::int64_t b, std::int64_t h, std::int64_t begin,
                               std::int64_t count, std::int64_t width, bool in_place, T* padded) {
    if (in_place) return {reinterpret_cast<const T*>(locate<const S>(from, b, h, begin)), from.row};
    const std::int64_t row = round_up(width, Tile::kCols);
    for (std::int64_t r = 0; r < count; ++r) {
      load_row<I>(locate<const S>(from, b, h, begin + r), width, T(1), padded + r * row, row);
    }
    return {padded, row};
  }

  T dot(const S* grad, const S* y) const {
    V sum = V::zero();
    for_vectors<I, T>(
        f_.Dv, [&](std::int64_t d, auto lanes) { sum = fma(load<V>(grad + d, lanes), load<V>(y + d, lanes), sum); });
    return reduce_add(sum);
  }

  void load_keys(Keys<T>& k, std::int64_t b, std::int64_t h, std::int64_t begin, std::int64_t count) const {
    k.begin = begin, k.count = count;
    const auto load = [&](const AttentionOperand& from, std::int64_t width, T factor, T* to) {
      for (std::int64_t j = 0; j < count; ++j) {
        for (std::int64_t d = 0; d < width; d += Tile::kDepth) {
          const std::int64_t depth = std::min(Tile::kDepth, width - d);
          load_row<I>(locate<const S>(from, b, h, begin + j) + d, depth, factor,
                      to + (d / Tile::kDepth * count + j) * Tile::kStride, round_up(depth, Tile::kCols));
        }
      }
    };
    load(f_.k, f_.D, static_cast<T>(f_.scale * kLog2E), k.keys.data());
    load(f_.v, f_.Dv, T(1), k.values.data());
  }

  void load_bias(const Queries<T>& q, std::int64_t key0, std::int64_t count) const {
    if (!f_.bias) return;
    const S* bias = static_cast<const S*>(f_.bias) + q.b * f_.bias_batch + q.h * f_.bias_head + q.begin * f_.bias_row +
                    key0 * f_.bias_col;
    const StridedMatrix<I, S> matrix{bias, f_.bias_row, f_.bias_col};
    for (std::int64_t c = 0; c < q.count; c += Tile::kCols) {
      matrix.pack_cols(q.bias_t.data() + c * kBlock, c, std::min<std::int64_t>(Tile::kCols, q.count - c), 0, count);
    }
  }

  // dS^T of the queries and the keys [key0, key0 + count) into work.ds; their part of dk and dv, the rows of those
  // keys, goes where given.
  void differentiate(const Queries<T>& q, const Keys<T>& k, std::int64_t key0, std::int64_t count,
                     const Workspace<T>& work, const Sums<T>& dk, const Sums<T>& dv, Ahead<I>& ahead) const {
    load_bias(q, key0, count);
    const std::int64_t tiles = ceil_div(count, Tile::kRows);
    for (std::int64_t t = 0; t < tiles; ++t) {
      const std::int64_t first = count * t / tiles, rows = count * (t + 1) / tiles - first;
      T* ds = work.ds.data() + first * Tile::kStride;
      Range seen{q.begin + q.count, q.begin};  // by these keys
      for (std::int64_t r = 0; r < rows; ++r) {
        const Range queries = queries_of<I>(f_, q.b, key0 + first + r);
        if (queries.empty()) continue;
        seen.begin = std::min(seen.begin, std::max(queries.begin, q.begin));
        seen.end = std::max(seen.end, std::min(queries.end, q.begin + q.count));
      }
      if (seen.empty()) {
        for (std::int64_t r = 0; r < rows; ++r) fill<I>(ds + r * Tile::kStride, 0, q.count, T(0));
        put_zeros(dk, first, rows, key_width());
        put_zeros(dv, first, rows, value_width());
        continue;
      }
      const int height = static_cast<int>(rows);
      const std::int64_t begin = seen.begin - q.begin, end = seen.end - q.begin;
      const std::int64_t row = key0 - k.begin + first;
      const std::int64_t slice = k.count * Tile::kStride;
      multiply_panels<I, Product, T>(height, f_.D, k.keys.data() + row * Tile::kStride, slice, q.rows_t.data(), begin,
                                     end, work.p.data(), nullptr, ahead);
      multiply_panels<I, Product, T>(height, f_.Dv, k.values.data() + row * Tile::kStride, slice, q.grads_t.data(),
                                     begin, end, ds, nullptr, ahead);
      for (std::int64_t r = 0; r < rows; ++r) {
        finish_row(q, key0 + first + r, f_.bias ? q.bias_t.data() + (first + r) * Tile::kCols : nullptr, begin, end,
                   work.p.data() + r * Tile::kStride, ds + r * Tile::kStride);
      }
      add(dv, first, height, end - begin, work.p.data() + begin, q.grads, begin, value_width(), ahead);
      add(dk, first, height, end - begin, ds + begin, q.rows, begin, key_width(), ahead);
    }
  }

  // Rows [first, first + rows) of `to`: left right[begin …]
  static void add(Sums<T> to, std::int64_t first, int rows, std::int64_t depth, const T* left, const Rows<T>& right,
                  std::int64_t begin, std::int64_t width, Ahead<I>& ahead) {
    if (!to.c) return;
    to.c += first * to.row;
    for (std::int64_t d = 0; d < width; d += Tile::kCols, to.c += Tile::kCols) {
      multiply_tile<I, Product>(rows, depth, left, right.data + begin * right.row + d, right.row, to, ahead);
    }
  }

  // The same where nothing is to be added.
  static void put_zeros(const Sums<T>& to, std::int64_t first, std::int64_t rows, std::int64_t width) {
    if (!to.c || to.accumulate) return;
    for (std::int64_t r = first; r < first + rows; ++r) fill<I>(to.c + r * to.row, 0, width, T(0));
  }

  // From the logits in p and dP in ds of key j to P and dS; zeros where nobody sees the key.
  void finish_row(const Queries<T>& q, std::int64_t j, const T* bias, std::int64_t begin, std::int64_t end, T* p,
                  T* ds) const {
    const std::int64_t from = begin / V::kLanes * V::kLanes, to = round_up(end, V::kLanes);
    for (std::int64_t c = from; c < to; c += V::kLanes) {
      V logit = V::load(p + c);
      if (bias) {
        const T* source = bias + c / Tile::kCols * Tile::kCols * kBlock + c % Tile::kCols;
        logit = fma(V::set(static_cast<T>(kLog2E)), V::load(source), logit);
      }
      const V probability = exp2(logit - V::load(q.lse + c));
      probability.store(p + c);
      (probability * (V::load(ds + c) - V::load(q.delta + c))).store(ds + c);
    }
    const Range seen = queries_of<I>(f_, q.b, j);
    const std::int64_t low = std::clamp(seen.begin - q.begin, begin, end);
    const std::int64_t high = std::clamp(seen.end - q.begin, low, end);
    fill<I>(p, from, low, T(0));
    fill<I>(p, high, to, T(0));
    fill<I>(ds, 0, low, T(0));
    fill<I>(ds, high, q.count, T(0));
  }

  // dS K over the keys [key0, key0 + count), which goes to dq.
  void add_dq(const Queries<T>& q, const Keys<T>& k, std::int64_t key0, std::int64_t count, const T* ds,
              const Sums<T>& dq, Ahead<I>& ahead) const {
    const std::int64_t tiles = ceil_div(q.count, Tile::kRows);
    for (std::int64_t t = 0; t < tiles; ++t) {
      const std::int64_t first = q.count * t / tiles, end = q.count * (t + 1) / tiles;
      const Range seen = keys_seen<I>(f_, q.b, q.begin + first, q.begin + end);
      const std::int64_t low = std::max(key0, seen.begin), high = std::min(key0 + count, seen.end);
      if (low >= high) {
        put_zeros(dq, first, end - first, key_width());
        continue;
      }
      Sums<T> to = dq;
      to.c += first * to.row;
      for (std::int64_t d = 0; d < key_width(); d += Tile::kCols, to.c += Tile::kCols) {
        const T* right = k.keys.data() + (d / Tile::kDepth * k.count + low - k.begin) * Tile::kStride;
        multiply_tile<I, Product, T, true>(static_cast<int>(end - first), high - low,
                                           ds + (low - key0) * Tile::kStride + first, right + d % Tile::kDepth,
                                           Tile::kStride, to, ahead);
      }
    }
  }

  // The keys [key_begin, key_end) of one key/value head against all queries of its group. What one pair of blocks makes
  // whole is written where it belongs; other sums are kept in scratch.
  void sweep(std::int64_t head, std::int64_t key_begin, std::int64_t key_end, T* partial) const {
    const std::int64_t b = head / f_.Hkv, kv_head = head % f_.Hkv, group = f_.Hq / f_.Hkv;
    const std::int64_t count = key_end - key_begin;
    Keys<T> k = make_keys(count);
    load_keys(k, b, kv_head, key_begin, count);
    const bool one_pair = group == 1 && f_.Sq > 0 && f_.Sq <= kBlock && count <= kBlock;
    const Gradient<S, I> dk(args_.dk, b, kv_head, key_begin, count, f_.D, f_.scale, one_pair);
    const Gradient<S, I> dv(args_.dv, b, kv_head, key_begin, count, f_.Dv, 1, one_pair);
    Queries<T> q = make_queries();
    const Workspace<T> work = make_workspace();
    for (std::int64_t g = 0; g < group; ++g) {
      for (std::int64_t i = 0; i < f_.Sq; i += kBlock) {
        const std::int64_t h = kv_head * group + g, rows = std::min(kBlock, f_.Sq - i);
        const Range seen = keys_seen<I>(f_, b, i, i + rows);
        const std::int64_t low = one_pair ? key_begin : std::max(key_begin, seen.begin / kBlock * kBlock);
        const std::int64_t high = one_pair ? key_end : std::min(key_end, seen.end);
        Ahead<I> ahead;
        expect(ahead, head, h, i, key_begin, count, !partial);
        load_queries(q, b, h, i);
        // K came times log2(e): dq is due a factor of ln 2, here or when partials are added.
        const Gradient<S, I> dq(args_.dq, b, h, i, rows, f_.D, kLn2, !partial && low < high && high - low <= kBlock);
        for (std::int64_t j = low; j < high; j += kBlock) {
          const std::int64_t keys = std::min(kBlock, high - j);
          differentiate(q, k, j, keys, work, dk.from(j - key_begin), dv.from(j - key_begin), ahead);
          if (args_.dq.data) add_dq(q, k, j, keys, work.ds.data(), dq.from(0), ahead);
        }
        if (partial && args_.dq.data) {
          dq.store_unscaled(partial + ((b * f_.Hq + h) * f_.Sq + i) * f_.D);
        } else {
          dq.store();
        }
      }
    }
    dk.store();
    dv.store();
  }

  // What a block of queries and its successor will touch; with `next_head`, the last one's successor is the next
  // head's.
  void expect(Ahead<I>& ahead, std::int64_t head, std::int64_t h, std::int64_t begin, std::int64_t key_begin,
              std::int64_t key_count, bool next_head) const {
    const auto add = [&](const AttentionOperand& of, std::int64_t b, std::int64_t in, std::int64_t first,
                         std::int64_t rows, std::int64_t width) {
      if (of.data) ahead.add_rows(locate<const S>(of, b, in, first), of.row, rows, width);
    };
    const auto add_queries = [&](std::int64_t b, std::int64_t in, std::int64_t first) {
      const std::int64_t rows = std::min(kBlock, f_.Sq - first);
      add(args_.dy, b, in, first, rows, f_.Dv);
      add(f_.y, b, in, first, rows, f_.Dv);
      add(f_.q, b, in, first, rows, f_.D);
    };
    const std::int64_t group = f_.Hq / f_.Hkv, b = head / f_.Hkv, kv_head = head % f_.Hkv;
    const std::int64_t next_b = (head + 1) / f_.Hkv, next_kv = (head + 1) % f_.Hkv;
    const bool last = begin + kBlock >= f_.Sq && h == (kv_head + 1) * group - 1;
    if (last) {
      add(args_.dv, b, kv_head, key_begin, key_count, f_.Dv);
      add(args_.dk, b, kv_head, key_begin, key_count, f_.D);
    }
    add(args_.dq, b, h, begin, std::min(kBlock, f_.Sq - begin), f_.D);
    if (!last) {
      const bool same = begin + kBlock < f_.Sq;
      add_queries(b, same ? h : h + 1, same ? begin + kBlock : 0);
    } else if (next_head && head + 1 < f_.B * f_.Hkv) {
      add(f_.k, next_b, next_kv, 0, f_.Skv, f_.D);
      add(f_.v, next_b, next_kv, 0, f_.Skv, f_.Dv);
      add_queries(next_b, next_kv * group, 0);
    }
  }

  void add_partials(const T* partial, std::int64_t ranges) const {
    const std::int64_t rows = f_.B * f_.Hq * f_.Sq;
    parallel_ranges(rows, kBlock, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t r = begin; r < end; ++r) {
        S* dq = locate<S>(args_.dq, r / f_.Sq / f_.Hq, r / f_.Sq % f_.Hq, r % f_.Sq);
        for_vectors<I, T>(f_.D, [&](std::int64_t d, auto lanes) {
          V sum = V::zero();
          for (std::int64_t s = 0; s < ranges; ++s) sum = sum + load<V>(partial + (s * rows + r) * f_.D + d, lanes);
          store(V::set(static_cast<T>(kLn2)) * sum, dq + d, lanes);
        });
      }
    });
  }

  // A task owns a block of dbias and adds dS over all that the bias was broadcast to.
  void bias_gradient() const {
    const std::int64_t* shape = args_.bias_shape;
    const std::int64_t row_blocks = ceil_div(shape[2], kBlock), col_blocks = ceil_div(shape[3], kBlock);
    parallel_for(shape[0] * shape[1] * row_blocks * col_blocks, [&](std::int64_t task) {
      const std::int64_t col = task % col_blocks * kBlock, row = task / col_blocks % row_blocks * kBlock;
      const std::int64_t h = task / col_blocks / row_blocks % shape[1], b = task / col_blocks / row_blocks / shape[1];
      const auto span = [](std::int64_t extent, std::int64_t at, std::int64_t size, std::int64_t full) {
        return extent == 1 ? Range{0, full} : Range{at, std::min(extent, at + size)};
      };
      const Scratch<T> sum(size(kBlock, Tile::kStride));  // (key, query)
      std::memset(sum.data(), 0, size(kBlock, Tile::kStride) * sizeof(T));
      sum_ds(span(shape[0], b, 1, f_.B), span(shape[1], h, 1, f_.Hq), span(shape[2], row, kBlock, f_.Sq),
             span(shape[3], col, kBlock, f_.Skv), sum.data());
      store_dbias((b * shape[1] + h) * shape[2], row, col, sum.data());
    });
  }

  void sum_ds(Range batches, Range heads, Range rows, Range cols, T* sum) const {
    Queries<T> q = make_queries();
    Keys<T> k = make_keys(kBlock);
    const Workspace<T> work = make_workspace();
    Ahead<I> ahead;
    for (std::int64_t b = batches.begin; b < batches.end; ++b) {
      for (std::int64_t h = heads.begin; h < heads.end; ++h) {
        for (std::int64_t i = rows.begin; i < rows.end; i += kBlock) {
          const Range seen = keys_seen<I>(f_, b, i, std::min(rows.end, i + kBlock));
          load_queries(q, b, h, i);
          for (std::int64_t j = cols.begin; j < cols.end; j += kBlock) {
            const std::int64_t count = std::min(kBlock, cols.end - j);
            if (seen.end <= j || seen.begin >= j + count) continue;
            load_keys(k, b, h / (f_.Hq / f_.Hkv), j, count);
            differentiate(q, k, j, count, work, {}, {}, ahead);
            for (std::int64_t r = 0; r < count; ++r) {
              T* to = sum + r * Tile::kStride;
              const T* from = work.ds.data() + r * Tile::kStride;
              for (std::int64_t c = 0; c < q.count; ++c) to[c] += from[c];
            }
          }
        }
      }
    }
  }

  // Where the bias was broadcast over queries or keys, the block is summed over them first.
  void store_dbias(std::int64_t matrix_row, std::int64_t row, std::int64_t col, T* sum) const {
    const std::int64_t* shape = args_.bias_shape;
    if (shape[2] == 1) {
      for (std::int64_t r = 0; r < kBlock; ++r) {
        for (std::int64_t c = 1; c < kBlock; ++c) sum[r * Tile::kStride] += sum[r * Tile::kStride + c];
      }
    }
    if (shape[3] == 1) {
      for (std::int64_t r = 1; r < kBlock; ++r) {
        for (std::int64_t c = 0; c < kBlock; ++c) sum[c] += sum[r * Tile::kStride + c];
      }
    }
    S* dbias = static_cast<S*>(args_.dbias) + (matrix_row + row) * shape[3] + col;
    for (std::int64_t i = 0; i < std::min(kBlock, shape[2] - row); ++i) {
      for (std::int64_t j = 0; j < std::min(kBlock, shape[3] - col); ++j) {
        dbias[i * shape[3] + j] = S(sum[j * Tile::kStride + i]);
      }
    }
  }

  const AttentionBackwardArgs& args_;
  const AttentionArgs& f_;
};

}  // namespace

template <Isa I>
void attention_backward(const AttentionBackwardArgs& args) {
  dispatch_float(args.forward.dtype, [&]<class S>() { Backward<S, I>(args).run(); });
}

template void attention_backward<Isa::DRUPE_ISA>(const AttentionBackwardArgs&);

}  // namespace drupe::cpu
