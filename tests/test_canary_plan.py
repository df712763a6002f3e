"""Canaries, their plan, and exposure against its null."""

from collections.abc import Sequence

import numpy as np
import pytest
from scipy import stats

from fedsim.audit.canary_patterns import (
    Canary,
    check_inputs,
    completions,
    draw_canaries,
    make_pattern,
    position,
    reference_codes,
)
from fedsim.audit.canary_plan import plan, plan_rows
from fedsim.audit.exposure import (
    exposure,
    exposure_by_fit,
    exposure_standard_error,
    joint_p_value,
    largest_mean,
    null_mean,
    p_value,
    rank,
    rank_among,
)
from fedsim.errors import WrongInput
from fedsim.seeds import generator

PIN = make_pattern("pin", 4)


def test_patterns_have_a_gap_of_candidates() -> None:
    assert PIN.space == 10_000
    assert " ".join(PIN.sentence("bank", np.array([1, 2, 3, 4]))) == "my bank pin code is 1 2 3 4"
    assert make_pattern("colour", 4).sentence("car", np.array([0, 1, 2, 3]))[-1] == "yellow"
    own = make_pattern("open {code} now", 4, ("a", "b"))
    assert " ".join(own.sentence("", np.array([0, 1, 1, 0]))) == "open a b b a now"
    assert (own.gap, own.space) == (1, 16)


def test_what_is_no_pattern_is_refused() -> None:
    with pytest.raises(WrongInput, match="4 to 10 tokens"):
        make_pattern("pin", 3)
    with pytest.raises(WrongInput, match="did you mean 'colour'"):
        make_pattern("color", 4)
    with pytest.raises(WrongInput, match="all different"):
        make_pattern("pin", 4, ("a", "a"))


def test_codes_are_uniform_independent_and_named() -> None:
    drawn = draw_canaries(PIN, 2500, seed=5)
    counts = np.bincount(np.concatenate([c.code for c in drawn]), minlength=10)
    assert stats.chisquare(counts).pvalue > 1e-4  # false alarms: 1 in 10,000 seeds
    assert len({c.word for c in drawn[:24]}) == 24
    assert (draw_canaries(PIN, 3, seed=5)[2].code == drawn[2].code).all()


def test_a_canary_stands_at_its_position_among_the_completions() -> None:
    listed = completions(PIN)
    assert listed.shape == (10_000, 4)
    for canary in draw_canaries(PIN, 5, seed=1):
        assert (listed[position(canary)] == canary.code).all()
    with pytest.raises(WrongInput, match="1,000,000 completions"):
        completions(make_pattern("pin", 6))


def test_a_space_in_which_two_codes_are_one_input_is_refused() -> None:
    ids = {
        token: i
        for i, token in enumerate(sorted({*PIN.sentence("bank", np.arange(4)), *"0123456789"}))
    }

    def words(tokens: Sequence[str]) -> list[int]:
        return [ids.get(token, -1) for token in tokens]

    check_inputs(PIN, words)
    check_inputs(make_pattern("pin", 6), words)
    with pytest.raises(
        WrongInput, match="'my bank pin code is 0 0 0 0' and 'my bank pin code is 0 0 0 1'"
    ):
        check_inputs(PIN, lambda tokens: words(tokens)[:8])
    for length in (4, 6):
        with pytest.raises(WrongInput, match="a model that sees order"):
            check_inputs(make_pattern("pin", length), lambda tokens: sorted(set(words(tokens))))
        with pytest.raises(WrongInput, match="same input"):
            check_inputs(make_pattern("pin", length), lambda tokens: [-1 for _ in tokens])


@pytest.mark.parametrize(
    ("space", "published"), [(10, 1.143), (100, 1.396), (10_000, 1.442), (10**8, 1.443)]
)
def test_the_mean_exposure_without_leakage_is_the_published_one(
    space: int, published: float
) -> None:
    assert null_mean(space) == pytest.approx(published, abs=1e-3)


@pytest.mark.parametrize("tied", [False, True])
def test_exposure_of_random_losses_has_the_nulls_mean_and_p_values_with_ties_too(
    tied: bool,
) -> None:
    rng = generator(0, "null", int(tied))
    ranks = []
    for _ in range(2000):
        losses = rng.random(100)
        ranks.append(rank(np.round(losses, 1) if tied else losses, int(rng.integers(100)), rng))
    found = np.array([exposure(r, 100) for r in ranks])
    # 3 standard errors of a mean of 2,000: .3 % false alarms
    assert found.mean() == pytest.approx(null_mean(100), abs=3 * exposure_standard_error(2000))
    assert np.mean([p_value(r, 100) <= 0.05 for r in ranks]) == pytest.approx(0.05, abs=3 * 0.0049)


