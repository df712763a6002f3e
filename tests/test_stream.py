"""Streams: what a device holds in a period, by hand and by property."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsim.config import Data, Stream
from fedsim.data.holdings import Holdings
from fedsim.data.stream import (
    DAY,
    Arrivals,
    by_poisson,
    by_time,
    period_of_round,
    rounds_per_period,
)
from fedsim.data.synthetic_requests import Requests
from fedsim.errors import WrongInput

OWNER = np.array([0, 0, 0, 0, 1, 1, 1, 1])
TIME = np.array([0, 1, 2, 3, 0, 1, 2, 3]) * DAY + 1.0


def stream(**settings: object) -> Stream:
    return Stream.model_validate({"mode": "continual", "periods": 4} | settings)


def held(arrivals: Arrivals, period: int, device: int = 0) -> list[int]:
    """The arrival periods of what a device holds."""
    flags = arrivals.held(period) & (arrivals.owner == device)
    return arrivals.period[flags].tolist()


def by_hand(**settings: object) -> Arrivals:
    return by_time(stream(**settings), OWNER, TIME, seed=1)


def test_records_arrive_by_their_time() -> None:
    assert by_hand().period.tolist() == [1, 2, 3, 4, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"memory": "all"}, [[1], [1, 2], [1, 2, 3], [1, 2, 3, 4]]),
        ({"memory": "current"}, [[1], [2], [3], [4]]),
        ({"memory": "window", "window": 2}, [[1], [1, 2], [2, 3], [3, 4]]),
        # periods are 0.75 days long and end at 0.75, 1.5, 2.25, 3 days
        ({"memory": "age", "max_age_days": 1.0}, [[1], [2], [3], [3, 4]]),
    ],
)
def test_memory_rules_by_hand(settings: dict[str, object], expected: list[list[int]]) -> None:
    arrivals = by_hand(**settings)
    assert [held(arrivals, p) for p in (1, 2, 3, 4)] == expected


def test_a_reservoir_keeps_the_smallest_keys_of_each_device() -> None:
    arrivals = by_hand(memory="reservoir", reservoir=2)
    for device in (0, 1):
        for period in (1, 2, 3, 4):
            arrived = np.flatnonzero((device == OWNER) & (arrivals.period <= period))
            smallest = arrived[np.argsort(arrivals.rank[arrived])[:2]]
            mine = np.flatnonzero(arrivals.held(period) & (device == OWNER))
            assert sorted(smallest) == mine.tolist()


def test_what_left_a_reservoir_never_comes_back() -> None:
    rng = np.random.default_rng(0)
    owner = np.repeat(np.arange(5), 40)
    settings = stream(memory="reservoir", reservoir=7, deletions=0.3)
    arrivals = by_time(settings, owner, rng.uniform(0, 9, 200), seed=2)
    gone = np.zeros(200, dtype=bool)
    for period in range(1, 5):
        now = arrivals.held(period)
        assert not (now & gone).any()
        assert np.bincount(owner[now]).max() <= 7
        gone |= (arrivals.period <= period) & ~now


def test_a_deleted_record_is_gone_from_its_period_on() -> None:
    arrivals = by_hand(deletions=1.0)
    assert (arrivals.deleted > arrivals.period).all()
    for period in (1, 2, 3, 4):
        assert (
            arrivals.held(period) == ((arrivals.period <= period) & (arrivals.deleted > period))
        ).all()


def test_edges_by_name_are_those_of_the_periods_and_later_records_never_arrive() -> None:
    named = {"begin": "1970-01-02", "end": "1970-01-04T00:00:01+00:00", "periods": 2}
    arrivals = by_hand(**named)
    assert arrivals.edges.tolist() == [DAY, 2 * DAY + 0.5, 3 * DAY + 1.0]
    assert arrivals.period.tolist() == [1, 1, 2, 3] * 2  # the end is outside
    assert arrivals.sizes.tolist() == [4, 2]
    assert not (arrivals.held(1) | arrivals.held(2))[arrivals.period == 3].any()
    assert arrivals.ever.sum() == 6
    zoned = by_hand(**named | {"begin": "1970-01-02T02:00+02:00"})
    assert (zoned.edges == arrivals.edges).all()


def test_one_edge_by_name_leaves_the_other_to_the_records() -> None:
    assert by_hand(begin="1970-01-02", periods=2).period.tolist() == [1, 1, 2, 2] * 2
    assert by_hand(end="1970-01-04", periods=2).period.tolist() == [1, 1, 2, 3] * 2


def test_one_node_of_many_may_have_periods_without_records() -> None:
    settings = stream(begin="1960-01-01", end="1980-01-01")
    with pytest.raises(WrongInput, match="has no training example"):
        by_time(settings, OWNER, TIME, seed=1)
    assert by_time(settings, OWNER, TIME, seed=1, part=True).sizes.tolist() == [0, 0, 8, 0]


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"begin": "yesterday"}, r"stream\.begin = 'yesterday' cannot be read; want ISO 8601"),
        ({"end": "86400"}, r"stream\.end = '86400' cannot be read"),
        ({"begin": "1970-01-03", "end": "1970-01-03"}, "leave no time between them"),
        ({"begin": "1999-01-01"}, "leave no time between them"),
    ],
)
def test_edges_that_cut_nothing_are_refused(settings: dict[str, object], why: str) -> None:
    with pytest.raises(WrongInput, match=why):
        by_hand(**settings)


@pytest.mark.parametrize("other", [{"arrivals": "poisson"}, {"cut": "examples"}])
def test_edges_that_nothing_goes_by_are_refused(other: dict[str, object]) -> None:
    with pytest.raises(
        WrongInput, match=r'want stream\.arrivals = "time" and stream\.cut = "duration"'
    ):
        Holdings(data(), stream(begin="2024-01-01", **other), 0.0, 0)


def test_periods_may_hold_equally_many_examples() -> None:
    time = np.array([0.0, 1, 2, 3, 4, 5, 6, 1000])
    assert by_time(stream(cut="examples"), OWNER, time, seed=1).sizes.tolist() == [2, 2, 2, 2]
    with pytest.raises(
        WrongInput, match=r"period 2 of stream\.periods = 4 has no training example"
    ):
        by_time(stream(), OWNER, time, seed=1)


@given(st.integers(1, 30), st.integers(1, 6), st.floats(0, 1), st.floats(0, 1), st.integers(0, 99))
def test_synthetic_arrivals_lie_in_the_periods(
    devices: int, periods: int, joining: float, leaving: float, seed: int
) -> None:
    owner = np.repeat(np.arange(devices), 9)
    settings = stream(arrivals="poisson", periods=periods, joining=joining, leaving=leaving)
    arrivals = by_poisson(settings, owner, seed)
    assert ((arrivals.period >= 1) & (arrivals.period <= periods)).all()
    assert arrivals.held(periods).all()
    assert (arrivals.period == by_poisson(settings, owner, seed).period).all()


def test_who_joins_late_holds_nothing_before() -> None:
    owner = np.repeat(np.arange(200), 50)
    late = by_poisson(stream(arrivals="poisson", periods=10, joining=0.5), owner, 1)
    first = np.array([late.period[owner == d].min() for d in range(200)])
    assert 0.25 < (first > 2).mean() < 0.6


def test_rounds_fill_the_periods() -> None:
    assert rounds_per_period(stream(periods=5), 20) == 4
    assert [period_of_round(stream(periods=2), 6, r) for r in range(1, 7)] == [1, 1, 1, 2, 2, 2]
    assert period_of_round(Stream(), 6, 6) == 1
    with pytest.raises(WrongInput, match="do not fill"):
        rounds_per_period(stream(periods=3), 20)


def data() -> Requests:
    return Requests(Data(devices=20, examples=400))


def test_static_holdings_are_the_data_set_s_own_views() -> None:
    dataset = data()
    holdings = Holdings(dataset, Stream(), 0.0, seed=1)
    assert holdings.activity() is dataset.activity
    assert len(holdings.train("d03")) == dataset.activity[3]
    assert len(holdings.held_out("d03")) == 0


def test_held_out_examples_are_never_trained_on_and_nothing_is_lost() -> None:
    dataset = data()
    holdings = Holdings(dataset, Stream(), 0.3, seed=1)
    for i, device in enumerate(dataset.devices.tolist()):
        kept = holdings.train(device)
        out = holdings.held_out(device)
        assert len(out) == int(0.3 * dataset.activity[i]) == holdings.held_out_sizes()[i]
        assert len(kept) + len(out) == dataset.activity[i]
        assert len(kept) == holdings.activity()[i] >= 1


def test_held_out_records_arrive_and_are_deleted_too() -> None:
    dataset = data()
    holdings = Holdings(dataset, stream(arrivals="poisson", deletions=0.5), 0.5, seed=1)
    whole = Holdings(dataset, stream(arrivals="poisson"), 0.5, seed=1)
    sizes = [int(holdings.held_out_sizes(p).sum()) for p in (1, 2, 3, 4)]
    arrived = [int(whole.held_out_sizes(p).sum()) for p in (1, 2, 3, 4)]
    assert arrived == sorted(arrived)
    assert 0 < arrived[0] < arrived[-1]
    assert all(a < b for a, b in zip(sizes[1:], arrived[1:], strict=True))
    devices = dataset.devices.tolist()
    assert sizes[3] == sum(len(holdings.held_out(d, 4)) for d in devices)


def test_a_reservoir_is_filled_from_what_is_not_held_out() -> None:
    settings = stream(arrivals="poisson", memory="reservoir", reservoir=3)
    holdings = Holdings(data(), settings, 0.5, seed=1)
    kept = Holdings(data(), stream(arrivals="poisson"), 0.5, seed=1).activity(4)
    assert (holdings.activity(4) == np.minimum(kept, 3)).all()


def test_a_device_s_activity_is_what_it_holds() -> None:
    dataset = data()
    settings = stream(arrivals="poisson", memory="window", window=2, deletions=0.2)
    holdings = Holdings(dataset, settings, 0.2, seed=1)
    for period in (1, 2, 3, 4):
        sizes = [len(holdings.train(d, period)) for d in dataset.devices.tolist()]
        assert sizes == holdings.activity(period).tolist()
    parts = [holdings.test(p) for p in (1, 2, 3, 4)]
    assert sum(len(p) for p in parts if p is not None) == 1000


def test_timestamps_are_asked_for_by_name() -> None:
    with pytest.raises(WrongInput, match=r'name their column as in data\.columns = "time=COLUMN"'):
        Holdings(data(), stream(arrivals="time"), 0.0, seed=1)
