"""Recording one forward and backward: each layer's op leaves a record and no weight gradient.

`recording(module, tape, ...)` replaces the forwards of layers that own parameters. These run the
ordinary kernel on detached weights and watch their output, whose gradient arrives in the backward.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import group_norm, layer_norm

from clients.layer_records import (
    Columns,
    Convolution,
    Lookup,
    Pooled,
    Product,
    Record,
    Small,
    joined,
)
from fedsim.errors import WrongInput
from fedsim.models import layers
from fedsim.models.layers import pair

Finish = Callable[[Tensor], Record]
"""Makes the record of an op from the gradient of its output."""


class Tape:
    """The records of one forward and backward over K models with B examples each.

    `stacked` says whether inputs carry the model axis; records always do.
    """

    def __init__(self, models: int, examples: int, stacked: bool, device: torch.device) -> None:
        self.models = models
        self.examples = examples
        self.stacked = stacked
        # the weights are detached: without the anchor an output may have no backward to watch
        self.anchor = torch.zeros((), device=device, requires_grad=True)
        self.shapes: Mapping[str, tuple[int, ...]] = {}
        """The module's parameters without the model axis."""
        self._records: list[Record] = []

    def watch(self, output: Tensor, finish: Finish) -> Tensor:
        """Return `output`; when its gradient arrives, `finish` turns that into a record."""
        note: Callable[[Tensor], None] = lambda g: self.record(finish(g))  # noqa: E731
        return cast(Tensor, _Watch.apply(output, self.anchor, note))  # type: ignore[no-untyped-call]

    def record(self, found: Record) -> None:
        """Keep the record of an op; called in the backward."""
        self._records.append(found)

    def backward(
        self, losses: Tensor, leaves: Mapping[str, Tensor]
    ) -> tuple[list[Record], dict[str, Tensor]]:
        """Run the backward of the summed losses; return the records and the gradients of `leaves`.

        Records of the same parameters are joined. A leaf that does not affect the losses has no
        entry.
        """
        found = torch.autograd.grad(
            losses.sum(),
            [self.anchor, *leaves.values()],
            allow_unused=True,
            materialize_grads=False,
        )
        grads = {name: g for name, g in zip(leaves, found[1:], strict=True) if g is not None}
        return joined(self._records), grads

    def shaped(self, x: Tensor, layer: str, tail: int) -> Tensor:
        """Return [K?, B, ..., *tail] as [K, B, T, *tail].

        Raises WrongInput where the axis of examples is missing.
        """
        lead = x if self.stacked else x.unsqueeze(0)
        if lead.dim() < 2 + tail or lead.shape[:2] != (self.models, self.examples):
            raise WrongInput(
                f"the layer {layer!r} gets an input of shape {tuple(x.shape)}, whose "
                f"{'second' if self.stacked else 'first'} axis is not that of the {self.examples} "
                "examples; per-example clipping needs every layer to see each example on its own"
            )
        if lead.dtype in (torch.bfloat16, torch.float16):
            lead = lead.float()  # norms and sums are taken in at least float32
        split = lead.dim() - tail
        return lead.reshape(*lead.shape[:2], -1, *lead.shape[split:])


class _Watch(torch.autograd.Function):
    """The identity, which passes its gradient to a callback; the anchor puts it in the graph."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, anchor: Tensor, callback: Callable[[Tensor], None]) -> Tensor:
        ctx.callback = callback
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None]:
        ctx.callback(grad)
        return (grad if ctx.needs_input_grad[0] else None), None, None


@contextmanager
def recording(module: nn.Module, tape: Tape, only: frozenset[str] | None = None) -> Iterator[None]:
    """Let the layers of `module` that own trainable parameters write to `tape`.

    `only` limits this to layers that own one of these parameters. Raises WrongInput that names the
    first layer without a rule.
    """
    names = {id(p): name for name, p in module.named_parameters() if p.requires_grad}
    tape.shapes = {name: tuple(p.shape) for name, p in module.named_parameters()}
    watched = []
    for path, layer in module.named_modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            raise WrongInput(
                f"the layer {path!r} ({type(layer).__name__}) mixes the examples of a batch, so "
                "that no clip bounds one of them; use GroupNorm or LayerNorm"
            )
        own = {
            key: names[id(p)]
            for key, p in layer._parameters.items()
            if p is not None and id(p) in names
        }
        if not own or (only is not None and not set(own.values()) & only):
            continue
        rule = rule_of(layer)
        if rule is None:
            raise WrongInput(no_rule(path, layer))
        watched.append(layer)
        layer.forward = partial(rule, tape, layer, path, own)
    try:
        yield
    finally:
        for layer in watched:
            del layer.forward


def rule_of(layer: nn.Module) -> Callable[..., Tensor] | None:
    """Return the rule of exactly this type: a subclass may compute anything."""
    return RULES.get(type(layer))


def no_rule(path: str, layer: nn.Module) -> str:
    return (
        f"the layer {path!r} ({type(layer).__name__}) has no rule for per-example clipping; build "
        "the model of fedsim.models.layers or of torch's Linear, Embedding, Conv2d, LayerNorm and "
        'GroupNorm, or use dp.method = "opacus"'
    )


def without_rule(module: nn.Module) -> tuple[str, nn.Module] | None:
    """Return the first layer with trainable parameters and no rule; None where all have one."""
    for path, layer in module.named_modules():
        if any(p.requires_grad for p in layer.parameters(recurse=False)) and rule_of(layer) is None:
            return path, layer
    return None


Lstm = layers.LSTM | layers.BiLSTM
Own = Mapping[str, str]
"""A layer's trainable parameters: the layer's own name -> the module's name."""


