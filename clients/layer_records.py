"""Records of ops for the clipping of their weights: inputs A and output gradients G.

`squares()` of a record gives the squared gradient norm of each example [K, B]. `sums(c)` gives its
weights' gradients, summed over examples with factors c [K, B]. This is book-keeping (Bu et al.,
2023) with a device axis K. No record holds a gradient of each example for a weight larger than A
and G.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.grad import conv2d_weight

from clients.rows import Rows, add_rows
from fedsim.models.products import linear, outer, sum_of_products
from fedsim.types import Params


class Record(Protocol):
    """One op's contribution to each example's gradient."""

    @property
    def weights(self) -> tuple[str, ...]:
        """The parameters whose gradients the record holds."""

    def squares(self) -> Tensor:
        """Return the squared norms of the examples' gradients of `weights` together, [K, B]."""

    def sums(self, factors: Tensor) -> dict[str, Tensor | Rows]:
        """Return the gradients [K, ...] summed over the examples with `factors` [K, B]."""

    def keep(self, good: Tensor) -> "Record":
        """Return the record with the examples that are not `good` [K, B] set to zero."""

    def grouped(self, size: int) -> "Record":
        """Return the record where every `size` neighbouring examples count as one."""


@dataclass(frozen=True)
class Product:
    """A matrix product: the gradient of input i's weight is Σ_t g_tᵀ a_t, that of a bias Σ_t g_t.

    It serves linear layers, and both products of an LSTM, whose gates share g. `inputs` maps a
    weight to its A [K, D, B, T, in]. `gradient` is [K, D, B, T, out]. D counts copies of the op in
    one layer (the directions of a BiLSTM). `shapes` are the parameters' shapes without K.
    """

    inputs: Mapping[str, Tensor]
    bias: str | None
    gradient: Tensor
    shapes: Mapping[str, tuple[int, ...]]

    @property
    def weights(self) -> tuple[str, ...]:
        return (*self.inputs, *([self.bias] if self.bias else []))

    def squares(self) -> Tensor:
        g = self.gradient
        if g.shape[3] == 1:
            reach = sum(
                (a.square().sum(-1) for a in self.inputs.values()), start=_ones(self.bias, g)
            )
            return (reach * g.square().sum(-1)).sum((1, 3))
        time = g.shape[3]
        width = g.shape[4]
        inner = sum(a.shape[4] for a in self.inputs.values())
        # T² (in + out) products by rows, or T · in · out by the whole gradient: the fewer are done
        return self._by_rows() if time * (inner + width) < inner * width else self._by_gradient()

    def _by_rows(self) -> Tensor:
        g = self.gradient.flatten(0, 2)
        grams = [linear(a, a, None) for a in (a.flatten(0, 2) for a in self.inputs.values())]
        near = (
            sum(grams[1:], start=grams[0]) if grams else g.new_zeros(len(g), g.shape[1], g.shape[1])
        )
        # a bias has an input of 1 at every step, which adds 1 to each inner product of inputs
        each = _gram_norm(near.add_(1.0) if self.bias else near, linear(g, g, None))
        return each.view(self.gradient.shape[:3]).sum(1)

    def _by_gradient(self) -> Tensor:
        g = self.gradient
        total = g.sum(3).square().sum(-1) if self.bias else g.new_zeros(g.shape[:3])
        for a in self.inputs.values():
            each = torch.bmm(g.flatten(0, 2).transpose(1, 2), a.flatten(0, 2))
            total = total + each.square_().sum((1, 2)).view(g.shape[:3])
        return total.sum(1)

    def sums(self, factors: Tensor) -> dict[str, Tensor | Rows]:
        g = self.gradient
        inputs = dict(self.inputs)
        spread = factors[:, None, :, None, None]
        if (
            sum(a.shape[4] for a in inputs.values()) < g.shape[4]
        ):  # the factors go to the narrower side
            inputs = {name: a * spread for name, a in inputs.items()}
            weighing = spread.expand(*g.shape[:4], 1).reshape(-1, 1, g.shape[2] * g.shape[3])
        else:
            g = g * spread
            weighing = g.new_ones(1, 1, 1).expand(len(g) * g.shape[1], 1, g.shape[2] * g.shape[3])
        rows = g.flatten(0, 1).flatten(1, 2)  # [K·D, B·T, out]
        found: dict[str, Tensor | Rows] = {
            name: outer(rows, a.flatten(0, 1).flatten(1, 2)).view(len(factors), *self.shapes[name])
            for name, a in inputs.items()
        }
        if self.bias:
            found[self.bias] = torch.bmm(weighing, rows).view(len(factors), *self.shapes[self.bias])
        return found

    def keep(self, good: Tensor) -> "Product":
        mask = ~good[:, None, :, None, None]
        inputs = {name: a.masked_fill(mask, 0.0) for name, a in self.inputs.items()}
        return Product(inputs, self.bias, self.gradient.masked_fill(mask, 0.0), self.shapes)

    def grouped(self, size: int) -> "Product":
        inputs = {name: _grouped(a, 2, size) for name, a in self.inputs.items()}
        return Product(inputs, self.bias, _grouped(self.gradient, 2, size), self.shapes)


