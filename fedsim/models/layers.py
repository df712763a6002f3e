"""Layers whose weights may carry leading axes: one model, or a whole cohort of models at once.

Weights are `[...]` as torch has them, or `[K, ...]` for K models side by side; inputs then start with
the same K. `torch.func.functional_call` with stacked parameters turns any model that is made of these
layers, and indexes its activations from the right, into K models that train as one batch.
"""

import math
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from fedsim.models import products
from fedsim.models.products import add_product, product
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
    """The mean of the rows of ids that are not PAD, zero where there are none. [..., T] -> [..., width]."""

    def forward(self, input: Tensor) -> Tensor:
        return weighted(input, shares(input, self.weight), self.weight)


class Watch(Protocol):
    """Somebody who looks into an LSTM: per-example clipping does."""

    anchor: Tensor
    """Makes the layer part of a graph where nothing else does."""

    def gates(self, rows: Tensor, gradient: Tensor) -> None:
        """See, in the backward, what each step multiplied and its pre-activations' gradient.

        rows: [T, M, B, hidden + in + 1], the state before, the input and a one, which is the bias's;
        gradient: [T, M, B, 4·hidden].
        """


class BiLSTM(nn.Module):
    """One bidirectional LSTM layer over ragged sequences, gates in torch's order (i, f, g, o).

    x: [..., B, T, in], mask: [..., B, T] (True at tokens, which come first) -> [..., B, T, 2·hidden].
    Outputs behind a sequence's end are zero. Both directions run as one batch of twice the models.
    """

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        bound = hidden**-0.5
        self.weight_input = nn.Parameter(torch.empty(2, 4 * hidden, inputs).uniform_(-bound, bound))
        self.weight_hidden = nn.Parameter(torch.empty(2, 4 * hidden, hidden).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(2, 4 * hidden).uniform_(-bound, bound))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.run(x, mask, self.weight_input, self.weight_hidden, self.bias)

    def run(
        self, x: Tensor, mask: Tensor, into: Tensor, hidden: Tensor, bias: Tensor, watch: Watch | None = None
    ) -> Tensor:
        """Run with these weights, [2, ...] or [K, 2, ...]."""
        back = _reversal(mask)
        both = torch.stack([x, _reversed(x, back)], dim=-4).flatten(0, -4)  # [2K, B, T, in]
        mask_of_both = torch.stack([mask, mask], dim=-3).flatten(0, -3)
        weights = into.flatten(0, -3), hidden.flatten(0, -3), bias.flatten(0, -2)
        states = lstm(both, mask_of_both, *weights, watch)
        forward, backward = states.view(*x.shape[:-3], 2, *x.shape[-3:-1], -1).unbind(-4)
        out = torch.cat([forward, _reversed(backward, back)], dim=-1)
        return out * mask.unsqueeze(-1)


class LSTM(nn.Module):
    """One LSTM layer from left to right over ragged sequences, gates in torch's order (i, f, g, o).

    x: [..., B, T, in], mask: [..., B, T] (True at tokens, which come first) -> [..., B, T, hidden].
    A state depends on no later token; outputs behind a sequence's end are zero.
    """

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        bound = hidden**-0.5
        self.weight_input = nn.Parameter(torch.empty(4 * hidden, inputs).uniform_(-bound, bound))
        self.weight_hidden = nn.Parameter(torch.empty(4 * hidden, hidden).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(4 * hidden).uniform_(-bound, bound))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.run(x, mask, self.weight_input, self.weight_hidden, self.bias)

    def run(
        self, x: Tensor, mask: Tensor, into: Tensor, hidden: Tensor, bias: Tensor, watch: Watch | None = None
    ) -> Tensor:
        """Run with these weights, [...] or [K, ...]."""
        states = lstm(
            x.reshape(-1, *x.shape[-3:]),
            mask.reshape(-1, *mask.shape[-2:]),
            into.view(-1, *into.shape[-2:]),
            hidden.view(-1, *hidden.shape[-2:]),
            bias.view(-1, bias.shape[-1]),
            watch,
        )
        return states.view(*x.shape[:-1], -1) * mask.unsqueeze(-1)


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
            return nn.functional.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)
        return normalize(input, self.num_groups, self.eps, self.weight.flatten(), self.bias.flatten())


