from __future__ import annotations
import collections.abc
import numpy
import typing

__all__: list[str] = [
    "CsrPattern",
    "Event",
    "Graph",
    "PackedFilters",
    "PackedMatrix",
    "QuantizedMatrix",
    "RowPlaces",
    "StepInputs",
    "Stream",
    "Tensor",
    "activation",
    "activation_backward",
    "adam",
    "adaptive_avg_pool2d",
    "adaptive_avg_pool2d_backward",
    "add_rows",
    "append_rows",
    "arg_extremum",
    "attention",
    "attention_backward",
    "avg_pool2d",
    "avg_pool2d_backward",
    "batch_norm",
    "batch_norm_backward",
    "bce_with_logits",
    "bce_with_logits_backward",
    "binary",
    "cached_attention",
    "cast",
    "clamp",
    "clamp_backward",
    "clip_factor",
    "clone",
    "concat",
    "contiguous",
    "conv2d",
    "conv2d_backward_bias",
    "conv2d_backward_input",
    "conv2d_backward_weight",
    "copy_into",
    "cross_entropy",
    "cross_entropy_backward",
    "csr_from_coo",
    "csr_transpose",
    "ctc_loss",
    "ctc_loss_backward",
    "cuda_built",
    "cuda_status",
    "current_stream",
    "dropout",
    "dropout_backward",
    "embedding",
    "embedding_backward",
    "embedding_backward_sparse",
    "embedding_bag",
    "embedding_bag_backward",
    "embedding_bag_backward_scale",
    "embedding_bag_backward_sparse",
    "embedding_bag_step",
    "embedding_step",
    "empty",
    "empty_cache",
    "float32_matmul_precision",
    "fm_interaction",
    "fm_interaction_backward",
    "from_cuda_array",
    "from_dlpack",
    "from_numpy",
    "full",
    "gemm",
    "gemm_int8",
    "gemm_quantized",
    "getitem",
    "group_norm",
    "group_norm_backward",
    "gru",
    "gru_backward",
    "hash_ids",
    "is_capturing",
    "is_pinned",
    "isa",
    "isa_reason",
    "isas",
    "layer_norm",
    "layer_norm_backward",
    "lstm",
    "lstm_backward",
    "max_pool2d",
    "max_pool2d_backward",
    "measure_limit",
    "memory_stats",
    "merge_rows",
    "mse",
    "mse_backward",
    "num_threads",
    "pack_filters",
    "pack_weight",
    "pad",
    "pin",
    "quantize_int8",
    "quantize_weight",
    "record_use",
    "reduce",
    "reset_peak_memory",
    "reshape",
    "rms_norm",
    "rms_norm_backward",
    "rmsprop",
    "sample",
    "scalar",
    "set_float32_matmul_precision",
    "set_isa",
    "set_num_threads",
    "sgd",
    "softmax",
    "softmax_backward",
    "spmm",
    "spmm_backward_values",
    "sum_of_squares",
    "synchronize",
    "table_rows",
    "to_device",
    "to_numpy",
    "topk",
    "topk_backward",
    "unary",
    "unary_backward",
    "var",
    "where",
    "zeros",
]

