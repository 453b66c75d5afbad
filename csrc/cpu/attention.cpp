// attention, forward. K^T and V of a key/value head are packed once, as the right operands of the register-blocked
// product; with many heads by the task that uses them (they stay in its L2), with few by tasks of their own. A task
// owns a block of query rows (of all query heads that share the key/value head, one after another). It walks the keys
// in blocks of kDepth; per tile of kRows rows: logits = Q K^T into an L1 buffer, e^(logit - max) in place, and that
// buffer is the left operand of P V. Running maxima and sums rescale what earlier blocks gave.
// Bytes: q, k, v read once, y and lse written once. Worklog: bench/worklog/attention.md.
#include "cpu/attention.h"

#include "core/dispatch.h"

namespace drupe::cpu {
namespace {

constexpr std::int64_t kManyHeads = 32;
constexpr std::int64_t kPackKeys = 512;  // keys that a packing task takes, where heads are few

// One query row of the task's block.
template <class S>
struct Row {
  using T = Accumulator<S>;
  const S* q;
  const S* bias;
  S* y;
  T* lse;
  Range keys;
  T maximum, sum;  // of the logits so far, in units of log 2
};

// logits[begin, end) += log2(e) bias[begin, end)
template <Isa I, class S, class T>
void add_bias(T* logits, const S* bias, std::int64_t stride, std::int64_t begin, std::int64_t end) {
  using V = Vec<T, I>;
  const V unit = V::set(static_cast<T>(kLog2E));
  if (stride != 1) {
    for (std::int64_t j = begin; j < end; ++j) {
      logits[j] += static_cast<T>(kLog2E) * static_cast<T>(bias[j * stride]);
    }
    return;
  }
  for (std::int64_t j = begin; j < end; j += V::kLanes) {
    const int n = static_cast<int>(std::min<std::int64_t>(V::kLanes, end - j));
    fma(unit, V::load(bias + j, n), V::load(logits + j, n)).store(logits + j, n);
  }
}

// logits[begin, end) of a row become 2^(logit - maximum), whole vectors at a time. Returns the factor by which what
// was summed before shrinks.
template <Isa I, class T>
DRUPE_INLINE T exponentiate(T* logits, std::int64_t begin, std::int64_t end, T& maximum, T& sum) {
  using V = Vec<T, I>;
  constexpr T kLowest = -std::numeric_limits<T>::infinity();
  constexpr std::int64_t kPair = 2 * V::kLanes;
  V top0 = V::set(maximum), top1 = top0;
  std::int64_t j = begin;
  for (; j + kPair <= end; j += kPair) {
    top0 = max(top0, V::load(logits + j));
    top1 = max(top1, V::load(logits + j + V::kLanes));
  }
  for (; j < end; j += V::kLanes) top0 = max(top0, V::load(logits + j));
  const T before = maximum;
  maximum = reduce_max(max(top0, top1));
  const T shift = maximum == kLowest ? T(0) : maximum;  // all masked so far: e^(-inf - 0) = 0
  const V by = V::set(shift);
  V sum0 = V::zero(), sum1 = V::zero();
  for (j = begin; j + kPair <= end; j += kPair) {
    const V e0 = exp2(V::load(logits + j) - by), e1 = exp2(V::load(logits + j + V::kLanes) - by);
    e0.store(logits + j);
    e1.store(logits + j + V::kLanes);
    sum0 = sum0 + e0;
    sum1 = sum1 + e1;
  }
  for (; j < end; j += V::kLanes) {
    const V e = exp2(V::load(logits + j) - by);
    e.store(logits + j);
    sum0 = sum0 + e;
  }
  const T shrink = before == maximum ? T(1) : std::exp2(before - shift);
  sum = sum * shrink + reduce_add(sum0 + sum1);
  return shrink;
}

template <class S, Isa I>
class Forward {
  using T = Accumulator<S>;
  using V = Vec<T, I>;
  using Tile = AttentionTile<I, T>;
  static constexpr std::int64_t kBlockRows = 140 / Tile::kRows * Tile::kRows;
  static constexpr T kLowest = -std::numeric_limits<T>::infinity();

 public:
  explicit Forward(const AttentionArgs& args) : args_(args) {}

