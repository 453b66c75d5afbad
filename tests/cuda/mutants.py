"""Faults that a test must find, for mutate.py: what is changed in a kernel, and the tests that run then."""

from __future__ import annotations

from typing import NamedTuple


class Mutant(NamedTuple):
    """In `file`, below csrc/cuda, `old` becomes `new`."""

    file: str
    fault: str
    old: str
    new: str
    tests: tuple[str, ...]


GEMM = ("tests/ops/test_gemm.py",)
CONV2D = ("tests/ops/test_conv2d.py",)
ATTENTION = ("tests/ops/test_attention.py",)
SOFTMAX = ("tests/ops/test_softmax.py",)
CROSS_ENTROPY = ("tests/ops/test_cross_entropy.py",)
ROW_NORM = ("tests/ops/test_layer_norm.py", "tests/ops/test_rms_norm.py")
BATCH_NORM = ("tests/ops/test_batch_norm.py",)
GROUP_NORM = ("tests/ops/test_group_norm.py",)
REDUCE = ("tests/ops/test_reduce.py",)
EMBEDDING = ("tests/ops/test_embedding.py",)
EMBEDDING_BAG = ("tests/ops/test_embedding_bag.py",)
SPMM = ("tests/ops/test_spmm.py",)
OPTIMIZERS = ("tests/ops/test_optimizer_steps.py",)
DROPOUT = ("tests/ops/test_dropout.py",)
POOL2D = ("tests/ops/test_pool2d.py",)
LOSSES = ("tests/ops/test_mse.py", "tests/ops/test_bce_with_logits.py")
SHAPE = ("tests/ops/test_shape.py",)

