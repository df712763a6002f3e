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

from clients.batches import count_steps, make_poisson_schedule, make_schedule
from clients.clipping import SLOW
from clients.device_clip import DeviceClip, add_in_secret, clip_factors, finite
from clients.lanes import in_lanes
from clients.local import LocalModel, draws_by_keys
from clients.optimizers import make_optimizer
from clients.packing import Chunk, Work, device_cost, pack, plan_chunks
from clients.plain import PlainGradients
from clients.private import PrivateGradients, check_private
from clients.records import Grads, Rows
from clients.table_noise import LateNoise, Summed, add_dense, late_noise
from fedsim.config import Dp, Train
from fedsim.errors import WrongInput
from fedsim.models.memory import activation_floats
from fedsim.models.tasks import Task
from fedsim.privacy.local import local_plan
from fedsim.privacy.noise import NoiseSource, Seeded
from fedsim.seeds import Name, generator
from fedsim.types import DeviceId, Examples, Params, Update, no_update

Gradients = PlainGradients | PrivateGradients
GIB = 2**30
TOGETHER = 4
"""Devices whose table rows are added at a time: so few that they stay in the cache."""
DEFAULT_MEMORY = GIB
"""Bytes for a chunk's parameters, gradients and optimiser state where no limit is set."""


@dataclass(frozen=True)
class Assignment:
    """A device that is asked to train: its id, its examples, its weight in the sum.

    `activity` is what is public of its size; example-level DP sees nothing else of it.
    """

    device: DeviceId
    examples: Examples
    weight: float
    activity: int = 0