  void run() const {
    const std::int64_t heads = args_.B * args_.Hkv;
    const std::int64_t rows = args_.Hq / args_.Hkv * args_.Sq;
    const std::int64_t blocks = ceil_div(rows, kBlockRows);
    const std::int64_t block = ceil_div(rows, blocks);
    if (heads >= kManyHeads) {
      parallel_for(heads, [&](std::int64_t head) {
        const Scratch<T> packed(static_cast<std::size_t>(packed_size()));
        pack(head, 0, args_.Skv, packed.data());
        for (std::int64_t row = 0; row < rows; row += block) {
          attend(head, row, std::min(block, rows - row), packed.data());
        }
      });
      return;
    }
    const Scratch<T> packed(static_cast<std::size_t>(heads * packed_size()));
    const std::int64_t chunks = ceil_div(args_.Skv, kPackKeys);
    parallel_for(heads * chunks, [&](std::int64_t task) {
      const std::int64_t head = task / chunks, begin = task % chunks * kPackKeys;
      pack(head, begin, std::min(args_.Skv, begin + kPackKeys), packed.data() + head * packed_size());
    });
    parallel_for(heads * blocks, [&](std::int64_t task) {
      const std::int64_t head = task / blocks, row = task % blocks * block;
      if (row < rows) attend(head, row, std::min(block, rows - row), packed.data() + head * packed_size());
    });
  }

 private:
  std::int64_t value_width() const { return round_up(args_.Dv, Tile::kCols); }
  std::int64_t keys_size() const { return round_up(args_.Skv, Tile::kCols) * args_.D; }
  std::int64_t packed_size() const { return keys_size() + args_.Skv * value_width(); }

  // K^T as panels of kCols keys, then V with its rows padded; only the keys in [begin, end) that some query sees.
  void pack(std::int64_t head, std::int64_t begin, std::int64_t end, T* packed) const {
    const std::int64_t b = head / args_.Hkv, h = head % args_.Hkv;
    const std::int64_t last = (args_.query_lengths ? args_.query_lengths[b] : args_.Sq) - 1;
    if (last < 0) return;
    begin = std::max(begin, keys_of<I>(args_, b, 0).begin / Tile::kCols * Tile::kCols);
    end = std::min(end, keys_of<I>(args_, b, last).end);
    const StridedMatrix<I, S> keys{locate<S>(args_.k, b, h, 0), args_.k.row, 1};
    for (std::int64_t j = begin; j < end; j += Tile::kCols) {
      keys.pack_cols(packed + j * args_.D, j, std::min<std::int64_t>(Tile::kCols, end - j), 0, args_.D);
    }
    T* values = packed + keys_size();
    for (std::int64_t j = begin; j < end; ++j) {
      load_row<I>(locate<S>(args_.v, b, h, j), args_.Dv, T(1), values + j * value_width(), value_width());
    }
  }

  Row<S> describe(std::int64_t b, std::int64_t kv_head, std::int64_t row) const {
    const std::int64_t h = kv_head * (args_.Hq / args_.Hkv) + row / args_.Sq, i = row % args_.Sq;
    const S* bias = static_cast<const S*>(args_.bias);
    if (bias) bias += b * args_.bias_batch + h * args_.bias_head + i * args_.bias_row;
    return {.q = locate<const S>(args_.q, b, h, i),
            .bias = bias,
            .y = locate<S>(args_.y, b, h, i),
            .lse = static_cast<T*>(args_.lse) + (b * args_.Hq + h) * args_.Sq + i,
            .keys = keys_of<I>(args_, b, i),
            .maximum = kLowest,
            .sum = 0};
  }

  void attend(std::int64_t head, std::int64_t row0, std::int64_t count, const T* packed) const {
    Row<S> rows[kBlockRows];
    for (std::int64_t r = 0; r < count; ++r) rows[r] = describe(head / args_.Hkv, head % args_.Hkv, row0 + r);
    const std::int64_t tiles = ceil_div(count, Tile::kRows);
    const std::int64_t slices = ceil_div(args_.D, Tile::kDepth);
    const Scratch<T> queries(static_cast<std::size_t>(slices * Tile::kRows * Tile::kStride));
    const Scratch<T> logits(static_cast<std::size_t>(Tile::kRows * Tile::kStride));
    const Scratch<T> sums(static_cast<std::size_t>(count * value_width()));
    bool touched[kBlockRows] = {};  // per tile: whether `sums` holds anything
    for (std::int64_t key0 = 0; key0 < args_.Skv; key0 += Tile::kDepth) {
      for (std::int64_t t = 0; t < tiles; ++t) {
        const std::int64_t first = count * t / tiles, end = count * (t + 1) / tiles;
        touched[t] |= attend_tile(rows + first, static_cast<int>(end - first), key0, packed, queries.data(),
                                  logits.data(), sums.data() + first * value_width(), touched[t]);
      }
    }
    for (std::int64_t r = 0; r < count; ++r) finish(rows[r], sums.data() + r * value_width());
  }

