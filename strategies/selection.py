"""Who trains in a round: scores, inclusion probabilities, and the draw that has exactly these.

`select(view, settings, rng) -> Cohort`. A device without training examples (public activity 0) or out
of reach is never selected.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from fedsim.config import Selection
from fedsim.errors import WrongInput
from fedsim.names import lookup
from fedsim.types import Cohort, View

Scores = NDArray[np.float64]
Selector = Callable[[View, Selection, np.random.Generator], Cohort]


def uniform(view: View, settings: Selection, rng: np.random.Generator) -> Cohort:
    """Every device alike."""
    return draw(view, np.ones(len(view.devices)), settings, rng)


def activity(view: View, settings: Selection, rng: np.random.Generator) -> Cohort:
    """Inclusion in proportion to activity ** power, at most 1."""
    return draw(view, _powered(view, settings), settings, rng)


def threshold(view: View, settings: Selection, rng: np.random.Generator) -> Cohort:
    """Uniform over the devices whose activity is at least the `quantile` of the eligible ones."""
    least = _quantile(view.activity[_eligible(view)], settings.quantile)
    return draw(view, (view.activity >= least).astype(np.float64), settings, rng)


def mixture(view: View, settings: Selection, rng: np.random.Generator) -> Cohort:
    """`mixture` of the cohort uniformly, the rest by activity, so that nobody starves."""
    return _mix(view, settings.mixture, settings, rng)


def schedule(view: View, settings: Selection, rng: np.random.Generator) -> Cohort:
    """By activity in the first round, uniformly in the last, linearly mixed between them."""
    return _mix(view, (view.round - 1) / max(view.rounds - 1, 1), settings, rng)


def availability(view: View, settings: Selection, rng: np.random.Generator) -> Cohort:
    """Inclusion in proportion to (share of the day in reach) ** power: who stays long is safe to ask."""
    if view.availability is None:
        raise WrongInput('selection.rule = "availability" needs to know how long devices are in reach')
    return draw(view, view.availability**settings.power, settings, rng)


def privacy_aware(view: View, settings: Selection, rng: np.random.Generator) -> Cohort:
    """By activity, but nobody above the chance at which its planned epsilon meets `dp.target_epsilon`.

    What the cap cuts off goes to nobody, so the others' chances do not depend on who is capped.
    """
    if view.privacy_cap is None:
        raise WrongInput(
            'selection.rule = "privacy_aware" needs the inclusion probability at which a device spends '
            'dp.target_epsilon; set dp.unit = "device", dp.noise_multiplier and dp.target_epsilon'
        )
    scores = np.where(_eligible(view), _powered(view, settings), 0.0)
    p = settings.cohort * scores / (settings.total_score or max(scores.sum(), np.finfo(float).tiny))
    return _sample(view, np.minimum(p, np.minimum(view.privacy_cap, 1.0)), settings, rng, whole=False)


def loss(view: View, settings: Selection, rng: np.random.Generator) -> Cohort:
    """Of `candidates` drawn by activity those whose training loss was last the highest (Cho et al., 2020).

    Power-of-choice with remembered losses; devices that never told one come first. What devices tell decides
    who trains, so no chance is stated, and nothing that rests on one may be claimed.
    """
    if view.losses is None:
        raise WrongInput('selection.rule = "loss" needs the losses that devices told; none are asked for')
    scores = np.where(_eligible(view), _powered(view, settings), 0.0)
    drawn = poisson(inclusion_probabilities(scores, settings.candidates or 2 * settings.cohort), rng)
    known = np.nan_to_num(view.losses[drawn], nan=np.inf)
    chosen = drawn[np.lexsort((rng.random(len(drawn)), -known))[: settings.cohort]]  # ties by chance
    return Cohort(view.round, view.devices[np.sort(chosen)], None)


def round_robin(view: View, settings: Selection, rng: np.random.Generator) -> Cohort:
    """Those selected least so far, in the order of their ids; no chance is involved, so none is stated."""
    sure, tied, missing = _least_used(view, settings)
    return Cohort(view.round, view.devices[np.sort(np.concatenate([sure, tied[:missing]]))], None)


def least_used(view: View, settings: Selection, rng: np.random.Generator) -> Cohort:
    """Those selected least so far; where they are too many, a part of them by chance.

    The inclusion probabilities are those given the participation so far.
    """
    sure, tied, missing = _least_used(view, settings)
    p = np.zeros(len(view.devices))
    p[sure] = 1.0
    if len(tied):
        p[tied] = missing / len(tied)
    chosen = np.sort(np.concatenate([sure, rng.permutation(tied)[:missing]]))
    return Cohort(view.round, view.devices[chosen], p[chosen])


SELECTORS: dict[str, Selector] = {
    "uniform": uniform,
    "activity": activity,
    "threshold": threshold,
    "mixture": mixture,
    "schedule": schedule,
    "round_robin": round_robin,
    "least_used": least_used,
    "availability": availability,
    "privacy_aware": privacy_aware,
    "loss": loss,
}
DATA_DEPENDENT = frozenset({"loss"})
"""Rules that look at what devices told of their data: no guarantee survives them."""


def select(view: View, settings: Selection, rng: np.random.Generator) -> Cohort:
    """Select the round's cohort by the rule that the settings name."""
    return lookup("selection.rule", settings.rule, SELECTORS)(view, settings, rng)


