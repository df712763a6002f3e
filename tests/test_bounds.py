"""Lower bounds on epsilon: calibrated on noise, as strong as published, never over the truth."""

from collections.abc import Callable

import numpy as np
import pytest

from fedsim.audit.bounds import Bound, gaussian_worlds, profile_worlds, two_worlds
from fedsim.audit.intervals import proportion_high
from fedsim.audit.one_run import certified, guesses_p_value, one_run
from fedsim.audit.one_shot import epsilon_of_normals, one_shot, one_shot_bound
from fedsim.audit.region import gaussian, gaussian_epsilon, gaussian_mu
from fedsim.errors import WrongInput
from fedsim.seeds import generator

DELTA = 1e-5
TRIALS = 1000
ALLOWED = 0.05 + 2 * np.sqrt(0.05 * 0.95 / TRIALS)
"""Nominal 5 % and two standard errors: a method of exactly 5 % fails with a chance of 2.3 %."""


def worlds(runs: int, mu: float, trial: int) -> tuple[np.ndarray, np.ndarray]:
    rng = generator(0, "worlds", runs, trial)
    return rng.normal(size=runs), rng.normal(mu, size=runs)


def canaries(count: int, mu: float, trial: int) -> tuple[np.ndarray, np.ndarray]:
    rng = generator(0, "canaries", count, trial)
    included = rng.random(count) < 0.5
    return rng.normal(size=count) + mu * included, included


def by_two_worlds(mu: float, trial: int) -> Bound:
    return two_worlds(*worlds(200, mu, trial), DELTA, generator(1, trial))


def by_gaussian(mu: float, trial: int) -> Bound:
    return gaussian_worlds(*worlds(200, mu, trial), DELTA, generator(1, trial))


def by_profile(mu: float, trial: int) -> Bound:
    return profile_worlds(
        *worlds(200, mu, trial),
        DELTA,
        generator(1, trial),
        gaussian,
        lambda m: gaussian_epsilon(m, DELTA),
        (1e-9, 50.0),
    )


def by_one_run(mu: float, trial: int) -> Bound:
    return one_run(*canaries(200, mu, trial), DELTA, generator(1, trial))


def by_one_shot(mu: float, trial: int) -> Bound:
    return one_shot_bound(generator(0, "cosines", trial).normal(mu, size=100) / 100, 10_000, DELTA)


METHODS = [by_two_worlds, by_gaussian, by_profile, by_one_run, by_one_shot]


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_bound_on_pure_noise_is_above_zero_in_at_most_five_percent(
    method: Callable[[float, int], Bound],
) -> None:
    assert np.mean([method(0.0, trial).epsilon_low > 0 for trial in range(TRIALS)]) <= ALLOWED


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_bound_exceeds_the_true_epsilon_in_at_most_five_percent(
    method: Callable[[float, int], Bound],
) -> None:
    truth = gaussian_epsilon(1.0, DELTA)
    found = [method(1.0, trial) for trial in range(TRIALS)]
    assert np.mean([bound.epsilon_low > truth for bound in found]) <= ALLOWED
    assert np.mean([bound.epsilon_low > 0 for bound in found]) > 0.4  # and it is no empty bound
    assert all(bound.epsilon_low <= bound.ceiling for bound in found)


def test_the_best_threshold_of_the_same_runs_fails_the_null_test() -> None:
    # Sabotage: what published tools do, the largest of all thresholds' bounds with each rate at 5
    # %.
    def faulty(trial: int) -> float:
        out, inside = (np.sort(world) for world in worlds(1000, 0.0, trial))
        t = np.concatenate([out, inside])
        f = proportion_high(1000 - np.searchsorted(out, t, side="right"), 1000, 0.05)
        n = proportion_high(np.searchsorted(inside, t, side="right"), 1000, 0.05)
        ratios = [(1 - DELTA - n) / f, (1 - DELTA - f) / n]
        return float(np.log(np.maximum(ratios, 1.0)).max())

    assert np.mean([faulty(trial) > 0 for trial in range(200)]) > ALLOWED + 0.05