@dataclass(frozen=True)
class Columns:
    """A product of the inputs of several weights side by side; a bias has a column of ones.

    rows: [K, D, B, T, in], gradient: [K, D, B, T, out]. Both are views of tensors that lie time
    first in memory (an LSTM's steps). `columns` says where each weight's input is. `shapes` are the
    parameters' shapes without K.
    """

    rows: Tensor
    gradient: Tensor
    columns: Mapping[str, slice]
    shapes: Mapping[str, tuple[int, ...]]

    @property
    def weights(self) -> tuple[str, ...]:
        return tuple(self.columns)

    @cached_property
    def _whole(self) -> Product:
        """The product without the columns of frozen weights."""
        own = [self.rows[..., where] for where in self.columns.values()]
        whole = sum(a.shape[-1] for a in own) == self.rows.shape[-1]
        return Product({"": self.rows if whole else torch.cat(own, -1)}, None, self.gradient, {})

    def squares(self) -> Tensor:
        return self._whole.squares()

    def sums(self, factors: Tensor) -> dict[str, Tensor | Rows]:
        models = len(factors)
        copies = self.rows.shape[1]
        a, g = (
            x.flatten(0, 1).transpose(1, 2) for x in (self.rows, self.gradient)
        )  # [K·D, T, B, ...]
        found = sum_of_products(g, a, factors.repeat_interleave(copies, 0)).unflatten(
            0, (models, copies)
        )
        return {
            name: found[..., at].reshape(models, *self.shapes[name])
            for name, at in self.columns.items()
        }

    def keep(self, good: Tensor) -> "Columns":
        mask = ~good[:, None, :, None, None]
        rows, gradient = (x.masked_fill(mask, 0.0) for x in (self.rows, self.gradient))
        return replace(self, rows=rows, gradient=gradient)

    def grouped(self, size: int) -> "Columns":
        rows, gradient = (_grouped(x, 2, size) for x in (self.rows, self.gradient))
        return replace(self, rows=rows, gradient=gradient)


@dataclass(frozen=True)
class Lookup:
    """Rows of a table: the gradient of row r is Σ_{t: id_t = r} g_t.

    ids: [K, B, T], gradient: [K, B, T, width], zero at padding.
    """

    table: str
    ids: Tensor
    gradient: Tensor

    @property
    def weights(self) -> tuple[str, ...]:
        return (self.table,)

    def squares(self) -> Tensor:
        ids = self.ids.flatten(0, 1)
        g = self.gradient.flatten(0, 1)
        if ids.shape[1] > LONG:
            return self._by_segments(ids, g).view(self.ids.shape[:2])
        same = (ids.unsqueeze(1) == ids.unsqueeze(2)).to(g.dtype)
        return _gram_norm(same, torch.bmm(g, g.transpose(1, 2))).view(self.ids.shape[:2])

    def _by_segments(self, ids: Tensor, g: Tensor) -> Tensor:
        """Return the squares by adding the gradients of equal ids: sort, number the runs, sum."""
        ordered, order = ids.sort(dim=1)
        fresh = torch.nn.functional.pad(ordered[:, 1:] != ordered[:, :-1], (1, 0))
        run = fresh.long().cumsum(1).unsqueeze(-1).expand_as(g)
        rows = g.gather(1, order.unsqueeze(-1).expand_as(g))
        return torch.zeros_like(g).scatter_add_(1, run, rows).square().sum((1, 2))

    def sums(self, factors: Tensor) -> dict[str, Tensor | Rows]:
        return {
            self.table: replace(self, gradient=self.gradient * factors[:, :, None, None]).rows()
        }

    def rows(self) -> Rows:
        return Rows(self.ids.flatten(1), self.gradient.flatten(1, 2))

    def keep(self, good: Tensor) -> "Lookup":
        return Lookup(self.table, self.ids, self.gradient.masked_fill(~good[:, :, None, None], 0.0))

    def grouped(self, size: int) -> "Lookup":
        return Lookup(self.table, _grouped(self.ids, 1, size), _grouped(self.gradient, 1, size))