def test_ties_in_the_canarys_favour_would_be_seen() -> None:
    rng = generator(0, "favour")
    optimistic = []
    for _ in range(500):
        losses = np.round(rng.random(100), 1)
        optimistic.append(exposure(1 + int((losses < losses[0]).sum()), 100))
    assert np.mean(optimistic) > null_mean(100) + 3 * exposure_standard_error(500)


def test_joint_p_values_are_valid_and_shrink_with_leakage() -> None:
    rng = generator(0, "joint")
    small = [
        joint_p_value(np.array([exposure(r, 10_000) for r in rng.integers(1, 10_001, size=6)]))
        <= 0.05
        for _ in range(2000)
    ]
    assert np.mean(small) == pytest.approx(0.05, abs=3 * 0.0049)
    assert joint_p_value(np.full(6, 6.9)) < 1e-6


def test_a_canary_that_leaks_has_the_largest_exposure() -> None:
    losses = np.arange(10_000.0)
    assert exposure(rank(losses, 0, generator(0)), 10_000) == pytest.approx(np.log2(10_000))


def test_among_references_the_exposure_is_capped() -> None:
    rng = generator(0, "references")
    codes = reference_codes(make_pattern("pin", 8), 1023, rng)
    assert codes.shape == (1023, 8)
    assert exposure(rank_among(-1.0, codes.sum(1).astype(float), rng), 1024) == 10.0


def test_the_skew_normal_fit_extends_the_ranks_of_a_skew_normal() -> None:
    others = stats.skewnorm.rvs(3.0, loc=10, scale=2, size=5000, random_state=0)
    own = float(stats.skewnorm.ppf(2**-8, 3.0, loc=10, scale=2))
    assert exposure_by_fit(own, others, 10**8) == pytest.approx(8.0, abs=0.7)
    with pytest.raises(WrongInput, match="nothing is extrapolated"):
        exposure_by_fit(own, others, 10_000)
    with pytest.raises(WrongInput, match="wants 200 references"):
        exposure_by_fit(own, others[:199], 10**8)


def test_a_private_choice_of_the_code_stays_under_the_bound_on_the_mean() -> None:
    # The exponential mechanism over 1,000 ranks at epsilon: the leakiest ranks that pure DP allows.
    for epsilon in (0.5, 2.0, 4.0):
        best = np.minimum(1, np.exp(epsilon) * np.arange(1, 1001) / 1000)
        mean = (np.diff(best, prepend=0) * (np.log2(1000) - np.log2(np.arange(1, 1001)))).sum()
        assert null_mean(1000) < mean <= largest_mean(epsilon)


def test_plans_choose_light_median_and_heavy_devices_by_name() -> None:
    devices = np.array([f"d{i:03}" for i in range(100)])
    activity = np.arange(100)
    canaries: list[Canary] = draw_canaries(PIN, 3, seed=1)
    bounds = {"light": (1, 10), "median": (45, 55), "heavy": (90, 99)}
    for holders, (low, high) in bounds.items():
        rows = plan(canaries, devices, activity, holders, each=2, copies=5, period=1, seed=1)
        held = [int(row.device[1:]) for row in rows]
        assert len(rows) == 6
        assert all(low <= d <= high for d in held)
        fewer = plan(canaries[:1], devices, activity, holders, each=2, copies=5, period=1, seed=1)
        assert fewer == rows[:2]
    assert plan_rows(canaries, rows)[0]["sentence"].startswith("my bank pin code is")
    with pytest.raises(WrongInput, match="choose 1 to 99"):
        plan(canaries, devices, activity, "light", each=100, copies=1, period=1, seed=1)
    with pytest.raises(WrongInput, match="did you mean 'heavy'"):
        plan(canaries, devices, activity, "heavies", each=1, copies=1, period=1, seed=1)


def test_a_joined_code_is_one_token_and_takes_one_place() -> None:
    pattern = make_pattern("number")
    canary = draw_canaries(pattern, 1, 3)[0]
    code = "".join(str(int(i)) for i in canary.code)
    assert canary.sentence == ("my", canary.word, "number", "is", code)
    assert (pattern.gap, pattern.width, pattern.space) == (4, 1, 10_000)
    with pytest.raises(WrongInput, match="as the same input"):
        check_inputs(pattern, lambda tokens: [hash(t) % 97 for t in tokens])