class Conv2d(nn.Conv2d):
    """A convolution over images, padded with zeros. x: [..., B, in, height, width]."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, padding: int = 0) -> None:
        super().__init__(inputs, outputs, kernel, stride, padding)

    def forward(self, input: Tensor) -> Tensor:
        return convolve(input, self.weight, self.bias, self.stride, pair(self.padding))


class Attention(nn.Module):
    """Multi-head scaled dot-product attention of each sequence to itself (Vaswani et al., 2017).

    x: [..., B, T, width], visible: broadcastable to [..., B, T, T], True where the position of the
    second last axis may look at that of the last; each must see at least itself -> [..., B, T, width].
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query_key_value = Linear(width, 3 * width)
        self.output = Linear(width, width)

    def forward(self, x: Tensor, visible: Tensor) -> Tensor:
        split = self.query_key_value(x).unflatten(-1, (3, self.heads, -1))
        query, key, value = (part.transpose(-2, -3) for part in split.unbind(-3))  # [..., B, heads, T, d]
        scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
        hidden = torch.finfo(scores.dtype).min
        seen = scores.masked_fill(~visible.unsqueeze(-3), hidden).softmax(-1) @ value
        return self.output(seen.transpose(-2, -3).flatten(-2))


class Dropout(nn.Module):
    """Dropout whose masks come from names: equal for any packing, any node and after a resume.

    In training `keys` [K] holds one int64 a model, set anew for every step; the mask of an element
    is a hash of its key, its example and its position, so padding and neighbours cannot change it. `rows`
    [K, B] name the examples; without them, their places in the batch do. One place in a model, one Dropout:
    used twice in a step, it would drop the same units again.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.keys: Tensor | None = None
        self.rows: Tensor | None = None
        self.stacked = True

    def forward(self, x: Tensor) -> Tensor:
        """x: [K, B, ..., width], or [B, ..., width] of one model where not `stacked`; scaled by 1 / (1 - p)
        where kept."""
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
        uniform = (_mix(mixed) & 0xFFFFFF).to(x.dtype) / 2**24
        return x * (uniform >= self.p) / (1.0 - self.p)


_AXIS_STRIDES = (0x1E3779B97F4A7C15, 0x2545F4914F6CDD1D, 0x369DEA0F31A53F85, 0x27BB2EE687B0B0FD)


def set_dropout_keys(
    model: nn.Module, keys: Tensor, step: int, stacked: bool = True, rows: Tensor | None = None
) -> None:
    """Give each Dropout of `model` its keys for this step: a hash of (model key, step, layer)."""
    layers = [module for module in model.modules() if isinstance(module, Dropout)]
    for number, layer in enumerate(layers):
        if layer.p:
            layer.keys, layer.stacked, layer.rows = _mix(_mix(keys + step) + number), stacked, rows


def _mix(x: Tensor) -> Tensor:
    """The finaliser of splitmix64 (Steele et al., 2014) on int64, whose sums and products wrap."""
    x = (x ^ (x >> 30 & 0x3FFFFFFFF)) * -0x40A7B892E31B1A47
    x = (x ^ (x >> 27 & 0x1FFFFFFFFF)) * -0x6B2FB644ECCEEE15
    return x ^ (x >> 31 & 0x1FFFFFFFF)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return x @ weight.T + bias for weight [out, in], or x [K, ..., in] with weight [K, out, in]."""
    if weight.dim() == 3:
        out = products.linear(x.flatten(1, -2), weight, bias)
        return out.view(*x.shape[:-1], out.shape[-1])
    if x.dim() == 1 or not products.pays(x.unsqueeze(0), len(weight)):
        return nn.functional.linear(x, weight, bias)
    return linear(x.unsqueeze(0), weight.unsqueeze(0), None if bias is None else bias.unsqueeze(0)).squeeze(0)


