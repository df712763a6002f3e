"""Server rules over the weighted sum of the updates: FedAvg, and its adaptive relatives."""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from fedsim.config import Aggregation
from fedsim.types import Params, Update

State = Params
Second = Callable[[Tensor, Tensor, float], Tensor]
"""The next second moment of (the last one, d squared, beta2)."""


class Aggregator(Protocol):
    """A server rule; the mean update of a round is its pseudo-gradient."""

    def init(self, params: Params) -> State:
        """Return the state before the first round."""

    def step(self, params: Params, total: Update, state: State) -> tuple[Params, State]:
        """Return the next parameters and state. A total of no weight changes neither."""


class FedAvg:
    """params += lr · mean delta (McMahan et al., 2017, at lr = 1)."""

    def __init__(self, settings: Aggregation) -> None:
        self.lr = settings.lr

    def init(self, params: Params) -> State:
        return {}

    def step(self, params: Params, total: Update, state: State) -> tuple[Params, State]:
        if total.weight == 0:
            return params, state
        scale = self.lr / total.weight
        moved = {
            name: (p.double() + scale * total.delta[name]).float() for name, p in params.items()
        }
        return moved, state


class FedAvgM:
    """FedAvg with server momentum (Hsu et al., 2019): m = beta1·m + d; params += lr · m."""

    def __init__(self, settings: Aggregation) -> None:
        self.lr = settings.lr
        self.momentum = settings.beta1

    def init(self, params: Params) -> State:
        return _zeros("first", params)

    def step(self, params: Params, total: Update, state: State) -> tuple[Params, State]:
        if total.weight == 0:
            return params, state
        moved: Params = {}
        after: State = {}
        for name, p in params.items():
            m = self.momentum * state[f"first/{name}"] + total.delta[name] / total.weight
            moved[name] = (p.double() + self.lr * m).float()
            after[f"first/{name}"] = m
        return moved, after


class FedOpt:
    """An adaptive server rule, without bias correction (Reddi et al., 2021, algorithm 2).

    m = beta1·m + (1 - beta1)·d; v by the rule; params += lr · m / (√v + tau). v starts at 0.
    """

    def __init__(self, settings: Aggregation, second: Second) -> None:
        self.lr = settings.lr
        self.tau = settings.tau
        self.beta1 = settings.beta1
        self.beta2 = settings.beta2
        self.second = second

    def init(self, params: Params) -> State:
        return _zeros("first", params) | _zeros("second", params)

    def step(self, params: Params, total: Update, state: State) -> tuple[Params, State]:
        if total.weight == 0:
            return params, state
        moved: Params = {}
        after: State = {}
        for name, p in params.items():
            d = total.delta[name] / total.weight
            m = self.beta1 * state[f"first/{name}"] + (1 - self.beta1) * d
            v = self.second(state[f"second/{name}"], d * d, self.beta2)
            moved[name] = (p.double() + self.lr * m / (v.sqrt() + self.tau)).float()
            after |= {f"first/{name}": m, f"second/{name}": v}
        return moved, after


def fedadagrad(settings: Aggregation) -> FedOpt:
    """V = v + d²."""
    return FedOpt(settings, lambda v, square, beta2: v + square)


def fedadam(settings: Aggregation) -> FedOpt:
    """V = beta2·v + (1 - beta2)·d²."""
    return FedOpt(settings, lambda v, square, beta2: beta2 * v + (1 - beta2) * square)


def fedyogi(settings: Aggregation) -> FedOpt:
    """V = v - (1 - beta2)·d²·sign(v - d²)."""
    return FedOpt(settings, lambda v, square, beta2: v - (1 - beta2) * square * (v - square).sign())


def _zeros(kind: str, params: Params) -> State:
    return {
        f"{kind}/{name}": torch.zeros(p.shape, dtype=torch.float64) for name, p in params.items()
    }
