"""Availability on the virtual clock."""

import numpy as np
import pytest

from fedsim.config import Availability
from fedsim.data.availability import Clock, hours_with_records


def clock(devices: int = 400, **settings: object) -> Clock:
    return Clock(Availability.model_validate(settings), 1, devices)


def test_everyone_is_reachable_by_default() -> None:
    assert clock().reachable(3).all()
    assert clock().answers(3, np.ones(400, dtype=np.int64)).all()


def test_a_day_cycle_keeps_each_device_in_reach_for_its_hours() -> None:
    day = np.array([clock(rule="day_cycle", hours=6).reachable(r) for r in range(1, 25)])
    assert (day.sum(0) == 6).all()
    assert (day == [clock(rule="day_cycle", hours=6).reachable(r + 24) for r in range(1, 25)]).all()


def test_the_clock_follows_the_records_hours() -> None:
    hours = hours_with_records(np.array([0, 1, 1]), np.array([3.5, 0.0, 12.0]) * 3600, devices=3)
    assert np.flatnonzero(hours[0]).tolist() == [2, 3, 4]
    assert np.flatnonzero(hours[1]).tolist() == [0, 1, 11, 12, 13, 23]
    assert not hours[2].any()
    by_hour = Clock(Availability(rule="clock"), 1, 3, hours)
    assert [by_hour.reachable(r).tolist() for r in (1, 4)] == [
        [False, True, False],
        [True, False, False],
    ]


def test_drop_out_is_as_likely_as_stated() -> None:
    activity = np.full(400, 8)
    missing = sum((~clock(dropout=0.2).answers(r, activity)).sum() for r in range(200))
    # 80,000 coins of 0.2: 5 standard errors, a false alarm in 6 of 10 million
    assert abs(missing / 80000 - 0.2) < 5 * (0.2 * 0.8 / 80000) ** 0.5


def test_drop_out_may_depend_on_size() -> None:
    activity = np.array([1] * 200 + [4] * 100 + [64] * 100)
    settings = clock(dropout=0.1, dropout_size=0.5)
    missing = np.mean([~settings.answers(r, activity) for r in range(300)], axis=0)
    small = missing[:200].mean()
    large = missing[300:].mean()
    # the median is 2.5: 0.1 * (1 / 2.5)**.5 and 0.1 * (64 / 2.5)**.5
    assert small == pytest.approx(0.063, abs=0.01)
    assert large == pytest.approx(0.506, abs=0.02)


def test_a_round_waits_for_its_slowest_device() -> None:
    assert clock(step_seconds=2.0).seconds(np.array([0, 5]), np.array([3, 7])) == 14.0
    slow = clock(speed_sigma=1.0)
    members = np.arange(400)
    steps = np.ones(400, dtype=np.int64)
    assert slow.seconds(members, steps) == pytest.approx(1 / slow.speeds().min())
    assert slow.seconds(members[:0], steps[:0]) == 0.0
