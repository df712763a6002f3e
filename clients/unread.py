"""Noise on the table rows that a device does not hold: one draw for all its steps, equal in law.

A row that no batch reads gets noise in every step and nothing else, and an update that is linear in the
gradients carries each of these to the end with a known factor. So their sum is one Gaussian.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from clients.optimizers import Optimizer
from clients.packing import Chunk, Work
from fedsim.privacy.noise import NoiseSource
from fedsim.seeds import Name
from fedsim.types import Params


def stddev_at_end(work: Work, optimizer: Optimizer) -> float:
    """Return the stddev, after the last step, of a parameter that only noise has moved."""
    plan = work.plan
    assert plan is not None, "a device under example-level DP has a plan"
    reach = optimizer.noise_reach(work.steps)
    return math.sqrt(sum((r * plan.stddev(s) / plan.divisor) ** 2 for s, r in enumerate(reach)))


def add_dense(sums: Mapping[str, Tensor], chunk: Chunk, optimizer: Optimizer, noise: NoiseSource) -> None:
    """Add to each table's weighted sum [rows, width] every device's own noise on the rows it lacks."""
    for table, held in chunk.table_rows.items():
        whole = sums[table]
        flat = torch.empty(whole.numel())
        for k, work in enumerate(chunk.works):
            noise.normal(flat, *chunk.names, "unread", table, work.device)
            mine = held[k, : int(chunk.table_counts[table][k])].cpu()
            flat.view(whole.shape)[mine] = 0.0
            whole.add_(flat.view(whole.shape).to(whole), alpha=work.weight * stddev_at_end(work, optimizer))


class Summed:
    """The same noise drawn once for a whole partial sum: only its variance is kept for each row.

    Guarantee: equal in law to the sum of the devices' own noise. Only where nothing but the sum leaves a
    trusted node.
    """

    def __init__(self, params: Params, tables: Sequence[str]) -> None:
        self.variances = {t: torch.zeros(len(params[t]), dtype=torch.float64) for t in tables}

    def add(self, chunk: Chunk, optimizer: Optimizer) -> None:
        """Count the devices of a chunk."""
        for table, held in chunk.table_rows.items():
            variance = self.variances[table]
            for k, work in enumerate(chunk.works):
                own = (work.weight * stddev_at_end(work, optimizer)) ** 2
                variance += own
                variance[held[k, : int(chunk.table_counts[table][k])].cpu()] -= own

    def draw(self, delta: Params, noise: NoiseSource, names: tuple[Name, ...]) -> Params:
        """Return the sum with the noise on its tables; `names` begin its key."""
        drawn = {}
        for table, variance in self.variances.items():
            flat = noise.normal(torch.empty(delta[table].numel()), *names, "summed", table)
            scale = variance.clamp(min=0.0).sqrt().unsqueeze(1)
            drawn[table] = delta[table] + flat.view(delta[table].shape).double() * scale
        return delta | drawn
