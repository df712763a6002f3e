"""Lower bounds on epsilon from two worlds: many runs with a canary, many without."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.stats import norm

from fedsim.audit.intervals import proportion_high
from fedsim.audit.region import Profile, gaussian_epsilon
from fedsim.audit.scores import Floats
from fedsim.errors import WrongInput

FEWEST_RUNS = 20


@dataclass(frozen=True)
class Bound:
    """A lower bound on epsilon, beside the largest that the audit could have shown."""

    method: str
    epsilon_low: float
    ceiling: float
    """The bound of a perfect attack on the same number of runs or canaries."""
    confidence: float
    delta: float
    assumptions: str
    estimate: bool = False
    """True where the confidence rests on an approximation, so that nothing is certified."""


@dataclass(frozen=True)
class Errors:
    """Upper bounds on both error rates of one test.

    Both hold at once, with the confidence of the bound on epsilon.
    """

    false_positive: float
    false_negative: float


def two_worlds(
    without: Floats,
    within: Floats,
    delta: float,
    rng: np.random.Generator,
    confidence: float = 0.95,
) -> Bound:
    """Return the bound max(0, ln((1 - delta - FNR)/FPR), ln((1 - delta - FPR)/FNR)).

    After Jagielski et al. (2020). without, within: an attack's scores of independently seeded runs
    without and with the canary, larger for "within". The threshold comes from one half of the runs.
    The error rates' upper bounds (Clopper-Pearson at alpha/2 each) come from the other half. So the
    confidence holds for any mechanism.

    A perfect attack on 100 runs a world certifies only 2.57, whatever the mechanism leaks:

    >>> import numpy as np
    >>> from fedsim import two_worlds
    >>> found = two_worlds(np.zeros(100), np.ones(100), delta=1e-5, rng=np.random.default_rng(1))
    >>> (round(found.epsilon_low, 2), round(found.ceiling, 2))
    (2.57, 2.57)
    """
    alpha = 1 - confidence
    errors, judged = _held_out(without, within, rng, alpha, lambda f, n: _epsilon(f, n, delta))
    perfect = proportion_high(0, judged, alpha / 2)
    low = float(_epsilon(errors.false_positive, errors.false_negative, delta))
    return Bound(
        method="two worlds",
        epsilon_low=low,
        ceiling=float(_epsilon(perfect, perfect, delta)),
        confidence=confidence,
        delta=delta,
        assumptions="independently seeded runs; threshold from as many other runs; "
        f"{judged} judged a world",
    )


def gaussian_worlds(
    without: Floats,
    within: Floats,
    delta: float,
    rng: np.random.Generator,
    confidence: float = 0.95,
) -> Bound:
    """Return the bound by mu = Phi^-1(1 - FPR) - Phi^-1(FNR) of a Gaussian mechanism.

    After Nasr et al. (2023). It is tighter than `two_worlds`, but a bound ONLY where the trade-off
    curve is that of one Gaussian mechanism. For a subsampled or composed one use `profile_worlds`.
    """
    alpha = 1 - confidence
    errors, judged = _held_out(without, within, rng, alpha, _mu)
    perfect = proportion_high(0, judged, alpha / 2)
    return Bound(
        method="gaussian",
        epsilon_low=gaussian_epsilon(
            float(_mu(errors.false_positive, errors.false_negative)), delta
        ),
        ceiling=gaussian_epsilon(float(_mu(perfect, perfect)), delta),
        confidence=confidence,
        delta=delta,
        assumptions=f"the trade-off curve is Gaussian; independent runs; {judged} judged a world",
    )


def profile_worlds(
    without: Floats,
    within: Floats,
    delta: float,
    rng: np.random.Generator,
    profile: Callable[[float], Profile],
    epsilon: Callable[[float], float],
    between: tuple[float, float],
    confidence: float = 0.95,
) -> Bound:
    """Return the bound from the least leaky mechanism of a family that allows the observation.

    After Nasr et al. (2023). profile: strength (as 1 / noise multiplier) -> the accountant's
    trade-off curve, which rises with the strength. epsilon: strength -> epsilon at `delta`.
    between: the strengths to search.
    """
    alpha = 1 - confidence
    errors, judged = _held_out(without, within, rng, alpha, _mu)
    perfect = float(proportion_high(0, judged, alpha / 2))
    found = [_least(profile, e, between) for e in (errors, Errors(perfect, perfect))]
    low, ceiling = (epsilon(strength) if strength > between[0] else 0.0 for strength in found)
    return Bound(
        method="profile",
        epsilon_low=low,
        ceiling=ceiling,
        confidence=confidence,
        delta=delta,
        assumptions="the mechanism is of the accounted family; independent runs; "
        f"{judged} judged a world",
    )


def _held_out(
    without: Floats,
    within: Floats,
    rng: np.random.Generator,
    alpha: float,
    worth: Callable[[Floats, Floats], Floats],
) -> tuple[Errors, int]:
    """Return the bounds on the error rates from one half of the runs, and the size of that half.

    The threshold comes from the other half.
    """
    if len(without) != len(within) or len(without) < FEWEST_RUNS:
        raise WrongInput(
            f"an audit in two worlds wants equally many runs in both, at least {FEWEST_RUNS}; "
            f"got {len(without)} without and {len(within)} with the canary"
        )
    out = rng.permutation(without)
    inside = rng.permutation(within)
    half = len(out) // 2
    grid = np.unique(np.concatenate([out[:half], inside[:half]]))
    # as strict as if all thresholds were certified: else luck in the tails makes the choice
    false_positive, false_negative = _error_bounds(
        out[:half], inside[:half], grid, alpha / len(grid)
    )
    threshold = grid[[int(np.argmax(worth(false_positive, false_negative)))]]
    judged = _error_bounds(out[half:], inside[half:], threshold, alpha)
    return Errors(*(float(bound[0]) for bound in judged)), len(out) - half


def _error_bounds(
    out: Floats, inside: Floats, thresholds: Floats, alpha: float
) -> tuple[Floats, Floats]:
    """Return upper bounds of P(out > t) and P(inside <= t) for each threshold, alpha/2 each."""
    alarms = len(out) - np.searchsorted(np.sort(out), thresholds, side="right")
    misses = np.searchsorted(np.sort(inside), thresholds, side="right")
    return proportion_high(alarms, len(out), alpha / 2), proportion_high(
        misses, len(inside), alpha / 2
    )


def _epsilon(
    false_positive: Floats | float, false_negative: Floats | float, delta: float
) -> Floats:
    f = np.asarray(false_positive)
    n = np.asarray(false_negative)
    tiny = np.finfo(np.float64).tiny
    one = np.log(np.maximum(1 - delta - n, tiny) / f)
    other = np.log(np.maximum(1 - delta - f, tiny) / n)
    return np.maximum(0.0, np.maximum(one, other))


def _mu(false_positive: Floats | float, false_negative: Floats | float) -> Floats:
    return np.asarray(norm.isf(false_positive) - norm.ppf(false_negative))


def _least(
    profile: Callable[[float], Profile], errors: Errors, between: tuple[float, float]
) -> float:
    """Return the smallest strength whose profile allows a test with these errors."""
    point = np.array([errors.false_positive])

    def room(strength: float) -> float:
        return float(profile(strength)(point)[0]) - (1 - errors.false_negative)

    low, high = between
    if room(low) >= 0:
        return low
    return high if room(high) < 0 else float(brentq(room, low, high, xtol=1e-6))
