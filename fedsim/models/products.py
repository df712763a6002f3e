"""Matrix products of many models side by side, by the fastest kernel of a CPU."""

from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

LEAST = 1_500_000
"""Multiplications of one model from which oneDNN pays on one thread.

Each of its calls costs microseconds more.
"""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return x @ weightᵀ + bias, [M, R, out].

    x: [M, R, in], weight: [M, out, in], bias: [M, out].
    """
    if pays(x, weight.shape[1]) and x.dtype == weight.dtype and not traced(weight):
        return cast(Tensor, Large.apply(x, weight, bias))  # type: ignore[no-untyped-call]
    if bias is None:
        return torch.bmm(x, weight.transpose(1, 2))
    return torch.baddbmm(bias.unsqueeze(1), x, weight.transpose(1, 2))


class Large(torch.autograd.Function):
    """`linear` by oneDNN, and its backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        biases = [None] * len(x) if bias is None else bias.unbind(0)
        return _stacked(
            _by_onednn(*each) for each in zip(x.unbind(0), weight.unbind(0), biases, strict=True)
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x = of_weight = None
        if ctx.needs_input_grad[0]:
            of_x = _stacked(map(_by_onednn, g.unbind(0), weight.transpose(1, 2).unbind(0)))
        if ctx.needs_input_grad[1]:
            of_weight = outer(g, x)
        return of_x, of_weight, g.sum(1) if ctx.needs_input_grad[2] else None


def outer(g: Tensor, a: Tensor) -> Tensor:
    """Return Σ gᵀ a over all rows, [M, out, in], for g [M, R, out] and a [M, R, in]."""
    if not pays(a, g.shape[-1]):
        return torch.bmm(g.transpose(1, 2), a)
    return _stacked(map(_by_onednn, g.transpose(1, 2).unbind(0), a.transpose(1, 2).unbind(0)))


def product(x: Tensor, weight: Tensor, out: Tensor) -> Tensor:
    """Write x @ weightᵀ to `out`, and return that.

    x: [M, T, B, in], weight: [M, out, in], out: [M, T, B, out], of any strides. It goes model by
    model where oneDNN pays, else step by step. oneDNN multiplies large matrices in float32 on a
    CPU: torch's own products are MKL's, which uses AVX-512 on Intel's CPUs alone.
    """
    if not pays(x, weight.shape[1]):
        for now, o in zip(x.unbind(1), out.unbind(1), strict=True):
            torch.bmm(now, weight.transpose(1, 2), out=o)
        return out
    for one, w, o in zip(x.unbind(0), weight.unbind(0), out.unbind(0), strict=True):
        o.copy_(_by_onednn(one.flatten(0, 1), w).view(o.shape))
    return out


def add_product(base: Tensor, x: Tensor, weight: Tensor, out: Tensor) -> Tensor:
    """Write base + x @ weightᵀ to `out`, which may be `base`, and return that.

    base, out: [M, B, out], x: [M, B, in], weight: [M, out, in].
    """
    if not pays(x, weight.shape[1]):
        return torch.baddbmm(base, x, weight.transpose(1, 2), out=out)
    for b, one, w, o in zip(
        base.unbind(0), x.unbind(0), weight.unbind(0), out.unbind(0), strict=True
    ):
        torch.add(b, _by_onednn(one, w), out=o)
    return out


def sum_of_products(g: Tensor, a: Tensor, factors: Tensor) -> Tensor:
    """Return Σ factor · gᵀ a over all rows, [M, out, in], in any strides.

    g: [M, T, B, out], a: [M, T, B, in], factors: [M, B].
    """
    weights = factors[:, None, :, None]
    if not pays(a, g.shape[-1]):
        left, right = (x.reshape(len(x), -1, x.shape[-1]) for x in (g, a * weights))
        return torch.bmm(left.transpose(1, 2), right)
    found = g.new_empty(len(g), a.shape[-1], g.shape[-1])
    for one, w, other, o in zip(
        a.unbind(0), weights.unbind(0), g.unbind(0), found.unbind(0), strict=True
    ):
        rows = (one * w).flatten(0, 1)  # one model at a time stays in the cache
        o.copy_(_by_onednn(rows.t(), other.flatten(0, 1).t()))
    return found.transpose(1, 2)


def pays(x: Tensor, width: int) -> bool:
    """Whether oneDNN may multiply x [M, ...] into `width` columns, and is faster at it."""
    able = ONEDNN and x.dtype == torch.float32 and x.device.type == "cpu"
    # all threads meet in each call of oneDNN; torch gives each thread models of its own
    least = LEAST * torch.get_num_threads() ** 2
    large = able and x[0].numel() * width >= least
    return large and not traced(x) and not torch.is_autocast_enabled("cpu")


def _by_onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(_dense(x), _dense(weight), bias, "none", [], "")


def _stacked(found: Iterable[Tensor]) -> Tensor:
    """Return matrices as [M, ...]; a single one is not copied."""
    first, *others = found
    return torch.stack([first, *others]) if others else first.unsqueeze(0)


def _dense(x: Tensor) -> Tensor:
    """Return a matrix without gaps; for other strides oneDNN has only a slow reference kernel."""
    return x if x.is_contiguous() or x.t().is_contiguous() else x.contiguous()


traced = torch._C._functorch.is_functorch_wrapped_tensor
"""Whether vmap or torch.func.grad wraps a tensor; they have no rule for these products."""
ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
