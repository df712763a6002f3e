"""Optimisers over stacked parameters, which change values in place.

State is a dict of tensors shaped like the parameters, so that a prefix of devices is a slice of it.
"""

from typing import Protocol

import torch
from torch import Tensor

from clients.rows import Grads, Rows, add_rows
from fedsim.config import Train
from fedsim.types import Params

State = dict[str, Params]


class Optimizer(Protocol):
    """A first-order rule; `step` counts from 1 on every device."""

    def init(self, params: Params) -> State:
        """Return the state of fresh parameters."""

    def update(self, params: Params, grads: Grads, state: State, step: int) -> None:
        """Move `params` along `grads` and update `state`, both in place."""

    def noise_reach(self, steps: int) -> list[float]:
        """Return, for each step, how far one unit of its gradient moves a parameter by the end.

        Raises NotImplementedError for a rule that is not linear in the gradients alone.
        """


class Sgd:
    """theta -= lr · v with v = momentum · v + (g + weight_decay · theta), as torch.optim.SGD."""

    def __init__(self, train: Train) -> None:
        self.lr = train.lr
        self.momentum = train.momentum
        self.decay = train.weight_decay

    def init(self, params: Params) -> State:
        return {"velocity": _zeros(params)} if self.momentum else {}

    def update(self, params: Params, grads: Grads, state: State, step: int) -> None:
        for name, p in params.items():
            given = grads[name]
            if isinstance(given, Rows) and not self.momentum and not self.decay:
                add_rows(p, given, -self.lr)
                continue
            g = _decayed(given, p, self.decay)
            if self.momentum:
                g = state["velocity"][name].mul_(self.momentum).add_(g)
            p.sub_(g, alpha=self.lr)

    def noise_reach(self, steps: int) -> list[float]:
        if self.decay:
            raise NotImplementedError("weight decay makes a step depend on the parameters")
        kept = [self.momentum**left for left in range(steps)]  # of a gradient, `left` steps later
        return [self.lr * sum(kept[: steps - step]) for step in range(steps)]


class Adam:
    """Adam (Kingma and Ba, 2015) with its bias correction; `decoupled` decay makes it AdamW."""

    beta1 = 0.9
    beta2 = 0.999
    eps = 1e-8

    def __init__(self, train: Train, decoupled: bool) -> None:
        self.lr = train.lr
        self.decay = train.weight_decay
        self.decoupled = decoupled

    def init(self, params: Params) -> State:
        return {"first": _zeros(params), "second": _zeros(params)}

    def update(self, params: Params, grads: Grads, state: State, step: int) -> None:
        scale = self.lr / (1 - self.beta1**step)
        for name, p in params.items():
            g = _decayed(grads[name], p, 0.0 if self.decoupled else self.decay)
            if self.decoupled and self.decay:
                p.mul_(1 - self.lr * self.decay)
            m = state["first"][name].mul_(self.beta1).add_(g, alpha=1 - self.beta1)
            v = state["second"][name].mul_(self.beta2).addcmul_(g, g, value=1 - self.beta2)
            root = (v / (1 - self.beta2**step)).sqrt_().add_(self.eps)
            p.addcdiv_(m, root, value=-scale)

    def noise_reach(self, steps: int) -> list[float]:
        raise NotImplementedError("Adam is not linear in the gradients")


def make_optimizer(train: Train) -> Optimizer:
    """Return the optimiser that `train.optimizer` names."""
    if train.optimizer == "sgd":
        return Sgd(train)
    return Adam(train, decoupled=train.optimizer == "adamw")


def _decayed(given: Tensor | Rows, p: Tensor, decay: float) -> Tensor:
    g = given.dense(p.shape) if isinstance(given, Rows) else given
    return g.add(p, alpha=decay) if decay else g


def _zeros(params: Params) -> Params:
    return {name: torch.zeros_like(p) for name, p in params.items()}
