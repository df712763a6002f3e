"""Noise on table rows that are not read: one late draw for many steps, equal in law.

A row that no batch reads gets noise in every step and nothing else. A linear update carries each
step's noise to the end by a known factor, so the sum of it is one Gaussian. It may be drawn when
the row is next read. What is then missing is drawn at the end, for each device or once for the sum
of all.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clients.optimizers import Optimizer
from clients.packing import Chunk, Work
from fedsim.privacy.noise import NoiseSource
from fedsim.seeds import Name
from fedsim.types import Params


def step_variances(work: Work, optimizer: Optimizer) -> NDArray[np.float64]:
    """Return how much each step's noise adds to a parameter's variance after the last step."""
    plan = work.plan
    assert plan is not None, "a device under example-level DP has a plan"
    reach = optimizer.noise_reach(work.steps)
    return np.array([(r * plan.stddev(s) / plan.divisor) ** 2 for s, r in enumerate(reach)])


def add_dense(
    sums: Mapping[str, Tensor], chunk: Chunk, optimizer: Optimizer, noise: NoiseSource
) -> None:
    """Add each device's noise on the rows that it does not hold to the sums [rows, width]."""
    for table, held in chunk.table_rows.items():
        whole = sums[table]
        flat = torch.empty(whole.numel())
        for k, work in enumerate(chunk.works):
            noise.normal(flat, *chunk.names, "unread", table, work.device)
            mine = held[k, : int(chunk.table_counts[table][k])].cpu()
            flat.view(whole.shape)[mine] = 0.0  # held rows got their noise in the steps
            scale = work.weight * math.sqrt(float(step_variances(work, optimizer).sum()))
            whole.add_(flat.view(whole.shape).to(whole), alpha=scale)


@dataclass(frozen=True)
class LateNoise:
    """The noise that a table's rows get when they are read, and what they lack at the end.

    This holds only where gradients alone move a row: plain SGD.
    """

    positions: list[Tensor]
    """For each step: the rows that it reads and that lack noise, [devices at work, rows].

    They are filled up with 0.
    """
    stddevs: list[Tensor]
    """The stddev of the noise that these rows get before the step, same shape; 0 at filling."""
    left: NDArray[np.float64]
    """The variances that a device's held rows still lack after its last step, [K, held]."""

    def apply(
        self, table: Tensor, step: int, noise: NoiseSource, names: Sequence[tuple[Name, ...]]
    ) -> None:
        """Add the missing noise to the rows that a step reads, in place.

        table: [devices at work, rows, width].
        """
        where = self.positions[step]
        stddev = self.stddevs[step]
        if not where.shape[1]:
            return
        models, count, width = table.shape
        flat = noise.normals(torch.empty(models, where.shape[1] * width), names)
        fresh = flat.view(models, -1, width).to(table) * stddev.to(table).unsqueeze(-1)
        first = torch.arange(models, device=table.device).unsqueeze(1) * count
        table.view(-1, width).index_add_(0, (where + first).flatten(), fresh.flatten(0, 1))


def late_noise(chunk: Chunk, table: str, field: str, optimizer: Optimizer) -> LateNoise:
    """Return when the rows of a table get their noise, and how much.

    `field` holds the positions that examples read.
    """
    devices, held = chunk.table_rows[table].shape
    read = _reads(chunk, field, held)
    variances = np.zeros((devices, read.shape[1] + 1))
    for k, work in enumerate(chunk.works):
        variances[k, 1 : 1 + work.steps] = step_variances(work, optimizer)
    until = variances.cumsum(1)  # the variance from all steps before each step
    lacking = np.broadcast_to(until[:, -1:], (devices, held))
    positions = []
    stddevs = []
    caught_up = np.zeros((devices, held))
    for step, active in enumerate(chunk.active):
        now = until[:active, step : step + 1]
        due = np.where(read[:active, step], now - caught_up[:active], 0.0)
        caught_up[:active] = np.where(read[:active, step], now, caught_up[:active])
        where, stddev = _filled(due)
        positions.append(where.to(chunk.rows.device))
        stddevs.append(stddev.to(chunk.rows.device))
    return LateNoise(positions, stddevs, lacking - caught_up)


def _reads(chunk: Chunk, field: str, held: int) -> NDArray[np.bool_]:
    """Return which rows a device reads in each step, [K, steps, held]."""
    ids = chunk.fields[field].cpu().numpy()
    rows = chunk.rows.flatten(2).cpu().numpy()
    read = np.zeros((*rows.shape[:2], held), dtype=bool)
    device, step, place = chunk.mask.flatten(2).cpu().numpy().nonzero()
    seen = ids[device, rows[device, step, place]].reshape(len(device), math.prod(ids.shape[2:]))
    read[device[:, None], step[:, None], seen] = True
    return read


def _filled(due: NDArray[np.float64]) -> tuple[Tensor, Tensor]:
    """Return the rows whose variance [devices, held] is not zero, and their stddevs.

    Both are [devices, rows], filled up with zeros.
    """
    device, row = due.nonzero()
    counts = np.bincount(device, minlength=len(due))
    place = np.arange(len(device)) - np.repeat(counts.cumsum() - counts, counts)
    rows = np.zeros((len(due), counts.max()), dtype=np.int64)
    stddevs = np.zeros((len(due), counts.max()))
    rows[device, place], stddevs[device, place] = row, np.sqrt(due[device, row])
    return torch.from_numpy(rows), torch.from_numpy(stddevs)


class Summed:
    """The noise that is missing at the end, drawn once for a whole partial sum.

    Only its variance is kept for each row.

    Guarantee: equal in law to the sum of the devices' own noise. This holds only where nothing but
    the sum leaves a trusted node.
    """

    def __init__(self, params: Params, tables: Sequence[str]) -> None:
        self.variances = {t: np.zeros(len(params[t])) for t in tables}

    def __add__(self, other: "Summed") -> "Summed":
        total = copy.copy(self)
        total.variances = {t: v + other.variances[t] for t, v in self.variances.items()}
        return total

    def add(self, chunk: Chunk, optimizer: Optimizer, late: Mapping[str, LateNoise]) -> None:
        """Add the variances of a chunk's devices; `late` says what their held rows still lack.

        Without `late` the held rows lack nothing.
        """
        for table, held in chunk.table_rows.items():
            variance = self.variances[table]
            for k, work in enumerate(chunk.works):
                mine = held[k, : int(chunk.table_counts[table][k])].cpu().numpy()
                own = float(step_variances(work, optimizer).sum())
                lacking = late[table].left[k, : len(mine)] if table in late else 0.0
                variance += work.weight**2 * own
                variance[mine] -= work.weight**2 * (own - lacking)

    def draw(self, delta: Params, noise: NoiseSource, names: tuple[Name, ...]) -> Params:
        """Return the sum with the noise on its tables; `names` begin its key."""
        drawn = {}
        for table, variance in self.variances.items():
            flat = noise.normal(torch.empty(delta[table].numel()), *names, "summed", table)
            # a variance that is zero but for rounding may be slightly negative
            scale = torch.from_numpy(variance.clip(min=0.0)).sqrt().unsqueeze(1)
            drawn[table] = delta[table] + flat.view(delta[table].shape).double() * scale
        return delta | drawn
