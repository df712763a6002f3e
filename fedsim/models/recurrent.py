"""LSTMs whose weights may carry leading axes; recurrence and backward are written out."""

import math
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from fedsim.models.products import add_product, product


class GateWatch(Protocol):
    """An observer of an LSTM's backward pass; per-example clipping is one."""

    anchor: Tensor
    """A tensor that puts the layer into the autograd graph where nothing else does."""

    def gates(self, rows: Tensor, gradient: Tensor) -> None:
        """See in backward what each step multiplied, and the gradient of its pre-activations.

        rows: [T, M, B, hidden + in + 1]: the state before, the input, and a one for the bias;
        gradient: [T, M, B, 4·hidden].
        """


class BiLSTM(nn.Module):
    """One bidirectional LSTM layer over ragged sequences, gates in torch's order (i, f, g, o).

    x: [..., B, T, in], mask: [..., B, T] (True at tokens, which come first) -> [..., B, T,
    2·hidden]. Outputs behind a sequence's end are zero. Both directions run as one batch of twice
    the models.
    """

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        bound = hidden**-0.5
        self.weight_input = nn.Parameter(torch.empty(2, 4 * hidden, inputs).uniform_(-bound, bound))
        self.weight_hidden = nn.Parameter(
            torch.empty(2, 4 * hidden, hidden).uniform_(-bound, bound)
        )
        self.bias = nn.Parameter(torch.empty(2, 4 * hidden).uniform_(-bound, bound))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.run(x, mask, self.weight_input, self.weight_hidden, self.bias)

    def run(
        self,
        x: Tensor,
        mask: Tensor,
        into: Tensor,
        hidden: Tensor,
        bias: Tensor,
        watch: GateWatch | None = None,
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
        self,
        x: Tensor,
        mask: Tensor,
        into: Tensor,
        hidden: Tensor,
        bias: Tensor,
        watch: GateWatch | None = None,
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


def lstm(
    x: Tensor,
    mask: Tensor,
    into: Tensor,
    hidden: Tensor,
    bias: Tensor,
    watch: GateWatch | None = None,
) -> Tensor:
    """Return the hidden states [M, B, T, hidden] of M stacked directions.

    x: [M, B, T, in], mask: [M, B, T]. States behind a sequence's end must not be used.
    """
    single = x.dtype == into.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    if watch is None and x.device.type == "cpu" and single:
        return _model_by_model(x, mask, into, hidden, bias)
    anchor = None if watch is None else watch.anchor
    with torch.autocast(x.device.type, enabled=False):  # autocast would round at every step
        states = Recurrence.apply(x.to(into.dtype), into, hidden, bias, anchor, watch)  # type: ignore[no-untyped-call]
    return cast(Tensor, states)


def _model_by_model(x: Tensor, mask: Tensor, into: Tensor, hidden: Tensor, bias: Tensor) -> Tensor:
    """Return what `lstm` does, by torch's kernel for one model: near a CPU's peak.

    Each model goes as far as its own longest sequence. The kernel shows no gates, so per-example
    clipping takes the recurrence below.
    """
    start = x.new_zeros(1, x.shape[1], hidden.shape[-1])
    none, train = torch.zeros_like(bias[0]), torch.is_grad_enabled()  # torch has a second bias
    states = []
    parts = (p.unbind(0) for p in (x, into, hidden, bias))
    for length, one, a, b, c in zip(mask.any(1).sum(1).tolist(), *parts, strict=True):
        long = one[:, : max(length, 1)]
        found = torch.lstm(long, (start, start), (a, b, c, none), True, 1, 0.0, train, False, True)[
            0
        ]
        missing = x.shape[2] - long.shape[1]
        states.append(nn.functional.pad(found, (0, 0, 0, missing)) if missing else found)
    return torch.stack(states)


class Recurrence(torch.autograd.Function):
    """M LSTMs over time, with forward and backward written out: no graph.

    A step is one product and a few kernels. All tensors of a step lie together, [T, M, B, ...], so
    they are still in the cache when they are next needed. tanh(x) is taken as 2·sigmoid(2x) - 1,
    because the sigmoid kernel is several times faster on a CPU. Gate g and the cells are kept
    doubled.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        into: Tensor,
        hidden: Tensor,
        bias: Tensor,
        anchor: Tensor | None,
        watch: Any,
    ) -> Tensor:
        models, batch, time, inputs = x.shape
        width = hidden.shape[-1]
        twice = x.new_ones(4, 1, 1).index_fill_(0, torch.tensor([2], device=x.device), 2.0)
        weight = torch.cat([hidden, into, bias.unsqueeze(-1)], dim=-1)
        weight.view(models, 4, width, -1).mul_(twice)  # g needs sigmoid(2x)
        rows = x.new_empty(time + 1, models, batch, width + inputs + 1)
        rows[0, ..., :width] = 0
        rows[..., -1] = 1
        rows[:-1, ..., width:-1] = x.permute(2, 0, 1, 3)
        active = x.new_empty(time, models, batch, 4 * width)
        # the inputs of all steps at once; only the states must wait for each other
        product(rows[:-1, ..., width:].transpose(0, 1), weight[..., width:], active.transpose(0, 1))
        doubles, cells, bent = (x.new_empty(time, models, batch, width) for _ in range(3))
        states = rows[1:, ..., :width]
        parts = (
            rows[:-1, ..., :width],
            active,
            *active.chunk(4, dim=-1),
            doubles,
            cells,
            bent,
            states,
        )
        again = weight[..., :width].contiguous()
        before = x.new_zeros(models, batch, width)
        for last, a, i, f, s, o, g, c, tanh, h in zip(*(p.unbind(0) for p in parts), strict=True):
            add_product(a, last, again, out=a).sigmoid_()
            torch.mul(s, 4, out=g).sub_(2)  # twice the gate: 2 (2·sigmoid(2x) - 1)
            torch.mul(f, before, out=c).addcmul_(i, g)
            torch.sigmoid(c, out=tanh).mul_(2).sub_(1)  # c is twice the cell, as tanh needs it
            torch.mul(tanh, o, out=h)
            before = c
        ctx.save_for_backward(rows, active, doubles, cells, bent, into, hidden)
        ctx.watch = watch
        return states.permute(1, 2, 0, 3)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, active, doubles, cells, bent, into, hidden = ctx.saved_tensors
        width = cells.shape[-1]
        slopes = torch.empty_like(active)
        back = hidden.transpose(1, 2)
        of_c = torch.zeros_like(cells[0])
        spare = torch.empty_like(cells[0])
        of_h = grad[:, :, -1]
        earlier = [torch.zeros_like(cells[0]), *cells[:-1].unbind(0)]
        above = [torch.zeros_like(cells[0]), *grad[:, :, :-1].unbind(2)]
        parts = (slopes, *slopes.chunk(4, dim=-1), active, *active.chunk(4, dim=-1), doubles, bent)
        steps = zip(*(p.unbind(0) for p in parts), earlier, above, strict=True)
        for z, zi, zf, zg, zo, a, i, f, _, o, g, tanh, c, dh in reversed(list(steps)):
            torch.mul(of_h, o, out=spare)
            # by the doubled cell, so half of the cell's own gradient
            of_c.add_(tanh_backward(spare, tanh, grad_input=spare), alpha=0.5)
            torch.mul(of_c, g, out=zi)
            torch.mul(of_c, c, out=zf)
            torch.mul(of_c, i, out=zg).mul_(8)  # 4 by g = 4·sigmoid - 2, and 2 by sigmoid(2x)
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
    """Return the gradients of an LSTM's input weights, recurrent weights and bias.

    All are None where none is wanted.
    """
    if not any(ctx.needs_input_grad[1:4]):
        return None, None, None
    side_by_side = [p.transpose(0, 1).flatten(1, 2) for p in (slopes, rows)]  # [M, T·B, ...]
    whole = torch.bmm(side_by_side[0].transpose(1, 2), side_by_side[1])
    return whole[..., width:-1], whole[..., :width], whole[..., -1]


def _reversal(mask: Tensor) -> Tensor:
    """Return which row of x comes to each place when each sequence's tokens are reversed.

    The rows of x [..., T, width] are numbered in one line. Padding stays where it is.
    """
    length = mask.sum(-1, keepdim=True)
    time = torch.arange(mask.shape[-1], device=mask.device)
    sequences = torch.arange(math.prod(mask.shape[:-1]), device=mask.device)
    first = sequences.view(*mask.shape[:-1], 1) * mask.shape[-1]
    return (first + torch.where(time < length, length - 1 - time, time)).flatten()


def _reversed(x: Tensor, order: Tensor) -> Tensor:
    return cast(Tensor, Reversed.apply(x, order))  # type: ignore[no-untyped-call]


class Reversed(torch.autograd.Function):
    """Rows of x [..., width] in an order that is its own inverse.

    So the gradient takes the same order.
    """

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
