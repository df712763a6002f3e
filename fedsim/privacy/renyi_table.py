"""Epsilon for very many devices at once, from Renyi curves of a few distinct events."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.privacy.accounting import Event, quiet

Floats = NDArray[np.float64]

RATES = 64
BLOCK = 100_000
"""Devices at a time: a block of curves is 125 MB."""


def quantise(rates: Floats, size: int = RATES) -> Floats:
    """Return the rates rounded up to at most `size` log-spaced values.

    Rates with no more distinct values than that stay as they are. Guarantee: no rate becomes
    smaller, so an epsilon of the quantised rates is never too small.
    """
    distinct = np.unique(rates)
    if len(distinct) <= size:
        return rates
    positive = distinct[distinct > 0]
    grid = np.geomspace(positive[0], positive[-1], size - 1)
    # the exact ends: a rounded last value could lie below the largest rate
    grid[0], grid[-1] = positive[0], positive[-1]
    return np.where(
        rates > 0, grid[np.searchsorted(grid, rates, side="left").clip(max=size - 2)], 0.0
    )


@lru_cache(maxsize=1)
def orders() -> Floats:
    """Return the Renyi orders of dp-accounting."""
    # only runs with DP wait for it
    from dp_accounting.rdp.rdp_privacy_accountant import DEFAULT_RDP_ORDERS

    return np.array(DEFAULT_RDP_ORDERS, dtype=np.float64)


@lru_cache(maxsize=4096)
def renyi_curve(noise_multiplier: float, sampling_rate: float) -> Floats:
    """Return the Renyi divergence of one event at each of `orders()`."""
    # only runs with DP wait for it
    from dp_accounting.dp_event import GaussianDpEvent, PoissonSampledDpEvent
    from dp_accounting.rdp import RdpAccountant

    if sampling_rate == 0 or noise_multiplier == np.inf:
        return np.zeros(len(orders()))
    if noise_multiplier == 0:
        return np.full(len(orders()), np.inf)
    accountant = RdpAccountant()
    with quiet():
        accountant.compose(PoissonSampledDpEvent(sampling_rate, GaussianDpEvent(noise_multiplier)))
    return np.maximum(np.asarray(accountant._rdp, dtype=np.float64), 0.0)


@dataclass(frozen=True)
class RenyiTable:
    """Distinct events as columns; each device counts how often each event concerned it."""

    events: tuple[Event, ...]
    """Each with count 1."""

    def curves(self) -> Floats:
        """Return [events, orders]."""
        found = [renyi_curve(e.noise_multiplier, e.sampling_rate) for e in self.events]
        return np.array(found).reshape(len(self.events), len(orders()))

    def epsilons(self, counts: Any, delta: float) -> Floats:
        """Return each device's epsilon at `delta`, given how often each event concerned it.

        `counts` is [devices, events], a dense or a sparse (CSR) array of whole numbers.
        """
        curves = self.curves()
        devices = counts.shape[0]
        found = np.zeros(devices)
        for start in range(0, devices, BLOCK):
            found[start : start + BLOCK] = renyi_epsilons(
                _composed(counts[start : start + BLOCK], curves), delta
            )
        return found


def _composed(counts: Any, curves: Floats) -> Floats:
    # infinite values stay out of the product, where a count of 0 would make them NaN
    infinite = ~np.isfinite(curves)
    total = np.asarray(counts @ np.where(infinite, 0.0, curves))
    if infinite.any():
        total[np.asarray(counts @ infinite.astype(np.float64)) > 0] = np.inf
    return total


def renyi_epsilons(curves: Floats, delta: float) -> Floats:
    """Return the least epsilon of each row of Renyi divergences [rows, orders] at `delta`.

    Canonne, Kamath and Steinke (2020), proposition 12, as dp-accounting has it. Epsilon is 0 where
    total variation alone is below delta.
    """
    alpha = orders()
    constants = np.log1p(-1 / alpha) - np.log(delta * alpha) / (alpha - 1)
    best: Floats = (curves + constants).min(axis=1)
    with np.errstate(over="ignore"):
        none = (delta**2 + np.expm1(-curves)).max(axis=1) > 0
    return np.where(none, 0.0, np.maximum(best, 0.0))
