"""Exposure: the rank of a canary's code among all possible codes (Carlini et al., 2019)."""

import numpy as np
from scipy import stats

from fedsim.audit.canary_patterns import ENUMERABLE
from fedsim.audit.scores import Floats
from fedsim.errors import WrongInput

FEWEST_REFERENCES = 200
"""Fewest references for the fit: a skew-normal has three parameters, and all shape its tail."""
LARGE = 10**6
"""In spaces beyond this size the null's mean is 1/ln 2 to four digits."""


def rank(losses: Floats, own: int, rng: np.random.Generator) -> int:
    """Return the rank of losses[own], where 1 is the smallest; equal losses get a random order.

    >>> import numpy as np
    >>> from fedsim import rank
    >>> rank(np.array([0.7, 0.2, 0.4]), own=2, rng=np.random.default_rng(1))
    2
    """
    if not np.isfinite(losses).all():
        raise WrongInput(
            f"{int((~np.isfinite(losses)).sum())} completions have a loss that is not finite"
        )
    before = int((losses < losses[own]).sum())
    ties = int((losses == losses[own]).sum()) - 1
    return 1 + before + int(rng.integers(ties + 1))


def rank_among(own: float, others: Floats, rng: np.random.Generator) -> int:
    """Return the canary's rank among itself and n references drawn uniformly, 1 to n + 1."""
    return rank(np.append(others, own), len(others), rng)


def exposure(rank: int, space: int) -> float:
    """Return log2 |R| - log2 rank, in bits.

    For a rank among n references, `space` is n + 1, so the exposure is at most log2 (n + 1).

    The canary's code has the lowest loss of 1024, or a loss in the middle:

    >>> from fedsim import exposure
    >>> (exposure(1, 1024), exposure(512, 1024))
    (10.0, 1.0)
    """
    return float(np.log2(space) - np.log2(rank))


def exposure_by_fit(own: float, others: Floats, space: int) -> float:
    """Return -log2 P(loss <= own) under a skew-normal fitted to the references' losses.

    After Carlini et al. (2019). It is an extrapolation without an exact p-value. Raises WrongInput
    for a space that can be ranked exactly, and below 200 references.
    """
    if space <= ENUMERABLE:
        raise WrongInput(f"{space:,} completions are ranked exactly; nothing is extrapolated there")
    if len(others) < FEWEST_REFERENCES:
        raise WrongInput(
            f"a skew-normal fit wants {FEWEST_REFERENCES} references, got {len(others)}"
        )
    centred = (others - others.mean()) / others.std()
    fitted = stats.skewnorm.fit(centred)
    log_tail = stats.skewnorm.logcdf((own - others.mean()) / others.std(), *fitted)
    return float(max(0.0, -log_tail / np.log(2)))


def p_value(rank: int, space: int) -> float:
    """Return P(rank or better) without leakage; exact, because the code was drawn uniformly."""
    return rank / space


def joint_p_value(exposures: Floats) -> float:
    """Return an upper bound on P(a sum of exposures this large) without leakage.

    Codes are independent. exposure · ln 2 = -ln(rank/|R|) is at most -ln U, whose sum over c codes
    is Gamma(c).
    """
    return float(stats.gamma.sf(np.sum(exposures) * np.log(2), len(exposures)))


def null_mean(space: int) -> float:
    """Return the mean exposure without leakage.

    It is 1/ln 2 = 1.44 for large spaces, 1.396 at 100 and 1.143 at 10.
    """
    if space > LARGE:
        return 1 / float(np.log(2))
    return float(np.log2(space) - np.log2(np.arange(1, space + 1)).mean())


def exposure_standard_error(canaries: int) -> float:
    """Return the standard error of the mean exposure without leakage.

    For c canaries it is 1.44 / sqrt(c).
    """
    return 1 / float(np.log(2) * np.sqrt(canaries))


def largest_mean(epsilon: float) -> float:
    """Return (1 + eps)/ln 2, an upper bound on the mean exposure.

    Guarantee: under epsilon-DP whose unit covers all copies of a canary, P(rank <= r) <= e^eps
    r/|R|, so the exposure's mean is at most that of (eps + an exponential variable)/ln 2.
    """
    return (1 + epsilon) / float(np.log(2))
