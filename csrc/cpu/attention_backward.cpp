// attention, backward, in one sweep over blocks of kBlock queries by kBlock keys. A task owns a range of keys of one
// key/value head (all of them where heads are many) and every query that sees them. All products work on transposed
// logits, rows = keys, so that nothing needs packing twice. Per tile of kRows keys:
//   P^T = 2^(K Q^T - lse)   dV += P^T dO   dS^T = P^T (V dO^T - delta)   dK += dS^T Q
// and per block dQ += dS K, with dS^T read down its columns; delta = rowsum(dO y). Key ranges of one head give partial
// dQ that are added in order. The bias, whose gradient crosses heads, has a pass of its own that computes dS again. The
// products fetch the outputs and the next block's operands meanwhile (Ahead). bfloat16's dot instruction takes pairs,
// of D in the first two products, of queries in the sums of dV and dK, and of keys in that of dQ. Bytes: q, k, v, y, dy
// read and dq, dk, dv written once per key range. Worklog: bench/worklog/attention.md.
#include <cstring>

#include "core/dispatch.h"
#include "cpu/attention_backward_blocks.h"
#include "cpu/attention_gradient.h"
#include "cpu/lanes.h"

namespace drupe::cpu {
namespace {

constexpr std::int64_t kTasks = 64;  // key ranges are cut until there are about so many

template <class S, Isa I, class P>
class Backward {
  using T = Accumulator<S>;
  using V = Vec<T, I>;
  using Tile = AttentionTile<I, T>;
  using Blocks = BackwardBlocks<S, I, P>;
  using Queries = Blocks::Queries;
  using Keys = Blocks::Keys;
  static constexpr std::int64_t kBlock = Blocks::kBlock, kItems = Blocks::kItems;
  static constexpr bool kPaired = Blocks::kPaired;
  static constexpr std::int64_t kRangeKeys = 4 * kBlock;  // in a key range, at least

  // What a block is computed in.
  struct Workspace {
    Scratch<T> p = Scratch<T>(Tile::kRows * Tile::kStride);                      // P^T of one tile
    Scratch<T> ds = Scratch<T>(kBlock * Tile::kStride);                          // dS^T of one block
    Scratch<T> ds_pairs = Scratch<T>(kPaired ? kBlock / 2 * Tile::kStride : 0);  // the same, of pairs of keys
  };

