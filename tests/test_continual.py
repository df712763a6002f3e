"""Runs over periods: activity by period, the forgetting matrix, availability, evaluation on
devices.
"""

from pathlib import Path

import numpy as np
import pytest
from test_rounds import Killed, config, final, plain_rows, stop_after

from fedsim.app.engines.local import run_local
from fedsim.app.experiment.loading import load_holdings
from fedsim.app.rundir.metrics import period_matrix, transfer
from fedsim.app.rundir.run_dir import RunDir
from fedsim.errors import RunFailed, WrongInput
from strategies.device_metrics import spread

CONTINUAL = {
    "stream__mode": "continual",
    "stream__periods": 3,
    "stream__arrivals": "poisson",
    "train__rounds": 6,
}


def test_transfer_by_hand() -> None:
    # rows: untrained, after periods 1, 2, 3; columns: tests of periods 1, 2, 3
    matrix = np.array([[0.1, 0.2, 0.3], [0.8, 0.4, 0.3], [0.6, 0.9, 0.5], [0.7, 0.6, 0.9]])
    assert transfer(matrix, "accuracy") == pytest.approx(
        {
            "prequential_accuracy": (0.1 + 0.4 + 0.5) / 3,
            "forgetting_accuracy": ((0.8 - 0.7) + (0.9 - 0.6)) / 2,
            "backward_transfer_accuracy": ((0.7 - 0.8) + (0.6 - 0.9)) / 2,
        }
    )
    assert transfer(matrix[:0, :0], "accuracy") == {}


def test_a_run_over_periods_measures_every_period_after_every_other(tmp_path: Path) -> None:
    run = run_local(config(tmp_path, **CONTINUAL))
    matrix = period_matrix(run.rows("periods.jsonl"), "intent_accuracy")
    assert matrix.shape == (4, 3)
    assert not np.isnan(matrix).any()
    assert [row["period"] for row in run.rows()] == [1, 1, 2, 2, 3, 3]
    summary = run.summary
    assert summary is not None
    assert summary["metrics"].items() >= transfer(matrix, "intent_accuracy").items()


def test_devices_train_on_what_they_hold_in_the_period(tmp_path: Path) -> None:
    """With all devices in every round and one example a step, steps count the examples held."""
    settings = CONTINUAL | {
        "stream__memory": "current",
        "train__batch_size": 1,
        "selection__cohort": 1000,
    }
    run = run_local(config(tmp_path, **settings))
    holdings = load_holdings(run.config, None)
    held = [int(holdings.activity(period).sum()) for period in (1, 1, 2, 2, 3, 3)]
    assert [row["steps"] for row in run.rows()] == held
    assert sum(held) == 2 * 300


def test_an_interrupted_continual_run_resumes_to_the_same_bits(tmp_path: Path) -> None:
    settings = CONTINUAL | {
        "stream__memory": "reservoir",
        "stream__reservoir": 5,
        "evaluation__every": 2,
    }
    undisturbed = run_local(config(tmp_path / "a", **settings))
    broken = config(tmp_path / "b", **settings)
    for stop in (1, 2, 5):
        with pytest.raises(Killed):
            run_local(broken, watch=stop_after(stop))
    resumed = run_local(broken)
    assert plain_rows(resumed) == plain_rows(undisturbed)
    assert resumed.rows("periods.jsonl") == undisturbed.rows("periods.jsonl")
    assert all((final(resumed)[n] == p).all() for n, p in final(undisturbed).items())


def test_three_nodes_equal_one_over_periods_with_drop_outs_and_held_out_parts(
    tmp_path: Path,
) -> None:
    settings = CONTINUAL | {
        "availability__rule": "day_cycle",
        "availability__dropout": 0.3,
        "availability__speed_sigma": 1.0,
        "evaluation__on": "both",
        "evaluation__holdout": 0.3,
    }
    one = run_local(config(tmp_path / "1", **settings), nodes=1)
    three = run_local(config(tmp_path / "3", **settings), nodes=3)
    for a, b in zip(one.rows(), three.rows(), strict=True):
        assert a.keys() == b.keys()
        for name in a:
            assert name.startswith("time") or a[name] == pytest.approx(b[name], abs=1e-4)


