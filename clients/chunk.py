"""Local training of a chunk of devices at once.

All devices of a chunk train as one model with a leading device axis: parameters `[K, ...]`, batches
`[K, B, ...]`, one forward and one backward of the summed losses. The devices share nothing, so the
gradient of the sum is each device's own gradient, and the result is that of training them one after
another.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from clients.batches import make_poisson_schedule, make_schedule
from clients.clipping import SLOW
from clients.device_clip import DeviceClip, add_in_secret, clip_factors, finite
from clients.dp_sgd import PrivateGradients, check_private
from clients.optimizers import make_optimizer
from clients.packing import Chunk, Work, pack
from clients.plain import PlainGradients
from clients.rows import Grads, Rows
from clients.stacked_model import LocalModel
from clients.table_noise import LateNoise, Summed, add_dense, late_noise
from fedsim.config import Dp, Train
from fedsim.models.tasks import Task
from fedsim.privacy.local_plan import local_plan
from fedsim.privacy.noise import NoiseSource
from fedsim.seeds import Name, generator
from fedsim.types import DeviceId, Examples, Params, Update

TOGETHER = 4
"""Devices whose table rows are added at a time: so few that they stay in the cache."""


@dataclass(frozen=True)
class Assignment:
    """A device that is asked to train: its id, its examples, its weight in the sum.

    `activity` is the public measure of its size. Example-level DP uses no other measure of it.
    """

    device: DeviceId
    examples: Examples
    weight: float
    activity: int = 0


@dataclass(frozen=True)
class Attempt:
    """The settings that the chunks of one cohort share."""

    seed: int
    names: tuple[Name, ...]
    """Number of the attempt and round: every key of its noise begins with these."""
    survivors: int = 1
    """The number of noise shares that make up a sum's noise."""
    clip: DeviceClip | None = None
    """The bound on each device's whole change, before its weight."""


