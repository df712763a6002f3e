"""A round's record and its row are the same thing.

Seen to fail: with a field renamed in `Round`, the row of an older run lost it among the metrics.
"""

from fedsim.app.rundir.metrics import last_metrics, spent_by_round
from fedsim.app.rundir.round_record import Round

ROW = {
    "round": 3,
    "cohort": 5,
    "devices": 4,
    "rejected": 1,
    "steps": 40,
    "train_loss": 1.5,
    "reachable": 9,
    "virtual_s": 12.0,
    "dp_clip_norm": 0.5,
    "period": 2,
    "time_train_s": 0.1,
    "time_devices_per_s": 40.0,
    "time_evaluate_s": 0.2,
}
METRICS = {"loss": 0.7, "accuracy": 0.8}
OTHERS = {"dev_loss": 0.9, "period_accuracy": 0.6, "device_count": 4}


def test_a_row_becomes_a_record_and_the_same_row_again() -> None:
    row = ROW | METRICS | OTHERS
    assert Round.of(row).row() == row


def test_every_key_of_a_row_is_a_field_or_a_metric() -> None:
    done = Round.of(ROW | METRICS | OTHERS)
    assert {name: getattr(done, name) for name in ROW} == ROW
    assert dict(done.measured) == METRICS | OTHERS
    assert done.metrics == METRICS


def test_what_a_round_lacks_stands_in_no_row() -> None:
    row = Round(1, 2, 2, 0).row()
    assert "train_loss" not in row
    assert "dp_epsilon_spent_rdp" not in row


def test_the_last_metrics_are_those_of_the_last_round_that_was_evaluated() -> None:
    rows = [ROW | METRICS, ROW | {"round": 4}]
    assert last_metrics(rows) == METRICS
    assert last_metrics([ROW]) == {}


def test_spent_epsilon_is_read_from_the_rows() -> None:
    rows = [ROW | {"round": r, "dp_epsilon_spent_rdp": 0.5 * r} for r in (1, 2)]
    assert spent_by_round(rows) == [(1, 0.5), (2, 1.0)]
    assert spent_by_round([ROW]) == []
