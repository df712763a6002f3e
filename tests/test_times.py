"""Timestamps and deletion requests of records, from files to what devices hold."""

import json
from pathlib import Path

import datasets
import numpy as np
import pytest

from fedsim.app.engines.local import run_local
from fedsim.config import Data, Partition, Stream, from_flat
from fedsim.data.federation import load_federation
from fedsim.data.holdings import Holdings
from fedsim.data.records import Records
from fedsim.data.times import seconds, seconds_or_never
from fedsim.errors import WrongInput


def records(*values: object) -> Records:
    return Records({"time": list(values)}, len(values), "train (x.jsonl)")


def test_numbers_are_unix_seconds_and_strings_iso_8601() -> None:
    assert seconds(records(5, 7.5)).tolist() == [5.0, 7.5]
    assert seconds(records("1970-01-01T00:01", "1970-01-02T00:00:00Z")).tolist() == [60.0, 86400.0]
    stamps = np.array(["1970-01-01T00:00:02"], dtype="datetime64[us]")
    assert seconds(Records({"time": stamps}, 1, "x")).tolist() == [2.0]


def test_unordered_times_are_used_as_they_are() -> None:
    assert seconds(records(9, 3, 5)).tolist() == [9.0, 3.0, 5.0]


def test_a_missing_or_unreadable_time_is_told_in_a_sentence() -> None:
    with pytest.raises(WrongInput, match=r"1 records of train \(x\.jsonl\) have no time"):
        seconds(records(5, None))
    with pytest.raises(WrongInput, match="cannot be read"):
        seconds(records("yesterday"))
    with pytest.raises(WrongInput, match="no finite number"):
        seconds(records(1.0, float("nan")))


def test_who_never_asks_for_deletion_has_no_time_of_it() -> None:
    found = Records({"deleted": [3, None, "", 8]}, 4, "x")
    assert seconds_or_never(found, "deleted").tolist() == [3.0, np.inf, np.inf, 8.0]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten records of two devices, one a day, in no order; the fourth is deleted on day 6."""
    rows = [
        {
            "client": f"c{i % 2}",
            "intent": "ab"[i % 2],
            "text": f"word{i} word",
            "time": i * 86400,
            "gone": None,
        }
        for i in range(10)
    ]
    rows[3]["gone"] = 6 * 86400
    rows = [*rows[5:], *rows[:5]]
    for row in rows:  # as ISO strings, which `datasets` turns into date objects
        row["stamp"] = f"1970-01-{row['time'] // 86400 + 1:02d}T00:00"
        row["day"] = f"1970-01-{row['time'] // 86400 + 1:02d}"
        row["zone"] = row["stamp"] + ":00Z"
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "x.parquet")
    lines = [json.dumps(row) for row in rows]
    (tmp_path / "x.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path


def data(**settings: object) -> Data:
    base = {
        "source": "files",
        "task": "classification",
        "train": "x.jsonl",
        "columns": "time=time,deleted=gone",
    }
    return Data.model_validate(base | settings)


STREAM = Stream(mode="continual", periods=3)


def test_records_of_a_file_arrive_by_their_time_and_leave_when_deleted(folder: Path) -> None:
    holdings = Holdings(load_federation(data(), folder), STREAM, 0.0, seed=1)
    # periods of three days: 0 to 2, 3 to 5, 6 to 9; record 3, of device c1, is gone in the third
    assert holdings.activity(1).tolist() == [2, 1]
    assert holdings.activity(2).tolist() == [3, 3]
    assert holdings.activity(3).tolist() == [5, 4]


@pytest.mark.parametrize("column", ["stamp", "day", "zone"])
@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_dates_in_files_are_understood_in_utc(folder: Path, column: str, ending: str) -> None:
    settings = data(train=f"x.{ending}", columns=f"time={column}")
    assert sorted(load_federation(settings, folder).time) == [i * 86400.0 for i in range(10)]


def test_deletion_requests_are_never_passed_over(folder: Path) -> None:
    for stream in (Stream(), Stream(mode="continual", periods=2, arrivals="poisson")):
        with pytest.raises(WrongInput, match="times of deletion requests, which only"):
            Holdings(load_federation(data(), folder), stream, 0.0, seed=1)


def test_a_partition_keeps_the_records_times(folder: Path) -> None:
    federation = load_federation(data(devices=3), folder, Partition(name="iid"))
    assert sorted(federation.time) == [i * 86400.0 for i in range(10)]
    words = [
        federation.spec.words[i - 2]
        for i in federation.train("p00000").fields["tokens"][:, 0].tolist()
    ]
    assert words == [f"word{int(t / 86400)}" for t in federation.time[: federation.activity[0]]]


def test_a_test_part_is_held_out_with_its_times(folder: Path) -> None:
    federation = load_federation(data(test_share=0.6), folder)
    holdings = Holdings(federation, STREAM.model_copy(update={"periods": 2}), 0.0, seed=1)
    parts = [holdings.test(1), holdings.test(2)]
    assert len(federation.test) == 6
    assert sum(len(part) for part in parts if part is not None) == 6
    early = federation.test_time < 4.5 * 86400
    assert len(parts[0]) == early.sum()


def test_a_period_without_a_test_example_is_refused(folder: Path) -> None:
    with pytest.raises(WrongInput, match=r"period \d has no test example"):
        Holdings(
            load_federation(data(test_share=0.2), folder),
            Stream(mode="continual", periods=4),
            0.0,
            1,
        )


def test_missing_times_leave_no_run_behind(folder: Path, tmp_path: Path) -> None:
    lines = (folder / "x.jsonl").read_text().replace('"time": 86400,', '"time": null,')
    (folder / "x.jsonl").write_text(lines)
    flat = {f"data.{key}": value for key, value in data().model_dump().items()}
    settings = {
        "stream.mode": "continual",
        "stream.periods": 2,
        "train.rounds": 2,
        "place.out": str(tmp_path / "o"),
    }
    with pytest.raises(WrongInput, match=r"1 records of train .* have no time"):
        run_local(from_flat(flat | settings | {"place.data_dir": str(folder), "name": "x"}))
    assert not (tmp_path / "o").exists()
