"""How many examples each device has: made, measured, and told to others."""

import numpy as np
from numpy.typing import NDArray

from fedsim.config import Data
from fedsim.errors import WrongInput
from fedsim.seeds import generator

Counts = NDArray[np.int64]


def make_activity(data: Data) -> Counts:
    """Return examples per device [devices], at least 1 each and `data.examples` in all.

    Sizes follow the named law and are handed to devices in a seeded order, so that a device's id
    says nothing of its size. Raises WrongInput when there are fewer examples than devices.
    """
    if data.examples < data.devices:
        raise WrongInput(
            f"data.devices = {data.devices} needs at least as many examples, got data.examples = "
            f"{data.examples}; raise data.examples or lower data.devices"
        )
    rng = generator(data.seed, "activity")
    if data.activity == "zipf":
        share = np.arange(1, data.devices + 1, dtype=np.float64) ** -data.activity_shape
    elif data.activity == "lognormal":
        share = rng.lognormal(0.0, data.activity_shape, data.devices)
    else:
        share = np.ones(data.devices)
    sizes = 1 + apportion(share, data.examples - data.devices)
    return rng.permutation(sizes)


def public_activity(activity: Counts, rule: str) -> Counts:
    """Return activity as others see it.

    `exact` is activity itself; `power2` is the largest power of two not above it.
    """
    if rule == "exact":
        return activity
    exponent = np.floor(np.log2(np.maximum(activity, 1))).astype(np.int64)
    return np.where(activity > 0, np.left_shift(np.int64(1), exponent), 0)


def gini(activity: Counts) -> float:
    """Return the Gini coefficient of activity: 0 when all are alike, near 1 when one has all."""
    ordered = np.sort(activity).astype(np.float64)
    n = len(ordered)
    total = ordered.sum()
    if total == 0:
        return 0.0
    return float((2 * np.arange(1, n + 1) - n - 1) @ ordered / (n * total))


def apportion(share: NDArray[np.float64], total: int) -> Counts:
    """Split `total` in proportion to `share` by largest remainders."""
    exact = share / share.sum() * total
    whole = np.floor(exact).astype(np.int64)
    missing = total - int(whole.sum())
    whole[np.argsort(whole - exact, kind="stable")[:missing]] += 1
    return whole


def deciles(activity: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return each device's tenth by activity, from 1 to 10.

    Devices of equal activity stand in the order of their ids.
    """
    order = np.argsort(activity, kind="stable")
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    return 1 + 10 * place // len(order)


def tenths(activity: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Return the positions of devices with examples, in ten parts, least active first.

    Devices of equal activity stand in the order of their ids. Fewer than ten devices make fewer
    parts.
    """
    active = np.flatnonzero(activity > 0)
    order = active[np.argsort(activity[active], kind="stable")]
    parts = np.array_split(order, max(1, min(10, len(order))))
    return [part for part in parts if len(part)]
