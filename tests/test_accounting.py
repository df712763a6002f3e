"""Epsilon against independent values, and its laws.

Seen to fail: sampling_rate left out of PoissonSampledDpEvent, count ignored in `self_compose`,
`joint_multiplier` with a plain sum instead of squares, `quantise` rounding down, the
constant of `renyi_epsilons` with the wrong sign of log1p, `gaussian_delta` with mu for mu/2.
"""

import math
import warnings

import numpy as np
import pytest
from dp_accounting import get_sigma_gaussian
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.sparse import csr_array
from scipy.stats import norm

from fedsim.errors import WrongInput
from fedsim.privacy.accounting import (
    Event,
    delta,
    epsilon,
    epsilon_rdp,
    gaussian_delta,
    group_epsilon,
    joint_multiplier,
    power,
)
from fedsim.privacy.renyi_table import RenyiTable, orders, quantise, renyi_epsilons

# noise multiplier, rate, releases, delta, epsilon to two places, where the figure comes from
GOLDEN = [
    (1.0, 0.001, 500, 1e-5, 0.11, "activity-weighted selection, z = 1 (design notes, section 3)"),
    (1.0, 0.003, 500, 1e-5, 0.36, "the same"),
    (1.0, 0.01, 500, 1e-5, 1.33, "the same"),
    (1.0, 0.03, 500, 1e-5, 4.29, "the same"),
    (1.0, 0.1, 500, 1e-5, 16.56, "the same (16.6)"),
    (1.0, 0.3, 500, 1e-5, 63.88, "the same (63.9)"),
    (2.0, 0.001, 500, 1e-5, 0.03, "activity-weighted selection, z = 2 (.04, rounded up)"),
    (2.0, 0.003, 500, 1e-5, 0.12, "the same"),
    (2.0, 0.01, 500, 1e-5, 0.43, "the same"),
    (2.0, 0.03, 500, 1e-5, 1.44, "the same"),
    (2.0, 0.1, 500, 1e-5, 5.56, "the same"),
    (2.0, 0.3, 500, 1e-5, 20.90, "the same"),
    (1.0, 0.01, 1000, 1e-5, 1.83, "micro-batches read as if per example"),
    (0.5, 0.01, 1000, 1e-5, 13.36, "micro-batches with 2C, z = 1 (13.4)"),
    (0.3, 0.01, 1000, 1e-5, 69.82, "micro-batches with 2C, z = 0.6 (69.8)"),
    (
        0.3,
        0.003,
        500,
        1e-5,
        24.97,
        "inverse-probability weight without noise scaled to its cap (25)",
    ),
    (1.0, 1.0, 5, 1e-5, 11.48, "five visible participations (11.5)"),
    (1.0, 1.0, 1, 1e-5, 4.38, "one Gaussian: Balle and Wang (2018), solved below"),
]


@pytest.mark.parametrize(("z", "q", "count", "at", "expected", "source"), GOLDEN)
def test_epsilon_has_its_golden_values(
    z: float, q: float, count: int, at: float, expected: float, source: str
) -> None:
    assert epsilon([Event(z, q, count)], at) == pytest.approx(expected, abs=0.0051), source


@pytest.mark.slow
@pytest.mark.parametrize(
    ("factor", "expected"), [(1.0, 1.30), (0.97, 1.76), (0.95, 2.50), (0.9, 9.20), (0.8, 147.8)]
)
def test_decaying_noise_is_composed_step_by_step(factor: float, expected: float) -> None:
    events = [Event(1.2 * factor**epoch, 0.01, 100) for epoch in range(10)]
    assert epsilon(events, 1e-5) == pytest.approx(expected, rel=0.003)