class Tensor:
    def __dlpack__(
        self,
        *,
        stream: typing.SupportsInt | typing.SupportsIndex | None = None,
        max_version: tuple[typing.SupportsInt | typing.SupportsIndex, typing.SupportsInt | typing.SupportsIndex]
        | None = None,
        dl_device: tuple[typing.SupportsInt | typing.SupportsIndex, typing.SupportsInt | typing.SupportsIndex]
        | None = None,
        copy: bool | None = None,
    ) -> typing.Any: ...
    def __dlpack_device__(self) -> tuple[int, int]: ...
    def broadcast_to(self, shape: tuple[int, ...]) -> Tensor: ...
    def is_contiguous(self) -> bool: ...
    def permute(self, axes: tuple[int, ...]) -> Tensor: ...
    def select(
        self, dim: typing.SupportsInt | typing.SupportsIndex, index: typing.SupportsInt | typing.SupportsIndex
    ) -> Tensor: ...
    def slice(
        self,
        dim: typing.SupportsInt | typing.SupportsIndex,
        start: typing.SupportsInt | typing.SupportsIndex,
        stop: typing.SupportsInt | typing.SupportsIndex,
        step: typing.SupportsInt | typing.SupportsIndex,
    ) -> Tensor: ...
    def squeeze(self, dim: typing.SupportsInt | typing.SupportsIndex) -> Tensor: ...
    def transpose(
        self, dim0: typing.SupportsInt | typing.SupportsIndex, dim1: typing.SupportsInt | typing.SupportsIndex
    ) -> Tensor: ...
    def unsqueeze(self, dim: typing.SupportsInt | typing.SupportsIndex) -> Tensor: ...
    @property
    def data_ptr(self) -> int: ...
    @property
    def device(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def ndim(self) -> int: ...
    @property
    def numel(self) -> int: ...
    @property
    def owner(self) -> int: ...
    @property
    def readonly(self) -> bool: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def strides(self) -> tuple[int, ...]: ...

class Stream:
    @staticmethod
    def default(device: str) -> Stream: ...
    def __init__(self, device: str) -> None: ...
    def make_current(self) -> None: ...
    def synchronize(self) -> None: ...
    def wait(self, source: Stream) -> None: ...
    @property
    def device(self) -> str: ...
    @property
    def handle(self) -> int: ...

class Event:
    def __init__(self, timed: bool) -> None: ...
    def elapsed_ms(self, end: Event) -> float: ...
    def hold(self, stream: Stream) -> None: ...
    def query(self) -> bool: ...
    def record(self, stream: Stream) -> None: ...
    def synchronize(self) -> None: ...

class Graph:
    def __init__(self) -> None: ...
    def abort(self) -> None: ...
    def begin(self, stream: Stream) -> None: ...
    def end(self) -> None: ...
    def replay(
        self,
        device: str,
        seed: typing.SupportsInt | typing.SupportsIndex,
        offset: typing.SupportsInt | typing.SupportsIndex,
    ) -> None: ...
    @property
    def random_state(self) -> Tensor: ...

class PackedMatrix:
    @property
    def transpose(self) -> bool: ...

class QuantizedMatrix:
    @property
    def K(self) -> int: ...
    @property
    def N(self) -> int: ...
    @property
    def bits(self) -> int: ...
    @property
    def group(self) -> int: ...
    @property
    def scales(self) -> Tensor: ...
    @property
    def transpose(self) -> bool: ...
    @property
    def values(self) -> Tensor: ...

class PackedFilters:
    @property
    def weight(self) -> Tensor: ...

class CsrPattern:
    def __init__(
        self,
        indptr: Tensor,
        indices: Tensor,
        rows: typing.SupportsInt | typing.SupportsIndex,
        cols: typing.SupportsInt | typing.SupportsIndex,
    ) -> None: ...
    def to(self, device: str) -> CsrPattern: ...
    @property
    def device(self) -> str: ...
    @property
    def indices(self) -> Tensor: ...
    @property
    def indptr(self) -> Tensor: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def size(self) -> int: ...

class RowPlaces:
    def __init__(self, op: str, rows: Tensor, n: typing.SupportsInt | typing.SupportsIndex, device: str) -> None: ...

class StepInputs:
    def __init__(
        self,
        params: collections.abc.Sequence[Tensor],
        grads: collections.abc.Sequence[Tensor],
        rows: collections.abc.Sequence[Tensor | None],
        masters: collections.abc.Sequence[Tensor | None],
        scales: collections.abc.Sequence[Tensor | None],
        *,
        stochastic_rounding: bool,
        seed: typing.SupportsInt | typing.SupportsIndex,
        offset: typing.SupportsInt | typing.SupportsIndex,
        device_lr: Tensor | None = None,
        device_scale: Tensor | None = None,
        steps: collections.abc.Sequence[Tensor] = [],
    ) -> None: ...

def activation(x: Tensor, name: str) -> Tensor: ...
def activation_backward(dy: Tensor, saved: Tensor, name: str) -> Tensor: ...
def adam(
    inputs: StepInputs,
    exp_avgs: collections.abc.Sequence[Tensor],
    exp_avg_sqs: collections.abc.Sequence[Tensor],
    *,
    lr: typing.SupportsFloat | typing.SupportsIndex,
    beta1: typing.SupportsFloat | typing.SupportsIndex,
    beta2: typing.SupportsFloat | typing.SupportsIndex,
    eps: typing.SupportsFloat | typing.SupportsIndex,
    weight_decay: typing.SupportsFloat | typing.SupportsIndex,
    l1: typing.SupportsFloat | typing.SupportsIndex,
    grad_scale: typing.SupportsFloat | typing.SupportsIndex,
    step: typing.SupportsInt | typing.SupportsIndex,
    decoupled: bool,
) -> None: ...
def adaptive_avg_pool2d(x: Tensor, output_size: tuple[int, ...], layout: str) -> Tensor: ...
def adaptive_avg_pool2d_backward(dy: Tensor, x_shape: tuple[int, ...]) -> Tensor: ...
def add_rows(dense: Tensor, indices: Tensor, values: Tensor) -> None: ...
def append_rows(
    cache: Tensor, rows: Tensor, starts: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex]
) -> Tensor: ...
def arg_extremum(name: str, x: Tensor, axis: typing.SupportsInt | typing.SupportsIndex, keepdims: bool) -> Tensor: ...
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None = None,
    lengths: Tensor | None = None,
    query_lengths: Tensor | None = None,
    left: typing.SupportsInt | typing.SupportsIndex | None = None,
    right: typing.SupportsInt | typing.SupportsIndex | None = None,
    scale: typing.SupportsFloat | typing.SupportsIndex | None = None,
) -> tuple[Tensor, Tensor]: ...
def attention_backward(
    dy: Tensor,
    y: Tensor,
    lse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    lengths: Tensor | None,
    query_lengths: Tensor | None,
    left: typing.SupportsInt | typing.SupportsIndex | None,
    right: typing.SupportsInt | typing.SupportsIndex | None,
    scale: typing.SupportsFloat | typing.SupportsIndex | None,
    wanted: typing.Annotated[collections.abc.Sequence[bool], "FixedSize(4)"],
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]: ...
def avg_pool2d(
    x: Tensor,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...] | str,
    ceil_mode: bool,
    count_include_pad: bool,
    layout: str,
) -> Tensor: ...
def avg_pool2d_backward(
    dy: Tensor,
    x_shape: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...] | str,
    ceil_mode: bool,
    count_include_pad: bool,
) -> Tensor: ...
def batch_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: typing.SupportsFloat | typing.SupportsIndex,
    eps: typing.SupportsFloat | typing.SupportsIndex,
    layout: str,
) -> tuple[Tensor, Tensor, Tensor]: ...
def batch_norm_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    training: bool,
    layout: str,
) -> tuple[Tensor, Tensor, Tensor]: ...
def bce_with_logits(
    logits: Tensor, targets: Tensor, weight: Tensor | None, pos_weight: Tensor | None, reduction: str
) -> Tensor: ...
def bce_with_logits_backward(
    dloss: Tensor,
    logits: Tensor,
    targets: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    reduction: str,
    want_dtargets: bool,
) -> tuple[Tensor, Tensor]: ...
def binary(name: str, a: Tensor, b: Tensor) -> Tensor: ...
def cached_attention(
    x: Tensor,
    keys: Tensor,
    values: Tensor,
    starts: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
    bias: Tensor | None,
    lengths: Tensor | None,
    query_lengths: Tensor | None,
    right: typing.SupportsInt | typing.SupportsIndex | None,
    scale: typing.SupportsFloat | typing.SupportsIndex | None,
) -> Tensor: ...
def cast(x: Tensor, dtype: str) -> Tensor: ...
def clamp(
    x: Tensor, low: typing.SupportsFloat | typing.SupportsIndex, high: typing.SupportsFloat | typing.SupportsIndex
) -> Tensor: ...
def clamp_backward(
    dy: Tensor,
    x: Tensor,
    low: typing.SupportsFloat | typing.SupportsIndex,
    high: typing.SupportsFloat | typing.SupportsIndex,
) -> Tensor: ...
def clip_factor(
    tensors: collections.abc.Sequence[Tensor], max_norm: typing.SupportsFloat | typing.SupportsIndex
) -> Tensor: ...
def clone(x: Tensor) -> Tensor: ...
def concat(parts: collections.abc.Sequence[Tensor], axis: typing.SupportsInt | typing.SupportsIndex) -> Tensor: ...
def contiguous(x: Tensor) -> Tensor: ...
def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    stride: tuple[int, ...],
    padding: tuple[int, ...] | str,
    dilation: tuple[int, ...],
    groups: typing.SupportsInt | typing.SupportsIndex,
    algorithm: str,
    activation: str,
    keep_pre_activation: bool,
    layout: str,
    packed: PackedFilters | None = None,
) -> tuple[Tensor, Tensor]: ...
def conv2d_backward_bias(dy: Tensor) -> Tensor: ...
def conv2d_backward_input(
    dy: Tensor,
    weight: Tensor,
    x_shape: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...] | str,
    dilation: tuple[int, ...],
    groups: typing.SupportsInt | typing.SupportsIndex,
    algorithm: str,
) -> Tensor: ...
def conv2d_backward_weight(
    dy: Tensor,
    x: Tensor,
    weight_shape: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...] | str,
    dilation: tuple[int, ...],
    groups: typing.SupportsInt | typing.SupportsIndex,
    algorithm: str,
) -> Tensor: ...
def copy_into(dst: Tensor, src: Tensor) -> None: ...
def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    weight: Tensor | None,
    ignore_index: typing.SupportsInt | typing.SupportsIndex,
    label_smoothing: typing.SupportsFloat | typing.SupportsIndex,
    reduction: str,
) -> tuple[Tensor, Tensor, Tensor]: ...
def cross_entropy_backward(
    dloss: Tensor,
    logits: Tensor,
    labels: Tensor,
    weight: Tensor | None,
    sums: Tensor,
    total: Tensor,
    ignore_index: typing.SupportsInt | typing.SupportsIndex,
    label_smoothing: typing.SupportsFloat | typing.SupportsIndex,
    reduction: str,
) -> Tensor: ...
def csr_from_coo(rows: Tensor, cols: Tensor, shape: tuple[int, ...]) -> tuple[CsrPattern, Tensor]: ...
def csr_transpose(pattern: CsrPattern) -> tuple[CsrPattern, Tensor]: ...
def ctc_loss(
    logits: Tensor,
    targets: Tensor,
    input_lengths: Tensor | None,
    target_lengths: Tensor | None,
    blank: typing.SupportsInt | typing.SupportsIndex,
    reduction: str,
    zero_infinity: bool,
    want_gradient: bool,
) -> tuple[Tensor, Tensor | None]: ...
def ctc_loss_backward(dloss: Tensor, gradient: Tensor, like: Tensor) -> Tensor: ...
def cuda_status() -> tuple[bool, str, int]: ...
def current_stream(device: str) -> int: ...
def dropout(
    x: Tensor,
    p: typing.SupportsFloat | typing.SupportsIndex,
    seed: typing.SupportsInt | typing.SupportsIndex,
    offset: typing.SupportsInt | typing.SupportsIndex,
    state: Tensor | None,
    keep: bool,
) -> tuple[Tensor, Tensor | None]: ...
def dropout_backward(
    dy: Tensor,
    mask: Tensor | None,
    p: typing.SupportsFloat | typing.SupportsIndex,
    seed: typing.SupportsInt | typing.SupportsIndex,
    offset: typing.SupportsInt | typing.SupportsIndex,
    state: Tensor | None,
) -> Tensor: ...
def embedding(
    weight: Tensor, indices: Tensor, padding_idx: typing.SupportsInt | typing.SupportsIndex | None = None
) -> Tensor: ...
def embedding_backward(
    dy: Tensor,
    indices: Tensor,
    num_rows: typing.SupportsInt | typing.SupportsIndex,
    padding_idx: typing.SupportsInt | typing.SupportsIndex | None = None,
) -> Tensor: ...
def embedding_backward_sparse(
    dy: Tensor,
    indices: Tensor,
    num_rows: typing.SupportsInt | typing.SupportsIndex,
    padding_idx: typing.SupportsInt | typing.SupportsIndex | None = None,
) -> tuple[Tensor, Tensor]: ...
def embedding_bag(
    weight: Tensor,
    indices: Tensor,
    offsets: Tensor | None,
    scale: Tensor | None,
    mode: str,
    padding_idx: typing.SupportsInt | typing.SupportsIndex | None,
    tables: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
    keep_argmax: bool,
) -> tuple[Tensor, Tensor]: ...
def embedding_bag_backward(
    dy: Tensor,
    indices: Tensor,
    offsets: Tensor | None,
    scale: Tensor | None,
    argmax: Tensor | None,
    num_rows: typing.SupportsInt | typing.SupportsIndex,
    mode: str,
    padding_idx: typing.SupportsInt | typing.SupportsIndex | None,
    tables: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
) -> Tensor: ...
def embedding_bag_backward_scale(
    dy: Tensor,
    weight: Tensor,
    indices: Tensor,
    offsets: Tensor | None,
    padding_idx: typing.SupportsInt | typing.SupportsIndex | None,
    tables: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
) -> Tensor: ...
def embedding_bag_backward_sparse(
    dy: Tensor,
    indices: Tensor,
    offsets: Tensor | None,
    scale: Tensor | None,
    argmax: Tensor | None,
    num_rows: typing.SupportsInt | typing.SupportsIndex,
    mode: str,
    padding_idx: typing.SupportsInt | typing.SupportsIndex | None,
    tables: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
) -> tuple[Tensor, Tensor]: ...
def embedding_bag_step(
    weight: Tensor,
    dy: Tensor,
    indices: Tensor,
    states: collections.abc.Sequence[Tensor],
    offsets: Tensor | None,
    scale: Tensor | None,
    mode: str,
    tables: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
    padding_idx: typing.SupportsInt | typing.SupportsIndex | None,
    *,
    optimizer: str,
    lr: typing.SupportsFloat | typing.SupportsIndex,
    beta1: typing.SupportsFloat | typing.SupportsIndex,
    beta2: typing.SupportsFloat | typing.SupportsIndex,
    eps: typing.SupportsFloat | typing.SupportsIndex,
    weight_decay: typing.SupportsFloat | typing.SupportsIndex,
    grad_scale: typing.SupportsFloat | typing.SupportsIndex,
    step: typing.SupportsInt | typing.SupportsIndex,
    stochastic_rounding: bool,
    seed: typing.SupportsInt | typing.SupportsIndex,
    offset: typing.SupportsInt | typing.SupportsIndex,
) -> None: ...
def embedding_step(
    weight: Tensor,
    dy: Tensor,
    indices: Tensor,
    states: collections.abc.Sequence[Tensor],
    padding_idx: typing.SupportsInt | typing.SupportsIndex | None,
    *,
    optimizer: str,
    lr: typing.SupportsFloat | typing.SupportsIndex,
    beta1: typing.SupportsFloat | typing.SupportsIndex,
    beta2: typing.SupportsFloat | typing.SupportsIndex,
    eps: typing.SupportsFloat | typing.SupportsIndex,
    weight_decay: typing.SupportsFloat | typing.SupportsIndex,
    grad_scale: typing.SupportsFloat | typing.SupportsIndex,
    step: typing.SupportsInt | typing.SupportsIndex,
    stochastic_rounding: bool,
    seed: typing.SupportsInt | typing.SupportsIndex,
    offset: typing.SupportsInt | typing.SupportsIndex,
) -> None: ...
def empty(shape: tuple[int, ...], dtype: str, device: str = "cpu") -> Tensor: ...
def empty_cache() -> None: ...
def float32_matmul_precision() -> str: ...
def fm_interaction(v: Tensor) -> Tensor: ...
def fm_interaction_backward(dy: Tensor, v: Tensor) -> Tensor: ...
def from_cuda_array(
    object: typing.Any,
    pointer: typing.SupportsInt | typing.SupportsIndex,
    shape: tuple[int, ...],
    strides: tuple[int, ...] | None,
    dtype: str,
    readonly: bool,
    stream: typing.SupportsInt | typing.SupportsIndex | None,
) -> Tensor: ...
def from_dlpack(source: typing.Any) -> Tensor: ...
def from_numpy(array: numpy.ndarray, dtype: str) -> Tensor | None: ...
def full(
    shape: tuple[int, ...],
    value: bool | typing.SupportsInt | typing.SupportsIndex | typing.SupportsFloat | typing.SupportsIndex,
    dtype: str,
    device: str = "cpu",
) -> Tensor: ...
def gemm(
    a: Tensor,
    b: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    transpose_a: bool = False,
    transpose_b: bool = False,
    alpha: typing.SupportsFloat | typing.SupportsIndex = 1.0,
    activation: str = "",
    keep_pre_activation: bool = False,
    packed: PackedMatrix | None = None,
    saved: Tensor | None = None,
    sum_columns: bool = False,
) -> tuple[Tensor, Tensor]: ...
def gemm_int8(
    a: Tensor,
    b: Tensor,
    scale_a: Tensor,
    scale_b: Tensor,
    bias: Tensor | None,
    transpose_b: bool,
    activation: str,
    dtype: str,
) -> Tensor: ...
def gemm_quantized(
    a: Tensor, weight: QuantizedMatrix, bias: Tensor | None, residual: Tensor | None, activation: str
) -> Tensor: ...
def getitem(x: Tensor, index: typing.Any) -> Tensor: ...
def group_norm(
    x: Tensor,
    groups: typing.SupportsInt | typing.SupportsIndex,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: typing.SupportsFloat | typing.SupportsIndex,
    layout: str,
) -> tuple[Tensor, Tensor, Tensor]: ...
def group_norm_backward(
    dy: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, rstd: Tensor, layout: str
) -> tuple[Tensor, Tensor, Tensor]: ...
def gru(
    x: Tensor,
    weights: collections.abc.Sequence[tuple[Tensor, Tensor, Tensor | None, Tensor | None]],
    h0: Tensor | None,
    c0: Tensor | None,
    lengths: Tensor | None,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor | None, list[Tensor]]: ...
