"""Who trains in a round: scores, inclusion probabilities, and the draw that has exactly these.

`select(view, settings, rng) -> Cohort`. A device without training examples (public activity 0) or out
of reach is never selected.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from fedsim.config import Selection
from fedsim.names import lookup
from fedsim.types import Cohort, View

Scores = NDArray[np.float64]
Selector = Callable[[View, Selection, np.random.Generator], Cohort]


def uniform(view: View, settings: Selection, rng: np.random.Generator) -> Cohort:
    """Every device alike."""
    return draw(view, np.ones(len(view.devices)), settings, rng)


def activity(view: View, settings: Selection, rng: np.random.Generator) -> Cohort:
    """Inclusion in proportion to activity ** power, at most 1."""
    return draw(view, view.activity.astype(np.float64) ** settings.power, settings, rng)


SELECTORS: dict[str, Selector] = {"uniform": uniform, "activity": activity}


def select(view: View, settings: Selection, rng: np.random.Generator) -> Cohort:
    """Select the round's cohort by the rule that the settings name."""
    return lookup("selection.rule", settings.rule, SELECTORS)(view, settings, rng)


def draw(view: View, scores: Scores, settings: Selection, rng: np.random.Generator) -> Cohort:
    """Draw a cohort of the expected size with inclusion in proportion to `scores` [devices]."""
    eligible = np.where(view.reachable & (view.activity > 0), scores, 0.0)
    p = inclusion_probabilities(eligible, settings.cohort)
    chosen = poisson(p, rng) if settings.sampling == "poisson" else systematic(p, rng)
    return Cohort(view.round, view.devices[chosen], p[chosen])


def inclusion_probabilities(scores: Scores, expected: float) -> Scores:
    """Return p proportional to `scores`, capped at 1, whose sum is `expected` (or all, if fewer).

    Capped devices train every round; the rest share what is left, until nobody is over the cap.
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
    """Include each device by a coin of its own; the size of the cohort varies."""
    return np.flatnonzero(rng.random(len(p)) < p)


def systematic(p: Scores, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw round(sum p) devices with inclusion exactly `p`: systematic sampling in random order.

    Madow (1949). One uniform start and unit steps along the cumulative sum; joint inclusion depends
    on the order, so no amplification can be claimed.
    """
    order = rng.permutation(len(p))
    edges = np.cumsum(p[order])
    size = round(float(edges[-1])) if len(edges) else 0
    points = rng.random() + np.arange(size)
    edges *= size / edges[-1] if size else 1.0  # the sum is a whole number up to rounding
    return np.sort(order[np.searchsorted(edges, points, side="right").clip(max=len(p) - 1)])
