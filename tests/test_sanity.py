"""The sanity battery: green as it is, red where something is sabotaged."""

from dataclasses import replace

import numpy as np
import pytest
from conftest import Cli

from fedsim.audit import broken_mechanisms as builds
from fedsim.audit.blind_baseline import blind_auc
from fedsim.audit.bounds import Bound, gaussian_worlds, two_worlds
from fedsim.audit.broken_mechanisms import Build
from fedsim.audit.samplers import poisson_p_value
from fedsim.audit.sanity import (
    at_least,
    audited,
    broken_row,
    broken_rows,
    membership_rows,
    null_row,
    rate_row,
    sampler_rows,
)
from fedsim.seeds import generator

BROKEN = [
    (builds.without_noise, two_worlds),
    (builds.clipped_sum, gaussian_worlds),
    (builds.noise_on_one_part, two_worlds),
    (builds.divided_by_realised_count, two_worlds),
]


def test_attacks_see_planted_leaks_and_nothing_else() -> None:
    rows = list(membership_rows(seed=0))
    assert len(rows) == 8
    assert [row for row in rows if not row.ok] == []


def test_broken_builds_and_samplers_are_caught_and_right_ones_pass() -> None:
    rows = [*broken_rows(seed=0), *sampler_rows(seed=0)]
    assert len(rows) == 8
    assert [row for row in rows if not row.ok] == []


@pytest.mark.parametrize(("build", "audit"), BROKEN)
def test_broken_builds_are_caught_with_the_stated_power(build: Build, audit: type) -> None:
    # at a power of .99 two misses in 40 have a chance of 6 %, three of .7 %
    caught = [broken_row("", build, audit, seed).ok for seed in range(40)]
    assert sum(caught) >= 38


@pytest.mark.slow
@pytest.mark.parametrize("audit", [two_worlds, gaussian_worlds])
def test_the_right_build_exceeds_its_epsilon_in_at_most_five_percent(audit: type) -> None:
    found = [audited(builds.right, audit, seed).epsilon_low > builds.EPSILON for seed in range(200)]
    assert np.mean(found) <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 200)


def test_a_right_build_would_not_be_called_broken() -> None:
    assert not broken_row("", builds.right, gaussian_worlds, seed=0).ok


def test_a_leak_turns_a_null_row_red() -> None:
    rng = generator(0, "sabotage")
    member = rng.random(2000) < 0.5
    assert null_row("", rng.normal(size=2000), member).ok
    assert not null_row("", rng.normal(size=2000) + 0.4 * member, member).ok
    assert not at_least("", 0.75, 0.5).ok


def test_a_bound_without_confidence_turns_its_row_red() -> None:
    def faulty(seed: int, trial: int) -> Bound:
        out, inside = generator(seed, trial).normal(size=(2, 100))
        right = two_worlds(out, inside, 0.0, generator(seed))
        rates = [(inside > 0).mean() / (out > 0).mean()]
        return replace(right, epsilon_low=float(np.log(max(rates))))

    assert not rate_row("", faulty, 0.0, seed=0).ok


def test_sampler_p_values_are_calibrated_and_see_fixed_batch_sizes() -> None:
    def p(seed: int) -> float:
        return poisson_p_value(
            builds.poisson_batches(500, 200, 0.05, generator(seed, "sampler")), 0.05
        )

    # nominal 5 %, Bonferroni, chi-squared only nearly: 3 s.e. of 500 are .03
    assert np.mean([p(seed) <= 0.05 for seed in range(500)]) <= 0.08
    fixed = np.argsort(generator(0).random((200, 500)), axis=1) < 25
    assert poisson_p_value(fixed, 0.05) < 1e-6
    wrong_rate = builds.poisson_batches(500, 200, 0.06, generator(0))
    assert poisson_p_value(wrong_rate, 0.05) < 1e-6


def test_the_blind_baseline_sees_members_that_differ_by_themselves() -> None:
    rng = generator(0, "blind")
    member = rng.random(1000) < 0.5
    labels = np.where(member, rng.integers(0, 3, 1000), rng.integers(1, 4, 1000))
    assert blind_auc(np.eye(4)[labels], member, rng) > 0.65


@pytest.mark.slow
def test_the_command_prints_the_rows_and_all_are_green(fedsim: Cli) -> None:
    done = fedsim("audit", "--sanity")
    assert "broken: clip after the sum" in done.stdout
    assert "0 of 26 are red" in done.stdout
    assert fedsim("audit", check=False).returncode == 2
