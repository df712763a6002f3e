"""Layers whose weights may carry leading axes: one model, or a whole cohort of models at once.

Weights are `[...]` as torch has them, or `[K, ...]` for K models side by side; inputs then start
with the same K. `torch.func.functional_call` with stacked parameters turns a model of these layers
into K models that train as one batch. The model must index its activations from the right.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn

from fedsim.models import products
from fedsim.models.recurrent import LSTM, BiLSTM
from fedsim.types import PAD


class Linear(nn.Linear):
    """`x @ weight.T + bias`. x: [..., in], or [K, ..., in] for weight [K, out, in]."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


class Embedding(nn.Embedding):
    """A table of rows. ids: [...], or [K, ...] for weight [K, rows, width]; -> [..., width]."""

    def forward(self, input: Tensor) -> Tensor:
        return lookup(input, self.weight, self.padding_idx)


class MeanEmbedding(Embedding):
    """The mean of the rows of ids that are not PAD; zero where all are PAD.

    ids: [..., T] -> [..., width].
    """

    def forward(self, input: Tensor) -> Tensor:
        return weighted(input, shares(input, self.weight), self.weight)


class LayerNorm(nn.LayerNorm):
    """Zero mean and unit variance over the last axis, then weight and bias. x: [..., width]."""

    def __init__(self, width: int) -> None:
        super().__init__(width)

    def forward(self, input: Tensor) -> Tensor:
        normal = nn.functional.layer_norm(input, input.shape[-1:], eps=self.eps)
        return normal * over(self.weight, input.dim()) + over(self.bias, input.dim())


class GroupNorm(nn.GroupNorm):
    """Zero mean and unit variance over each group of channels of an example, then weight and bias.

    x: [..., B, channels, height, width]. No statistic is shared between examples.
    """

    def forward(self, input: Tensor) -> Tensor:
        if self.weight.dim() == 1:
            return nn.functional.group_norm(
                input, self.num_groups, self.weight, self.bias, self.eps
            )
        return normalize(
            input, self.num_groups, self.eps, self.weight.flatten(), self.bias.flatten()
        )


