"""The centralised proxy: shadow models on pooled records, a group trained as one stacked model.

This is a separate threat model: the attacker cannot repeat the federation and trains plain models
instead.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call

from fedsim.audit.scores import Bools
from fedsim.models import parameters_of
from fedsim.models.dropout import set_dropout_keys
from fedsim.seeds import generator
from fedsim.types import Params

AT_ONCE = 1024
"""Records that a model predicts in one pass."""


@dataclass(frozen=True)
class CentralisedProxy:
    """Trains any module of `fedsim.models.layers` by Adam on label loss; a `TrainShadows`."""

    make: Callable[[int], nn.Module]
    """Seed -> a module with fresh parameters; its forward takes `inputs` rows, any leading axes."""
    inputs: Tensor
    """[N, ...], the input of each record."""
    labels: Tensor
    """[N]"""
    steps: int = 200
    batch: int = 128
    lr: float = 0.01
    seed: int = 0
    draws: str = "epochs"
    """"epochs": each record comes once an epoch; "independent": every batch is a new draw."""
    logits: Callable[[Any], Tensor] = lambda outputs: outputs
    """Turns the module's outputs into label logits [..., C]."""

    def __call__(self, keep: Bools, models: Sequence[int]) -> Tensor:
        modules = [self.make(self._key("init", number)) for number in models]
        parts = [parameters_of(module) for module in modules]
        params = {name: torch.stack([p[name] for p in parts]) for name in parts[0]}
        module = modules[0].train()
        orders = [self._order(row, number) for row, number in zip(keep, models, strict=True)]
        keys = torch.tensor([self._key("dropout", number) for number in models])
        params = self._train(module, params, torch.from_numpy(np.stack(orders)), keys)
        return self._predict(module.eval(), params)

    def _train(self, module: nn.Module, params: Params, orders: Tensor, keys: Tensor) -> Params:
        """Train the models; orders: [K, steps, batch], the records of each model's batches."""
        params = {name: p.requires_grad_() for name, p in params.items()}
        # Adam works element by element, so the models stay apart
        optimizer = torch.optim.Adam(params.values(), lr=self.lr, fused=True)
        for step in range(self.steps):
            set_dropout_keys(module, keys, step)
            rows = orders[:, step]
            logits = self.logits(functional_call(module, params, (self.inputs[rows],)))
            loss = nn.functional.cross_entropy(
                logits.flatten(0, 1), self.labels[rows].flatten(), reduction="sum"
            )
            optimizer.zero_grad()
            torch.autograd.backward(loss / self.batch)
            optimizer.step()
        return {name: p.detach() for name, p in params.items()}

    def _predict(self, module: nn.Module, params: Params) -> Tensor:
        models = len(next(iter(params.values())))
        with torch.no_grad():
            parts = [
                self.logits(functional_call(module, params, (part.expand(models, *part.shape),)))
                for part in torch.split(self.inputs, AT_ONCE)
            ]
        return torch.cat(parts, dim=1)

    def _order(self, kept: Bools, number: int) -> NDArray[np.int64]:
        """Return [steps, batch] kept records, from shuffled epochs or by independent draws."""
        records = np.flatnonzero(kept)
        rng = generator(self.seed, "shadow", "batches", number)
        if self.draws == "independent":
            return rng.choice(records, (self.steps, self.batch))
        epochs = max(1, -(-self.steps * self.batch // max(1, len(records))))
        order = np.concatenate([rng.permutation(records) for _ in range(epochs)])
        return order[: self.steps * self.batch].reshape(self.steps, self.batch)

    def _key(self, purpose: str, number: int) -> int:
        return int(generator(self.seed, "shadow", purpose, number).integers(2**62))