def test_drop_outs_do_not_answer_and_are_seen_in_the_rows(tmp_path: Path) -> None:
    rows = run_local(config(tmp_path, availability__dropout=1.0)).rows()
    assert all(row["cohort"] > 0 and row["devices"] == 0 for row in rows)
    some = run_local(config(tmp_path, availability__dropout=0.5)).rows()
    assert 0 < sum(row["devices"] for row in some) < sum(row["cohort"] for row in some)


def test_who_is_away_is_never_selected(tmp_path: Path) -> None:
    settings = {
        "availability__rule": "day_cycle",
        "availability__hours": 2.0,
        "selection__cohort": 1000,
    }
    rows = run_local(config(tmp_path, **settings)).rows()
    assert [row["cohort"] for row in rows] == [row["reachable"] for row in rows]
    assert all(row["reachable"] < 15 for row in rows)


def test_the_virtual_clock_waits_for_slow_devices(tmp_path: Path) -> None:
    rows = run_local(config(tmp_path, availability__speed_sigma=1.0)).rows()
    assert all(row["virtual_s"] > 0 for row in rows)
    again = run_local(config(tmp_path / "b", availability__speed_sigma=1.0), nodes=2).rows()
    assert [row["virtual_s"] for row in rows] == [row["virtual_s"] for row in again]


def test_divergence_is_told_where_only_the_periods_are_measured(tmp_path: Path) -> None:
    settings = CONTINUAL | {"train__lr": 1e4, "aggregation__lr": 1e4, "evaluation__every": 6}
    with pytest.raises(RunFailed, match="training diverged in round"):
        run_local(config(tmp_path, **settings))


def test_spread_over_devices_by_hand() -> None:
    values = np.arange(20) / 20
    activity = np.arange(20)[::-1]
    devices = np.array([f"d{i:02d}" for i in range(20)])
    figures = spread("accuracy", values, activity, devices)
    assert figures["device_count"] == 20
    assert figures["device_accuracy_mean"] == pytest.approx(0.475)
    assert figures["device_accuracy_worst_decile"] == pytest.approx((0 + 0.05) / 2)
    assert figures["device_accuracy_p10"] == pytest.approx(0.095)
    assert figures["device_accuracy_decile_01"] == pytest.approx(
        (0.9 + 0.95) / 2
    )  # the least active
    assert figures["device_accuracy_decile_10"] == pytest.approx(0.025)


def test_evaluation_on_devices_needs_no_central_data(tmp_path: Path) -> None:
    run = run_local(config(tmp_path, evaluation__on="devices", evaluation__holdout=0.3))
    summary = run.summary
    assert summary is not None
    assert {"device_intent_accuracy_mean", "device_intent_accuracy_worst_decile"} <= summary[
        "metrics"
    ].keys()
    assert "intent_accuracy" not in summary["metrics"]


def test_evaluation_on_devices_without_a_held_out_part_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WrongInput, match=r"evaluation\.on = 'devices' needs evaluation\.holdout"):
        run_local(config(tmp_path, evaluation__on="devices"))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"stream__arrivals": "time"}, "needs timestamps"),
        ({"stream__periods": 4}, "do not fill"),
        ({"availability__rule": "clock", "stream__mode": "static"}, "needs timestamps"),
        ({"stream__periods": 300, "train__rounds": 300}, "has no test example|no device holds"),
        (
            {"stream__memory": "age", "stream__max_age_days": 1e-7},
            "no device holds a training example in period",
        ),
    ],
)
def test_impossible_streams_leave_no_run_behind(
    tmp_path: Path, settings: dict[str, object], sentence: str
) -> None:
    with pytest.raises(WrongInput, match=sentence):
        run_local(config(tmp_path, **CONTINUAL | settings))
    assert not RunDir.of(config(tmp_path, **CONTINUAL | settings)).path.exists()