def gru_backward(
    dy: Tensor | None,
    dh: Tensor | None,
    dc: Tensor | None,
    x: Tensor,
    weights: collections.abc.Sequence[tuple[Tensor, Tensor, Tensor | None, Tensor | None]],
    lengths: Tensor | None,
    saved: collections.abc.Sequence[Tensor],
    wants_dx: bool,
    wants_dweights: collections.abc.Sequence[typing.Annotated[collections.abc.Sequence[bool], "FixedSize(4)"]],
) -> tuple[
    Tensor | None, list[tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]], Tensor, Tensor | None
]: ...
@typing.overload
def hash_ids(
    ids: Tensor, rows: typing.SupportsInt | typing.SupportsIndex, seed: typing.SupportsInt | typing.SupportsIndex
) -> Tensor: ...
@typing.overload
def hash_ids(
    ids: Tensor,
    offsets: Tensor | None,
    tables: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
    seed: typing.SupportsInt | typing.SupportsIndex,
) -> Tensor: ...
def is_capturing(device: str) -> bool: ...
def is_pinned(x: Tensor) -> bool: ...
def isa() -> str: ...
def isa_reason() -> str: ...
def isas() -> list[str]: ...
def layer_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    eps: typing.SupportsFloat | typing.SupportsIndex,
    ndim: typing.SupportsInt | typing.SupportsIndex,
) -> tuple[Tensor, Tensor, Tensor]: ...
def layer_norm_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    ndim: typing.SupportsInt | typing.SupportsIndex,
) -> tuple[Tensor, Tensor, Tensor]: ...
def lstm(
    x: Tensor,
    weights: collections.abc.Sequence[tuple[Tensor, Tensor, Tensor | None, Tensor | None]],
    h0: Tensor | None,
    c0: Tensor | None,
    lengths: Tensor | None,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor | None, list[Tensor]]: ...
