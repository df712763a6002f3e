"""Robust rules by hand, and in any order of nodes."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedsim.config import Aggregation, from_flat
from fedsim.errors import WrongInput
from fedsim.types import Params, Reply, Update, no_update
from strategies.aggregation import AGGREGATORS, combine, make_aggregator
from strategies.aggregation.robust import krum_scores, median, multi_krum, trimmed_mean
from strategies.disclosure import asked_of, disclosure_sentences

COMBINERS = {name: rule.combine for name, rule in AGGREGATORS.items() if rule.combine}
PARAMS = {"w": torch.zeros(2), "b": torch.zeros(())}


def deltas(*rows: list[float]) -> Params:
    """Devices' changes: the first two numbers are w, the last is b."""
    table = torch.tensor(rows)
    return {"w": table[:, :2], "b": table[:, 2]}


FIVE = deltas([1, 0, 1], [2, 0, 1], [3, 9, 1], [4, 1, 1], [100, -50, 1])


def test_the_median_by_hand() -> None:
    found = median(FIVE, Aggregation())
    assert found["w"].tolist() == [3.0, 0.0]
    assert found["b"].tolist() == 1.0
    even = median({name: d[:4] for name, d in FIVE.items()}, Aggregation())
    assert even["w"].tolist() == [2.5, 0.5]


def test_the_trimmed_mean_by_hand() -> None:
    found = trimmed_mean(FIVE, Aggregation(trim=0.2))  # one of five at each end
    assert found["w"].tolist() == pytest.approx([3.0, 1 / 3])
    untrimmed = trimmed_mean(FIVE, Aggregation(trim=0.19))
    assert untrimmed["w"].tolist() == pytest.approx([22.0, -8.0])


def test_krum_s_scores_by_hand() -> None:
    # on a line at 0, 1, 3, 7: of n = 4 with f = 1 each counts its one nearest other
    line = {"w": torch.tensor([[0.0], [1.0], [3.0], [7.0]])}
    assert krum_scores(line, 1).tolist() == [1.0, 1.0, 4.0, 16.0]
    # f = 0: its two nearest
    assert krum_scores(line, 0).tolist() == [1 + 9, 1 + 4, 4 + 9, 16 + 36]
    assert multi_krum(line, Aggregation(trim=0.25))["w"].tolist() == pytest.approx([4 / 3])
    assert multi_krum(line, Aggregation(trim=0.0))["w"].tolist() == pytest.approx([11 / 4])


@pytest.mark.parametrize("rule", sorted(COMBINERS))
def test_of_one_device_every_rule_returns_its_change(rule: str) -> None:
    one = {name: d[:1] for name, d in FIVE.items()}
    found = COMBINERS[rule](one, Aggregation(rule=rule, trim=0.4))
    assert found["w"].tolist() == [1.0, 0.0]


@given(st.lists(st.floats(-5, 5), min_size=8, max_size=8), st.floats(-1e6, 1e6))
def test_one_liar_of_nine_cannot_leave_the_range_of_the_others(
    honest: list[float], lie: float
) -> None:
    rows = {"w": torch.tensor([[h] for h in [*honest, lie]])}
    for rule in ("median", "trimmed_mean"):
        found = float(COMBINERS[rule](rows, Aggregation(rule=rule, trim=0.2))["w"])
        assert min(honest) - 1e-4 <= found <= max(honest) + 1e-4


def reply(first: int, count: int) -> Reply:
    """Devices d<first> ... of a node, with changes that depend only on their number."""
    numbers = torch.arange(first, first + count, dtype=torch.float32)
    stacked = {"w": torch.stack([numbers.sin(), numbers.cos()], 1), "b": numbers % 3}
    devices = np.array([f"d{i:02d}" for i in range(first, first + count)], dtype=np.str_)
    return Reply(
        1, devices, Update(stacked, float(count), count, {"steps": float(count)}), single=True
    )


