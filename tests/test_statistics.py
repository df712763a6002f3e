"""Statistics of attacks against direct computations and known distributions."""

import numpy as np
import pytest
from scipy import stats

from fedsim.audit.intervals import over_targets, proportion_high, proportion_low
from fedsim.audit.region import (
    excess,
    gaussian,
    gaussian_epsilon,
    gaussian_mu,
    largest_auc,
    polygon,
)
from fedsim.audit.roc import (
    auc,
    auc_standard_error,
    balanced_accuracy,
    log_points,
    null_standard_error,
    precision,
    roc,
    tpr_at,
)
from fedsim.errors import WrongInput
from fedsim.seeds import generator


def drawn(n: int, mu: float, *names: str | int) -> tuple[np.ndarray, np.ndarray]:
    """N non-members from N(0, 1), n members from N(mu, 1)."""
    scores = generator(0, "statistics", *names).normal(size=2 * n)
    member = np.arange(2 * n) >= n
    return scores + mu * member, member


def test_the_auc_counts_pairs_and_halves_ties() -> None:
    scores = np.array([1.0, 2.0, 2.0, 3.0])
    member = np.array([False, True, False, True])
    assert auc(scores, member) == (1 + 0.5 + 1 + 1) / 4
    assert auc(np.zeros(4), member) == 0.5


def test_the_standard_errors_of_the_auc_match_repeated_draws() -> None:
    null = [auc(*drawn(100, 0.0, "null", i)) for i in range(500)]
    some = [auc(*drawn(100, 1.0, "some", i)) for i in range(500)]
    # a standard deviation of 500 draws has a relative s.e. of 3 %; 4 of them
    assert np.std(null) == pytest.approx(null_standard_error(100, 100), rel=0.13)
    assert np.std(some) == pytest.approx(auc_standard_error(*drawn(5000, 1.0)) * 50**0.5, rel=0.13)


def test_balanced_accuracy_of_noise_is_a_half_on_average() -> None:
    found = [balanced_accuracy(*drawn(50, 0.0, "noise", i)) for i in range(400)]
    assert np.mean(found) == pytest.approx(0.5, abs=4 * np.std(found) / 20)
    best = [
        np.max(np.subtract(*roc(*drawn(50, 0.0, "noise", i))[::-1])) / 2 + 0.5 for i in range(400)
    ]
    assert np.mean(best) > 0.56  # sabotage: the best threshold of the same records
    assert balanced_accuracy(*drawn(5000, 2.0)) == pytest.approx(stats.norm.cdf(1), abs=0.02)


def test_the_true_positive_rate_at_one_percent_is_that_of_the_distribution() -> None:
    found = tpr_at(0.01, *drawn(20_000, 2.0))
    assert found == pytest.approx(stats.norm.sf(stats.norm.isf(0.01) - 2), abs=0.02)


def test_a_rate_with_too_few_non_members_is_refused() -> None:
    with pytest.raises(
        WrongInput, match=r"at 0.1% false positives wants 10,000 non-members, got 5,000"
    ):
        tpr_at(0.001, *drawn(5000, 0.0))


def test_scores_that_are_all_equal_reach_no_rate_for_free() -> None:
    assert tpr_at(0.01, np.zeros(4000), np.arange(4000) < 2000) == 0.0


def test_precision_depends_on_the_prior() -> None:
    assert precision(0.1, 0.01, 0.5) == pytest.approx(10 / 11)
    assert precision(0.1, 0.01, 0.01) == pytest.approx(0.001 / (0.001 + 0.0099))
    assert precision(0.0, 0.0, 0.5) == 0.0


def test_log_points_lie_on_the_roc() -> None:
    scores, member = drawn(1000, 1.0)
    grid, true = log_points(scores, member)
    assert grid[0] == pytest.approx(1 / 1000)
    assert grid[-1] == 1
    thresholds = np.sort(scores[~member])[::-1]
    assert true[0] == (scores[member] > thresholds[1]).mean()


def test_infinite_scores_and_missing_members_are_refused() -> None:
    with pytest.raises(WrongInput, match="1 scores that are not finite"):
        auc(np.array([np.inf, 0.0]), np.array([True, False]))
    with pytest.raises(WrongInput, match="one of both is missing"):
        auc(np.zeros(2), np.array([True, True]))


@pytest.mark.parametrize("targets", [5, 8, 20])
def test_intervals_over_targets_cover_as_promised(targets: int) -> None:
    rng = generator(0, "cover", targets)
    trials = [over_targets(rng.normal(size=targets), rng) for _ in range(1000)]
    covered = np.mean([i.low <= 0 <= i.high for i in trials])
    promised = 0.95 if targets < 20 else 0.92  # the percentile bootstrap's own shortfall at 20
    assert covered >= promised - 3 * np.sqrt(0.05 * 0.95 / 1000)
    assert trials[0].method == ("t" if targets < 20 else "bootstrap") + f" over {targets} targets"


def test_an_interval_over_four_targets_is_refused() -> None:
    with pytest.raises(WrongInput, match="at least 5 targets, got 4"):
        over_targets(np.zeros(4), generator(0))


def test_clopper_pearson_equals_the_binomial_tail() -> None:
    high = float(proportion_high(3, 40, 0.05))
    assert stats.binom.cdf(3, 40, high) == pytest.approx(0.05)
    low = float(proportion_low(3, 40, 0.05))
    assert stats.binom.sf(2, 40, low) == pytest.approx(0.05)
    assert float(proportion_high(40, 40, 0.05)) == 1.0
    assert float(proportion_low(0, 40, 0.05)) == 0.0


def test_the_best_attacks_on_a_gaussian_mechanism_have_the_published_aucs() -> None:
    # attacks.md, section 2: exactly (eps, 1e-5)
    for epsilon, published in ((1, 0.575), (2, 0.639), (4, 0.744), (8, 0.881)):
        mu = gaussian_mu(epsilon, 1e-5)
        assert gaussian_epsilon(mu, 1e-5) == pytest.approx(epsilon, abs=1e-6)
        assert largest_auc(gaussian(mu)) == pytest.approx(published, abs=6e-4)
        assert largest_auc(gaussian(mu)) == pytest.approx(stats.norm.cdf(mu / 2**0.5), abs=1e-5)
    assert largest_auc(polygon(1.0, 0.0)) == pytest.approx(np.e / (1 + np.e), abs=1e-3)


def test_the_best_attack_exceeds_its_own_profile_in_at_most_five_percent_of_trials() -> None:
    mu = 1.0
    found = [
        excess(*drawn(500, mu, "region", i), gaussian(mu), generator(0, "split", i)) > 0
        for i in range(1000)
    ]
    assert np.mean(found) <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 1000)


def test_an_attack_that_a_profile_forbids_exceeds_it() -> None:
    assert excess(*drawn(2000, 2.0), gaussian(1.0), generator(0)) > 0.1
    with pytest.raises(WrongInput, match="between the false positive rate and 1"):
        excess(*drawn(100, 0.0), lambda fpr: fpr / 2, generator(0))
