"""drupe: hand-written kernels behind a thin Python layer."""

from drupe import _C
from drupe.autograd import SparseRows, enable_grad, is_grad_enabled, no_grad
from drupe.io import load, load_metadata, save
from drupe.random import manual_seed
from drupe.runtime import (
    cpu_isa,
    cpu_isas,
    cuda_status,
    empty_cache,
    float32_matmul_precision,
    get_float32_matmul_precision,
    memory_stats,
    num_threads,
    set_cpu_isa,
    set_float32_matmul_precision,
    set_num_threads,
    synchronize,
)
from drupe.tensor import (
    Tensor,
    as_tensor,
    default_device,
    empty,
    from_dlpack,
    full,
    get_default_device,
    ones,
    set_default_device,
    tensor,
    zeros,
)

# After Tensor: the ops are made of it.
from drupe.sparse import CsrMatrix  # isort: skip
from drupe import cuda, data, nn, ops, optim, random, schedules  # isort: skip

__version__ = _C.__version__

__all__ = [
    "CsrMatrix",
    "SparseRows",
    "Tensor",
    "as_tensor",
    "cpu_isa",
    "cpu_isas",
    "cuda",
    "cuda_status",
    "data",
    "default_device",
    "empty",
    "empty_cache",
    "enable_grad",
    "float32_matmul_precision",
    "from_dlpack",
    "full",
    "get_default_device",
    "get_float32_matmul_precision",
    "is_grad_enabled",
    "load",
    "load_metadata",
    "manual_seed",
    "memory_stats",
    "nn",
    "no_grad",
    "num_threads",
    "ones",
    "ops",
    "optim",
    "random",
    "save",
    "schedules",
    "set_cpu_isa",
    "set_default_device",
    "set_float32_matmul_precision",
    "set_num_threads",
    "synchronize",
    "tensor",
    "zeros",
]