def draw(view: View, scores: Scores, settings: Selection, rng: np.random.Generator) -> Cohort:
    """Draw a cohort of the expected size with inclusion in proportion to `scores` [devices].

    Raises WrongInput where a cap below 1 contradicts a fixed size.
    """
    scores = np.where(_eligible(view), scores, 0.0)
    if settings.total_score:  # public: a device's inclusion is the same whoever else there is
        p = np.minimum(1.0, settings.cohort * (scores / settings.total_score))
    else:
        p = inclusion_probabilities(scores, settings.cohort)
    return _sample(view, p, settings, rng)


def _mix(view: View, uniformly: float, settings: Selection, rng: np.random.Generator) -> Cohort:
    eligible = _eligible(view)
    by_activity = inclusion_probabilities(np.where(eligible, _powered(view, settings), 0.0), settings.cohort)
    alike = inclusion_probabilities(eligible.astype(np.float64), settings.cohort)
    return _sample(view, (1 - uniformly) * by_activity + uniformly * alike, settings, rng)


def _sample(
    view: View, p: Scores, settings: Selection, rng: np.random.Generator, whole: bool = True
) -> Cohort:
    """Draw by `p`; `whole` says that its sum is the cohort's size, as fixed sizes need."""
    if settings.sampling == "fixed" and (settings.cap < 1.0 or not whole):
        what = f"selection.cap = {settings.cap}" if whole else f"selection.rule = {settings.rule!r}"
        raise WrongInput(
            f"{what} gives what it cuts off to nobody, so a cohort has no fixed size; use "
            'selection.sampling = "poisson", or another rule'
        )
    p = np.minimum(p, settings.cap)
    chosen = poisson(p, rng) if settings.sampling == "poisson" else systematic(p, rng)
    return Cohort(view.round, view.devices[chosen], p[chosen])


def _quantile(values: NDArray[np.int64], share: float) -> float:
    """Return what np.quantile does, in linear time; 0 of nothing."""
    if not len(values):
        return 0.0
    place = share * (len(values) - 1)
    low, high = int(np.floor(place)), int(np.ceil(place))
    parted = np.partition(values, (low, high))
    return float(parted[low] + (place - low) * (parted[high] - parted[low]))


def _least_used(view: View, settings: Selection) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """Return who is in for sure, who has been selected equally often, and how many of these fit."""
    found = np.flatnonzero(_eligible(view))
    used, size = view.participation[found], min(settings.cohort, len(found))
    last = np.partition(used, size - 1)[size - 1] if size else 0
    sure, tied = found[used < last], found[used == last]
    return sure, tied, size - len(sure)


def _eligible(view: View) -> NDArray[np.bool_]:
    return view.reachable & (view.activity > 0)


def _powered(view: View, settings: Selection) -> Scores:
    return view.activity.astype(np.float64) ** settings.power


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
    order = np.argsort(rng.integers(0, 2**16, len(p), dtype=np.uint16), kind="stable")  # a fast shuffle
    edges = np.cumsum(p[order])
    size = round(float(edges[-1])) if len(edges) else 0
    points = rng.random() + np.arange(size)
    edges *= size / edges[-1] if size else 1.0  # the sum is a whole number up to rounding
    return np.sort(order[np.searchsorted(edges, points, side="right").clip(max=len(p) - 1)])