@pytest.mark.parametrize("rule", sorted(COMBINERS))
def test_the_number_and_order_of_nodes_changes_no_bit(rule: str) -> None:
    settings = Aggregation(rule=rule)
    whole = combine([reply(0, 10)], no_update(PARAMS), settings)
    parts = combine([reply(7, 3), reply(0, 2), reply(2, 5)], no_update(PARAMS), settings)
    assert all(torch.equal(whole.delta[name], parts.delta[name]) for name in PARAMS)
    assert (parts.weight, parts.devices, parts.metrics) == (1.0, 10, {"steps": 10.0})


def test_a_server_rule_steps_on_what_was_found() -> None:
    total = combine([reply(0, 5)], no_update(PARAMS), Aggregation(rule="median"))
    for step in ("fedavg", "fedadam"):
        chosen = Aggregation(rule="median", step=step, lr=0.5)
        plain = Aggregation(rule=step, lr=0.5)
        found, _ = make_aggregator(chosen).step(PARAMS, total, make_aggregator(chosen).init(PARAMS))
        wanted, _ = make_aggregator(plain).step(PARAMS, total, make_aggregator(plain).init(PARAMS))
        assert found["w"].tolist() == wanted["w"].tolist()


def test_nobody_is_no_update() -> None:
    none = combine([reply(0, 0)], no_update(PARAMS), Aggregation(rule="median"))
    assert (none.weight, none.devices) == (0.0, 0)


def test_single_updates_are_told_and_refused_under_a_secure_sum() -> None:
    settings = from_flat({"aggregation.rule": "median"})
    assert asked_of(settings).single
    assert "The server sees each device's update" in disclosure_sentences(settings)[0]
    with pytest.raises(
        WrongInput, match=r"secure_sum.* only sums, and aggregation\.rule = 'median' needs"
    ):
        asked_of(from_flat({"aggregation.rule": "median", "dp.trust": "secure_sum"}))
    losses = {"selection.rule": "loss"}
    assert asked_of(from_flat(losses)).figures
    assert "each device's training loss" in disclosure_sentences(from_flat(losses))[0]
    with pytest.raises(
        WrongInput, match=r"selection\.rule = 'loss' needs each device's training loss"
    ):
        asked_of(from_flat({**losses, "dp.trust": "secure_sum"}))
    assert asked_of(from_flat({"dp.trust": "secure_sum"})).single is False


def test_bounds_on_updates_are_told() -> None:
    bounds = {"aggregation.max_norm": 2.5, "aggregation.min_updates": 4}
    lines = disclosure_sentences(from_flat(bounds | {"aggregation.over_norm": "clip"}))
    assert "over the norm 2.5 is scaled down to it" in lines[1]
    assert "fewer than 4 valid updates" in lines[2]
    assert "is left out" in disclosure_sentences(from_flat(bounds))[1]


def test_a_step_that_is_no_rule_of_sums_is_refused_even_where_it_has_no_say() -> None:
    """Seen to fail: a rule that is not robust made without a look at its step."""
    for rule, step in (("median", "multi_krum"), ("median", "fedavgg"), ("fedadam", "fedavgg")):
        with pytest.raises(
            WrongInput, match=f"aggregation.step = '{step}' is not known; choose one of fed"
        ):
            make_aggregator(Aggregation(rule=rule, step=step))


def test_a_robust_rule_has_no_weights() -> None:
    with pytest.raises(WrongInput, match="'multi_krum' counts every device alike"):
        asked_of(from_flat({"aggregation.rule": "multi_krum", "aggregation.weights": "examples"}))


@pytest.mark.parametrize("rule", sorted(AGGREGATORS))
def test_a_rule_that_needs_single_updates_is_not_said_to_look_at_the_sum_alone(rule: str) -> None:
    """Seen to fail: `of_sum=True` at the entry of the median."""
    assert AGGREGATORS[rule].of_sum is not asked_of(from_flat({"aggregation.rule": rule})).single
