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


class Dropout(nn.Module):
    """Dropout whose masks come from names: equal for any packing, any node and after a resume.

    In training `keys` [K] holds one int64 a model, set anew for every step; the mask of an element
    is a hash of its key and its position, so padding and neighbours cannot change it.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.keys: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """x: [K, B, ..., width], scaled by 1 / (1 - p) where kept."""
        if not self.training or self.p == 0.0:
            return x
        if self.keys is None:
            raise RuntimeError("Dropout needs `keys`, one a model, before each training step")
        mixed = self.keys.view(-1, *[1] * (x.dim() - 1))
        for axis, size in enumerate(x.shape[1:], start=1):
            position = torch.arange(size, device=x.device).view(-1, *[1] * (x.dim() - 1 - axis))
            mixed = mixed + position * _AXIS_STRIDES[axis - 1]
        uniform = (_mix(mixed) & 0xFFFFFF).to(x.dtype) / 2**24
        return x * (uniform >= self.p) / (1.0 - self.p)


_AXIS_STRIDES = (0x1E3779B97F4A7C15, 0x2545F4914F6CDD1D, 0x369DEA0F31A53F85, 0x27BB2EE687B0B0FD)


def set_dropout_keys(model: nn.Module, keys: Tensor, step: int) -> None:
    """Give each Dropout of `model` its keys for this step: a hash of (model key, step, layer)."""
    layers = [module for module in model.modules() if isinstance(module, Dropout)]
    for number, layer in enumerate(layers):
        layer.keys = _mix(_mix(keys + step) + number)


def _mix(x: Tensor) -> Tensor:
    """The finaliser of splitmix64 (Steele et al., 2014) on int64, whose sums and products wrap."""
    x = (x ^ (x >> 30 & 0x3FFFFFFFF)) * -0x40A7B892E31B1A47
    x = (x ^ (x >> 27 & 0x1FFFFFFFFF)) * -0x6B2FB644ECCEEE15
    return x ^ (x >> 31 & 0x1FFFFFFFF)


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