def lookup(ids: Tensor, table: Tensor, padding: int | None = None) -> Tensor:
    """Rows of `table` [rows, width], or of [K, rows, width] for ids [K, ...]; `padding` learns nothing."""
    if table.dim() == 2:
        return nn.functional.embedding(ids, table, padding)
    out = nn.functional.embedding(places(ids, table), table.flatten(0, 1))
    if padding is None:
        return out
    return torch.where((ids == padding).unsqueeze(-1), out.detach(), out)


def shares(ids: Tensor, table: Tensor) -> Tensor:
    """Return what each id counts in the mean over the last axis, in the table's precision; PAD nothing."""
    mask = (ids != PAD).to(table.dtype)
    return mask / mask.sum(-1, keepdim=True).clamp(min=1)


def weighted(ids: Tensor, shares: Tensor, table: Tensor) -> Tensor:
    """Rows as of `lookup`, summed over the last axis of ids [..., T] with `shares` of its shape."""
    if table.requires_grad or products.traced(table):  # the kernel below has no rule for vmap
        return (shares.unsqueeze(-1) * lookup(ids, table)).sum(-2)
    each, time = places(ids, table), ids.shape[-1]
    sums = nn.functional.embedding_bag(
        each.reshape(-1, time), table.flatten(0, -2), mode="sum", per_sample_weights=shares.reshape(-1, time)
    )
    return sums.view(*ids.shape[:-1], -1)


def places(ids: Tensor, table: Tensor) -> Tensor:
    """Return ids as rows of the tables [K, rows, width] below each other, or of one."""
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
    """Normalise groups of channels of x [K, B, channels, height, width]; weight and bias are [K · channels].

    Stacked models are side by side as groups of one kernel, in the layout that `convolve` leaves.
    """
    models = len(x)
    side_by_side = x.transpose(0, 1).flatten(1, 2)
    out = nn.functional.group_norm(side_by_side, models * groups, weight, bias, eps)
    return out.unflatten(1, (models, -1)).transpose(0, 1)


def pool(x: Tensor) -> Tensor:
    """Return the maximum of each 2×2 square of x [..., height, width]; an odd last row or column is cut."""
    return cast(Tensor, Pool.apply(x))  # type: ignore[no-untyped-call]