@dataclass(frozen=True)
class Pooled:
    """Weighted sums of S sets of a table's rows.

    The gradient of row r is Σ_{s,t: id_st = r} share_st · g_s. ids, shares: [K, B, S, T], gradient:
    [K, B, S, width]. Shares are not negative, so no share cancels another in a norm.
    """

    table: str
    ids: Tensor
    shares: Tensor
    gradient: Tensor

    @property
    def weights(self) -> tuple[str, ...]:
        return (self.table,)

    def squares(self) -> Tensor:
        if self.ids.shape[2] > 1 or self.ids.shape[3] > LONG:
            return self.spread().squares()
        same = (self.ids.unsqueeze(-1) == self.ids.unsqueeze(-2)).to(self.shares.dtype)
        reach = (
            self.shares.unsqueeze(-2) @ same @ self.shares.unsqueeze(-1)
        )  # Σ_r (Σ_{t: id_t = r} share_t)²
        return reach.sum((2, 3, 4)) * self.gradient.square().sum((2, 3))

    def spread(self) -> Lookup:
        """Return the record with one gradient for each token."""
        each = self.shares.unsqueeze(-1) * self.gradient.unsqueeze(-2)
        return Lookup(self.table, self.ids.flatten(2), each.flatten(2, 3))

    def sums(self, factors: Tensor) -> dict[str, Tensor | Rows]:
        return {
            self.table: replace(self, gradient=self.gradient * factors[:, :, None, None]).rows()
        }

    def rows(self) -> Rows:
        return Rows(self.ids.flatten(1), self.gradient.flatten(1, 2), self.shares.flatten(1))

    def keep(self, good: Tensor) -> "Pooled":
        return replace(self, gradient=self.gradient.masked_fill(~good[:, :, None, None], 0.0))

    def grouped(self, size: int) -> "Pooled":
        ids, shares, gradient = (
            _grouped(x, 1, size) for x in (self.ids, self.shares, self.gradient)
        )
        return Pooled(self.table, ids, shares, gradient)


LONG = 256
"""Above this number of tokens, sorting is faster than comparing all pairs."""


@dataclass(frozen=True)
class Convolution:
    """A convolution of images: each example's gradient of the weight is a group of one convolution.

    images: [K, B, in, h, w], gradient: [K, B, out, h', w']. `shape` is the weight's shape without
    K. `geometry` is stride, padding and dilation. `size` neighbouring examples count as one.
    """

    weight: str | None
    bias: str | None
    images: Tensor
    gradient: Tensor
    shape: tuple[int, ...]
    geometry: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
    size: int = 1

    @property
    def weights(self) -> tuple[str, ...]:
        return tuple(name for name in (self.weight, self.bias) if name)

    @cached_property
    def each(self) -> "Small":
        """The examples' own gradients [K, B, ...], which are small beside the images."""
        models, examples = self.images.shape[:2]
        found = {}
        if self.weight:
            out, inner = self.shape[:2]
            groups = models * examples  # one group for each example keeps their gradients apart
            whole = conv2d_weight(
                self.images.reshape(1, groups * inner, *self.images.shape[3:]),
                (groups * out, *self.shape[1:]),
                self.gradient.reshape(1, groups * out, *self.gradient.shape[3:]),
                *self.geometry,
                groups=groups,
            )
            found[self.weight] = whole.view(models, examples, *self.shape)
        if self.bias:
            found[self.bias] = self.gradient.sum((-2, -1))
        return Small(found).grouped(self.size)

    def squares(self) -> Tensor:
        return self.each.squares()

    def sums(self, factors: Tensor) -> dict[str, Tensor | Rows]:
        return self.each.sums(factors)

    def keep(self, good: Tensor) -> Record:
        return self.each.keep(good)

    def grouped(self, size: int) -> "Convolution":
        return replace(self, size=size)


@dataclass(frozen=True)
class Small:
    """Each example's own gradient [K, B, ...] by name, for small weights such as norm layers'."""

    each: Mapping[str, Tensor]

    @property
    def weights(self) -> tuple[str, ...]:
        return tuple(self.each)

    def squares(self) -> Tensor:
        found = [g.flatten(2).square().sum(-1) for g in self.each.values()]
        return torch.stack(found).sum(0)

    def sums(self, factors: Tensor) -> dict[str, Tensor | Rows]:
        return {name: torch.einsum("kb,kb...->k...", factors, g) for name, g in self.each.items()}

    def keep(self, good: Tensor) -> "Small":
        return Small(
            {
                n: g.masked_fill(~good.view(*good.shape, *[1] * (g.dim() - 2)), 0.0)
                for n, g in self.each.items()
            }
        )

    def grouped(self, size: int) -> "Small":
        return Small({n: g.unflatten(1, (-1, size)).sum(2) for n, g in self.each.items()})


