"""Intervals for a proportion and for a mean over targets."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from fedsim.audit.scores import Floats
from fedsim.errors import WrongInput

FEWEST_TARGETS = 5
BOOTSTRAP_FROM = 20
"""Fewest targets for a percentile bootstrap; with fewer the interval is Student's t.

The bootstrap covers 84 % with 5 targets and 92 % with 20.
"""
RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """A mean with its two-sided interval."""

    mean: float
    low: float
    high: float
    method: str
    """The kind of the interval and what it is over, for example "t over 8 targets"."""


def over_targets(values: Floats, rng: np.random.Generator, confidence: float = 0.95) -> Interval:
    """Return the mean over targets with its interval.

    Below 20 targets it is a t-interval, from 20 on a percentile bootstrap. Targets of one pool of
    models share their records and are dependent. For a headline figure repeat the pool with another
    seed. Raises WrongInput below 5 targets.
    """
    targets = len(values)
    if targets < FEWEST_TARGETS:
        raise WrongInput(f"an interval is over at least {FEWEST_TARGETS} targets, got {targets}")
    mean = float(values.mean())
    tail = (1 - confidence) / 2
    if targets < BOOTSTRAP_FROM:
        half = float(stats.t.ppf(1 - tail, targets - 1) * values.std(ddof=1) / np.sqrt(targets))
        return Interval(mean, mean - half, mean + half, f"t over {targets} targets")
    means = rng.choice(values, size=(RESAMPLES, targets)).mean(1)
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(mean, float(low), float(high), f"bootstrap over {targets} targets")


def proportion_high(count: ArrayLike, trials: ArrayLike, alpha: float) -> NDArray[np.float64]:
    """Return the one-sided upper bound of a proportion at level 1 - alpha (Clopper-Pearson)."""
    count = np.asarray(count)
    trials = np.asarray(trials)
    inner = np.minimum(count, trials - 1)  # where all are hits the bound is 1
    return np.where(count < trials, stats.beta.ppf(1 - alpha, inner + 1, trials - inner), 1.0)


def proportion_low(count: ArrayLike, trials: ArrayLike, alpha: float) -> NDArray[np.float64]:
    """Return the one-sided lower bound of a proportion at level 1 - alpha (Clopper-Pearson)."""
    return 1.0 - proportion_high(np.asarray(trials) - np.asarray(count), trials, alpha)