class Pool(torch.autograd.Function):
    """2×2 max pooling by two comparisons: on a CPU several times faster than the kernel for any window.

    Of like values one gets the gradient: the upper of a column, then the left of both.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        height, width = x.shape[-2] // 2 * 2, x.shape[-1] // 2 * 2
        upper, lower = x[..., 0:height:2, :width], x[..., 1:height:2, :width]
        rows = torch.maximum(upper, lower)
        left, right = rows[..., 0::2], rows[..., 1::2]
        low = torch.gt(lower, upper, out=torch.empty_like(rows))  # numbers: products with flags are slow
        ctx.save_for_backward(low, (right > left).to(x.dtype))
        ctx.shape = x.shape
        return torch.maximum(left, right)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        low, far = ctx.saved_tensors
        height, width = 2 * low.shape[-2], low.shape[-1]
        rows = torch.empty_like(low)
        torch.mul(grad, far, out=rows[..., 1::2])
        torch.sub(grad, rows[..., 1::2], out=rows[..., 0::2])
        cut = ctx.shape[-2:] != (height, width)
        whole = grad.new_zeros(ctx.shape) if cut else grad.new_empty(ctx.shape)
        upper, lower = whole[..., 0:height:2, :width], whole[..., 1:height:2, :width]
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


def lstm(
    x: Tensor, mask: Tensor, into: Tensor, hidden: Tensor, bias: Tensor, watch: Watch | None = None
) -> Tensor:
    """x: [M, B, T, in], mask: [M, B, T] for M stacked directions -> hidden states [M, B, T, hidden].

    What comes behind a sequence's end is not to be used.
    """
    single = x.dtype == into.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    if watch is None and x.device.type == "cpu" and single:
        return _model_by_model(x, mask, into, hidden, bias)
    anchor = None if watch is None else watch.anchor
    with torch.autocast(x.device.type, enabled=False):  # it rounds at every step: in full precision
        states = Recurrence.apply(x.to(into.dtype), into, hidden, bias, anchor, watch)  # type: ignore[no-untyped-call]
    return cast(Tensor, states)


def _model_by_model(x: Tensor, mask: Tensor, into: Tensor, hidden: Tensor, bias: Tensor) -> Tensor:
    """Return what `lstm` does by torch's kernel for one model: on a CPU it is near the machine's peak.

    Each model goes as far as its own longest sequence. Nobody can look into the kernel, so per-example
    clipping takes the recurrence below.
    """
    start = x.new_zeros(1, x.shape[1], hidden.shape[-1])
    none, train = torch.zeros_like(bias[0]), torch.is_grad_enabled()  # torch has a second bias
    states = []
    parts = (p.unbind(0) for p in (x, into, hidden, bias))
    for length, one, a, b, c in zip(mask.any(1).sum(1).tolist(), *parts, strict=True):
        long = one[:, : max(length, 1)]
        found = torch.lstm(long, (start, start), (a, b, c, none), True, 1, 0.0, train, False, True)[0]
        missing = x.shape[2] - long.shape[1]
        states.append(nn.functional.pad(found, (0, 0, 0, missing)) if missing else found)
    return torch.stack(states)


class Recurrence(torch.autograd.Function):
    """M LSTMs over time with their backward written out: one product and few kernels a step, no graph.

    Everything of a step lies together, [T, M, B, ...], so that it is still in the cache when it is next
    needed. tanh(x) is taken as 2·sigmoid(2x) - 1, whose kernel is several times faster on a CPU; of the gate
    g its double is kept, and so of the cells.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, into: Tensor, hidden: Tensor, bias: Tensor, anchor: Tensor | None, watch: Any
    ) -> Tensor:
        models, batch, time, inputs = x.shape
        width = hidden.shape[-1]
        twice = x.new_ones(4, 1, 1).index_fill_(0, torch.tensor([2], device=x.device), 2.0)
        weight = torch.cat([hidden, into, bias.unsqueeze(-1)], dim=-1)
        weight.view(models, 4, width, -1).mul_(twice)  # g needs sigmoid(2x)
        rows = x.new_empty(time + 1, models, batch, width + inputs + 1)
        rows[0, ..., :width], rows[..., -1] = 0, 1
        rows[:-1, ..., width:-1] = x.permute(2, 0, 1, 3)
        active = x.new_empty(time, models, batch, 4 * width)
        product(rows[:-1, ..., width:].transpose(0, 1), weight[..., width:], active.transpose(0, 1))
        doubles, cells, bent = (x.new_empty(time, models, batch, width) for _ in range(3))
        states = rows[1:, ..., :width]
        parts = (rows[:-1, ..., :width], active, *active.chunk(4, dim=-1), doubles, cells, bent, states)
        again, before = weight[..., :width].contiguous(), x.new_zeros(models, batch, width)
        for last, a, i, f, s, o, g, c, tanh, h in zip(*(p.unbind(0) for p in parts), strict=True):
            add_product(a, last, again, out=a).sigmoid_()
            torch.mul(s, 4, out=g).sub_(2)
            torch.mul(f, before, out=c).addcmul_(i, g)
            torch.sigmoid(c, out=tanh).mul_(2).sub_(1)
            torch.mul(tanh, o, out=h)
            before = c
        ctx.save_for_backward(rows, active, doubles, cells, bent, into, hidden)
        ctx.watch = watch
        return states.permute(1, 2, 0, 3)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, active, doubles, cells, bent, into, hidden = ctx.saved_tensors
        width = cells.shape[-1]
        slopes, back = torch.empty_like(active), hidden.transpose(1, 2)
        of_c, spare = torch.zeros_like(cells[0]), torch.empty_like(cells[0])
        of_h = grad[:, :, -1]
        earlier = [torch.zeros_like(cells[0]), *cells[:-1].unbind(0)]
        above = [torch.zeros_like(cells[0]), *grad[:, :, :-1].unbind(2)]
        parts = (slopes, *slopes.chunk(4, dim=-1), active, *active.chunk(4, dim=-1), doubles, bent)
        steps = zip(*(p.unbind(0) for p in parts), earlier, above, strict=True)
        for z, zi, zf, zg, zo, a, i, f, _, o, g, tanh, c, dh in reversed(list(steps)):
            torch.mul(of_h, o, out=spare)
            of_c.add_(tanh_backward(spare, tanh, grad_input=spare), alpha=0.5)
            torch.mul(of_c, g, out=zi)
            torch.mul(of_c, c, out=zf)
            torch.mul(of_c, i, out=zg).mul_(8)
            torch.mul(of_h, tanh, out=zo)
            sigmoid_backward(z, a, grad_input=z)
            of_h = add_product(dh, z, back, out=torch.empty_like(dh))
            of_c.mul_(f)
        if ctx.watch is not None:
            ctx.watch.gates(rows[:-1], slopes)
        of_x = _of_input(slopes, into) if ctx.needs_input_grad[0] else None
        return of_x, *_of_weights(ctx, rows[:-1], slopes, width), None, None