def _linear(tape: Tape, layer: nn.Linear, path: str, own: Own, x: Tensor) -> Tensor:
    out = layers.linear(
        x, layer.weight.detach(), None if layer.bias is None else layer.bias.detach()
    )
    a = tape.shaped(x.detach(), path, 1).unsqueeze(1)

    def finish(g: Tensor) -> Record:
        gradient = tape.shaped(g, path, 1).unsqueeze(1)
        return _product({"weight": a}, gradient, own, tape)

    return tape.watch(out, finish)


def _convolution(tape: Tape, layer: nn.Conv2d, path: str, own: Own, x: Tensor) -> Tensor:
    if layer.groups != 1 or layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        raise WrongInput(
            f"the convolution {path!r} has groups, a padding mode or a padding by name, for which "
            'there is no rule; use dp.method = "opacus"'
        )
    weight = layer.weight.detach()
    bias = None if layer.bias is None else layer.bias.detach()
    out = layers.convolve(x, weight, bias, layer.stride, pair(layer.padding), pair(layer.dilation))
    images = tape.shaped(x.detach(), path, 3).squeeze(2)  # [K, B, in, height, width]
    shape = tuple(layer.weight.shape[-4:])

    geometry = (layer.stride, pair(layer.padding), pair(layer.dilation))

    def finish(g: Tensor) -> Record:
        gradient = tape.shaped(g, path, 3).squeeze(2)
        return Convolution(own.get("weight"), own.get("bias"), images, gradient, shape, geometry)

    return tape.watch(out, finish)


def _embedding(tape: Tape, layer: nn.Embedding, path: str, own: Own, ids: Tensor) -> Tensor:
    if layer.max_norm is not None or layer.scale_grad_by_freq or layer.sparse:
        raise WrongInput(
            f"the table {path!r} has max_norm, scale_grad_by_freq or sparse, for which there is "
            "no rule; leave them at their defaults"
        )
    out = layers.lookup(ids, layer.weight.detach(), layer.padding_idx)
    where = tape.shaped(ids, path, 0)

    def finish(g: Tensor) -> Record:
        gradient = tape.shaped(g, path, 1)
        if layer.padding_idx is not None:
            gradient = gradient.masked_fill((where == layer.padding_idx).unsqueeze(-1), 0.0)
        return Lookup(own["weight"], where, gradient)

    return tape.watch(out, finish)


def _mean_embedding(
    tape: Tape, layer: layers.MeanEmbedding, path: str, own: Own, ids: Tensor
) -> Tensor:
    table = layer.weight.detach()
    shares = layers.shares(ids, table)
    out = layers.weighted(ids, shares, table)
    where, parts = (tape.shaped(x, path, 1) for x in (ids, shares))
    return tape.watch(out, lambda g: Pooled(own["weight"], where, parts, tape.shaped(g, path, 1)))


def _layer_norm(tape: Tape, layer: nn.LayerNorm, path: str, own: Own, x: Tensor) -> Tensor:
    normal = layer_norm(x, layer.normalized_shape, eps=layer.eps)
    return _scaled(tape, layer, path, own, normal, len(layer.normalized_shape))


