"""Server rules and partial sums, by hand."""

import numpy as np
import pytest
import torch

from fedsim.config import Aggregation
from fedsim.errors import WrongInput
from fedsim.types import Cohort, Update, View, no_update
from fedsim.wire import Announcement
from strategies.aggregation import make_aggregator, weights
from strategies.roster import merge

PARAMS = {"w": torch.tensor([1.0, 2.0])}


def update(delta: list[float], weight: float) -> Update:
    return Update({"w": torch.tensor(delta).double() * weight}, weight, 1, {"loss_sum": 1.0})


def test_updates_add_up_and_nothing_is_their_zero() -> None:
    total = no_update(PARAMS) + update([1.0, 0.0], 1.0) + update([0.0, 2.0], 3.0)
    assert total.delta["w"].tolist() == [1.0, 6.0]
    assert (total.weight, total.devices, total.metrics) == (4.0, 2, {"loss_sum": 2.0})


def test_fedavg_by_hand() -> None:
    rule = make_aggregator(Aggregation(rule="fedavg", lr=1.0))
    total = update([1.0, 0.0], 1.0) + update([0.0, 2.0], 3.0)
    params, state = rule.step(PARAMS, total, rule.init(PARAMS))
    assert params["w"].tolist() == [1.25, 3.5]
    assert state == {}
    assert PARAMS["w"].tolist() == [1.0, 2.0]


def test_fedadam_by_hand() -> None:
    rule = make_aggregator(Aggregation(rule="fedadam", lr=0.1, beta1=0.5, beta2=0.75, tau=0.5))
    state = rule.init(PARAMS)
    params, state = rule.step(PARAMS, update([2.0, 0.0], 2.0), state)
    # m = 1, v = 1: 0.1 * 1 / (1 + 0.5)
    assert params["w"].tolist() == pytest.approx([1.0 + 0.1 / 1.5, 2.0])
    assert state["first/w"].tolist() == [1.0, 0.0]
    params, state = rule.step(params, update([0.0, 0.0], 1.0), state)
    # m = 0.5, v = 0.75
    assert params["w"].tolist() == pytest.approx([1.0 + 0.1 / 1.5 + 0.05 / (0.75**0.5 + 0.5), 2.0])


@pytest.mark.parametrize("rule", ["fedavg", "fedadam"])
def test_an_empty_cohort_changes_nothing(rule: str) -> None:
    aggregator = make_aggregator(Aggregation(rule=rule))
    state = aggregator.init(PARAMS)
    params, after = aggregator.step(PARAMS, no_update(PARAMS), state)
    assert params is PARAMS
    assert after is state


def test_weights_are_equal_or_the_public_activity() -> None:
    devices = np.array(["a", "b", "c"])
    ones = np.ones(3, dtype=np.int64)
    view = View(1, devices, np.array([4, 0, 16]), ones.astype(bool), ones)
    cohort = Cohort(1, np.array(["a", "c"]), None)
    assert weights(cohort, view, Aggregation(weights="equal")).tolist() == [1.0, 1.0]
    for rule in ("examples", "auto"):
        assert weights(cohort, view, Aggregation(weights=rule)).tolist() == [4.0, 16.0]


def announce(devices: list[str]) -> Announcement:
    return Announcement(np.array(devices, dtype=np.str_), np.arange(len(devices)))


def test_a_roster_is_sorted_by_device_whatever_the_nodes() -> None:
    roster = merge({7: announce(["c", "a"]), 3: announce(["b"]), 5: announce([])})
    assert roster.devices.tolist() == ["a", "b", "c"]
    assert roster.nodes.tolist() == [7, 3, 7]
    assert roster.activity.tolist() == [1, 0, 0]
    assert roster.nodes_of(np.array(["a", "b"])).tolist() == [7, 3]


def test_a_device_on_two_nodes_is_refused_by_name() -> None:
    with pytest.raises(WrongInput, match="device 'b' is announced by two nodes"):
        merge({1: announce(["a", "b"]), 2: announce(["b"])})
