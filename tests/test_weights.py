"""Weights by hand; the inverse-probability estimate against the enumeration of every cohort."""

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedsim.config import Config, from_flat
from fedsim.errors import WrongInput
from fedsim.privacy.claims import amplification, relation
from fedsim.privacy.mechanism import device_mechanism
from fedsim.types import Cohort, Update, View, no_update
from strategies.aggregation import make_aggregator
from strategies.selection import inclusion_probabilities
from strategies.weights import weights, with_divisor

DEVICES = np.array(["a", "b", "c", "d"])
ACTIVITY = np.array([1, 2, 5, 8])
DELTAS = np.array([3.0, -1.0, 0.5, 2.0])
PARAMS = {"w": torch.zeros(1, dtype=torch.float64)}


def view(activity: np.ndarray = ACTIVITY, reachable: list[bool] | None = None) -> View:
    n = len(activity)
    there = np.array(reachable or [True] * n)
    return View(1, DEVICES[:n], activity, there, np.zeros(n, dtype=np.int64))


def config(
    weights: str = "inverse_probability", cap: float = 1e9, cohort: int = 2, **more: object
) -> Config:
    flat = {
        "aggregation.weights": weights,
        "aggregation.weight_cap": cap,
        "selection.cohort": cohort,
    }
    return from_flat({**flat, "aggregation.rule": "fedavg", "aggregation.lr": 1.0, **more})


def cohort(members: list[int], p: np.ndarray | None) -> Cohort:
    return Cohort(1, DEVICES[members], None if p is None else p[members])


def test_weights_are_equal_or_the_public_activity() -> None:
    found = cohort([0, 2], None)
    assert weights(found, view(), config("equal")).tolist() == [1.0, 1.0]
    assert weights(found, view(), config("examples")).tolist() == [1.0, 5.0]
    assert weights(found, view(), config("auto")).tolist() == [1.0, 5.0]
    assert weights(found, view(), config("auto", **{"dp.unit": "device"})).tolist() == [1.0, 1.0]


def test_inverse_probabilities_by_hand() -> None:
    # m = 2, n = 16: 2 * (1/16) / 0.5 and 2 * (8/16) / 0.8
    p = np.array([0.5, 0.5, 0.2, 0.8])
    assert weights(cohort([0, 3], p), view(), config()).tolist() == pytest.approx([0.25, 1.25])
    # who is out of reach does not count: n = 9
    away = view(reachable=[True, False, False, True])
    assert weights(cohort([0, 3], p), away, config()).tolist() == pytest.approx([4 / 9, 20 / 9])


def test_every_device_weighs_one_where_the_probability_is_proportional_to_activity() -> None:
    p = 2 * ACTIVITY / ACTIVITY.sum()
    assert weights(cohort([0, 1, 2, 3], p), view(), config()).tolist() == pytest.approx([1.0] * 4)


def estimate(members: list[int], p: np.ndarray, settings: Config) -> float:
    """What FedAvg makes of the cohort's updates."""
    found = weights(cohort(members, p), view(), settings)
    total = no_update(PARAMS)
    for i, w in zip(members, found, strict=True):
        total += Update({"w": torch.tensor([DELTAS[i] * w], dtype=torch.float64)}, w, 1, {})
    moved, _ = make_aggregator(settings.aggregation).step(PARAMS, with_divisor(total, settings), {})
    return float(moved["w"])


def expectation(p: np.ndarray, settings: Config) -> float:
    """The mean over all sixteen cohorts, each with its chance under independent coins."""
    mean = 0.0
    for coins in product([False, True], repeat=4):
        chance = np.where(coins, p, 1 - p).prod()
        mean += chance * estimate(np.flatnonzero(coins).tolist(), p, settings)
    return mean


EVERYONE = float(ACTIVITY @ DELTAS / ACTIVITY.sum())


@pytest.mark.parametrize(
    "scores", [np.ones(4), ACTIVITY.astype(float), ACTIVITY**0.5, [9.0, 1, 1, 1]]
)
def test_inverse_probability_is_unbiased_for_any_selection(scores: np.ndarray) -> None:
    p = inclusion_probabilities(np.asarray(scores, dtype=float), 2)
    assert expectation(p, config()) == pytest.approx(EVERYONE, abs=1e-6)


def test_other_weights_are_biased_and_the_same_enumeration_sees_it() -> None:
    p = inclusion_probabilities(ACTIVITY.astype(float), 2)
    for rule in ("equal", "examples"):
        assert abs(expectation(p, config(rule)) - EVERYONE) > 0.05


@given(st.lists(st.floats(0.001, 1.0), min_size=4, max_size=4), st.floats(0.1, 20.0))
def test_the_cap_bounds_every_weight(p: list[float], cap: float) -> None:
    members = cohort([0, 1, 2, 3], np.array(p))
    found = weights(members, view(), config(cap=cap))
    free = weights(members, view(), config())
    assert (found <= cap).all()
    assert (found == np.minimum(free, cap)).all()


def test_device_level_dp_bounds_every_weight_by_what_its_noise_is_scaled_to() -> None:
    p = np.array([0.01, 0.5, 0.2, 0.8])
    private = config(**{"dp.unit": "device", "dp.max_weight": 2.0})
    assert device_mechanism(private).max_weight == 2.0
    found = weights(cohort([0, 1, 2, 3], p), view(), private)
    assert found.tolist() == pytest.approx([2.0, 0.5, 2.0, 1.25])
    assert relation(private) == "zero_out"  # shares of everybody's activity change with a device
    claimed = config("equal", **{"dp.unit": "device", "selection.total_score": 16.0})
    assert relation(claimed) == "add_or_remove"


def test_a_minimum_of_updates_ends_the_claim_of_amplification() -> None:
    settings = {"dp.unit": "device", "selection.rule": "uniform"}
    assert amplification(config("equal", **settings)).claimed
    told = amplification(config("equal", **settings, **{"aggregation.min_updates": 3}))
    assert not told.claimed
    assert "min_updates" in told.reason


def test_unknown_probabilities_are_refused_in_a_sentence() -> None:
    settings = config(**{"selection.rule": "round_robin"})
    with pytest.raises(WrongInput, match="'round_robin' states none; choose a rule that does"):
        weights(cohort([0], None), view(), settings)