# Faults of one file follow each other: its objects are built once for each, and once for the file that comes after.
MUTANTS = (
    # ---- gemm
    Mutant(
        "gemm/kernel.cuh",
        "waits for one stage less: the oldest copy may still be on its way",
        "cp_async_wait_group<C::kStages - 2>();",
        "cp_async_wait_group<C::kStages - 1>();",
        GEMM,
    ),
    Mutant(
        "gemm/kernel.cuh",
        "no barrier between the copies' arrival and the products",
        "    __syncthreads();  // the oldest stage has come, and all have left the one before it\n",
        "",
        GEMM,
    ),
    Mutant(
        "gemm/kernel.cuh",
        "the sum over the parts of K leaves out the last",
        "split < problem.grid.splits; ++split",
        "split < problem.grid.splits - 1; ++split",
        GEMM,
    ),
    Mutant(
        "gemm/kernel.cuh",
        "vectors are read whatever is between rows",
        "  if (other_extent > 1 && other_stride % kPack != 0) return false;\n",
        "",
        ("tests/ops/test_gemm.py::test_memory_that_vectors_cannot_read",),
    ),
    Mutant(
        "gemm/kernel.cuh",
        "vectors are read whatever is between matrices",
        "    if (shape[d] > 1 && strides[d] % kPack != 0) return false;\n",
        "",
        ("tests/ops/test_gemm.py::test_memory_that_vectors_cannot_read",),
    ),
    Mutant(
        "gemm/grid.cuh",
        "parts of K are not whole steps",
        "part = tiles_across(tiles_across(K, schedule.splits), depth) * depth;",
        "part = tiles_across(K, schedule.splits);",
        GEMM,
    ),
    Mutant(
        "gemm/problem.cuh",
        "the epilogue reads every batch's residual from the first one's",
        "residual + at.offset.at[kBatchResidual] + row * residual_row",
        "residual + row * residual_row",
        GEMM,
    ),
    Mutant(
        "gemm/fma.cuh",
        "the mask of the last step of k lets one more through",
        "(mask & 1u) && k + step < depth",
        "(mask & 1u) && k + step <= depth",
        GEMM,
    ),
    Mutant(
        "gemm/tensor_core.cuh",
        "a vector's place along k is forgotten in the mask of the last step",
        "(mask >> i & 1u) && k + i * k_step < depth",
        "(mask >> i & 1u) && k < depth",
        GEMM,
    ),
    Mutant(
        "gemm/tensor_core.cuh",
        "copies to shared memory use the swizzle of the other layout",
        "row * kDepth + swizzled_chunk<KMajor::kChunks>(row, col / kPack) * kPack",
        "row * kDepth + swizzled_chunk<OuterMajor::kChunks>(row, col / kPack) % KMajor::kChunks * kPack",
        GEMM,
    ),
    Mutant(
        "tile/mma.cuh",
        "the rows of a left fragment's matrices in the order of k",
        "const int m = m0 + matrix % 2 * 8;",
        "const int m = m0 + matrix / 2 * 8;",
        GEMM,
    ),
    # ---- conv2d
    Mutant(
        "conv2d.cu",
        "no barrier before the tile of filters is written again",
        "      args.to[row * args.pitch + col0 + lane] = storage.tile[lane][c];\n    }\n    __syncthreads();\n",
        "      args.to[row * args.pitch + col0 + lane] = storage.tile[lane][c];\n    }\n",
        CONV2D,
    ),
    Mutant(
        "conv2d/gather.cuh",
        "the right padding begins one pixel late",
        "static_cast<unsigned>(row.w + depth.w) < static_cast<unsigned>(gather.w.source)",
        "static_cast<unsigned>(row.w + depth.w) <= static_cast<unsigned>(gather.w.source)",
        CONV2D,
    ),
    Mutant(
        "conv2d/gather.cuh",
        "no barrier after the last product, before the stages become the epilogue's",
        "  cp_async_wait_group<0>();\n  __syncthreads();\n}",
        "  cp_async_wait_group<0>();\n}",
        CONV2D,
    ),
    Mutant(
        "conv2d/product.cuh",
        "the first block of a phase of the gradient works on the phase before",
        "static_cast<std::int64_t>(blockIdx.x) >= batch.first_block[i]",
        "static_cast<std::int64_t>(blockIdx.x) > batch.first_block[i]",
        CONV2D,
    ),
    Mutant(
        "conv2d/product.cuh",
        "stretches of the depth are a row's pitch apart, not a result's",
        "const std::int64_t from = (split * product.groups + group) * product.rows + row;",
        "const std::int64_t from = split + group * product.rows + row;",
        CONV2D,
    ),
    Mutant(
        "conv2d/depthwise.cuh",
        "a depthwise window takes one column of the padding",
        "if (w < 0 || w >= gather.w.source) continue;",
        "if (w < 0 || w > gather.w.source) continue;",
        CONV2D,
    ),
    Mutant(
        "conv2d_weight.cu",
        "partial gradients of the weight are a row apart, not a matrix",
        "sum += from[split * args.rows * args.pitch];",
        "sum += from[split * args.pitch];",
        CONV2D,
    ),
    Mutant(
        "conv2d/channel_sums.cuh",
        "the last stretch of pixels does not end with the image",
        "end < args.pixels ? end : args.pixels",
        "end",
        CONV2D,
    ),
    # ---- attention
    Mutant(
        "attention/fma.cuh",
        "the running sum of exponentials is not rescaled to a new maximum",
        "    running.sum[i] *= shrink[i];\n",
        "",
        ATTENTION,
    ),
    Mutant(
        "attention.cu",
        "heads of queries take turns with the heads of keys",
        "kv_head = h / (args.Hq / args.Hkv);",
        "kv_head = h % args.Hkv;",
        ATTENTION,
    ),
    Mutant(
        "attention.cu",
        "a tile goes without a mask where only its last key is masked",
        "mask.is_open(kRows<A>, kSide)",
        "mask.is_open(kRows<A>, kSide - 1)",
        ("tests/ops/test_attention.py::test_tiles_that_are_masked_in_a_corner",),
    ),
    Mutant(
        "attention.cu",
        "a tile goes without a mask where only its last query is masked",
        "mask.is_open(kRows<A>, kSide)",
        "mask.is_open(kRows<A> - 1, kSide)",
        ("tests/ops/test_attention.py::test_tiles_that_are_masked_in_a_corner",),
    ),
    Mutant(
        "attention/problem.cuh",
        "a query does not see the last key that the mask leaves it",
        "ahead >= lowest && ahead <= highest",
        "ahead >= lowest && ahead < highest",
        ATTENTION,
    ),
    Mutant(
        "attention/problem.cuh",
        "the first key of a window is not among those that are walked",
        "std::max<std::int64_t>(0, some.begin + offset - left)",
        "std::max<std::int64_t>(0, some.begin + offset - left + 1)",
        ATTENTION,
    ),
    Mutant(
        "attention/problem.cuh",
        "the keys' lengths are not looked at",
        "keys(args.lengths ? args.lengths[b] : args.Skv)",
        "keys(args.Skv)",
        ATTENTION,
    ),
    Mutant(
        "attention_mma.cu",
        "a tile of values is used while its copy may be on its way",
        "    cp_async_wait_group<1>();\n    __syncthreads();  // V is there",
        "    cp_async_wait_group<2>();\n    __syncthreads();  // V is there",
        ATTENTION,
    ),
    Mutant(
        "attention_mma.cu",
        "no barrier between the last use of a tile of values and the next copy into it",
        "    __syncthreads();  // K is there, and nobody needs the last V\n",
        "",
        ATTENTION,
    ),
    Mutant(
        "attention_mma.cu",
        "the mask stays with the first tile of keys",
        "    mask = mask.from(0, C::kKeys);\n",
        "",
        ATTENTION,
    ),
    Mutant(
        "attention/softmax.cuh",
        "outputs of earlier keys are rescaled in every other column only",
        "        output.d[i][j][2 * r + 1] *= shrink;\n",
        "",
        ATTENTION,
    ),
    Mutant(
        "attention_backward.cu",
        "dk and dv sum the first query head of a group again and again",
        "task.head * group + g, delta",
        "task.head * group, delta",
        ATTENTION,
    ),
    Mutant(
        "attention_backward.cu",
        "no barrier before lse and delta of the next queries replace the last ones",
        "      __syncthreads();\n      load_query_numbers<kSide>",
        "      load_query_numbers<kSide>",
        ("tests/ops/test_attention.py::test_only_the_gradients_that_are_wanted",),
    ),
    Mutant(
        "attention/backward.cuh",
        "delta of the row where the columns are the queries",
        "storage.delta[kKeysOwn ? column : row]",
        "storage.delta[row]",
        ATTENTION,
    ),
    Mutant(
        "attention_mma_backward.cu",
        "no barrier between a stage's last use and the next copy into it",
        "    __syncthreads();\n    at = next;\n",
        "    at = next;\n",
        ATTENTION,
    ),
    Mutant(
        "attention_bias.cu",
        "no barrier between the sums of rows and of columns",
        "  __syncthreads();\n  if (over_columns",
        "  if (over_columns",
        ATTENTION,
    ),
    # ---- softmax and cross entropy
    Mutant(
        "softmax.cu",
        "what lies past a row's end counts as a logit of 0",
        "-std::numeric_limits<A>::infinity(), value + i);",
        "A(0), value + i);",
        SOFTMAX,
    ),
    Mutant(
        "softmax.cu",
        "no barrier between the steps of the tree over a column's parts",
        "    __syncthreads();\n    if (own.part >= half) continue;",
        "    if (own.part >= half) continue;",
        SOFTMAX,
    ),
    Mutant(
        "tile/online.cuh",
        "the running sum of exponentials is not rescaled to a new maximum",
        "    sum *= std::exp(top - higher);\n",
        "",
        SOFTMAX,
    ),
    Mutant(
        "cross_entropy.cu",
        "rows to ignore count where their label is a class",
        "label != args.ignore_index && label >= 0",
        "label >= 0",
        CROSS_ENTROPY,
    ),
    Mutant(
        "cross_entropy.cu",
        "label smoothing spreads over the classes as if their weights were 1",
        "static_cast<A>(plan.weight_sum ? *plan.weight_sum : static_cast<double>(plan.args.C))",
        "static_cast<A>(static_cast<double>(plan.args.C))",
        CROSS_ENTROPY,
    ),
    Mutant(
        "cross_entropy.cu",
        "of the rows that a block owns, only the first ones count",
        "first < args.rows; first += gridDim.x * groups",
        "first < args.rows; first += args.rows",
        ("tests/ops/test_cross_entropy.py::test_more_rows_than_blocks_take_at_once",),
    ),
    # ---- norms
    Mutant(
        "row_norm.cu",
        "what lies past a row's end counts in the variance",
        "const A d = column < size ? h[i] - statistics.mean : A(0);",
        "const A d = h[i] - statistics.mean;",
        ROW_NORM,
    ),
    Mutant(
        "row_norm_backward.cu",
        "no barrier before the bias' gradients replace the weight's",
        "  __syncthreads();\n#pragma unroll\n  for (int i = 0; i < kItems; ++i) storage.gradient",
        "#pragma unroll\n  for (int i = 0; i < kItems; ++i) storage.gradient",
        ROW_NORM,
    ),
    Mutant(
        "row_norm_backward.cu",
        "of the rows that a block owns, only the first ones count",
        "base < plan.args.rows; base += gridDim.x * groups",
        "base < plan.args.rows; base += plan.args.rows",
        ("tests/ops/test_layer_norm.py::test_gradients_of_every_dtype",),
    ),
    Mutant(
        "batch_norm.cu",
        "the running variance is the biased one",
        "args.momentum * batch_variance * (n / (n - 1))",
        "args.momentum * batch_variance",
        BATCH_NORM,
    ),
    Mutant(
        "channel_norm.cu",
        "the last row of a thread is left out",
        "  for (; row < share.rows; ++row, offset += share.step)",
        "  for (; row + 1 < share.rows; ++row, offset += share.step)",
        BATCH_NORM + GROUP_NORM,
    ),
    Mutant(
        "group_norm.cu",
        "samples' rstd are one apart, not a sample's groups",
        "static_cast<double>(rstd[sample * args.groups])",
        "static_cast<double>(rstd[sample])",
        GROUP_NORM,
    ),
    Mutant(
        "group_norm.cu",
        "no barrier before the storage of a sum is used for the next",
        "  const double sum = block_reduce<kGroupThreads>(value, Sum{}, storage);\n  __syncthreads();\n",
        "  const double sum = block_reduce<kGroupThreads>(value, Sum{}, storage);\n",
        GROUP_NORM,
    ),
    Mutant(
        "tile/channel_fold.cuh",
        "moments of the chunks after the first 32 are left out",
        "for (std::int64_t chunk = fold_lane(); chunk < tiling.chunks; chunk += kFoldLanes) {\n      const double",
        "for (std::int64_t chunk = fold_lane(); chunk < tiling.chunks; chunk += tiling.chunks) {\n      const double",
        BATCH_NORM + GROUP_NORM,
    ),
    Mutant(
        "tile/channel_fold.cuh",
        "sums of the chunks after the first 32 are left out",
        "for (std::int64_t chunk = fold_lane(); chunk < tiling.chunks; chunk += kFoldLanes) {\n      own.first += p",
        "for (std::int64_t chunk = fold_lane(); chunk < tiling.chunks; chunk += tiling.chunks) {\n      own.first += p",
        ("tests/ops/test_batch_norm.py::test_gradients_of_every_dtype",),
    ),
    # ---- reductions and searches
    Mutant(
        "reduce.cu",
        "a row's last block of memory is left out where it is not full",
        "for (; block < last; block += lanes)",
        "for (; block < end; block += lanes)",
        REDUCE,
    ),
    Mutant(
        "reduce.cu",
        "reductions of columns begin at 0, whatever they are",
        "for (int k = 0; k < kPack; ++k) total[k] = rule.identity();",
        "for (int k = 0; k < kPack; ++k) total[k] = A(0);",
        REDUCE,
    ),
    Mutant(
        "reduce.cu",
        "four blocks at a time where the last one is not full",
        "block + (kUnroll - 1) * lanes < end",
        "block + (kUnroll - 1) * lanes <= end",
        REDUCE,
    ),
    Mutant(
        "arg_extremum.cu",
        "elements of a block that is not full take the first one's index",
        "{extreme_key(x[at], largest), at}",
        "{extreme_key(x[at], largest), begin}",
        REDUCE,
    ),
    Mutant(
        "topk.cu",
        "one more equal of the last result than there is room for",
        "(is_equal && equals < room)",
        "(is_equal && equals <= room)",
        REDUCE,
    ),
    Mutant(
        "topk.cu",
        "all rows are sorted where the first one's results lie",
        "compare_exchange(results + (row << log_padded), i",
        "compare_exchange(results, i",
        ("tests/ops/test_reduce.py::test_topk_of_long_rows",),
    ),
    # ---- rows of tables
    Mutant(
        "tile/radix_sort.cuh",
        "an entry counts itself among those before it",
        "__popc(peers & ((1u << lane) - 1))",
        "__popc(peers & ((2u << lane) - 1))",
        EMBEDDING,
    ),
    Mutant(
        "tile/radix_sort.cuh",
        "counts of the tile before are not cleared",
        "  storage.count[threadIdx.x] = 0;\n",
        "",
        EMBEDDING,
    ),
    Mutant(
        "tile/segments.cuh",
        "segments are numbered without those of the warps before",
        "  for (int k = 0; k < warp; ++k) before += storage.count[k];\n",
        "",
        EMBEDDING + EMBEDDING_BAG,
    ),
    Mutant(
        "sparse_rows.cu",
        "rows that nothing is added to keep what the memory held",
        "  if (args.dense) zero_values(args, stream);\n  if (totals.segments == 0) return;",
        "  if (totals.segments == 0) return;",
        EMBEDDING + EMBEDDING_BAG,
    ),
    Mutant(
        "segment_sum.cuh",
        "of a row that crosses tasks, the last carry is left out",
        "to = from + share < carries ? from + share : carries;",
        "to = from + share < carries ? from + share : carries - 1;",
        EMBEDDING + EMBEDDING_BAG,
    ),
    Mutant(
        "sparse_rows.cu",
        "of the tasks that a block joins, only the first counts",
        "task < sum.tasks; task += gridDim.x",
        "task < sum.tasks; task += sum.tasks",
        EMBEDDING + EMBEDDING_BAG,
    ),
    Mutant(
        "tile/scan.cuh",
        "a long row's prefix sums begin anew every 256 elements",
        "    if (i < length) row[i] = before + sum;\n",
        "    if (i < length) row[i] = sum;\n",
        ("tests/cuda/test_selftest.py::test_platform[tile.scan_rows]",),
    ),
    Mutant(
        "embedding.cu",
        "rows of a table are as far apart as they are wide",
        "gather.indices[at.row] * gather.row_stride",
        "gather.indices[at.row] * groups.units",
        ("tests/ops/test_embedding.py::test_strided_misaligned_and_read_only_operands",),
    ),
    Mutant(
        "embedding_bag.cu",
        "the mean divides by places that padding took",
        "count += __popc(counted);",
        "count += end - i < kInFlight ? end - i : kInFlight;",
        EMBEDDING_BAG,
    ),
    Mutant(
        "embedding_bag.cu",
        "sums are rounded to the table's format at every row",
        "total.element[j] += rows[k].element[j] * factor;",
        "total.element[j] = widen(narrow<S>(total.element[j] + rows[k].element[j] * factor));",
        EMBEDDING_BAG,
    ),
    # ---- sparse products
    Mutant(
        "spmm.cu",
        "the last segment of a long row goes on into the next row",
        "const std::int64_t end = std::min(begin + p.a.segment, p.a.indptr[row + 1]);",
        "const std::int64_t end = begin + p.a.segment;",
        SPMM,
    ),
    Mutant(
        "spmm.cu",
        "rows of x that are not stored are read as the first one",
        "if (x_places) at = x_places[at];",
        "if (x_places) at = std::max(x_places[at], 0);",
        SPMM,
    ),
    Mutant(
        "spmm.cu",
        "what is added is looked up by the place in y",
        "const std::int64_t z_row = z_places ? z_places[row] : row;",
        "const std::int64_t z_row = z_places ? z_places[row] : y_places ? y_places[row] : row;",
        SPMM,
    ),
    Mutant(
        "spmm.cu",
        "long rows are joined whether or not they are wanted",
        "  if (!p.is_wanted(p.a.long_row[at.row])) return;\n",
        "",
        SPMM,
    ),
    # ---- optimizers, dropout, pooling, losses, copies
    Mutant(
        "tile/chunks.cuh",
        "a chunk's elements after the last whole pack are left out",
        "  if (rest < to) single(rest);\n",
        "",
        OPTIMIZERS,
    ),
    Mutant(
        "tile/chunks.cuh",
        "a tensor that ends before it is aligned is read past its end",
        "thread < span.head && thread < span.size",
        "thread < span.head",
        OPTIMIZERS,
    ),
    Mutant(
        "optimizer.cu",
        "the sums of a second table replace the first one's",
        "    done += table.chunks;\n",
        "",
        OPTIMIZERS,
    ),
    Mutant(
        "dropout.cu",
        "the second four of eight elements are drawn by the first four's counter",
        "static_cast<std::uint64_t>(i + k) / 4",
        "static_cast<std::uint64_t>(i) / 4",
        DROPOUT,
    ),
    Mutant(
        "pool2d.cu",
        "the maximum begins at 0",
        "best[k] = -std::numeric_limits<A>::infinity();",
        "best[k] = A(0);",
        POOL2D,
    ),
    Mutant(
        "pool2d.cu",
        "averages are rounded to the image's format at every element",
        "sum[k] += widen(x.element[k]);",
        "sum[k] = widen(narrow<T>(sum[k] + widen(x.element[k])));",
        POOL2D,
    ),
    Mutant(
        "tile/pointwise_loss.cuh",
        "elements past the end count in the last pack's sum",
        "      if (e < count) losses += f(x.x[e]);\n",
        "      losses += f(x.x[e]);\n",
        LOSSES,
    ),
    Mutant(
        "copy.cu",
        "no barrier between a tile's way in and its way out",
        "storage.tile[c][lane] = from[c * t.src_pitch + lane];\n    }\n    __syncthreads();\n",
        "storage.tile[c][lane] = from[c * t.src_pitch + lane];\n    }\n",
        SHAPE,
    ),
)
