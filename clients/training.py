"""Local training of a whole cohort at once.

All devices of a chunk train as one model with a leading device axis: parameters `[K, ...]`, batches
`[K, B, ...]`, one forward and one backward of the summed losses. The devices share nothing, so the
gradient of the sum is each device's own gradient, and the result is that of training them one after
another.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.dropout import _DropoutNd

from clients.batches import make_schedule
from clients.device_clip import DeviceClip, add_in_secret, clip_factors, finite
from clients.optimizers import make_optimizer
from clients.packing import Chunk, Work, device_cost, pack, plan_chunks
from fedsim.config import Train
from fedsim.models.layers import STACKABLE, set_dropout_keys
from fedsim.models.memory import activation_floats
from fedsim.models.tasks import Task
from fedsim.seeds import generator
from fedsim.types import DeviceId, Examples, Params, Update, no_update

GIB = 2**30
DEFAULT_MEMORY = GIB
"""Bytes for a chunk's parameters, gradients and optimiser state where no limit is set."""


@dataclass(frozen=True)
class Assignment:
    """A device that is asked to train: its id, its examples and its weight in the sum."""

    device: DeviceId
    examples: Examples
    weight: float


class Trainer:
    """Trains devices from the same parameters and returns the weighted sum of their changes."""

    def __init__(self, module: nn.Module, task: Task, train: Train, memory: int = DEFAULT_MEMORY) -> None:
        self.module, self.task, self.settings = module, task, train
        self.memory = memory
        self.optimizer = make_optimizer(train)
        self.place = next(module.parameters()).device
        self.stacked = is_stackable(module)
        # Weight decay moves rows that no batch reads, so devices then hold whole tables.
        self.tables: Mapping[str, str] = (
            getattr(module, "tables", {}) if self.stacked and not train.weight_decay else {}
        )

    def train(
        self,
        params: Params,
        assigned: Sequence[Assignment],
        seed: int,
        round: int,
        clip: DeviceClip | None = None,
    ) -> Update:
        """Train every assigned device on its own examples, starting from `params`.

        The randomness of a device is named by (seed, round, device), so the sum does not depend on
        chunks or nodes beyond the order of float64 additions. Where `clip` is given, each device's whole
        change is bounded by it before its weight.
        """
        total = no_update(params)
        start = {name: p.to(self.place) for name, p in params.items()}
        for chunk in self._chunks(params, assigned, seed, round):
            total = total + self._train_chunk(start, chunk, round, clip)
            if clip is not None and clip.summed is not None:
                total = replace(total, delta={n: clip.summed.reduce(d) for n, d in total.delta.items()})
        return total

    def _chunks(
        self, params: Params, assigned: Sequence[Assignment], seed: int, round: int
    ) -> Iterator[Chunk]:
        copies = 2 + len(self.optimizer.init(params))  # parameters, gradients, optimiser state
        costs = [
            device_cost(params, self.tables, a.examples, copies, self._activations(a.examples))
            for a in assigned
        ]
        for members in plan_chunks(costs, self.memory if self.stacked else 0):
            works = [self._work(assigned[i], seed, round) for i in members]
            yield pack(works, self.tables, self.place)

    def _activations(self, examples: Examples) -> int:
        """Return the floats that one local step on these examples holds."""
        batch = min(self.settings.batch_size, len(examples))
        return batch * activation_floats(self.module, self.task.inputs, examples)

    def _work(self, a: Assignment, seed: int, round: int) -> Work:
        schedule = make_schedule(self.settings, len(a.examples), generator(seed, "batches", round, a.device))
        key = int(generator(seed, "dropout", round, a.device).integers(2**62))
        return Work(a.examples, a.weight, schedule, key)

    def _train_chunk(self, start: Params, chunk: Chunk, round: int, clip: DeviceClip | None) -> Update:
        devices = len(chunk.weights)
        local = {name: self._copies(name, p, chunk) for name, p in start.items()}
        state = self.optimizer.init(local)
        loss_sum = torch.zeros((), dtype=torch.float64, device=self.place)
        for step, active in enumerate(chunk.active):
            here = {name: p[:active] for name, p in local.items()}
            part = {kind: {n: s[:active] for n, s in d.items()} for kind, d in state.items()}
            loss_sum += self._step(here, part, chunk, step, active)
        metrics = {
            "loss_sum": float(loss_sum),
            "loss_examples": float(chunk.mask.sum()),
            "steps": float(sum(chunk.active)),
        }
        weight = float(chunk.weights.sum())
        changes = {name: self._change(p, local[name], name, chunk) for name, p in start.items()}
        if clip is None:
            return Update(self._sum(start, changes, chunk.weights, chunk), weight, devices, metrics)
        factors, metrics["unclipped"] = clip_factors(changes, clip.norm)
        changes = {name: finite(change) for name, change in changes.items()}
        if clip.summed is None:
            delta = self._sum(start, changes, chunk.weights * factors, chunk)
        else:
            delta = self._sum_in_secret(start, changes, chunk.weights * factors, chunk, round, clip)
        return Update(delta, weight, devices, metrics)

    def _copies(self, name: str, p: Tensor, chunk: Chunk) -> Tensor:
        """Return one copy a device, [K, ...]; of a table only the rows that the device reads."""
        if name in chunk.table_rows:
            return p[chunk.table_rows[name]]
        return p.expand(len(chunk.weights), *p.shape).clone()

    def _step(self, params: Params, state: dict[str, Params], chunk: Chunk, step: int, active: int) -> Tensor:
        """Take one local step on the first `active` devices; return the sum of the examples' losses."""
        rows, mask = chunk.rows[:active, step], chunk.mask[:active, step]
        which = torch.arange(active, device=self.place).unsqueeze(1)
        batch = {name: field[which, rows] for name, field in chunk.fields.items()}
        set_dropout_keys(self.module, chunk.keys[:active], step, stacked=self.stacked)
        leaves = {name: p.detach().requires_grad_() for name, p in params.items()}
        losses = self._losses(leaves, batch, chunk, step) * mask
        mean = losses.sum(-1) / mask.sum(-1)
        found = torch.autograd.grad(mean.sum(), list(leaves.values()), allow_unused=True)
        grads = {
            name: torch.zeros_like(leaf) if grad is None else grad  # a parameter that forward does not use
            for (name, leaf), grad in zip(leaves.items(), found, strict=True)
        }
        with torch.no_grad():
            self.optimizer.update(params, grads, state, step + 1)
        return losses.detach().double().sum()

    def _losses(self, params: Params, batch: Params, chunk: Chunk, step: int) -> Tensor:
        inputs = tuple(batch[name] for name in self.task.inputs)
        # our layers need no seed; what else draws in a model of somebody's own gets one for these devices
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed((int(chunk.keys[0]) + step) % 2**62)
            if self.stacked:
                outputs = functional_call(self.module, params, inputs)
            else:  # layers that know no device axis: chunks of one device, the axis taken off
                single = {name: p[0] for name, p in params.items()}
                alone = functional_call(self.module, single, tuple(i[0] for i in inputs))
                outputs = {name: o.unsqueeze(0) for name, o in alone.items()}
        return self.task.losses(outputs, batch)

    def _change(self, begin: Tensor, end: Tensor, name: str, chunk: Chunk) -> Tensor:
        """Return local - global of each device, [K, ...] float64; of a table only the rows it reads."""
        return end.double() - (begin[chunk.table_rows[name]] if name in chunk.table_rows else begin).double()

    def _sum(self, start: Params, changes: Params, weights: Tensor, chunk: Chunk) -> Params:
        """Return the weighted sum of the devices' changes, float64, on the CPU."""
        delta = {}
        for name, change in changes.items():
            weighted = change * weights.view(-1, *[1] * (change.dim() - 1))
            if name in chunk.table_rows:
                whole = torch.zeros(start[name].shape, dtype=torch.float64, device=self.place)
                whole.index_add_(0, chunk.table_rows[name].flatten(), weighted.flatten(0, 1))
                delta[name] = whole.cpu()
            else:
                delta[name] = weighted.sum(0).cpu()
        return delta

    def _sum_in_secret(
        self, start: Params, changes: Params, weights: Tensor, chunk: Chunk, round: int, clip: DeviceClip
    ) -> Params:
        """Return the modular sum of what the devices send, each with its noise share."""
        total = {name: torch.zeros(p.shape, dtype=torch.float64) for name, p in start.items()}
        for k, key in enumerate(chunk.keys.tolist()):
            alone = torch.zeros_like(weights)
            alone[k] = weights[k]
            total = add_in_secret(total, self._sum(start, changes, alone, chunk), key, round, clip)
        return total


def is_stackable(module: nn.Module) -> bool:
    """Whether every layer that owns parameters takes them with a leading device axis.

    torch's own Dropout draws from one stream for all devices, so a model that has it is not stacked.
    """
    return all(
        isinstance(layer, STACKABLE)
        or (not isinstance(layer, _DropoutNd) and next(layer.parameters(recurse=False), None) is None)
        for layer in module.modules()
    )
