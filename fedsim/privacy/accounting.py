"""What composed releases reveal: epsilon, delta and whole trade-off curves of sampled Gaussians.

Every epsilon comes from dp-accounting. All relations here compare "with" and "without the unit":
add-or-remove-one, and zero-out (the unit takes part with nothing). Both have the same bound,
because nothing else in a release (divisor, rate, steps, noise) changes with the unit.
"""

import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedsim.errors import WrongInput

if TYPE_CHECKING:  # dp-accounting and scipy take a second: functions import them when needed
    import dp_accounting as dp
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution

Floats = NDArray[np.float64]

INTERVAL = 1e-4
"""Width of the cells that privacy losses are rounded up to, while epsilon is below FINE."""
FINE = 20.0
COARSE = 1000.0


@dataclass(frozen=True, order=True)
class Event:
    """`count` releases, each a sum that the unit is in by a secret coin, plus Gaussian noise.

    >>> from fedsim import Event
    >>> Event(noise_multiplier=1.0, sampling_rate=0.01, count=1000)
    Event(noise_multiplier=1.0, sampling_rate=0.01, count=1000)
    >>> Event(noise_multiplier=-1.0)
    Traceback (most recent call last):
    fedsim.errors.WrongInput: an event wants a noise multiplier of at least 0, ...
    """

    noise_multiplier: float
    """Noise stddev over the sensitivity of the sum to this unit; 0 hides nothing."""
    sampling_rate: float = 1.0
    """Chance that the unit is in a release; 1 where no amplification is claimed."""
    count: int = 1

    def __post_init__(self) -> None:
        if not (self.noise_multiplier >= 0 and 0 <= self.sampling_rate <= 1 and self.count >= 0):
            raise WrongInput(
                "an event wants a noise multiplier of at least 0, a rate in [0, 1] and a count of "
                f"at least 0, got {self.noise_multiplier}, {self.sampling_rate}, {self.count}"
            )


def joint_multiplier(blocks: Iterable[tuple[float, float]]) -> float:
    """Return the noise multiplier of blocks released together: (Σ (Δ_b/σ_b)²)^(-1/2) of (Δ_b, σ_b).

    Δ_b is a block's sensitivity, σ_b the stddev of the noise in it (of all shares together). This
    holds only for blocks under one sampling coin; releases of different steps or rounds are
    composed instead.
    """
    inverse = 0.0
    for sensitivity, stddev in blocks:
        if sensitivity > 0:
            inverse += math.inf if stddev == 0 else (sensitivity / stddev) ** 2
    return math.inf if inverse == 0 else inverse**-0.5


def merged(events: Iterable[Event]) -> tuple[Event, ...]:
    """Return the events sorted, with equal ones added up and those that reveal nothing left out."""
    counts: dict[tuple[float, float], int] = {}
    for e in events:
        if e.count and e.sampling_rate > 0 and e.noise_multiplier < math.inf:
            key = (e.noise_multiplier, e.sampling_rate)
            counts[key] = counts.get(key, 0) + e.count
    return tuple(Event(z, q, count) for (z, q), count in sorted(counts.items()))


def epsilon(events: Iterable[Event], delta: float) -> float:
    """Return the least known epsilon of the composition at `delta`.

    It comes from the privacy loss distribution (PLD), and is exact where all rates are 1.

    Guarantee: the composition of the events is (epsilon, delta)-differentially private for its
    unit, under add-or-remove-one and under zero-out.

    Four releases with twice the noise cost what one costs; a secret coin of 1 % pays for a
    thousand:

    >>> from fedsim import Event, epsilon
    >>> round(epsilon([Event(1.0)], delta=1e-5), 2)
    4.38
    >>> round(epsilon([Event(2.0, count=4)], delta=1e-5), 2)
    4.38
    >>> round(epsilon([Event(1.0, sampling_rate=0.01, count=1000)], delta=1e-5), 2)
    1.83
    """
    _check_delta(delta)
    return _epsilon(merged(events), delta)


def epsilon_rdp(events: Iterable[Event], delta: float) -> float:
    """Return epsilon by Renyi differential privacy: a looser bound, fast and for any events."""
    from dp_accounting.rdp import RdpAccountant  # only runs with DP wait for it

    _check_delta(delta)
    accountant = RdpAccountant()
    with quiet():
        accountant.compose(_dp_event(merged(events)))
    return float(accountant.get_epsilon(delta))


def delta(events: Iterable[Event], epsilon: float) -> float:
    """Return the least known delta of the composition at `epsilon`.

    >>> from fedsim import Event, delta
    >>> round(delta([Event(1.0)], epsilon=1.0), 3)
    0.127
    """
    known = merged(events)
    if not known:
        return 0.0
    if _least(known) == 0:
        return 1.0
    if all(e.sampling_rate == 1 for e in known):
        return gaussian_delta(_gaussian_multiplier(known), epsilon)
    return float(_loss(known).get_delta_for_epsilon(epsilon))


