"""A lower bound on epsilon from one run with many canaries, each held out by a fair coin."""

import numpy as np
from scipy.optimize import brentq
from scipy.stats import binom

from fedsim.audit.bounds import Bound
from fedsim.audit.scores import Bools, Floats
from fedsim.errors import WrongInput

GUESSES_A_SIDE = 20
"""One canary in 20 is guessed "in" and one in 20 "out"; the number is fixed before the scores."""
LARGEST = 100.0


def one_run(
    scores: Floats,
    included: Bools,
    delta: float,
    rng: np.random.Generator,
    confidence: float = 0.95,
) -> Bound:
    """Return the bound of Steinke et al. (2023) from one run with m canaries.

    The top m/20 scores are guessed in, the bottom m/20 out. scores: [m], larger for "included";
    included: [m], the coins, independent and fair. Abstentions count in m. Equal scores are ordered
    by `rng`. Raises WrongInput below 20 canaries.

    >>> import numpy as np
    >>> from fedsim import one_run
    >>> rng = np.random.default_rng(2)
    >>> coins = rng.random(1000) < 0.5
    >>> round(one_run(coins.astype(float), coins, delta=1e-5, rng=rng).epsilon_low, 2)  # all right
    3.47
    >>> one_run(rng.normal(size=1000), coins, delta=1e-5, rng=rng).epsilon_low  # scores of noise
    0.0
    """
    canaries = len(scores)
    side = canaries // GUESSES_A_SIDE
    if side < 1 or included.shape != scores.shape:
        raise WrongInput(
            f"an audit in one run wants at least {GUESSES_A_SIDE} canaries, got {canaries}"
        )
    shuffled = rng.permutation(canaries)
    order = shuffled[np.argsort(scores[shuffled], kind="stable")]
    right = int(included[order[-side:]].sum() + (~included[order[:side]]).sum())
    return Bound(
        method="one run",
        epsilon_low=certified(right, 2 * side, canaries, delta, confidence),
        ceiling=certified(2 * side, 2 * side, canaries, delta, confidence),
        confidence=confidence,
        delta=delta,
        assumptions=f"fair coins for {canaries} canaries; {right} of {2 * side} guesses right",
    )


def certified(
    right: int, guesses: int, canaries: int, delta: float, confidence: float = 0.95
) -> float:
    """Return sup{epsilon: p(epsilon) < 1 - confidence} for this many right guesses."""
    alpha = 1 - confidence

    def excess(epsilon: float) -> float:
        return guesses_p_value(right, guesses, canaries, epsilon, delta) - alpha

    if excess(0.0) >= 0:
        return 0.0
    return float(brentq(excess, 0.0, LARGEST, xtol=1e-6)) if excess(LARGEST) > 0 else LARGEST


def guesses_p_value(right: int, guesses: int, canaries: int, epsilon: float, delta: float) -> float:
    """Return a bound on the chance of that many right guesses under (epsilon, delta)-DP.

    After Steinke et al. (2023): beta + 2 m delta alpha with W ~ Bin(r, e^eps / (1 + e^eps)),
    beta = P(W >= v) and alpha = max_i P(v > W >= v - i) / i.
    """
    hit = 1 / (1 + np.exp(-epsilon))
    beta = binom.sf(right - 1, guesses, hit)
    steps = np.arange(1, right + 1)
    below = np.cumsum(binom.pmf(right - steps, guesses, hit))
    alpha = float((below / steps).max(initial=0.0))
    return float(min(1.0, beta + 2 * canaries * delta * alpha))
