"""Gradients of the table rows that were read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """The gradient of a table that was read at some rows: `values` [K, n, width] at `ids` [K, n].

    With `shares` [K, n] there are fewer values, [K, m, width]. Each value then belongs to n / m
    neighbouring ids and is multiplied by their shares.
    """

    ids: Tensor
    values: Tensor
    shares: Tensor | None = None

    def each(self, scale: float) -> Tensor:
        """Return `scale` times the value of each id, [K, n, width]."""
        if self.shares is None:
            return self.values if scale == 1.0 else self.values * scale
        parts = (self.shares * scale).view(*self.values.shape[:2], -1, 1)
        return (parts * self.values.unsqueeze(2)).flatten(1, 2)

    def dense(self, shape: Sequence[int]) -> Tensor:
        """Return the gradient of a whole stacked table [K, rows, width]."""
        whole = self.values.new_zeros(shape)
        add_rows(whole, self, 1.0)
        return whole


Grads = Mapping[str, Tensor | Rows]


def add_rows(table: Tensor, rows: Rows, scale: float) -> None:
    """Add `scale` times the rows to a stacked table [K, rows, width], in place."""
    models, count, width = table.shape
    first = torch.arange(models, device=table.device).unsqueeze(1) * count
    flat = table.view(models * count, width)
    values = rows.each(scale)  # the kernel is several times slower with alpha
    flat.index_add_(0, (rows.ids + first).flatten(), values.flatten(0, 1))