  // Adds what the keys of one block give to a tile's rows. Returns whether there were any.
  bool attend_tile(Row<S>* rows, int count, std::int64_t key0, const T* packed, T* queries, T* logits, T* sums,
                   bool accumulate) const {
    Range seen{key0 + Tile::kDepth, key0};  // by any row of the tile
    for (int r = 0; r < count; ++r) {
      if (rows[r].keys.empty()) continue;
      seen.begin = std::min(seen.begin, std::max(key0, rows[r].keys.begin));
      seen.end = std::max(seen.end, std::min(key0 + Tile::kDepth, rows[r].keys.end));
    }
    if (seen.empty()) return false;
    const std::int64_t begin = seen.begin - key0, end = seen.end - key0;
    load_queries(rows, count, queries);
    for (std::int64_t j = begin / Tile::kCols * Tile::kCols; j < end; j += Tile::kCols) {
      multiply_slices<I>(count, args_.D, queries, Tile::kRows * Tile::kStride, packed + (key0 + j) * args_.D,
                         Tile::kCols, logits + j, Tile::kStride);
    }
    for (int r = 0; r < count; ++r) {
      soften(rows[r], key0, begin, end, logits + r * Tile::kStride, accumulate ? sums + r * value_width() : nullptr);
    }
    const T* values = packed + keys_size() + seen.begin * value_width();
    for (std::int64_t d = 0; d < value_width(); d += Tile::kCols) {
      multiply_tile<I>(count, end - begin, logits + begin, values + d, value_width(), sums + d, value_width(),
                       accumulate);
    }
    return true;
  }

  // The tile's queries, times the scale and log2(e), as a left operand.
  void load_queries(const Row<S>* rows, int count, T* queries) const {
    const T factor = static_cast<T>(args_.scale * kLog2E);
    for (int r = 0; r < count; ++r) {
      for (std::int64_t d = 0; d < args_.D; d += Tile::kDepth) {
        const std::int64_t depth = std::min(Tile::kDepth, args_.D - d);
        load_row<I>(rows[r].q + d, depth, factor, queries + (d / Tile::kDepth * Tile::kRows + r) * Tile::kStride,
                    depth);
      }
    }
  }

  // Logits to probabilities (times e^maximum); zeros where the row does not see what its tile does.
  void soften(Row<S>& row, std::int64_t key0, std::int64_t begin, std::int64_t end, T* logits, T* sums) const {
    const std::int64_t low = std::clamp(row.keys.begin - key0, begin, end);
    const std::int64_t high = std::clamp(row.keys.end - key0, low, end);
    const std::int64_t from = begin / V::kLanes * V::kLanes, to = round_up(end, V::kLanes);
    if (row.bias) add_bias<I>(logits, row.bias + key0 * args_.bias_col, args_.bias_col, low, high);
    fill<I>(logits, from, low, kLowest);
    fill<I>(logits, high, to, kLowest);
    const T shrink = exponentiate<I>(logits, from, to, row.maximum, row.sum);
    if (!sums || shrink == 1) return;
    for (std::int64_t d = 0; d < value_width(); d += V::kLanes) (V::set(shrink) * V::load(sums + d)).store(sums + d);
  }

  void finish(const Row<S>& row, const T* sums) const {
    if (row.sum == 0) {
      for (std::int64_t d = 0; d < args_.Dv; ++d) row.y[d] = S(T(0));
      *row.lse = kLowest;
      return;
    }
    store_row<I>(sums, args_.Dv, 1 / row.sum, row.y);
    *row.lse = (row.maximum + std::log2(row.sum)) * static_cast<T>(kLn2);
  }

  const AttentionArgs& args_;
};

}  // namespace

template <Isa I>
void attention(const AttentionArgs& args) {
  dispatch_float(args.dtype, [&]<class S>() { Forward<S, I>(args).run(); });
}

template void attention<Isa::DRUPE_ISA>(const AttentionArgs&);

}  // namespace drupe::cpu
