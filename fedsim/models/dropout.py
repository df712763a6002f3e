"""Dropout by keys: a mask belongs to an example, not to its place in a batch."""

import torch
from torch import Tensor, nn


class Dropout(nn.Module):
    """Dropout whose masks come from names: equal for any packing, any node and after a resume.

    In training `keys` [K] holds one int64 for each model, new at every step. An element's mask is a
    hash of its key, its example and its position, so padding and neighbours cannot change it.
    `rows` [K, B] names the examples; without it, their places in the batch name them. Each place in
    a model needs a Dropout of its own: one that is used twice in a step drops the same units again.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.keys: Tensor | None = None
        self.rows: Tensor | None = None
        self.stacked = True

    def forward(self, x: Tensor) -> Tensor:
        """x: [K, B, ..., width], or [B, ..., width] of one model where not `stacked`.

        Kept values are scaled by 1 / (1 - p).
        """
        if not self.training or self.p == 0.0:
            return x
        return self._drop(x) if self.stacked else self._drop(x.unsqueeze(0)).squeeze(0)

    def _drop(self, x: Tensor) -> Tensor:
        if self.keys is None:
            raise RuntimeError("Dropout needs `keys`, one a model, before each training step")
        mixed = self.keys.view(-1, *[1] * (x.dim() - 1))
        for axis, size in enumerate(x.shape[1:], start=1):
            position = torch.arange(size, device=x.device).view(-1, *[1] * (x.dim() - 1 - axis))
            if axis == 1 and self.rows is not None:
                position = self.rows.view(*self.rows.shape, *[1] * (x.dim() - 2))
            mixed = mixed + position * _AXIS_STRIDES[axis - 1]
        # 24 bits, because float32 holds no more exactly
        uniform = (_mix(mixed) & 0xFFFFFF).to(x.dtype) / 2**24
        return x * (uniform >= self.p) / (1.0 - self.p)


# one odd 64-bit number for each axis, so that positions on different axes hash differently
_AXIS_STRIDES = (0x1E3779B97F4A7C15, 0x2545F4914F6CDD1D, 0x369DEA0F31A53F85, 0x27BB2EE687B0B0FD)


def set_dropout_keys(
    model: nn.Module, keys: Tensor, step: int, stacked: bool = True, rows: Tensor | None = None
) -> None:
    """Give each Dropout of `model` its keys for this step: a hash of (model key, step, layer)."""
    layers = [module for module in model.modules() if isinstance(module, Dropout)]
    for number, layer in enumerate(layers):
        if layer.p:
            layer.keys = _mix(_mix(keys + step) + number)
            layer.stacked = stacked
            layer.rows = rows


def _mix(x: Tensor) -> Tensor:
    """The finaliser of splitmix64 (Steele et al., 2014) on int64, whose sums and products wrap."""
    # the masks clear the sign bits that >> shifts in
    x = (x ^ (x >> 30 & 0x3FFFFFFFF)) * -0x40A7B892E31B1A47
    x = (x ^ (x >> 27 & 0x1FFFFFFFFF)) * -0x6B2FB644ECCEEE15
    return x ^ (x >> 31 & 0x1FFFFFFFF)
