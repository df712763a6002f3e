"""Layers whose weights may carry leading axes: one model, or a whole cohort of models at once.

Weights are `[...]` as torch has them, or `[K, ...]` for K models side by side; inputs then start with
the same K. `torch.func.functional_call` with stacked parameters turns any model that is made of these
layers, and indexes its activations from the right, into K models that train as one batch.
"""

import torch
from torch import Tensor, nn


class Linear(nn.Linear):
    """`x @ weight.T + bias`. x: [..., in], or [K, ..., in] for weight [K, out, in]."""

    def forward(self, input: Tensor) -> Tensor:
        if self.weight.dim() == 2:
            return super().forward(input)
        rows = input.flatten(1, -2)
        out = torch.baddbmm(self.bias.unsqueeze(1), rows, self.weight.transpose(1, 2))
        return out.view(*input.shape[:-1], out.shape[-1])


class Embedding(nn.Embedding):
    """A table of rows. ids: [...], or [K, ...] for weight [K, rows, width]; -> [..., width]."""

    def forward(self, input: Tensor) -> Tensor:
        if self.weight.dim() == 2:
            return super().forward(input)
        models, rows, _ = self.weight.shape
        first = torch.arange(models, device=input.device) * rows
        ids = input + first.view(-1, *[1] * (input.dim() - 1))
        return nn.functional.embedding(ids, self.weight.flatten(0, 1))


class BiLSTM(nn.Module):
    """One bidirectional LSTM layer over ragged sequences, gates in torch's order (i, f, g, o).

    x: [..., B, T, in], mask: [..., B, T] (True at tokens, which come first) -> [..., B, T, 2·hidden].
    Outputs behind a sequence's end are zero. Both directions run as one batch of twice the models.
    """

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        bound = hidden**-0.5
        self.weight_input = nn.Parameter(torch.empty(2, 4 * hidden, inputs).uniform_(-bound, bound))
        self.weight_hidden = nn.Parameter(torch.empty(2, 4 * hidden, hidden).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(2, 4 * hidden).uniform_(-bound, bound))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        batch, time = x.shape[-3], x.shape[-2]
        back = _reversal(mask)
        both = torch.stack([x, _gather_time(x, back)], dim=-4).flatten(0, -4)  # [2K, B, T, in]
        hidden = _lstm(
            both,
            self.weight_input.flatten(0, -3),
            self.weight_hidden.flatten(0, -3),
            self.bias.flatten(0, -2),
        ).view(*x.shape[:-3], 2, batch, time, self.hidden)
        forward, backward = hidden.unbind(-4)
        out = torch.cat([forward, _gather_time(backward, back)], dim=-1)
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
        hidden = _lstm(
            x.reshape(-1, *x.shape[-3:]),
            self.weight_input.view(-1, *self.weight_input.shape[-2:]),
            self.weight_hidden.view(-1, *self.weight_hidden.shape[-2:]),
            self.bias.view(-1, self.bias.shape[-1]),
        )
        return hidden.view(*x.shape[:-1], -1) * mask.unsqueeze(-1)


class LayerNorm(nn.LayerNorm):
    """Zero mean and unit variance over the last axis, then weight and bias. x: [..., width]."""

    def __init__(self, width: int) -> None:
        super().__init__(width)

    def forward(self, input: Tensor) -> Tensor:
        normal = nn.functional.layer_norm(input, input.shape[-1:], eps=self.eps)
        return normal * _over(self.weight, input.dim()) + _over(self.bias, input.dim())


class GroupNorm(nn.GroupNorm):
    """Zero mean and unit variance over each group of channels of an example, then weight and bias.

    x: [..., B, channels, height, width]. No statistic is shared between examples.
    """

    def forward(self, input: Tensor) -> Tensor:
        normal = nn.functional.group_norm(input.flatten(0, -4), self.num_groups, eps=self.eps)
        weight, bias = (_over(p, input.dim() - 2)[..., None, None] for p in (self.weight, self.bias))
        return normal.view(input.shape) * weight + bias