tanh_backward = torch.ops.aten.tanh_backward.grad_input
sigmoid_backward = torch.ops.aten.sigmoid_backward.grad_input


def _of_input(slopes: Tensor, into: Tensor) -> Tensor:
    """Return the gradient [M, B, T, in] of an LSTM's input."""
    time, models, batch, _ = slopes.shape
    found = slopes.new_empty(time, models, batch, into.shape[-1])
    product(slopes.transpose(0, 1), into.transpose(1, 2), found.transpose(0, 1))
    return found.permute(1, 2, 0, 3)


def _of_weights(ctx: Any, rows: Tensor, slopes: Tensor, width: int) -> tuple[Tensor | None, ...]:
    """Return the gradients of an LSTM's input weights, recurrent weights and bias, as far as wanted."""
    if not any(ctx.needs_input_grad[1:4]):
        return None, None, None
    side_by_side = [p.transpose(0, 1).flatten(1, 2) for p in (slopes, rows)]  # [M, T·B, ...]
    whole = torch.bmm(side_by_side[0].transpose(1, 2), side_by_side[1])
    return whole[..., width:-1], whole[..., :width], whole[..., -1]


def _reversal(mask: Tensor) -> Tensor:
    """Return the row of x [..., T, width], all rows in one line, that comes to each place when each
    sequence's tokens are reversed and its padding is left."""
    length = mask.sum(-1, keepdim=True)
    time = torch.arange(mask.shape[-1], device=mask.device)
    sequences = torch.arange(math.prod(mask.shape[:-1]), device=mask.device)
    first = sequences.view(*mask.shape[:-1], 1) * mask.shape[-1]
    return (first + torch.where(time < length, length - 1 - time, time)).flatten()


def _reversed(x: Tensor, order: Tensor) -> Tensor:
    return cast(Tensor, Reversed.apply(x, order))  # type: ignore[no-untyped-call]


class Reversed(torch.autograd.Function):
    """Rows of x [..., width] in an order that undoes itself, and so does its gradient's."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, order: Tensor) -> Tensor:
        return x.reshape(-1, x.shape[-1]).index_select(0, order).view(x.shape)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.order = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return Reversed.forward(grad, ctx.order), None


STACKABLE = (Linear, Embedding, BiLSTM, LSTM, LayerNorm, GroupNorm, Conv2d)
"""The layers with parameters that take them with a leading device axis."""