class Lane:
    """Trains chunks of devices, one after another. Two at a time need two lanes."""

    def __init__(
        self, module: nn.Module, task: Task, train: Train, dp: Dp | None, noise: NoiseSource
    ) -> None:
        """`dp` holds the settings of the unit "example"; None trains without example-level DP."""
        self.settings = train
        self.dp = dp
        self.noise = noise
        self.local = LocalModel(module, task, train.precision, dp is not None and dp.method in SLOW)
        self.place = self.local.place
        self.optimizer = make_optimizer(train)
        if dp is not None:
            check_private(dp, train, self._linear())
        if train.weight_decay or not (dp is None or self._linear()):
            self.local.tables = {}  # then more than its batches moves a row
        self.gradients = self._gradients()

    def twin(self) -> "Lane":
        """Return a copy with its own module, for another thread."""
        other = copy.copy(self)
        other.local = self.local.twin()
        other.gradients = other._gradients()
        return other

    def _gradients(self) -> PlainGradients | PrivateGradients:
        if self.dp is None:
            return PlainGradients(self.local)
        return PrivateGradients(self.local, self.dp, self.noise, self._noises_late())

    def _linear(self) -> bool:
        """Whether the update is a linear function of the gradients alone."""
        settings = self.settings
        return settings.optimizer == "sgd" and not settings.weight_decay and not settings.proximal

    def sums_noise(self) -> bool:
        """Whether noise on table rows is drawn once for a whole partial sum."""
        return self.dp is not None and self.dp.noise_layout == "summed"

    def _noises_late(self) -> bool:
        """Whether held table rows get their noise only when they are read.

        Not with momentum, which moves a row in steps that do not read it.
        """
        return self.sums_noise() and not self.settings.momentum

    def train(
        self, start: Params, assigned: Sequence[Assignment], attempt: Attempt
    ) -> tuple[Update, Summed]:
        """Return the weighted sum of a chunk's changes, and the noise still to be drawn for it."""
        works = [self._work(a, attempt) for a in assigned]
        chunk = pack(works, self.local.tables, self.place, attempt.names)
        left = Summed(start, list(self.local.tables))
        return self._train_chunk(start, chunk, left, attempt.clip), left

    def _work(self, a: Assignment, attempt: Attempt) -> Work:
        names = attempt.names
        if self.dp is None:
            seed = attempt.seed
            round = names[-1]
            key = (
                int(generator(seed, "dropout", round, a.device).integers(2**62))
                if self.local.draws
                else 0
            )
            rng = generator(seed, "batches", round, a.device)
            return Work(
                a.examples,
                a.weight,
                make_schedule(self.settings, len(a.examples), rng),
                key,
                a.device,
            )
        plan = local_plan(self.dp, self.settings, a.activity, attempt.survivors)
        slots = self.dp.micro_batches if self.dp.method == "edp" else 1
        # secret masks act as if drawn for each example, so that one example moves only its own part
        key = int(self.noise.generator(*names, "dropout", a.device).integers(2**62))
        coins = self.noise.generator(*names, "batches", a.device)
        schedule = make_poisson_schedule(plan, len(a.examples), slots, coins)
        return Work(a.examples, a.weight, schedule, key, a.device, plan)

    def _train_chunk(
        self, start: Params, chunk: Chunk, left: Summed, clip: DeviceClip | None
    ) -> Update:
        """Return the chunk's weighted sum; `left` takes the noise still to be drawn for it."""
        begin = {
            n: _held(p, chunk.table_rows[n]) if n in chunk.table_rows else p
            for n, p in start.items()
        }
        local = {
            name: p.clone()
            if name in chunk.table_rows
            else p.expand(len(chunk.works), *p.shape).clone()
            for name, p in begin.items()
        }
        state = self.optimizer.init(local)
        late = self._late_noise(chunk) if self._noises_late() else {}
        loss_sum = torch.zeros((), dtype=torch.float64, device=self.place)
        for step, active in enumerate(chunk.active):
            # devices come most steps first, so that those still at work are a prefix: a view
            here = {name: p[:active] for name, p in local.items()}
            part = {kind: {n: s[:active] for n, s in d.items()} for kind, d in state.items()}
            self._catch_up(here, late, chunk, step)
            loss_sum += self._step(here, begin, part, chunk, step)
        metrics = {"steps": float(sum(chunk.active))}
        if (
            self.dp is None or self.dp.trust == "central"
        ):  # exact losses are no release of any mechanism
            metrics |= {"loss_sum": float(loss_sum), "loss_examples": float(chunk.mask.sum())}
        changes = {name: local[name].sub_(p) for name, p in begin.items()}
        weights = chunk.weights
        if clip is not None:
            factors, metrics["unclipped"] = clip_factors(changes, clip.norm)
            changes = {name: finite(change) for name, change in changes.items()}
            weights = weights * factors
        if clip is not None and clip.summed is not None:
            delta = self._sum_in_secret(start, changes, weights, chunk, clip)
        else:
            delta = self._sum(start, changes, weights, chunk)
        if self.sums_noise():
            left.add(chunk, self.optimizer, late)
        elif self.dp is not None:
            add_dense(delta, chunk, self.optimizer, self.noise)
        total = {name: d.double() for name, d in delta.items()}
        return Update(total, float(chunk.weights.sum()), len(chunk.works), metrics)

    def _late_noise(self, chunk: Chunk) -> dict[str, LateNoise]:
        """Return the noise that the rows of each table get when they are read."""
        return {
            t: late_noise(chunk, t, self.local.tables[t], self.optimizer) for t in chunk.table_rows
        }

    def _catch_up(
        self, params: Params, late: Mapping[str, LateNoise], chunk: Chunk, step: int
    ) -> None:
        works = chunk.works[: chunk.active[step]]
        for table, plan in late.items():
            names = [(*chunk.names, "late", table, work.device, step) for work in works]
            plan.apply(params[table], step, self.noise, names)

    def _step(
        self,
        params: Params,
        begin: Params,
        state: dict[str, Params],
        chunk: Chunk,
        step: int,
    ) -> Tensor:
        """Take one local step on the devices still at work; return the sum of all losses."""
        active = chunk.active[step]
        size = chunk.sizes[step]
        mask = chunk.mask[:active, step, :, :size]
        which = torch.arange(active, device=self.place).unsqueeze(1)
        batch = {name: field[which, chunk.rows_of(step)] for name, field in chunk.fields.items()}
        grads, losses = self.gradients(params, batch, mask, chunk, step)
        with torch.no_grad():
            if self.settings.proximal:
                grads = self._pulled(grads, params, begin)
            if self.settings.grad_clip:
                grads = cut_to_norm(grads, params, self.settings.grad_clip)
            self.optimizer.update(params, grads, state, step + 1)
        return losses.double().sum()

    def _pulled(self, grads: Grads, params: Params, begin: Params) -> Params:
        """Add the gradient of (proximal / 2) |params - begin|² (FedProx; Li et al., 2020)."""
        pull = self.settings.proximal
        return {
            name: dense(g, params[name]) + pull * (params[name] - _first(begin[name], params[name]))
            for name, g in grads.items()
        }

    def _sum(self, start: Params, changes: Params, weights: Tensor, chunk: Chunk) -> Params:
        """Return the weighted sum of the devices' changes [K, ...], on the CPU."""
        total = {}
        for name, change in changes.items():
            factors = weights.to(change.dtype)
            if name in chunk.table_rows:
                whole = torch.zeros_like(start[name], dtype=change.dtype)
                parts = (x.split(TOGETHER) for x in (chunk.table_rows[name], change, factors))
                for rows, some, factor in zip(*parts, strict=True):
                    whole.index_add_(
                        0, rows.flatten(), (some * factor.view(-1, 1, 1)).flatten(0, 1)
                    )
                total[name] = whole.cpu()
            else:
                total[name] = (factors @ change.flatten(1)).view(change.shape[1:]).cpu()
        return total

    def _sum_in_secret(
        self, start: Params, changes: Params, weights: Tensor, chunk: Chunk, clip: DeviceClip
    ) -> Params:
        """Return the modular sum of what the devices send, each with its noise share."""
        total = {name: torch.zeros(p.shape, dtype=torch.float64) for name, p in start.items()}
        for k, work in enumerate(chunk.works):
            value = {}
            for name, change in changes.items():
                value[name] = weights[k].cpu() * change[k].double().cpu()
                if name in chunk.table_rows:
                    whole = torch.zeros(start[name].shape, dtype=torch.float64)
                    value[name] = whole.index_add_(0, chunk.table_rows[name][k].cpu(), value[name])
            total = add_in_secret(total, value, (*chunk.names, work.device), clip)
        return total


def cut_to_norm(grads: Grads, params: Mapping[str, Tensor], bound: float) -> Params:
    """Scale each device's gradient to an L2 norm of at most `bound` over all parameters."""
    whole = {name: dense(g, params[name]) for name, g in grads.items()}
    squares = torch.stack([g.flatten(1).square().sum(1) for g in whole.values()]).sum(0)
    factor = (bound / squares.sqrt().clamp(min=bound)).to(squares.dtype)
    return {name: g * factor.view(-1, *[1] * (g.dim() - 1)) for name, g in whole.items()}


def dense(grad: Tensor | Rows, like: Tensor) -> Tensor:
    """Return a gradient as a whole tensor [K, ...]."""
    return grad.dense(like.shape) if isinstance(grad, Rows) else grad


def _held(table: Tensor, rows: Tensor) -> Tensor:
    """Return each device's rows of a table, [K, rows, width]."""
    return table.index_select(0, rows.flatten()).view(*rows.shape, -1)


def _first(begin: Tensor, like: Tensor) -> Tensor:
    """Return the rows of the devices still at work, or `begin` where all devices share it."""
    return begin[: len(like)] if begin.dim() == like.dim() else begin