def lstm_backward(
    dy: Tensor | None,
    dh: Tensor | None,
    dc: Tensor | None,
    x: Tensor,
    weights: collections.abc.Sequence[tuple[Tensor, Tensor, Tensor | None, Tensor | None]],
    lengths: Tensor | None,
    saved: collections.abc.Sequence[Tensor],
    wants_dx: bool,
    wants_dweights: collections.abc.Sequence[typing.Annotated[collections.abc.Sequence[bool], "FixedSize(4)"]],
) -> tuple[
    Tensor | None, list[tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]], Tensor, Tensor | None
]: ...
def max_pool2d(
    x: Tensor,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...] | str,
    dilation: tuple[int, ...],
    ceil_mode: bool,
    keep_taps: bool,
    layout: str,
) -> tuple[Tensor, Tensor]: ...
def max_pool2d_backward(
    dy: Tensor,
    taps: Tensor,
    x_shape: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...] | str,
    dilation: tuple[int, ...],
    ceil_mode: bool,
) -> Tensor: ...
def measure_limit(
    name: str,
    bytes: typing.SupportsInt | typing.SupportsIndex = 0,
    seconds: typing.SupportsFloat | typing.SupportsIndex = 0.1,
    device: str = "cpu",
) -> float | None: ...
def memory_stats(device: str = "cpu") -> dict[str, int]: ...
def merge_rows(
    indices: collections.abc.Sequence[Tensor], values: collections.abc.Sequence[Tensor]
) -> tuple[Tensor, Tensor]: ...
def mse(a: Tensor, b: Tensor, reduction: str) -> Tensor: ...
def mse_backward(
    dloss: Tensor, a: Tensor, b: Tensor, reduction: str, want_da: bool, want_db: bool
) -> tuple[Tensor, Tensor]: ...
def num_threads() -> int: ...
def pack_filters(
    weight: Tensor,
    stride: tuple[int, ...],
    padding: tuple[int, ...] | str,
    dilation: tuple[int, ...],
    groups: typing.SupportsInt | typing.SupportsIndex,
    algorithm: str,
) -> PackedFilters: ...
def pack_weight(b: Tensor, transpose: bool) -> PackedMatrix: ...
def pad(
    x: Tensor,
    before: tuple[int, ...],
    after: tuple[int, ...],
    value: bool | typing.SupportsInt | typing.SupportsIndex | typing.SupportsFloat | typing.SupportsIndex,
) -> Tensor: ...
def pin(x: Tensor, device: str) -> Tensor: ...
def quantize_int8(x: Tensor, axis: typing.SupportsInt | typing.SupportsIndex) -> tuple[Tensor, Tensor]: ...
def quantize_weight(
    b: Tensor,
    transpose: bool,
    bits: typing.SupportsInt | typing.SupportsIndex,
    group: typing.SupportsInt | typing.SupportsIndex,
) -> QuantizedMatrix: ...
def record_use(x: Tensor, stream: Stream) -> None: ...
def reduce(name: str, x: Tensor, axes: tuple[int, ...], keepdims: bool) -> Tensor: ...
def reset_peak_memory() -> None: ...
def reshape(x: Tensor, shape: tuple[int, ...]) -> Tensor: ...
def rms_norm(
    x: Tensor,
    weight: Tensor | None,
    residual: Tensor | None,
    eps: typing.SupportsFloat | typing.SupportsIndex,
    ndim: typing.SupportsInt | typing.SupportsIndex,
) -> tuple[Tensor, Tensor]: ...
def rms_norm_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    residual: Tensor | None,
    rstd: Tensor,
    ndim: typing.SupportsInt | typing.SupportsIndex,
) -> tuple[Tensor, Tensor]: ...
def rmsprop(
    inputs: StepInputs,
    square_avgs: collections.abc.Sequence[Tensor],
    grad_avgs: collections.abc.Sequence[Tensor],
    buffers: collections.abc.Sequence[Tensor],
    *,
    lr: typing.SupportsFloat | typing.SupportsIndex,
    alpha: typing.SupportsFloat | typing.SupportsIndex,
    eps: typing.SupportsFloat | typing.SupportsIndex,
    momentum: typing.SupportsFloat | typing.SupportsIndex,
    centered: bool,
    weight_decay: typing.SupportsFloat | typing.SupportsIndex,
    l1: typing.SupportsFloat | typing.SupportsIndex,
    grad_scale: typing.SupportsFloat | typing.SupportsIndex,
) -> None: ...
def sample(
    logits: Tensor,
    temperature: typing.SupportsFloat | typing.SupportsIndex,
    top_k: typing.SupportsInt | typing.SupportsIndex | None,
    top_p: typing.SupportsFloat | typing.SupportsIndex | None,
    min_p: typing.SupportsFloat | typing.SupportsIndex | None,
    seed: typing.SupportsInt | typing.SupportsIndex,
    offset: typing.SupportsInt | typing.SupportsIndex,
) -> Tensor: ...
def scalar(
    op: str,
    value: bool | typing.SupportsInt | typing.SupportsIndex | typing.SupportsFloat | typing.SupportsIndex,
    dtype: str,
    device: str = "cpu",
) -> Tensor: ...
def set_float32_matmul_precision(name: str) -> None: ...
def set_isa(name: str) -> None: ...
def set_num_threads(count: typing.SupportsInt | typing.SupportsIndex) -> None: ...
def sgd(
    inputs: StepInputs,
    buffers: collections.abc.Sequence[Tensor],
    *,
    lr: typing.SupportsFloat | typing.SupportsIndex,
    momentum: typing.SupportsFloat | typing.SupportsIndex,
    nesterov: bool,
    weight_decay: typing.SupportsFloat | typing.SupportsIndex,
    l1: typing.SupportsFloat | typing.SupportsIndex,
    grad_scale: typing.SupportsFloat | typing.SupportsIndex,
) -> None: ...
def softmax(x: Tensor, axis: typing.SupportsInt | typing.SupportsIndex, log: bool = False) -> Tensor: ...
def softmax_backward(
    dy: Tensor, y: Tensor, axis: typing.SupportsInt | typing.SupportsIndex, log: bool = False
) -> Tensor: ...
def spmm(
    a: CsrPattern,
    values: Tensor | None,
    x: Tensor,
    alpha: typing.SupportsFloat | typing.SupportsIndex,
    z: Tensor | None,
    beta: typing.SupportsFloat | typing.SupportsIndex,
    x_rows: RowPlaces | None = None,
    z_rows: RowPlaces | None = None,
    y_rows: RowPlaces | None = None,
) -> Tensor: ...
def spmm_backward_values(a: CsrPattern, dy: Tensor, x: Tensor) -> Tensor: ...
def sum_of_squares(tensors: collections.abc.Sequence[Tensor]) -> float: ...
def synchronize(device: str) -> None: ...
def table_rows(
    ids: Tensor,
    offsets: Tensor | None,
    tables: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
    seed: typing.SupportsInt | typing.SupportsIndex | None,
) -> Tensor: ...
def to_device(x: Tensor, device: str, non_blocking: bool = False) -> Tensor: ...
def to_numpy(tensor: Tensor, dtype: numpy.dtype[typing.Any]) -> numpy.ndarray: ...
def topk(
    x: Tensor,
    k: typing.SupportsInt | typing.SupportsIndex,
    axis: typing.SupportsInt | typing.SupportsIndex,
    largest: bool,
    sorted: bool,
) -> tuple[Tensor, Tensor]: ...
def topk_backward(
    dy: Tensor,
    indices: Tensor,
    axis: typing.SupportsInt | typing.SupportsIndex,
    size: typing.SupportsInt | typing.SupportsIndex,
) -> Tensor: ...
def unary(name: str, x: Tensor) -> Tensor: ...
def unary_backward(name: str, dy: Tensor, saved: Tensor) -> Tensor: ...
def var(
    x: Tensor, axes: tuple[int, ...], ddof: typing.SupportsInt | typing.SupportsIndex, keepdims: bool
) -> Tensor: ...
def where(condition: Tensor, a: Tensor, b: Tensor) -> Tensor: ...
def zeros(shape: tuple[int, ...], dtype: str, device: str = "cpu") -> Tensor: ...

__version__: str
cuda_built: str