class Conv2d(nn.Conv2d):
    """A convolution over images, padded with zeros. x: [..., B, in, height, width].

    Stacked models unfold their patches and multiply them as one batch of matrices.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, padding: int = 0) -> None:
        super().__init__(inputs, outputs, kernel, stride, padding)

    def forward(self, input: Tensor) -> Tensor:
        if self.weight.dim() == 4:
            return super().forward(input)
        height, width = (
            (size + 2 * p - k) // s + 1
            for size, p, k, s in zip(
                input.shape[-2:], _pair(self.padding), self.kernel_size, self.stride, strict=True
            )
        )
        patches = nn.functional.unfold(
            input.flatten(0, 1), self.kernel_size, padding=_pair(self.padding), stride=self.stride
        )  # [K·B, in·kernel², positions]
        rows = patches.view(*input.shape[:2], *patches.shape[1:]).transpose(-1, -2).flatten(1, 2)
        bias = self.bias
        assert bias is not None, "this layer always has a bias"
        out = torch.baddbmm(bias.unsqueeze(1), rows, self.weight.flatten(2).transpose(1, 2))
        return out.view(*input.shape[:2], height, width, -1).movedim(-1, -3)


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
    is a hash of its key and its position, so padding and neighbours cannot change it. One place in a
    model, one Dropout: used twice in a step, it would drop the same units again.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.keys: Tensor | None = None
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
            mixed = mixed + position * _AXIS_STRIDES[axis - 1]
        uniform = (_mix(mixed) & 0xFFFFFF).to(x.dtype) / 2**24
        return x * (uniform >= self.p) / (1.0 - self.p)


_AXIS_STRIDES = (0x1E3779B97F4A7C15, 0x2545F4914F6CDD1D, 0x369DEA0F31A53F85, 0x27BB2EE687B0B0FD)


def set_dropout_keys(model: nn.Module, keys: Tensor, step: int, stacked: bool = True) -> None:
    """Give each Dropout of `model` its keys for this step: a hash of (model key, step, layer)."""
    layers = [module for module in model.modules() if isinstance(module, Dropout)]
    for number, layer in enumerate(layers):
        layer.keys, layer.stacked = _mix(_mix(keys + step) + number), stacked


def _mix(x: Tensor) -> Tensor:
    """The finaliser of splitmix64 (Steele et al., 2014) on int64, whose sums and products wrap."""
    x = (x ^ (x >> 30 & 0x3FFFFFFFF)) * -0x40A7B892E31B1A47
    x = (x ^ (x >> 27 & 0x1FFFFFFFFF)) * -0x6B2FB644ECCEEE15
    return x ^ (x >> 31 & 0x1FFFFFFFF)


def _over(p: Tensor, dims: int) -> Tensor:
    """View p [width] or [K, width] as [K, 1, ..., 1, width] of `dims` axes."""
    return p.view(*p.shape[:-1], *[1] * (dims - p.dim()), p.shape[-1])


def _pair(size: int | tuple[int, ...] | str) -> tuple[int, ...]:
    assert not isinstance(size, str), "padding is a number here"
    return (size, size) if isinstance(size, int) else size


def _lstm(x: Tensor, weight_input: Tensor, weight_hidden: Tensor, bias: Tensor) -> Tensor:
    """x: [M, B, T, in] for M stacked directions -> hidden states [M, B, T, hidden]."""
    models, batch, time, _ = x.shape
    gates = torch.baddbmm(bias.unsqueeze(1), x.flatten(1, 2), weight_input.transpose(1, 2))
    steps = gates.view(models, batch, time, -1).unbind(2)
    recurrent = weight_hidden.transpose(1, 2)
    h = c = x.new_zeros(models, batch, recurrent.shape[1])
    outputs = []
    for step in steps:
        i, f, g, o = torch.baddbmm(step, h, recurrent).chunk(4, dim=-1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        outputs.append(h)
    return torch.stack(outputs, dim=2)


def _reversal(mask: Tensor) -> Tensor:
    """Return [..., T] time indices that reverse each sequence's tokens and leave its padding."""
    length = mask.sum(-1, keepdim=True)
    time = torch.arange(mask.shape[-1], device=mask.device).expand(mask.shape)
    return torch.where(time < length, length - 1 - time, time)


def _gather_time(x: Tensor, index: Tensor) -> Tensor:
    return x.gather(-2, index.unsqueeze(-1).expand(*index.shape, x.shape[-1]))


STACKABLE = (Linear, Embedding, BiLSTM, LSTM, LayerNorm, GroupNorm, Conv2d)
"""The layers with parameters that take them with a leading device axis."""
