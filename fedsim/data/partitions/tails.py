"""Heavy-tailed activity: how many examples each of many devices has."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fedsim.data.activity import Counts, apportion, gini
from fedsim.data.partitions.owners import check_room
from fedsim.errors import WrongInput

Law = Literal["zipf", "lognormal", "power", "copy"]


@dataclass(frozen=True)
class Tail:
    """A law of sizes: zipf, lognormal, power or copy.

    zipf goes by rank, lognormal is drawn, power has a given Gini, and copy follows a real set.
    """

    law: Law
    shape: float = 1.2
    """Zipf's exponent over the rank, or the lognormal's sigma."""
    gini: float = 0.6
    """Gini coefficient that `power` reaches, 0 (all alike) to 1."""
    counts: tuple[int, ...] = ()
    """Examples per device of the set that `copy` follows."""

    def sizes(self, devices: int, examples: int, min_size: int, rng: np.random.Generator) -> Counts:
        """Return examples per device [devices], `examples` in all, at least `min_size` each.

        Sizes are handed to devices at random, so that an id says nothing of its size.
        Raises WrongInput for what cannot be reached.
        """
        check_room(devices, examples, min_size)
        if self.law == "power":
            return rng.permutation(_of_gini(self.gini, devices, examples, min_size))
        if self.law == "zipf":
            shares = np.arange(1, devices + 1, dtype=np.float64) ** -self.shape
        elif self.law == "lognormal":
            logs = self.shape * rng.standard_normal(devices)
            shares = np.exp(logs - logs.max())
        else:
            shares = _like(self.counts, devices)
        return rng.permutation(_at_least(min_size, shares, examples))


def _at_least(min_size: int, shares: NDArray[np.float64], examples: int) -> Counts:
    """Split `examples` by `shares`, with `min_size` for each device beforehand."""
    return min_size + apportion(shares, examples - min_size * len(shares))


def _like(counts: tuple[int, ...], devices: int) -> NDArray[np.float64]:
    """Return the sizes of a real set at as many even quantiles as there are devices."""
    real = np.sort(np.array(counts, dtype=np.float64))
    if not len(real) or real[-1] <= 0:
        raise WrongInput(
            "the counts to copy hold no device with examples; check partition.copy_from"
        )
    return np.quantile(real, (np.arange(devices) + 0.5) / devices, method="inverted_cdf")


def _of_gini(target: float, devices: int, examples: int, min_size: int) -> Counts:
    """Return Pareto-like sizes rank^-e, with the e that comes nearest to the target Gini.

    The Gini of the rounded sizes meets the target, to within one step of their rounding.
    """
    lowest, highest = gini_range(devices, examples, min_size)
    if not lowest - 5e-4 <= target <= highest + 5e-4:
        raise WrongInput(
            f"a Gini of {target} cannot be reached by {devices} devices with {examples} examples "
            f"and at least {min_size} each, only {lowest:.3f} to {highest:.3f}; change "
            "partition.gini, lower partition.min_size or change data.devices"
        )
    low = 0.0
    high = 64.0
    for _ in range(50):
        middle = (low + high) / 2
        if gini(_powers(middle, devices, examples, min_size)) < target:
            low = middle
        else:
            high = middle
    found = [_powers(exponent, devices, examples, min_size) for exponent in (low, high)]
    return min(found, key=lambda sizes: abs(gini(sizes) - target))


def gini_range(devices: int, examples: int, min_size: int) -> tuple[float, float]:
    """Return the lowest and the highest Gini that sizes can have.

    The lowest is of sizes as equal as whole numbers allow. The highest is of one device that has
    all the rest.
    """
    over = examples % devices
    lowest = over * (devices - over) / (devices * examples)
    highest = (devices - 1) * (examples - devices * min_size) / (devices * examples)
    return lowest, highest


def _powers(exponent: float, devices: int, examples: int, min_size: int) -> Counts:
    return _at_least(min_size, np.arange(1, devices + 1, dtype=np.float64) ** -exponent, examples)