@dataclass(frozen=True)
class Tied:
    """A table that is looked up and also multiplied by, as a tied output layer does.

    The norm of its gradient includes the cross term of the two uses.
    """

    lookup: Lookup
    product: Product

    @property
    def weights(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self.lookup.weights + self.product.weights))

    def squares(self) -> Tensor:
        """|E + L|² = |E|² + |L|² + 2 Σ_{t,s} (g_t·a_s) G_s[id_t]."""
        (a,) = (a.squeeze(1).flatten(0, 1) for a in self.product.inputs.values())  # [KB, S, width]
        logits = self.product.gradient.squeeze(1).flatten(0, 1)  # [KB, S, rows]
        ids = self.lookup.ids.flatten(0, 1)
        at = logits.gather(2, ids.unsqueeze(1).expand(-1, logits.shape[1], -1))  # [KB, S, T]
        cross = (
            torch.bmm(a, self.lookup.gradient.flatten(0, 1).transpose(1, 2)).mul_(at).sum((1, 2))
        )
        alone = self.lookup.squares() + self.product.squares()
        # where the two uses cancel each other, rounding must not make the norm too small
        slack = 32 * torch.finfo(alone.dtype).eps * alone
        return (alone + 2 * cross.view(alone.shape)).clamp(min=0.0) + slack

    def sums(self, factors: Tensor) -> dict[str, Tensor | Rows]:
        found = self.product.sums(factors)
        rows = self.lookup.sums(factors)[self.lookup.table]
        whole = found[self.lookup.table]
        assert isinstance(rows, Rows), "a lookup gives rows"
        assert isinstance(whole, Tensor), "a product gives a matrix"
        add_rows(whole, rows, 1.0)
        return found

    def keep(self, good: Tensor) -> "Tied":
        return Tied(self.lookup.keep(good), self.product.keep(good))

    def grouped(self, size: int) -> "Tied":
        return Tied(self.lookup.grouped(size), self.product.grouped(size))


def joined(records: Sequence[Record]) -> list[Record]:
    """Return records that share no parameter: records that share one are joined.

    Adding the squares of two uses would miss their cross term.
    """
    found: list[Record] = []
    for record in records:
        twin = next((r for r in found if set(r.weights) & set(record.weights)), None)
        if twin is None:
            found.append(record)
        else:
            found[found.index(twin)] = _join(twin, record)
    return found


def _join(one: Record, two: Record) -> Record:
    """Return two uses of the same weights as one record.

    Raises NotImplementedError for uses that have no common rule.
    """
    one, two = (r.spread() if isinstance(r, Pooled) else r for r in (one, two))
    if isinstance(one, Product) and isinstance(two, Product) and one.weights == two.weights:
        inputs = {name: torch.cat([a, two.inputs[name]], dim=3) for name, a in one.inputs.items()}
        return Product(inputs, one.bias, torch.cat([one.gradient, two.gradient], dim=3), one.shapes)
    if isinstance(one, Columns) and isinstance(two, Columns) and one.columns == two.columns:
        rows, gradient = (
            torch.cat(both, dim=3) for both in ((one.rows, two.rows), (one.gradient, two.gradient))
        )
        return replace(one, rows=rows, gradient=gradient)
    if isinstance(one, Lookup) and isinstance(two, Lookup):
        return Lookup(
            one.table, torch.cat([one.ids, two.ids], 2), torch.cat([one.gradient, two.gradient], 2)
        )
    if isinstance(one, Convolution):
        one = one.each
    if isinstance(two, Convolution):
        two = two.each
    if isinstance(one, Small) and isinstance(two, Small) and one.weights == two.weights:
        return Small(_sum(one.each, two.each))
    if isinstance(one, Lookup) and isinstance(two, Product):
        return Tied(one, two)
    if isinstance(one, Product) and isinstance(two, Lookup):
        return Tied(two, one)
    shared = sorted(set(one.weights) & set(two.weights))
    raise NotImplementedError(
        f"{shared[0]} is shared by layers of other kinds, for which there is no rule"
    )


def _gram_norm(near: Tensor, far: Tensor) -> Tensor:
    """Return Σ_{t,s} near · far of two Gram matrices [n, T, T], plus a bound on rounding: [n].

    Where steps cancel each other, the sum loses digits of its terms. The bound on that loss is
    added, so that the norm is never too small.
    """
    reach = (
        (near.diagonal(dim1=1, dim2=2) * far.diagonal(dim1=1, dim2=2)).clamp(min=0.0).sqrt().sum(1)
    )
    slack = 16 * torch.finfo(near.dtype).eps * reach.square()
    return (near * far).sum((1, 2)) + slack


def _sum(one: Mapping[str, Tensor], two: Mapping[str, Tensor]) -> Params:
    return {name: g + two[name] for name, g in one.items()}


def _ones(bias: str | None, like: Tensor) -> Tensor:
    return like.new_full((), 1.0 if bias else 0.0)


def _grouped(x: Tensor, axis: int, size: int) -> Tensor:
    """Return [..., B, T, ...] as [..., B / size, size · T, ...] with B at `axis`."""
    return x.unflatten(axis, (-1, size)).flatten(axis + 1, axis + 2)