class Trainer:
    """Trains devices from the same parameters and returns the weighted sum of their changes.

    Two runs, or two models of one, need noise sources of their own. With `workers` > 1 so many chunks train
    at the same time, each in a thread of its own with one torch thread; the sums are the same.
    """

    def __init__(
        self,
        module: nn.Module,
        task: Task,
        train: Train,
        memory: int = DEFAULT_MEMORY,
        dp: Dp | None = None,
        noise: NoiseSource | None = None,
        workers: int = 1,
    ) -> None:
        self.settings, self.memory = train, memory
        self.dp = dp if dp is not None and dp.unit == "example" else None
        if self.dp is not None and noise is None:
            raise WrongInput("example-level DP needs a noise source of this run's own; give Seeded or Os")
        self.noise = noise or Seeded(0)
        alone = self.dp is not None and self.dp.method in SLOW
        self.local = LocalModel(module, task, train.precision, alone)
        self.module, self.task, self.place = module, task, self.local.place
        self.optimizer = make_optimizer(train)
        if self.dp is not None:
            check_private(self.dp, train, self._linear())
        if train.weight_decay or not (self.dp is None or self._linear()):
            self.local.tables = {}  # then more than its batches moves a row
        self.lanes = [self._lane(self.local)]
        if draws_by_keys(module) and self.place.type == "cpu":  # others draw from one stream for all threads
            self.lanes += [self._lane(self.local.twin()) for _ in range(workers - 1)]
        self.attempts = 0

    def _lane(self, local: LocalModel) -> Gradients:
        if self.dp is None:
            return PlainGradients(local)
        return PrivateGradients(local, self.dp, self.noise, self._noises_late())

    def _linear(self) -> bool:
        """Whether parameters move by a linear function of the gradients and of nothing else."""
        settings = self.settings
        return settings.optimizer == "sgd" and not settings.weight_decay and not settings.proximal

    def train(
        self,
        params: Params,
        assigned: Sequence[Assignment],
        seed: int,
        round: int,
        clip: DeviceClip | None = None,
        survivors: int = 1,
    ) -> Update:
        """Train every assigned device on its own examples, starting from `params`.

        The randomness of a device is named by (seed, round, device), so the sum does not depend on
        chunks or nodes beyond the order of float64 additions. Where `clip` is given, each device's whole
        change is bounded by it before its weight. `survivors` noise shares make up a sum's noise.
        """
        if self.noise.kind == "os":
            self.attempts += 1  # what is done again is another release; a seed repeats the first one
        names = (self.attempts, round)
        start = {name: p.to(self.place) for name, p in params.items()}
        total, left = no_update(params), Summed(params, list(self.local.tables))

        def train_group(works: list[Work], lane: Gradients) -> tuple[Update, Summed]:
            chunk = pack(works, self.local.tables, self.place, names)
            mine = Summed(params, list(self.local.tables))
            return self._train_chunk(start, chunk, lane, mine, clip), mine

        groups = self._groups(params, assigned, seed, names, survivors)
        for update, mine in in_lanes(train_group, groups, self.lanes):
            total, left = total + update, left + mine
            if clip is not None and clip.summed is not None:
                total = replace(total, delta={n: clip.summed.reduce(d) for n, d in total.delta.items()})
        if self._sums_noise() and assigned:
            delta = left.draw(total.delta, self.noise, (*names, assigned[0].device))
            total = replace(total, delta=delta)
        return total

    def _sums_noise(self) -> bool:
        return self.dp is not None and self.dp.noise_layout == "summed"

    def _noises_late(self) -> bool:
        """Whether held table rows get their noise when they are read: momentum would move them before."""
        return self._sums_noise() and not self.settings.momentum

    def _groups(
        self,
        params: Params,
        assigned: Sequence[Assignment],
        seed: int,
        names: tuple[Name, ...],
        survivors: int,
    ) -> Iterator[list[Work]]:
        """Yield the devices of each chunk."""
        # parameters, gradients, optimiser state; noise takes the gradients' place
        copies = 2 + len(self.optimizer.init(params)) + (self.dp is not None)
        tables = self.local.tables
        costs = [
            device_cost(params, tables, a.examples, copies, self._activations(a.examples)) for a in assigned
        ]
        memory = self.memory // len(self.lanes) if self.local.stacked else 0
        steps = [self._steps(a) for a in assigned]
        for members in plan_chunks(costs, memory, steps, len(self.lanes)):
            yield [self._work(assigned[i], seed, names, survivors) for i in members]

    def _steps(self, a: Assignment) -> int:
        if self.dp is None:
            return count_steps(self.settings, len(a.examples))
        return local_plan(self.dp, self.settings, a.activity).steps

    def _activations(self, examples: Examples) -> int:
        """Return the floats that one local step on these examples holds."""
        batch = min(self.settings.batch_size, len(examples))
        return batch * activation_floats(self.module, self.task.inputs, examples)

    def _work(self, a: Assignment, seed: int, names: tuple[Name, ...], survivors: int) -> Work:
        if self.dp is None:
            round = names[-1]
            key = int(generator(seed, "dropout", round, a.device).integers(2**62))
            rng = generator(seed, "batches", round, a.device)
            return Work(
                a.examples, a.weight, make_schedule(self.settings, len(a.examples), rng), key, a.device
            )
        plan = local_plan(self.dp, self.settings, a.activity, survivors)
        slots = self.dp.micro_batches if self.dp.method == "edp" else 1
        # masks that nobody knows are as if drawn for each example: then one example moves only its own part
        key = int(self.noise.generator(*names, "dropout", a.device).integers(2**62))
        coins = self.noise.generator(*names, "batches", a.device)
        schedule = make_poisson_schedule(plan, len(a.examples), slots, coins)
        return Work(a.examples, a.weight, schedule, key, a.device, plan)

    def _train_chunk(
        self, start: Params, chunk: Chunk, lane: Gradients, left: Summed, clip: DeviceClip | None
    ) -> Update:
        """Return the chunk's weighted sum; `left` takes the noise that is still to be drawn for it."""
        begin = {n: _held(p, chunk.table_rows[n]) if n in chunk.table_rows else p for n, p in start.items()}
        local = {
            name: p.clone() if name in chunk.table_rows else p.expand(len(chunk.works), *p.shape).clone()
            for name, p in begin.items()
        }
        state = self.optimizer.init(local)
        late = self._late_noise(chunk) if self._noises_late() else {}
        loss_sum = torch.zeros((), dtype=torch.float64, device=self.place)
        for step, active in enumerate(chunk.active):
            here = {name: p[:active] for name, p in local.items()}
            part = {kind: {n: s[:active] for n, s in d.items()} for kind, d in state.items()}
            self._catch_up(here, late, chunk, step)
            loss_sum += self._step(here, begin, part, chunk, step, lane)
        metrics = {"steps": float(sum(chunk.active))}
        if self.dp is None or self.dp.trust == "central":  # exact losses are no release of any mechanism
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
        if self._sums_noise():
            left.add(chunk, self.optimizer, late)
        elif self.dp is not None:
            add_dense(delta, chunk, self.optimizer, self.noise)
        total = {name: d.double() for name, d in delta.items()}
        return Update(total, float(chunk.weights.sum()), len(chunk.works), metrics)

    def _late_noise(self, chunk: Chunk) -> dict[str, LateNoise]:
        """Return what the rows of tables get when they are read."""
        return {t: late_noise(chunk, t, self.local.tables[t], self.optimizer) for t in chunk.table_rows}

    def _catch_up(self, params: Params, late: Mapping[str, LateNoise], chunk: Chunk, step: int) -> None:
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
        lane: Gradients,
    ) -> Tensor:
        """Take one local step on the devices still at work; return the sum of the examples' losses."""
        active, size = chunk.active[step], chunk.sizes[step]
        mask = chunk.mask[:active, step, :, :size]
        which = torch.arange(active, device=self.place).unsqueeze(1)
        batch = {name: field[which, chunk.rows_of(step)] for name, field in chunk.fields.items()}
        grads, losses = lane(params, batch, mask, chunk, step)
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
                    whole.index_add_(0, rows.flatten(), (some * factor.view(-1, 1, 1)).flatten(0, 1))
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
    """Return the rows of the devices still at work, where each has its own."""
    return begin[: len(like)] if begin.dim() == like.dim() else begin
