"""Small Gaussian mechanisms, one right and several broken in known ways, for audits to find.

Each sums gradients of norm at most CLIP and should add noise of STDDEV = CLIP · noise multiplier.
The neighbour is the worst case: the canary's gradient alone along one axis, and few other records.
"""

from collections.abc import Callable

import numpy as np

from fedsim.audit.region import gaussian_mu
from fedsim.audit.scores import Bools, Floats

EPSILON = 1.0
DELTA = 1e-5
"""The delta that every build claims."""
CLIP = 1.0
STDDEV = CLIP / gaussian_mu(EPSILON, DELTA)
OTHERS = 4
DIMENSIONS = 1000

Build = Callable[[bool, int, np.random.Generator], Floats]
"""(with the canary?, runs, rng) -> an attacker's score of each run's release, larger for "with"."""


def right(within: bool, runs: int, rng: np.random.Generator) -> Floats:
    """Clip each gradient, sum, add noise; the score is the release along the canary's axis."""
    return CLIP * within + STDDEV * rng.normal(size=runs)


def without_noise(within: bool, runs: int, rng: np.random.Generator) -> Floats:
    """The noise is multiplied by 0."""
    return np.full(runs, CLIP * within)


def clipped_sum(within: bool, runs: int, rng: np.random.Generator) -> Floats:
    """The sum is clipped, not each gradient: others of -10 and a canary of 20 move it by 2 CLIP."""
    total = -10.0 + 20.0 * within
    return np.clip(total, -CLIP, CLIP) + STDDEV * rng.normal(size=runs)


def noise_on_one_part(within: bool, runs: int, rng: np.random.Generator) -> Floats:
    """The noise reaches the first layer only.

    Half the norm of the canary's gradient lies in the second layer.
    """
    first = CLIP * np.sqrt(0.5) * within + STDDEV * rng.normal(size=runs)
    second = np.full(runs, CLIP * np.sqrt(0.5) * within)
    return second + 1e-6 * first


def divided_by_realised_count(within: bool, runs: int, rng: np.random.Generator) -> Floats:
    """The noised sum is divided by the number of records, so its scale reveals that number."""
    noise = STDDEV * rng.normal(size=(runs, DIMENSIONS))
    noise[:, 0] += CLIP * within
    release = noise / (OTHERS + within)
    return -np.log((release**2).mean(1))


def poisson_batches(records: int, steps: int, rate: float, rng: np.random.Generator) -> Bools:
    """Return which records are in which batch, [steps, records], by independent coins."""
    return rng.random((steps, records)) < rate


def shuffled_batches(records: int, steps: int, rate: float, rng: np.random.Generator) -> Bools:
    """Return batches of shuffled epochs, where every record comes once: not a Poisson sample."""
    batches = round(1 / rate)
    epochs = [rng.permutation(np.arange(records) % batches) for _ in range(-(-steps // batches))]
    return np.concatenate([np.arange(batches)[:, None] == epoch for epoch in epochs])[:steps]