@pytest.mark.parametrize(
    ("z", "q", "count"), [(1.0, 0.01, 500), (2.0, 0.1, 500), (0.7, 0.004, 2000), (4.0, 0.01, 10000)]
)
def test_opacus_agrees(z: float, q: float, count: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from opacus.accountants import PRVAccountant, RDPAccountant

        prv = PRVAccountant()
        rdp = RDPAccountant()
        prv.history = [(z, q, count)]
        rdp.history = [(z, q, count)]
        upper = prv.get_epsilon(1e-5, eps_error=0.01)
        renyi = rdp.get_epsilon(1e-5)
    ours = epsilon([Event(z, q, count)], 1e-5)
    assert upper - 0.03 <= ours <= upper + 1e-3
    assert ours <= renyi
    assert epsilon_rdp([Event(z, q, count)], 1e-5) == pytest.approx(renyi, rel=0.03)


def test_published_figures_of_moments_accountants_are_not_undercut_by_more_than_their_slack() -> (
    None
):
    """Abadi et al. (2016): 1.26 at z = 4, q = .01, 10,000 steps by moments, looser than PLD."""
    assert 0.7 * 1.26 < epsilon([Event(4.0, 0.01, 10_000)], 1e-5) < 1.26


@pytest.mark.parametrize(("z", "eps"), [(0.5, 3.0), (1.0, 1.0), (3.0, 0.2)])
def test_the_closed_form_of_a_gaussian_is_its_integral(z: float, eps: float) -> None:
    def excess(x: float) -> float:
        return max(0.0, norm.pdf(x, 1, z) - math.exp(eps) * norm.pdf(x, 0, z))

    exact = quad(excess, -20, 30, limit=500, points=[0, 1])[0]
    assert gaussian_delta(z, eps) == pytest.approx(exact, rel=1e-6)
    assert delta([Event(z)], eps) == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize(("z", "q", "eps"), [(1.0, 0.1, 0.3), (0.7, 0.3, 0.5)])
def test_delta_of_one_sampled_release_is_the_worse_of_both_directions(
    z: float, q: float, eps: float
) -> None:
    def hockey_stick(sign: int) -> float:
        def excess(x: float) -> float:
            with_unit = (1 - q) * norm.pdf(x, 0, z) + q * norm.pdf(x, 1, z)
            pair = (with_unit, norm.pdf(x, 0, z))[::sign]
            return max(0.0, pair[0] - math.exp(eps) * pair[1])

        return float(quad(excess, -15, 16, limit=1000, points=[0, 1])[0])

    exact = max(hockey_stick(1), hockey_stick(-1))
    assert delta([Event(z, q)], eps) == pytest.approx(exact, rel=2e-3)
    assert delta([Event(z, q)], eps) >= exact * (1 - 1e-4)  # the oracle's own error


def test_epsilon_and_delta_are_each_other_s_inverse() -> None:
    for events in (
        [Event(1.0, 0.02, 300)],
        [Event(1.5, 1.0, 4)],
        [Event(1.0, 0.02, 30), Event(2.0, 1.0, 2)],
    ):
        assert delta(events, epsilon(events, 1e-4)) == pytest.approx(1e-4, rel=0.02)


def test_a_mixture_costs_more_than_its_parts_and_less_than_their_sum() -> None:
    a = [Event(1.0, 0.05, 100)]
    b = [Event(3.0, 1.0, 3)]
    both = epsilon(a + b, 1e-5)
    assert max(epsilon(a, 1e-5), epsilon(b, 1e-5)) < both
    assert both < epsilon(a, 5e-6) + epsilon(b, 5e-6)


def test_nothing_released_costs_nothing_and_no_noise_hides_nothing() -> None:
    assert epsilon([], 1e-5) == epsilon([Event(1.0, 0.0, 9), Event(1.0, 0.1, 0)], 1e-5) == 0
    assert epsilon([Event(0.0, 0.1)], 1e-5) == math.inf
    assert (delta([Event(0.0)], 1.0), delta([], 0.0)) == (1.0, 0.0)
    assert power([Event(0.0)], np.array([0.0]))[0] == 1.0


def test_the_trade_off_curve_bounds_the_best_attack_on_a_gaussian_tightly() -> None:
    rates = np.array([1e-4, 1e-3, 0.01, 0.1, 0.5, 0.9])
    for z in (0.5, 1.0, 4.0):
        best = norm.cdf(norm.ppf(rates) + 1 / z)  # Neyman and Pearson
        bound = power([Event(z)], rates)
        assert (bound >= best - 1e-9).all()
        assert bound == pytest.approx(best, abs=0.01)


def test_several_copies_cost_more() -> None:
    events = [Event(2.0, 0.01, 500)]
    assert group_epsilon(events, 1, 1e-5) == pytest.approx(epsilon(events, 1e-5), rel=1e-6)
    assert group_epsilon(events, 2, 1e-5) > 2 * epsilon(events, 1e-5)


def test_a_record_s_attack_on_a_device_level_run_faces_2c() -> None:
    """Section 3: with full participation epsilon 8 becomes 20.8, and 2 becomes 4.7 (delta 1e-3)."""
    for spent, expected in ((8.0, 20.8), (2.0, 4.7)):
        z = get_sigma_gaussian(spent, 1e-3)
        assert epsilon([Event(z / 2)], 1e-3) == pytest.approx(expected, abs=0.05)


def test_blocks_released_together_add_their_squares() -> None:
    assert joint_multiplier([(3.0, 6.0), (1.0, 2.0)]) == pytest.approx(2 / math.sqrt(2))
    assert joint_multiplier([(1.0, 2.0), (1.0, 0.0)]) == 0.0
    assert joint_multiplier([(0.0, 0.0)]) == math.inf


@settings(max_examples=20, deadline=None)
@given(st.floats(0.6, 5.0), st.floats(0.001, 0.5), st.integers(1, 200), st.floats(1.05, 3.0))
def test_epsilon_falls_with_noise_and_rises_with_rate_and_count(
    z: float, q: float, count: int, more: float
) -> None:
    def at(*event: float) -> float:
        return RenyiTable((Event(event[0], event[1]),)).epsilons(np.array([[int(event[2])]]), 1e-5)[
            0
        ]

    here = at(z, q, count)
    assert at(z * more, q, count) <= here + 1e-9
    assert at(z, min(1.0, q * more), count) >= here - 1e-9
    assert at(z, q, count + 10) >= here - 1e-9


def test_a_table_gives_what_the_library_gives_one_by_one() -> None:
    events = (Event(1.0, 0.01), Event(1.0, 0.1), Event(2.0, 1.0))
    counts = np.array([[500, 0, 0], [0, 20, 3], [10, 10, 10], [0, 0, 0], [1, 0, 0]])
    found = RenyiTable(events).epsilons(counts, 1e-5)
    for row, eps in zip(counts.tolist(), found, strict=True):
        one_by_one = [
            Event(e.noise_multiplier, e.sampling_rate, n) for e, n in zip(events, row, strict=True)
        ]
        assert eps == pytest.approx(epsilon_rdp(one_by_one, 1e-5), abs=1e-9)
    sparse = RenyiTable(events).epsilons(csr_array(counts), 1e-5)
    np.testing.assert_allclose(sparse, found, rtol=1e-12)  # other orders of addition


def test_a_table_is_infinite_where_noise_was_off() -> None:
    found = RenyiTable((Event(0.0, 0.1), Event(1.0, 0.1))).epsilons(
        np.array([[1, 0], [0, 1]]), 1e-5
    )
    assert found[0] == math.inf
    assert 0 < found[1] < 10


def test_no_divergence_is_epsilon_zero() -> None:
    assert renyi_epsilons(np.zeros((1, len(orders()))), 1e-5)[0] == 0.0


@given(st.integers(1, 1000), st.floats(0.5, 6.0), st.integers(0, 2**32))
def test_quantised_rates_are_few_and_never_smaller(size: int, skew: float, seed: int) -> None:
    before = np.append(np.random.default_rng(seed).random(size) ** skew, 0.0)
    after = quantise(before)
    assert len(np.unique(after)) <= 64
    assert (after >= before).all()
    assert after.max() == before.max()
    assert after[-1] == 0.0


def test_what_is_no_event_or_no_delta_is_refused() -> None:
    for wrong in ((-1.0, 0.1, 1), (1.0, 1.1, 1), (1.0, 0.1, -1), (math.nan, 0.1, 1)):
        with pytest.raises(WrongInput, match="an event wants"):
            Event(*wrong)
    with pytest.raises(WrongInput, match="delta must lie between 0 and 1"):
        epsilon([Event(1.0)], 0.0)
