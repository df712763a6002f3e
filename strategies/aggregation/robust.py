"""Robust rules: they combine a round's single updates where some devices may send anything.

Each rule takes the devices' changes, [devices, ...] for every parameter, all with the same weight.
It returns one change, on which a server rule then steps. The rules tolerate a share of up to
`aggregation.trim` bad devices (the median: just under half) where the good ones resemble each
other. Where devices differ much, as in embedding rows that few of them read, the rules also drop
what few good devices know.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from fedsim.config import Aggregation
from fedsim.types import Params, Reply, Update

Combiner = Callable[[Params, Aggregation], Params]
COLUMNS = 2**20
"""Coordinates that are sorted at a time."""


def median(deltas: Params, settings: Aggregation) -> Params:
    """Return each coordinate's median; for an even number, the mean of the middle two."""
    return _of_sorted(deltas, _middle)


def trimmed_mean(deltas: Params, settings: Aggregation) -> Params:
    """Return each coordinate's mean without the `trim` share at both ends (Yin et al., 2018)."""
    cut = bad_devices(deltas, settings)
    return _of_sorted(deltas, lambda rows: rows[cut : len(rows) - cut].mean(0))


def multi_krum(deltas: Params, settings: Aggregation) -> Params:
    """Return the mean of the n - f devices that are closest to others (Blanchard et al., 2017).

    f = floor(trim * n) of n devices may be bad. A device's score is the sum of its squared
    distances to its n - f - 2 nearest others. The lowest n - f scores are kept.
    """
    bad = bad_devices(deltas, settings)
    kept = krum_scores(deltas, bad).argsort(stable=True)[: _count(deltas) - bad].sort().values
    return {name: d[kept].double().mean(0) for name, d in deltas.items()}


def combined(
    combine: Combiner, replies: Sequence[Reply], zero: Update, settings: Aggregation
) -> Update:
    """Return the result of `combine` as a sum of weight 1, or `zero` without any update.

    Devices are ordered by id, so that the result does not depend on which nodes host them.
    """
    devices = np.concatenate([reply.devices for reply in replies])
    if not len(devices):
        return zero
    order = torch.from_numpy(np.argsort(devices, kind="stable"))
    deltas = {
        name: torch.cat([r.update.delta[name] for r in replies])[order] for name in zero.delta
    }
    found = combine(deltas, settings)
    metrics = sum((replace(r.update, delta={}) for r in replies), replace(zero, delta={})).metrics
    return Update(found, 1.0, len(devices), metrics)


def krum_scores(deltas: Params, bad: int) -> Tensor:
    """Return each device's sum of squared distances to its nearest others.

    These are n - bad - 2 devices, and at least one.
    """
    n = _count(deltas)
    gram = torch.zeros((n, n), dtype=torch.float64)
    for d in deltas.values():
        flat = d.reshape(n, -1).double()
        gram += flat @ flat.T
    squares = gram.diagonal()
    distances = (squares[:, None] + squares - 2 * gram).clamp(min=0)
    nearest = distances.sort(1).values[
        :, 1 : 1 + max(n - bad - 2, 1)
    ]  # the first is the device itself
    return nearest.sum(1)


def bad_devices(deltas: Params, settings: Aggregation) -> int:
    """Return how many of these devices the settings assume to be bad, rounded down."""
    return int(settings.trim * _count(deltas) + 1e-9)


def _of_sorted(deltas: Params, take: Callable[[Tensor], Tensor]) -> Params:
    """Return the result of `take` on the sorted devices [devices, columns], in float64."""
    found = {}
    for name, d in deltas.items():
        columns = torch.split(d.reshape(len(d), -1), COLUMNS, dim=1)
        parts = [take(part.double().sort(0).values) for part in columns]
        found[name] = torch.cat(parts).reshape(d.shape[1:])
    return found


def _middle(rows: Tensor) -> Tensor:
    half = len(rows) // 2
    return rows[half] if len(rows) % 2 else (rows[half - 1] + rows[half]) / 2


def _count(deltas: Params) -> int:
    return len(next(iter(deltas.values())))
