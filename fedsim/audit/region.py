"""The region of ROC points that a guarantee allows, and whether an attack left it."""

from collections.abc import Callable

import numpy as np
from scipy.optimize import brentq
from scipy.stats import norm

from fedsim.audit.intervals import proportion_high, proportion_low
from fedsim.audit.scores import Bools, Floats
from fedsim.errors import WrongInput

Profile = Callable[[Floats], Floats]
"""False positive rates -> the largest true positive rates that the guarantee allows there."""
LEVELS = (0.001, 0.01, 0.05, 0.2, 0.5)


def polygon(epsilon: float, delta: float) -> Profile:
    """Return the largest true positive rate that one (epsilon, delta) pair allows.

    It is min(e^eps f + delta, 1 - e^-eps (1 - delta - f)) (Kairouz et al., 2015). It is drawn apart
    from the full profile, which allows less.
    """

    def largest(fpr: Floats) -> Floats:
        steep = np.exp(epsilon) * fpr + delta
        flat = 1 - np.exp(-epsilon) * (1 - delta - fpr)
        return np.clip(np.minimum(steep, flat), fpr, 1.0)

    return largest


def gaussian(mu: float) -> Profile:
    """Return what ONE Gaussian mechanism allows: Phi(Phi^-1(f) + mu) (Dong et al., 2022).

    mu is sensitivity over noise stddev. It does not hold for subsampled or adaptively composed
    mechanisms of other shapes.
    """
    return lambda fpr: norm.cdf(norm.ppf(fpr) + mu)


def gaussian_delta_of_mu(epsilon: float, mu: float) -> float:
    """Return delta(eps) = Phi(-eps/mu + mu/2) - e^eps Phi(-eps/mu - mu/2) (Balle, Wang, 2018)."""
    if mu <= 0:
        return 0.0
    first = norm.logcdf(-epsilon / mu + mu / 2)
    second = epsilon + norm.logcdf(-epsilon / mu - mu / 2)
    return float(np.exp(first) * -np.expm1(second - first))


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Return the epsilon of a Gaussian mechanism with this mu; inverts `gaussian_delta_of_mu`."""
    if gaussian_delta_of_mu(0.0, mu) <= delta:
        return 0.0
    return float(
        brentq(
            lambda e: gaussian_delta_of_mu(e, mu) - delta,
            0.0,
            mu * mu / 2 + mu * 40 + 1,
            xtol=1e-10,
        )
    )


def gaussian_mu(epsilon: float, delta: float) -> float:
    """Return the mu at which a Gaussian mechanism has exactly (epsilon, delta)."""
    return float(
        brentq(lambda mu: gaussian_delta_of_mu(epsilon, mu) - delta, 1e-9, 1e3, xtol=1e-12)
    )


def largest_auc(profile: Profile, points: int = 20_001) -> float:
    """Return the AUC of the best attack that the profile allows: the area under it."""
    inner = norm.cdf(np.linspace(-8, 8, points))  # dense at both ends, where the curve bends
    grid = np.concatenate([[0.0], inner, [1.0]])
    allowed = _checked(profile, grid)
    return float(np.trapezoid(allowed, grid))


def excess(
    scores: Floats,
    member: Bools,
    profile: Profile,
    rng: np.random.Generator,
    confidence: float = 0.95,
) -> float:
    """Return by how much the attack's true positive rate surely exceeds the profile.

    A value of at most 0 means that it does not. Thresholds come from one half of the non-members,
    at five false positive rates fixed in advance. On the other half and all members,
    Clopper-Pearson bounds the rates, with Bonferroni over the five.

    Guarantee: records that answer independently and obey the profile give more than 0 with
    probability at most 1 - confidence.
    """
    outside = rng.permutation(scores[~member])
    chosen = np.sort(outside[::2])
    judged = outside[1::2]
    alpha = (1 - confidence) / (2 * len(LEVELS))
    ranks = [int(np.ceil(len(chosen) * (1 - level))) - 1 for level in LEVELS]
    thresholds = chosen[np.clip(ranks, 0, None)]
    false = np.array([(judged > t).sum() for t in thresholds])
    true = np.array([(scores[member] > t).sum() for t in thresholds])
    surely = proportion_low(true, int(member.sum()), alpha)
    allowed = _checked(profile, proportion_high(false, len(judged), alpha))
    return float((surely - allowed).max())


def _checked(profile: Profile, fpr: Floats) -> Floats:
    """Return the profile's values. Raises WrongInput where it is no trade-off curve."""
    allowed = np.asarray(profile(fpr), dtype=np.float64)
    if (allowed < fpr - 1e-6).any() or (allowed > 1 + 1e-6).any():
        raise WrongInput(
            "a privacy profile gives true positive rates between the false positive rate and 1"
        )
    return allowed
