"""Optimisers over stacked parameters: pairs of functions, values changed in place.

State is a dict of tensors shaped like the parameters, so that a prefix of devices is a slice of it.
"""

from typing import Protocol

import torch
from torch import Tensor

from fedsim.config import Train
from fedsim.types import Params

State = dict[str, Params]


class Optimizer(Protocol):
    """A first-order rule; `step` counts from 1 on every device."""

    def init(self, params: Params) -> State:
        """Return the state of fresh parameters."""

    def update(self, params: Params, grads: Params, state: State, step: int) -> None:
        """Move `params` along `grads`, in place; also `state`."""


class Sgd:
    """theta -= lr · v with v = momentum · v + (g + weight_decay · theta), as torch.optim.SGD."""

    def __init__(self, train: Train) -> None:
        self.lr, self.momentum, self.decay = train.lr, train.momentum, train.weight_decay

    def init(self, params: Params) -> State:
        return {"velocity": _zeros(params)} if self.momentum else {}

    def update(self, params: Params, grads: Params, state: State, step: int) -> None:
        for name, p in params.items():
            g = _decayed(grads[name], p, self.decay)
            if self.momentum:
                g = state["velocity"][name].mul_(self.momentum).add_(g)
            p.sub_(g, alpha=self.lr)


class Adam:
    """Adam (Kingma and Ba, 2015) with its bias correction; `decoupled` decay makes it AdamW."""

    beta1, beta2, eps = 0.9, 0.999, 1e-8

    def __init__(self, train: Train, decoupled: bool) -> None:
        self.lr, self.decay, self.decoupled = train.lr, train.weight_decay, decoupled

    def init(self, params: Params) -> State:
        return {"first": _zeros(params), "second": _zeros(params)}

    def update(self, params: Params, grads: Params, state: State, step: int) -> None:
        scale = self.lr / (1 - self.beta1**step)
        for name, p in params.items():
            g = _decayed(grads[name], p, 0.0 if self.decoupled else self.decay)
            if self.decoupled and self.decay:
                p.mul_(1 - self.lr * self.decay)
            m = state["first"][name].mul_(self.beta1).add_(g, alpha=1 - self.beta1)
            v = state["second"][name].mul_(self.beta2).addcmul_(g, g, value=1 - self.beta2)
            root = (v / (1 - self.beta2**step)).sqrt_().add_(self.eps)
            p.addcdiv_(m, root, value=-scale)


def make_optimizer(train: Train) -> Optimizer:
    """Return the optimiser that `train.optimizer` names."""
    if train.optimizer == "sgd":
        return Sgd(train)
    return Adam(train, decoupled=train.optimizer == "adamw")


def _decayed(g: Tensor, p: Tensor, decay: float) -> Tensor:
    return g.add(p, alpha=decay) if decay else g


def _zeros(params: Params) -> Params:
    return {name: torch.zeros_like(p) for name, p in params.items()}
