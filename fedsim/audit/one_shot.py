"""An estimate of epsilon from one federated run with canary devices that send random directions."""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.stats import norm, t

from fedsim.audit.bounds import Bound
from fedsim.audit.region import gaussian_epsilon
from fedsim.audit.scores import Floats
from fedsim.errors import WrongInput

FEWEST_CANARIES = 10
GRID = np.linspace(-40, 40, 8001)
"""Points at which two normals are compared.

They lie about the middle of both means, in units of the narrower one's deviation.
"""


@dataclass(frozen=True)
class OneShot:
    """What one federation with canary devices says about epsilon."""

    epsilon_estimate: float
    """The epsilon of a normal fitted to the cosines against the null; too high for few canaries."""
    bound: Bound


def one_shot(cosines: Floats, dimensions: int, delta: float, confidence: float = 0.95) -> OneShot:
    """Return the estimate of Andrew et al. (2024), and a version calibrated on the null.

    cosines: [k], of each canary device's random unit direction with the aggregate of d
    `dimensions`. Without the canary they are N(0, 1/d). The estimate compares N(mean, var) with the
    null. Raises WrongInput below 10 canaries.

    Cosines of standard deviation 1/√d about a mean of 0, as without the canaries, and about 4/√d:

    >>> import numpy as np
    >>> from fedsim import one_shot
    >>> noise = np.random.default_rng(1).normal(size=100) / 100
    >>> one_shot(noise, dimensions=10_000, delta=1e-5).bound.epsilon_low
    0.0
    >>> round(one_shot(noise + 0.04, dimensions=10_000, delta=1e-5).bound.epsilon_low, 1)
    22.4
    """
    bound = one_shot_bound(cosines, dimensions, delta, confidence)
    standard = cosines * np.sqrt(dimensions)
    return OneShot(
        epsilon_of_normals(float(standard.mean()), float(standard.std(ddof=1)), delta), bound
    )


def one_shot_bound(
    cosines: Floats, dimensions: int, delta: float, confidence: float = 0.95
) -> Bound:
    """Return epsilon at the mean's lower confidence limit.

    It uses the larger of the observed and the null's deviation. On noise it exceeds 0 with a chance
    of at most 1 - confidence. It is still an estimate: it approximates the cosines of canary
    devices by a normal of the null's width.
    """
    canaries = len(cosines)
    if canaries < FEWEST_CANARIES:
        raise WrongInput(
            f"one-shot auditing wants at least {FEWEST_CANARIES} canary devices, got {canaries}"
        )
    standard = cosines * np.sqrt(dimensions)  # N(0, 1) without the canary
    margin = t.ppf(confidence, canaries - 1) / np.sqrt(canaries)
    low = float(standard.mean() - margin * max(1.0, standard.std(ddof=1)))
    most = float(
        np.sqrt(dimensions / canaries) - margin
    )  # the aggregate is the canaries' sum alone
    return Bound(
        method="one shot",
        epsilon_low=gaussian_epsilon(low, delta),
        ceiling=gaussian_epsilon(most, delta),
        confidence=confidence,
        delta=delta,
        assumptions=f"cosines of {canaries} canary devices are normal with the null's variance",
        estimate=True,
    )


def epsilon_of_normals(mean: float, deviation: float, delta: float) -> float:
    """Return the epsilon between N(mean, deviation²) and N(0, 1): the larger of both directions.

    delta(eps) = integral of max(0, p - e^eps q), by quadrature (Andrew et al., 2024).
    """
    x = mean / 2 + GRID * max(1.0, abs(mean), deviation) / 2
    p = norm.logpdf(x, mean, deviation)
    q = norm.logpdf(x)
    return max(_epsilon(p, q, x, delta), _epsilon(q, p, x, delta))


def _epsilon(p: Floats, q: Floats, x: Floats, delta: float) -> float:
    def excess(epsilon: float) -> float:
        density = np.where(
            p > q + epsilon, np.exp(p) * -np.expm1(np.minimum(q + epsilon - p, 0)), 0
        )
        return float(np.trapezoid(density, x)) - delta

    if excess(0.0) <= 0:
        return 0.0
    high = 1.0
    while excess(high) > 0 and high < 1e6:
        high *= 2
    return float(brentq(excess, 0.0, high, xtol=1e-6))
