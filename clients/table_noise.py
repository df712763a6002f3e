"""Noise on table rows that are not read: late, in one draw for many steps, equal in law.

A row that no batch reads gets noise in every step and nothing else. An update that is linear in the
gradients carries each of these to the end by a known factor, so their sum is one Gaussian. It may
be drawn when the row is next read, and once at the end: then for each device, or for the sum of all
at once.
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
    """Return what each step's noise adds to the variance that a parameter has after the last one."""
    plan = work.plan
    assert plan is not None, "a device under example-level DP has a plan"
    reach = optimizer.noise_reach(work.steps)
    return np.array([(r * plan.stddev(s) / plan.divisor) ** 2 for s, r in enumerate(reach)])


def add_dense(
    sums: Mapping[str, Tensor], chunk: Chunk, optimizer: Optimizer, noise: NoiseSource
) -> None:
    """Add to each table's weighted sum [rows, width] every device's own noise on the rows it lacks."""
    for table, held in chunk.table_rows.items():
        whole = sums[table]
        flat = torch.empty(whole.numel())
        for k, work in enumerate(chunk.works):
            noise.normal(flat, *chunk.names, "unread", table, work.device)
            mine = held[k, : int(chunk.table_counts[table][k])].cpu()
            flat.view(whole.shape)[mine] = 0.0
            scale = work.weight * math.sqrt(float(step_variances(work, optimizer).sum()))
            whole.add_(flat.view(whole.shape).to(whole), alpha=scale)


@dataclass(frozen=True)
class LateNoise:
    """The noise that a table's rows get when they are read, and what is left to them at the end.

    Only where a row moves by its gradients alone: plain SGD.
    """

    positions: list[Tensor]
    """For each step the rows that its batches read and that lack noise, [devices at work, rows],
    filled with 0.
    """
    stddevs: list[Tensor]
    """The stddev of what they get before it, the same shape; 0 at filling."""
    left: NDArray[np.float64]
    """The variances that a device's held rows still lack after its last step, [K, held]."""

    def apply(
        self, table: Tensor, step: int, noise: NoiseSource, names: Sequence[tuple[Name, ...]]
    ) -> None:
        """Bring the rows that a step reads up to date, in place. table: [devices at work, rows,
        width].
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
    """Return when the rows of a table get their noise.

    `field` holds the positions that examples read.
    """
    devices, held = chunk.table_rows[table].shape
    read = _reads(chunk, field, held)
    variances = np.zeros((devices, read.shape[1] + 1))
    for k, work in enumerate(chunk.works):
        variances[k, 1 : 1 + work.steps] = step_variances(work, optimizer)
    until = variances.cumsum(1)  # of the noise of all steps before each
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
    """Return the rows whose variance [devices, held] is not zero and their stddevs, [devices,
    rows], filled up with zeros.
    """
    device, row = due.nonzero()
    counts = np.bincount(device, minlength=len(due))
    place = np.arange(len(device)) - np.repeat(counts.cumsum() - counts, counts)
    rows = np.zeros((len(due), counts.max()), dtype=np.int64)
    stddevs = np.zeros((len(due), counts.max()))
    rows[device, place], stddevs[device, place] = row, np.sqrt(due[device, row])
    return torch.from_numpy(rows), torch.from_numpy(stddevs)


class Summed:
    """What is left at the end, drawn once for a whole partial sum: only its variance is kept for
    each row.

    Guarantee: equal in law to the sum of the devices' own noise. Only where nothing but the sum
    leaves a trusted node.
    """

    def __init__(self, params: Params, tables: Sequence[str]) -> None:
        self.variances = {t: np.zeros(len(params[t])) for t in tables}

    def __add__(self, other: "Summed") -> "Summed":
        total = copy.copy(self)
        total.variances = {t: v + other.variances[t] for t, v in self.variances.items()}
        return total

    def add(self, chunk: Chunk, optimizer: Optimizer, late: Mapping[str, LateNoise]) -> None:
        """Count the devices of a chunk; their held rows lack nothing, or what `late` says."""
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
            scale = torch.from_numpy(variance.clip(min=0.0)).sqrt().unsqueeze(1)
            drawn[table] = delta[table] + flat.view(delta[table].shape).double() * scale
        return delta | drawn