def _group_norm(tape: Tape, layer: nn.GroupNorm, path: str, own: Own, x: Tensor) -> Tensor:
    """Normalise x [K?, B, channels, ...] by statistics of each example alone."""
    inner = x.dim() - 1 - tape.stacked  # axes of one example
    tape.shaped(x, path, inner)  # raises where the axis of examples is missing
    normalize = layers.normalize if tape.stacked else group_norm
    normal = normalize(x, layer.num_groups, eps=layer.eps)

    def wide(p: Tensor) -> Tensor:
        return p.detach().view(*p.shape[:-1], *[1] * tape.stacked, -1, *[1] * (inner - 1))

    out = torch.addcmul(wide(layer.bias), normal, wide(layer.weight))
    places = [2, *range(4, 3 + inner)]

    def finish(g: Tensor) -> Record:
        gradient = tape.shaped(g, path, inner)
        each = {
            "weight": (tape.shaped(normal.detach(), path, inner) * gradient).sum(places),
            "bias": gradient.sum(places),
        }
        return _small(each, own)

    return tape.watch(out, finish)


def _scaled(tape: Tape, layer: Any, path: str, own: Own, normal: Tensor, tail: int) -> Tensor:
    """Return normal · weight + bias over the last `tail` axes."""
    weight = layer.weight.detach()
    out = normal * layers.over(weight, normal.dim(), tail)
    if layer.bias is not None:
        out = out + layers.over(layer.bias.detach(), normal.dim(), tail)
    x = tape.shaped(normal.detach(), path, tail)

    def finish(g: Tensor) -> Record:
        gradient = tape.shaped(g, path, tail)
        each = {"weight": (x * gradient).sum(2), "bias": gradient.sum(2)}
        return _small(each, own)

    return tape.watch(out, finish)


def _small(each: Mapping[str, Tensor], own: Own) -> Small:
    return Small({own[key]: grad for key, grad in each.items() if key in own})


def _lstm(tape: Tape, layer: Lstm, path: str, own: Own, x: Tensor, mask: Tensor) -> Tensor:
    tape.shaped(x, path, 2)  # raises where the axis of examples is missing
    into, hidden, bias = (p.detach() for p in (layer.weight_input, layer.weight_hidden, layer.bias))
    return layer.run(x, mask, into, hidden, bias, _Gates(tape, layer, own))


class _Gates:
    """Watches an LSTM's pre-activations, whose gradient serves all of its weights."""

    def __init__(self, tape: Tape, layer: Lstm, own: Own) -> None:
        self.tape = tape
        self.own = own
        self.anchor = tape.anchor
        self.copies = 2 if isinstance(layer, layers.BiLSTM) else 1
        self.width = layer.weight_hidden.shape[-1]

    def gates(self, rows: Tensor, gradient: Tensor) -> None:
        """Keep the record of rows [T, K·D, B, hidden + in + 1], gradient [T, K·D, B, 4·hidden]."""
        columns = {
            "weight_hidden": slice(0, self.width),
            "weight_input": slice(self.width, rows.shape[-1] - 1),
            "bias": slice(rows.shape[-1] - 1, None),
        }
        trained = {self.own[key]: where for key, where in columns.items() if key in self.own}
        shapes = {name: self.tape.shapes[name] for name in trained}
        self.tape.record(Columns(self._split(rows), self._split(gradient), trained, shapes))

    def _split(self, x: Tensor) -> Tensor:
        return x.permute(1, 2, 0, 3).unflatten(0, (self.tape.models, self.copies))


def _product(inputs: Mapping[str, Tensor], gradient: Tensor, own: Own, tape: Tape) -> Product:
    """Return the record of a layer's products; frozen parameters are left out."""
    shapes = {name: tape.shapes[name] for name in own.values()}
    return Product(
        {own[key]: a for key, a in inputs.items() if key in own}, own.get("bias"), gradient, shapes
    )


RULES: dict[type[nn.Module], Callable[..., Tensor]] = {
    nn.Linear: _linear,
    layers.Linear: _linear,
    nn.Conv2d: _convolution,
    layers.Conv2d: _convolution,
    nn.Embedding: _embedding,
    layers.Embedding: _embedding,
    layers.MeanEmbedding: _mean_embedding,
    nn.LayerNorm: _layer_norm,
    layers.LayerNorm: _layer_norm,
    nn.GroupNorm: _group_norm,
    layers.GroupNorm: _group_norm,
    layers.LSTM: _lstm,
    layers.BiLSTM: _lstm,
}
"""How the layers of each type are watched."""
