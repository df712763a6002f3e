"""Draws whose inclusion probabilities are exactly those that they state."""

import numpy as np
from numpy.typing import NDArray

from fedsim.config import Selection
from fedsim.errors import WrongInput
from fedsim.types import Cohort, View

Scores = NDArray[np.float64]


def draw(view: View, scores: Scores, settings: Selection, rng: np.random.Generator) -> Cohort:
    """Draw a cohort of the expected size with inclusion in proportion to `scores` [devices].

    Raises WrongInput where a cap below 1 contradicts a fixed size.
    """
    scores = np.where(eligible(view), scores, 0.0)
    if settings.total_score:  # a public total: other devices do not change a device's inclusion
        p = np.minimum(1.0, settings.cohort * (scores / settings.total_score))
    else:
        p = inclusion_probabilities(scores, settings.cohort)
    return sample(view, p, settings, rng)


def sample(
    view: View, p: Scores, settings: Selection, rng: np.random.Generator, whole: bool = True
) -> Cohort:
    """Draw by `p`; `whole` says that its sum is the cohort's size, as fixed sizes need.

    Raises WrongInput where a fixed size is asked for and the sum is less.
    """
    if settings.sampling == "fixed" and (settings.cap < 1.0 or not whole):
        what = f"selection.cap = {settings.cap}" if whole else f"selection.rule = {settings.rule!r}"
        raise WrongInput(
            f"{what} gives what it cuts off to nobody, so a cohort has no fixed size; use "
            'selection.sampling = "poisson", or another rule'
        )
    p = np.minimum(p, settings.cap)
    chosen = poisson(p, rng) if settings.sampling == "poisson" else systematic(p, rng)
    return Cohort(view.round, view.devices[chosen], p[chosen])


def eligible(view: View) -> NDArray[np.bool_]:
    """Return [devices]: who is in reach and has training examples."""
    return view.reachable & (view.activity > 0)


def powered(view: View, settings: Selection) -> Scores:
    """Return [devices]: activity ** power."""
    return view.activity.astype(np.float64) ** settings.power


def inclusion_probabilities(scores: Scores, expected: float) -> Scores:
    """Return p proportional to `scores`, capped at 1, whose sum is `expected` (or all, if fewer).

    Capped devices train every round. The others share the rest, until none is over the cap.
    """
    p = np.zeros(len(scores))
    certain = np.zeros(len(scores), dtype=bool)
    positive = scores > 0
    expected = min(float(expected), float(positive.sum()))
    while True:
        rest = positive & ~certain
        share = expected - certain.sum()
        if share <= 0 or not rest.any():
            break
        p[rest] = share * (scores[rest] / scores[rest].sum())
        over = rest & (p >= 1.0)
        if not over.any():
            break
        certain |= over
    p[certain] = 1.0
    return p


def poisson(p: Scores, rng: np.random.Generator) -> NDArray[np.int64]:
    """Include each device by its own coin; the size of the cohort varies."""
    return np.flatnonzero(rng.random(len(p)) < p)


def systematic(p: Scores, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw round(sum p) devices with inclusion exactly `p`: systematic sampling in random order.

    Madow (1949): one uniform start, then unit steps along the cumulative sum. Joint inclusion
    depends on the order, so no amplification can be claimed.
    """
    order = np.argsort(
        rng.integers(0, 2**16, len(p), dtype=np.uint16), kind="stable"
    )  # a fast shuffle
    edges = np.cumsum(p[order])
    size = round(float(edges[-1])) if len(edges) else 0
    points = rng.random() + np.arange(size)
    edges *= size / edges[-1] if size else 1.0  # the sum is a whole number up to rounding
    return np.sort(order[np.searchsorted(edges, points, side="right").clip(max=len(p) - 1)])