class Conv2d(nn.Conv2d):
    """A convolution over images, padded with zeros. x: [..., B, in, height, width]."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int = 1, padding: int = 0
    ) -> None:
        super().__init__(inputs, outputs, kernel, stride, padding)

    def forward(self, input: Tensor) -> Tensor:
        return convolve(input, self.weight, self.bias, self.stride, pair(self.padding))


class Attention(nn.Module):
    """Multi-head scaled dot-product attention of each sequence to itself (Vaswani et al., 2017).

    x: [..., B, T, width] -> the same shape. visible: broadcastable to [..., B, T, T], True where a
    position (second last axis) may look at another (last axis). Each position must see at least
    itself.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query_key_value = Linear(width, 3 * width)
        self.output = Linear(width, width)

    def forward(self, x: Tensor, visible: Tensor) -> Tensor:
        split = self.query_key_value(x).unflatten(-1, (3, self.heads, -1))
        # each [..., B, heads, T, d]
        query, key, value = (part.transpose(-2, -3) for part in split.unbind(-3))
        scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
        # a finite number: the softmax of a row of infinities alone would be NaN
        hidden = torch.finfo(scores.dtype).min
        seen = scores.masked_fill(~visible.unsqueeze(-3), hidden).softmax(-1) @ value
        return self.output(seen.transpose(-2, -3).flatten(-2))


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return x @ weight.T + bias.

    weight is [out, in], or [K, out, in] for x [K, ..., in].
    """
    if weight.dim() == 3:
        out = products.linear(x.flatten(1, -2), weight, bias)
        return out.view(*x.shape[:-1], out.shape[-1])
    if x.dim() == 1 or not products.pays(x.unsqueeze(0), len(weight)):
        return nn.functional.linear(x, weight, bias)
    return linear(
        x.unsqueeze(0), weight.unsqueeze(0), None if bias is None else bias.unsqueeze(0)
    ).squeeze(0)


def lookup(ids: Tensor, table: Tensor, padding: int | None = None) -> Tensor:
    """Return the rows of `table` [rows, width], or of [K, rows, width] for ids [K, ...].

    The row of id `padding` gets no gradient.
    """
    if table.dim() == 2:
        return nn.functional.embedding(ids, table, padding)
    out = nn.functional.embedding(places(ids, table), table.flatten(0, 1))
    if padding is None:
        return out
    return torch.where((ids == padding).unsqueeze(-1), out.detach(), out)


def shares(ids: Tensor, table: Tensor) -> Tensor:
    """Return the weight of each id in the mean over the last axis; PAD has none.

    Weights have the table's precision.
    """
    mask = (ids != PAD).to(table.dtype)
    return mask / mask.sum(-1, keepdim=True).clamp(min=1)


def weighted(ids: Tensor, shares: Tensor, table: Tensor) -> Tensor:
    """Return the rows of `lookup`, summed over the last axis of ids [..., T].

    `shares` [..., T] weigh the rows.
    """
    if table.requires_grad or products.traced(table):  # the kernel below has no rule for vmap
        return (shares.unsqueeze(-1) * lookup(ids, table)).sum(-2)
    each = places(ids, table)
    time = ids.shape[-1]
    sums = nn.functional.embedding_bag(
        each.reshape(-1, time),
        table.flatten(0, -2),
        mode="sum",
        per_sample_weights=shares.reshape(-1, time),
    )
    return sums.view(*ids.shape[:-1], -1)


def places(ids: Tensor, table: Tensor) -> Tensor:
    """Return the row of each id in the tables [K, rows, width] laid below each other.

    For one table [rows, width] ids are rows already.
    """
    if table.dim() == 2:
        return ids
    models, rows, _ = table.shape
    first = torch.arange(models, device=ids.device) * rows
    return ids + first.view(-1, *[1] * (ids.dim() - 1))


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, ...] = (1, 1),
    padding: tuple[int, ...] = (0, 0),
    dilation: tuple[int, ...] = (1, 1),
) -> Tensor:
    """Convolve images [B, in, h, w] by weight [out, in, kh, kw], or [K, B, ...] by [K, ...].

    Stacked models are the groups of one convolution.
    """
    if weight.dim() == 4:
        return nn.functional.conv2d(x, weight, bias, stride, padding, dilation)
    models = len(weight)
    side_by_side = x.transpose(0, 1).flatten(1, 2)  # [B, K·in, h, w]
    biases = None if bias is None else bias.flatten()
    out = nn.functional.conv2d(
        side_by_side, weight.flatten(0, 1), biases, stride, padding, dilation, groups=models
    )
    return out.unflatten(1, (models, -1)).transpose(0, 1)


def normalize(
    x: Tensor, groups: int, eps: float, weight: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    """Normalise groups of channels of x [K, B, channels, height, width].

    weight and bias are [K · channels]. Stacked models are side by side as groups of one kernel, in
    the layout that `convolve` leaves.
    """
    models = len(x)
    side_by_side = x.transpose(0, 1).flatten(1, 2)
    out = nn.functional.group_norm(side_by_side, models * groups, weight, bias, eps)
    return out.unflatten(1, (models, -1)).transpose(0, 1)


def pool(x: Tensor) -> Tensor:
    """Return the maximum of each 2×2 square of x [..., height, width].

    An odd last row or column is cut.
    """
    return cast(Tensor, Pool.apply(x))  # type: ignore[no-untyped-call]


class Pool(torch.autograd.Function):
    """2×2 max pooling by two comparisons.

    On a CPU this is several times faster than the kernel for any window. Where values are equal,
    one of them gets the gradient: the upper of a column, then the left of both.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        height = x.shape[-2] // 2 * 2
        width = x.shape[-1] // 2 * 2
        upper = x[..., 0:height:2, :width]
        lower = x[..., 1:height:2, :width]
        rows = torch.maximum(upper, lower)
        left = rows[..., 0::2]
        right = rows[..., 1::2]
        # as numbers, because products with booleans are slow
        low = torch.gt(lower, upper, out=torch.empty_like(rows))
        ctx.save_for_backward(low, (right > left).to(x.dtype))
        ctx.shape = x.shape
        return torch.maximum(left, right)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        low, far = ctx.saved_tensors
        height = 2 * low.shape[-2]
        width = low.shape[-1]
        rows = torch.empty_like(low)
        torch.mul(grad, far, out=rows[..., 1::2])
        # the left column gets what the right one does not
        torch.sub(grad, rows[..., 1::2], out=rows[..., 0::2])
        # the products below write every place but those of a row or column that was cut
        cut = ctx.shape[-2:] != (height, width)
        whole = grad.new_zeros(ctx.shape) if cut else grad.new_empty(ctx.shape)
        upper = whole[..., 0:height:2, :width]
        lower = whole[..., 1:height:2, :width]
        torch.mul(rows, low, out=lower)
        torch.sub(rows, lower, out=upper)
        return whole


def over(p: Tensor, dims: int, tail: int = 1) -> Tensor:
    """View p [*tail] or [K, *tail] as [K, 1, ..., 1, *tail] of `dims` axes."""
    return p.view(*p.shape[:-tail], *[1] * (dims - p.dim()), *p.shape[-tail:])


def pair(size: int | tuple[int, ...] | str) -> tuple[int, ...]:
    """Return a size as height and width."""
    assert not isinstance(size, str), "padding is a number here"
    return (size, size) if isinstance(size, int) else size


STACKABLE = (Linear, Embedding, BiLSTM, LSTM, LayerNorm, GroupNorm, Conv2d)
"""The layers whose parameters may have a leading device axis."""
