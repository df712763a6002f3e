"""Local training of a whole cohort, in chunks that train side by side and are summed in order."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from torch import nn

from clients.batches import count_steps
from clients.chunk import Assignment, Attempt, Lane
from clients.device_clip import DeviceClip
from clients.packing import device_cost, plan_chunks
from clients.parallel import in_lanes
from clients.processes import RemoteLane, can_travel
from clients.stacked_model import draws_by_keys
from clients.table_noise import Summed
from fedsim.config import Dp, Train
from fedsim.errors import WrongInput
from fedsim.models.memory import activation_floats
from fedsim.models.tasks import Task
from fedsim.privacy.local_plan import local_plan
from fedsim.privacy.noise import NoiseSource, Seeded
from fedsim.types import Examples, Params, Update, no_update

__all__ = ["DEFAULT_MEMORY", "Assignment", "Trainer"]

GIB = 2**30
DEFAULT_MEMORY = GIB
"""Bytes for a chunk's parameters, gradients and optimiser state where no limit is set."""


class Trainer:
    """Trains devices from the same parameters and returns the weighted sum of their changes.

    Two runs need separate noise sources, and so do two models of one run. With `workers` > 1 that
    many chunks train at the same time, each in a thread with one torch thread. With `processes`
    each trains in a process; the sums are the same. Processes start with the first cohort of more
    than one chunk and end with the trainer. A model whose code they could not load (defined in a
    notebook or a script) is trained in threads.
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
        processes: bool = False,
    ) -> None:
        self.module = module
        self.task = task
        self.settings = train
        self.memory = memory
        self.dp = dp if dp is not None and dp.unit == "example" else None
        if self.dp is not None and noise is None:
            raise WrongInput(
                "example-level DP needs a noise source of this run's own; give Seeded or Os"
            )
        self.noise = noise or Seeded(0)
        self.lane = Lane(module, task, train, self.dp, self.noise)
        self.lanes: list[Lane | RemoteLane] = [self.lane]
        if draws_by_keys(module) and self.lane.place.type == "cpu":  # others draw from one stream
            if processes and workers > 1 and can_travel(self.lane):
                self.lanes = [RemoteLane(self.lane) for _ in range(workers)]
            else:
                self.lanes += [self.lane.twin() for _ in range(workers - 1)]
        self.attempts = 0

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
        chunks or nodes beyond the order of float64 additions. Where `clip` is given, it bounds each
        device's whole change before its weight is applied. `survivors` is the number of noise
        shares that make up a sum's noise.
        """
        if self.noise.kind == "os":
            self.attempts += 1  # a repeated round is another release; a seed repeats the first one
        attempt = Attempt(seed, (self.attempts, round), survivors, clip)
        start = {name: p.to(self.lane.place) for name, p in params.items()}
        total = no_update(params)
        left = Summed(params, list(self.lane.local.tables))
        groups = list(self._groups(params, assigned))
        lanes = self.lanes if len(groups) > 1 else [self.lane]
        for update, mine in in_lanes(
            lambda group, lane: lane.train(start, group, attempt), groups, lanes
        ):
            total = total + update
            left = left + mine
            if clip is not None and clip.summed is not None:
                total = replace(
                    total, delta={n: clip.summed.reduce(d) for n, d in total.delta.items()}
                )
        if self.lane.sums_noise() and assigned:
            delta = left.draw(total.delta, self.noise, (*attempt.names, assigned[0].device))
            total = replace(total, delta=delta)
        return total

    def _groups(self, params: Params, assigned: Sequence[Assignment]) -> Iterator[list[Assignment]]:
        """Yield the devices of each chunk: similar sizes together, so last batches are similar."""
        assigned = sorted(assigned, key=lambda a: -len(a.examples))
        # parameters, gradients, optimiser state; noise takes the gradients' place
        copies = 2 + len(self.lane.optimizer.init(params)) + (self.dp is not None)
        tables = self.lane.local.tables
        costs = [
            device_cost(params, tables, a.examples, copies, self._activations(a.examples))
            for a in assigned
        ]
        memory = self.memory // len(self.lanes) if self.lane.local.stacked else 0
        steps = [self._steps(a) for a in assigned]
        for members in plan_chunks(costs, memory, steps, len(self.lanes)):
            yield [assigned[i] for i in members]

    def _steps(self, a: Assignment) -> int:
        if self.dp is None:
            return count_steps(self.settings, len(a.examples))
        return local_plan(self.dp, self.settings, a.activity).steps

    def _activations(self, examples: Examples) -> int:
        """Return the floats that one local step on these examples holds."""
        batch = min(self.settings.batch_size, len(examples))
        return batch * activation_floats(self.module, self.task.inputs, examples)