 public:
  explicit Backward(const AttentionBackwardArgs& args) : args_(args), f_(args.forward), blocks_(args) {}

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
      const Scratch<T> sum(static_cast<std::size_t>(kBlock * Tile::kStride));  // (key, query)
      std::memset(sum.data(), 0, static_cast<std::size_t>(kBlock * Tile::kStride) * sizeof(T));
      sum_ds(span(shape[0], b, 1, f_.B), span(shape[1], h, 1, f_.Hq), span(shape[2], row, kBlock, f_.Sq),
             span(shape[3], col, kBlock, f_.Skv), sum.data());
      store_dbias((b * shape[1] + h) * shape[2], row, col, sum.data());
    });
  }

 private:
  // What dS K is due, here or when partials are added: K may have come times the scale and log2(e).
  double dq_factor() const { return kPaired ? f_.scale : kLn2; }

  // dS^T of the queries and the keys [key0, key0 + count) into work.ds; their part of dk and dv, the rows of those
  // keys, goes where given.
  void differentiate(const Queries& q, const Keys& k, std::int64_t key0, std::int64_t count, const Workspace& work,
                     const Sums<T>& dk, const Sums<T>& dv, Ahead<I>& ahead) const {
    blocks_.load_bias(q, key0, count);
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
        for (std::int64_t r = 0; r < rows; ++r) fill<I>(ds + r * Tile::kStride, 0, whole(q), T(0));
        put_zeros(dk, first, rows, blocks_.key_width());
        put_zeros(dv, first, rows, blocks_.value_width());
        continue;
      }
      const int height = static_cast<int>(rows);
      const std::int64_t begin = seen.begin - q.begin, end = seen.end - q.begin;
      const std::int64_t row = key0 - k.begin + first;
      const std::int64_t slice = k.count * Tile::kStride;
      T factors[Tile::kMostRows];
      fill<I>(factors, 0, Tile::kMostRows, blocks_.logit_factor());
      multiply_panels<I, P, T>(height, Blocks::depth_of(f_.D), k.keys.data() + row * Tile::kStride, slice,
                               q.rows_t.data(), begin, end, work.p.data(), kPaired ? factors : nullptr, ahead);
      multiply_panels<I, P, T>(height, Blocks::depth_of(f_.Dv), k.values.data() + row * Tile::kStride, slice,
                               q.grads_t.data(), begin, end, ds, nullptr, ahead);
      for (std::int64_t r = 0; r < rows; ++r) {
        finish_row(q, key0 + first + r, f_.bias ? q.bias_t.data() + (first + r) * Tile::kCols : nullptr, begin, end,
                   work.p.data() + r * Tile::kStride, ds + r * Tile::kStride);
      }
      add(dv, first, height, begin, end, work.p.data(), q.grads, blocks_.value_width(), ahead);
      add(dk, first, height, begin, end, ds, q.rows, blocks_.key_width(), ahead);
    }
  }

  // Rows [first, first + rows) of `to`: left right, over the queries [begin, end).
  static void add(Sums<T> to, std::int64_t first, int rows, std::int64_t begin, std::int64_t end, const T* left,
                  const Rows<T>& right, std::int64_t width, Ahead<I>& ahead) {
    if (!to.c) return;
    to.c += first * to.row;
    const std::int64_t from = begin / kItems, depth = ceil_div(end, kItems) - from;
    for (std::int64_t d = 0; d < width; d += Tile::kCols, to.c += Tile::kCols) {
      multiply_tile<I, P>(rows, depth, left + from, right.data + from * right.row + d, right.row, to, ahead);
    }
  }

  // The same where nothing is to be added.
  static void put_zeros(const Sums<T>& to, std::int64_t first, std::int64_t rows, std::int64_t width) {
    if (!to.c || to.accumulate) return;
    for (std::int64_t r = first; r < first + rows; ++r) fill<I>(to.c + r * to.row, 0, width, T(0));
  }

  // From the logits in p and dP in ds of key j to P and dS, as P multiplies them; zeros where nobody sees the key.
  void finish_row(const Queries& q, std::int64_t j, const T* bias, std::int64_t begin, std::int64_t end, T* p,
                  T* ds) const {
    const std::int64_t from = begin / V::kLanes * V::kLanes, to = round_up(end, V::kLanes);
    for (std::int64_t c = from; c < to; c += V::kLanes) {
      V logit = V::load(p + c);
      if (bias) {
        const T* source = bias + c / Tile::kCols * Tile::kCols * kBlock + c % Tile::kCols;
        logit = fma(V::set(static_cast<T>(kLog2E)), V::load(source), logit);
      }
      const V probability = exp2<P>(logit - V::load(q.lse + c));
      probability.store(p + c);
      (probability * (V::load(ds + c) - V::load(q.delta + c))).store(ds + c);
    }
    const Range seen = queries_of<I>(f_, q.b, j);
    const std::int64_t low = std::clamp(seen.begin - q.begin, begin, end);
    const std::int64_t high = std::clamp(seen.end - q.begin, low, end);
    fill<I>(p, from, low, T(0));
    fill<I>(p, high, to, T(0));
    fill<I>(ds, 0, low, T(0));
    fill<I>(ds, high, whole(q), T(0));
    if constexpr (kPaired) {
      pair_up(p, from, to);
      pair_up(ds, 0, whole(q));
    }
  }

  // The queries, to whole vectors of them.
  static std::int64_t whole(const Queries& q) { return round_up(q.count, V::kLanes); }

  // Elements [begin, end), whole vectors, to pairs: those of row[2 k] and its neighbour at row[k].
  static void pair_up(T* row, std::int64_t begin, std::int64_t end) {
    for (std::int64_t j = begin; j < end; j += 2 * V::kLanes) {
      const V low = V::load(row + j), high = j + V::kLanes < end ? V::load(row + j + V::kLanes) : V::zero();
      P::pair(low, high).store(row + j / 2);
    }
  }

  // dS^T as a left operand that is read down its columns; pairs are made here, of keys instead of queries.
  const T* left_of_dq(const Queries& q, std::int64_t count, const Workspace& work) const {
    if constexpr (!kPaired) {
      return work.ds.data();
    } else {
      constexpr S kNone[kBlock] = {};
      const auto row = [&](std::int64_t key) {
        return key < count ? reinterpret_cast<const S*>(work.ds.data() + key * Tile::kStride) : kNone;
      };
      for (std::int64_t key = 0; key < count; key += 2) {
        interleave<I>(work.ds_pairs.data() + key / 2 * Tile::kStride, row(key), row(key + 1), whole(q));
      }
      return work.ds_pairs.data();
    }
  }

  // dS K over the keys [key0, key0 + count), which goes to dq.
  void add_dq(const Queries& q, const Keys& k, std::int64_t key0, std::int64_t count, const Workspace& work,
              const Sums<T>& dq, Ahead<I>& ahead) const {
    const std::int64_t tiles = ceil_div(q.count, Tile::kRows), width = blocks_.key_width();
    const T* ds = left_of_dq(q, count, work);
    for (std::int64_t t = 0; t < tiles; ++t) {
      const std::int64_t first = q.count * t / tiles, end = q.count * (t + 1) / tiles;
      const Range seen = keys_seen<I>(f_, q.b, q.begin + first, q.begin + end);
      const std::int64_t low = std::max(key0, seen.begin) - key0, high = std::min(key0 + count, seen.end) - key0;
      if (low >= high) {
        put_zeros(dq, first, end - first, width);
        continue;
      }
      Sums<T> to = dq;
      to.c += first * to.row;
      const std::int64_t from = low / kItems, depth = ceil_div(high, kItems) - from;
      for (std::int64_t d = 0; d < width; d += Tile::kCols, to.c += Tile::kCols) {
        const Rows<T> right = k.right(d, (key0 - k.begin) / kItems + from, width);
        multiply_tile<I, P, T, true>(static_cast<int>(end - first), depth, ds + from * Tile::kStride + first,
                                     right.data, right.row, to, ahead);
      }
    }
  }

  // The keys [key_begin, key_end) of one key/value head against all queries of its group. What one pair of blocks makes
  // whole is written where it belongs; other sums are kept in scratch.
  void sweep(std::int64_t head, std::int64_t key_begin, std::int64_t key_end, T* partial) const {
    const std::int64_t b = head / f_.Hkv, kv_head = head % f_.Hkv, group = f_.Hq / f_.Hkv;
    const std::int64_t count = key_end - key_begin;
    Keys k = blocks_.make_keys(count);
    blocks_.load_keys(k, b, kv_head, key_begin, count);
    const bool one_pair = group == 1 && f_.Sq > 0 && f_.Sq <= kBlock && count <= kBlock;
    const Gradient<S, I> dk(args_.dk, b, kv_head, key_begin, count, f_.D, f_.scale, one_pair);
    const Gradient<S, I> dv(args_.dv, b, kv_head, key_begin, count, f_.Dv, 1, one_pair);
    Queries q = blocks_.make_queries();
    const Workspace work;
    for (std::int64_t g = 0; g < group; ++g) {
      for (std::int64_t i = 0; i < f_.Sq; i += kBlock) {
        const std::int64_t h = kv_head * group + g, rows = std::min(kBlock, f_.Sq - i);
        const Range seen = keys_seen<I>(f_, b, i, i + rows);
        const std::int64_t low = one_pair ? key_begin : std::max(key_begin, seen.begin / kBlock * kBlock);
        const std::int64_t high = one_pair ? key_end : std::min(key_end, seen.end);
        Ahead<I> ahead;
        expect(ahead, head, h, i, key_begin, count, !partial);
        blocks_.load_queries(q, b, h, i);
        const Gradient<S, I> dq(args_.dq, b, h, i, rows, f_.D, dq_factor(),
                                !partial && low < high && high - low <= kBlock);
        for (std::int64_t j = low; j < high; j += kBlock) {
          const std::int64_t keys = std::min(kBlock, high - j);
          differentiate(q, k, j, keys, work, dk.from(j - key_begin), dv.from(j - key_begin), ahead);
          if (args_.dq.data) add_dq(q, k, j, keys, work, dq.from(0), ahead);
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
          store(V::set(static_cast<T>(dq_factor())) * sum, dq + d, lanes);
        });
      }
    });
  }

  void sum_ds(Range batches, Range heads, Range rows, Range cols, T* sum) const {
    Queries q = blocks_.make_queries();
    Keys k = blocks_.make_keys(kBlock);
    const Workspace work;
    Ahead<I> ahead;
    for (std::int64_t b = batches.begin; b < batches.end; ++b) {
      for (std::int64_t h = heads.begin; h < heads.end; ++h) {
        for (std::int64_t i = rows.begin; i < rows.end; i += kBlock) {
          const Range seen = keys_seen<I>(f_, b, i, std::min(rows.end, i + kBlock));
          blocks_.load_queries(q, b, h, i);
          for (std::int64_t j = cols.begin; j < cols.end; j += kBlock) {
            const std::int64_t count = std::min(kBlock, cols.end - j);
            if (seen.end <= j || seen.begin >= j + count) continue;
            blocks_.load_keys(k, b, h / (f_.Hq / f_.Hkv), j, count);
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
  const Blocks blocks_;
};

}  // namespace

template <Isa I>
void attention_backward(const AttentionBackwardArgs& args) {
  dispatch_float(args.forward.dtype, [&]<class S>() {
    const auto run = [&] {
      if constexpr (kPairs<I, S>) {
        if (has_bf16_dot<I>()) return Backward<S, I, PairProduct<I>>(args).run();
      }
      Backward<S, I, Product>(args).run();
    };
    run();
    if (args.dbias) Backward<S, I, Product>(args).bias_gradient();
  });
}

template void attention_backward<Isa::DRUPE_ISA>(const AttentionBackwardArgs&);

}  // namespace drupe::cpu
