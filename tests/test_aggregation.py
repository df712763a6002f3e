"""Server rules and partial sums, by hand."""

import numpy as np
import pytest
import torch

from fedsim.config import Aggregation
from fedsim.errors import WrongInput
from fedsim.types import Announcement, Update, no_update
from strategies.aggregation import averages, make_aggregator
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


def test_fedavgm_by_hand() -> None:
    rule = make_aggregator(Aggregation(rule="fedavgm", lr=0.5, beta1=0.5))
    params, state = rule.step(PARAMS, update([2.0, 0.0], 2.0), rule.init(PARAMS))
    params, state = rule.step(params, update([0.0, 4.0], 1.0), state)
    # m: (2, 0), then (1, 4)
    assert params["w"].tolist() == pytest.approx([1 + 1 + 0.5, 2 + 2])
    assert state["first/w"].tolist() == [1.0, 4.0]


@pytest.mark.parametrize(
    ("rule", "second"),
    [
        # d = 2, then d = 1; beta2 = 0.75
        ("fedadagrad", [4.0, 5.0]),
        ("fedadam", [1.0, 0.75 + 0.25]),
        ("fedyogi", [1.0, 1.0]),  # v = 0 + 0.25 * 4; then v equals d squared and stays
    ],
)
def test_adaptive_rules_by_hand(rule: str, second: list[float]) -> None:
    aggregator = make_aggregator(Aggregation(rule=rule, lr=0.1, beta1=0.5, beta2=0.75, tau=0.5))
    params = PARAMS
    state = aggregator.init(PARAMS)
    w = 1.0
    m = 0.0
    for d, v in zip((2.0, 1.0), second, strict=True):
        params, state = aggregator.step(params, update([d, 0.0], 3.0), state)
        m = 0.5 * m + 0.5 * d
        w += 0.1 * m / (v**0.5 + 0.5)
        assert state["second/w"][0].item() == pytest.approx(v)
        assert params["w"].tolist() == pytest.approx([w, 2.0])


@pytest.mark.parametrize("rule", sorted(averages()))
def test_partial_sums_of_any_number_of_nodes_give_the_same_step(rule: str) -> None:
    rng = np.random.default_rng(0)
    devices = [update(rng.normal(size=2).tolist(), float(w)) for w in rng.integers(1, 9, 21)]
    found = []
    for nodes in (1, 3, 7):
        sums = [sum(devices[i::nodes], no_update(PARAMS)) for i in range(nodes)]
        total = sum(sums, no_update(PARAMS))
        aggregator = make_aggregator(Aggregation(rule=rule))
        found.append(aggregator.step(PARAMS, total, aggregator.init(PARAMS))[0]["w"].tolist())
    assert found[1] == pytest.approx(found[0], abs=1e-6)
    assert found[2] == pytest.approx(found[0], abs=1e-6)


@pytest.mark.parametrize("rule", sorted(averages()))
def test_an_empty_cohort_changes_nothing(rule: str) -> None:
    aggregator = make_aggregator(Aggregation(rule=rule))
    state = aggregator.init(PARAMS)
    params, after = aggregator.step(PARAMS, no_update(PARAMS), state)
    assert params is PARAMS
    assert after is state


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