def test_the_best_number_of_guesses_fails_the_null_test() -> None:
    def faulty(trial: int) -> bool:
        scores, included = canaries(200, 0.0, trial)
        right = np.cumsum(included[np.argsort(-scores)])
        return any(certified(int(right[r - 1]), r, 200, DELTA) > 0 for r in range(5, 201, 5))

    assert np.mean([faulty(trial) for trial in range(200)]) > ALLOWED + 0.05


@pytest.mark.parametrize(("runs", "published"), [(100, 3.28), (1000, 5.60)])
def test_two_worlds_reach_the_published_ceiling_and_no_more(runs: int, published: float) -> None:
    out = np.zeros(2 * runs)
    inside = np.ones(2 * runs)
    bound = two_worlds(out, inside, 0.0, generator(0))
    assert bound.ceiling == pytest.approx(published, abs=0.005)
    assert bound.epsilon_low == bound.ceiling


def test_one_run_reaches_its_published_ceiling() -> None:
    bound = one_run(np.arange(1000.0), np.arange(1000) >= 500, DELTA, generator(0))
    assert bound.epsilon_low == bound.ceiling == pytest.approx(3.47, abs=0.005)
    jumps = [certified(v, 100, 1000, DELTA) for v in (98, 99, 100)]
    assert jumps == pytest.approx([2.71, 3.00, 3.47], abs=0.005)


@pytest.mark.parametrize(("epsilon", "published"), [(1, 0.21), (2, 0.65), (4, 1.5), (8, 2.85)])
def test_a_perfect_attacker_guesses_as_many_right_as_published(
    epsilon: float, published: float
) -> None:
    # attacks.md, section 4: m = 1000, 50 guesses a side, medians; compared in right guesses, to
    # one.
    mu = gaussian_mu(epsilon, DELTA)
    counts = []
    for trial in range(301):
        scores, included = canaries(1000, mu, trial)
        order = np.argsort(scores)
        counts.append(included[order[-50:]].sum() + (~included[order[:50]]).sum())
    bounds = np.array([certified(v, 100, 1000, DELTA) for v in range(101)])
    expected = int(np.abs(bounds - published).argmin())
    assert abs(float(np.median(counts)) - expected) <= 1


def test_the_p_value_without_delta_is_the_binomial_tail() -> None:
    assert guesses_p_value(10, 10, 10, 0.0, 0.0) == pytest.approx(2**-10)
    assert guesses_p_value(10, 10, 10, np.log(3), 0.0) == pytest.approx(0.75**10)
    assert guesses_p_value(10, 10, 10, 0.0, 1e-3) > 2**-10


def test_the_epsilon_of_two_normals_is_the_gaussian_one_where_their_widths_agree() -> None:
    for mu in (0.3, 1.0, 4.0):
        assert epsilon_of_normals(mu, 1.0, DELTA) == pytest.approx(
            gaussian_epsilon(mu, DELTA), abs=1e-3
        )
    assert epsilon_of_normals(0.0, 1.0, DELTA) == 0.0
    assert epsilon_of_normals(0.0, 2.0, DELTA) > 1


def test_the_one_shot_estimate_is_biased_upward_and_labelled() -> None:
    found = [one_shot(generator(2, t).normal(size=10) / 10, 100, DELTA) for t in range(200)]
    assert np.mean([shot.epsilon_estimate for shot in found]) > 1  # the truth is 0
    assert all(shot.bound.estimate for shot in found)
    assert not by_one_run(0.0, 0).estimate


def test_audits_too_small_to_say_anything_are_refused() -> None:
    with pytest.raises(WrongInput, match="got 10 without and 10 with"):
        two_worlds(np.zeros(10), np.zeros(10), DELTA, generator(0))
    with pytest.raises(WrongInput, match="at least 20 canaries, got 19"):
        one_run(np.zeros(19), np.zeros(19, dtype=bool), DELTA, generator(0))
    with pytest.raises(WrongInput, match="at least 10 canary devices, got 9"):
        one_shot(np.zeros(9), 100, DELTA)