def power(events: Iterable[Event], false_positive_rates: Floats) -> Floats:
    """Return the greatest true-positive rate of any attack on the unit at each false-positive rate.

    It is the trade-off curve that the whole privacy profile implies (Dong et al., 2022,
    proposition 2.12).

    >>> import numpy as np
    >>> from fedsim import Event, power
    >>> power([Event(1.0)], np.array([0.01, 0.1])).round(2).tolist()
    [0.09, 0.39]
    """
    known = merged(events)
    rates = np.asarray(false_positive_rates, dtype=np.float64)
    best = np.ones_like(rates)
    for eps in np.concatenate([[0.0], np.geomspace(1e-3, 50.0, 400)]):
        d = delta(known, float(eps))
        best = np.minimum(best, np.exp(eps) * rates + d)
        best = np.minimum(best, 1 - np.exp(-eps) * (1 - d - rates))
    return best.clip(0.0, 1.0)


def gaussian_delta(noise_multiplier: float, epsilon: float) -> float:
    """Return the exact delta of one Gaussian release (Balle and Wang, 2018, theorem 5)."""
    from scipy.stats import norm  # only runs with DP wait for it

    if noise_multiplier == 0:
        return 1.0
    mu = 1 / noise_multiplier
    second = math.exp(epsilon + norm.logcdf(-epsilon / mu - mu / 2))
    return float(max(0.0, norm.cdf(mu / 2 - epsilon / mu) - second))


def group_epsilon(events: Iterable[Event], copies: int, delta: float) -> float:
    """Return epsilon for a unit that is in the data `copies` times, or for a group of so many.

    A release may have any number of the copies in it. The bound takes all of them whenever one is
    in: sensitivity times `copies`, rate at most 1 - (1 - q)^copies.
    """
    grouped = [
        replace(
            e,
            noise_multiplier=e.noise_multiplier / copies,
            sampling_rate=1 - (1 - e.sampling_rate) ** copies,
        )
        for e in events
    ]
    return epsilon(grouped, delta)


@lru_cache(maxsize=4096)
def _epsilon(events: tuple[Event, ...], delta: float) -> float:
    import dp_accounting as dp  # only runs with DP wait for it

    if not events:
        return 0.0
    if _least(events) == 0:
        return math.inf
    if all(e.sampling_rate == 1 for e in events):
        return float(dp.get_epsilon_gaussian(_gaussian_multiplier(events), delta))
    loose = epsilon_rdp(events, delta)
    if loose > COARSE:  # the table of losses would be too long
        return loose
    return float(min(loose, _loss(events).get_epsilon_for_delta(delta)))


@lru_cache(maxsize=64)
def _loss(events: tuple[Event, ...]) -> "PrivacyLossDistribution":
    """Return the privacy loss distribution, rounded so that it is never too favourable."""
    from dp_accounting.pld import privacy_loss_distribution as pld  # only runs with DP wait for it

    loose = epsilon_rdp(events, 1e-6)
    interval = INTERVAL * max(1.0, min(loose, COARSE) / FINE)
    total = pld.identity(value_discretization_interval=interval)
    sure = [e for e in events if e.sampling_rate == 1]
    parts = [e for e in events if e.sampling_rate < 1]
    if sure:
        parts.append(Event(_gaussian_multiplier(sure)))
    for e in parts:
        one = pld.from_gaussian_mechanism(
            e.noise_multiplier,
            sampling_prob=e.sampling_rate,
            value_discretization_interval=interval,
        )
        total = total.compose(one.self_compose(e.count))
    return total


def _gaussian_multiplier(events: Sequence[Event]) -> float:
    return float(sum(e.count / e.noise_multiplier**2 for e in events) ** -0.5)


def _least(events: Sequence[Event]) -> float:
    return min((e.noise_multiplier for e in events), default=math.inf)


def _dp_event(events: Sequence[Event]) -> "dp.DpEvent":
    import dp_accounting as dp  # only runs with DP wait for it

    return dp.ComposedDpEvent(
        [
            dp.SelfComposedDpEvent(
                dp.PoissonSampledDpEvent(e.sampling_rate, dp.GaussianDpEvent(e.noise_multiplier)),
                e.count,
            )
            for e in events
        ]
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Silence dp-accounting's notes on Renyi orders that it leaves out.

    The other orders give a bound as well.
    """
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _check_delta(delta: float) -> None:
    if not 0 < delta < 1:
        raise WrongInput(f"delta must lie between 0 and 1 for a Gaussian mechanism, got {delta}")
