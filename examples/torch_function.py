"""A drupe op inside a PyTorch model: forward and backward as one ``torch.autograd.Function``.

Memory is shared both ways through DLPack, so that the only work is the op's own.

    pip install . torch && python examples/torch_function.py
"""

from __future__ import annotations

from typing import Any

import torch

import drupe
from drupe import ops


class Attention(torch.autograd.Function):
    """``softmax(q k^T / sqrt(D)) v`` by drupe, for tensors (B, H, S, D) on the CPU."""

    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool) -> torch.Tensor:
        """Run the op on drupe's tape, and keep the tape for the way back."""
        ctx.leaves = [drupe.Tensor(x.detach(), requires_grad=True) for x in (q, k, v)]
        with drupe.enable_grad():
            ctx.result = ops.attention(*ctx.leaves, causal=causal)
        return torch.from_dlpack(ctx.result.detach())

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Run the tape backwards."""
        ctx.result.backward(dy)
        return (*(torch.from_dlpack(leaf.grad) for leaf in ctx.leaves), None)


def main() -> None:
    """Compare with PyTorch's own attention, values and gradients."""
    torch.manual_seed(0)
    inputs = [torch.randn(2, 4, 128, 32, requires_grad=True) for _ in range(3)]
    weights = torch.randn(2, 4, 128, 32)

    def run(attention: Any) -> list[torch.Tensor]:
        y = attention(*inputs)
        return [y.detach(), *torch.autograd.grad((y * weights).sum(), inputs)]

    ours = run(lambda q, k, v: Attention.apply(q, k, v, True))
    theirs = run(lambda q, k, v: torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True))
    for name, a, b in zip(("y", "dq", "dk", "dv"), ours, theirs, strict=True):
        error = (a - b).abs().max().item()
        print(f"{name}: differs from PyTorch by at most {error:.1e}")
        assert error < 1e-4


if __name__ == "__main__":
    main()
