"""Watching a run: the live table, the trackers that can never stop it."""

import time
from collections.abc import Mapping
from io import StringIO
from pathlib import Path

import pytest
from factory import configured
from rich.console import Console
from test_report import SMALL

from fedsim.app import run
from fedsim.app.cli.progress import Watcher
from fedsim.app.rundir.round_record import Round
from fedsim.config import Config
from fedsim.errors import WrongInput

PRIVATE = {"dp.unit": "device", "selection.cohort": 5, "dp.noise_multiplier": 2.0}


class Kept:
    """A tracker that keeps what it gets."""

    rows: list[tuple[int, Mapping[str, float]]] = []
    ended = 0

    def __init__(self, folder: Path, config: Config) -> None:
        assert folder.is_dir()

    def log(self, round: int, values: Mapping[str, float]) -> None:
        self.rows.append((round, values))

    def close(self) -> None:
        type(self).ended += 1


class Broken(Kept):
    """A tracker that always fails."""

    def log(self, round: int, values: Mapping[str, float]) -> None:
        raise OSError("no connection")


def small(folder: Path, **more: object) -> Config:
    return configured(SMALL | {"name": "small", "place.out": str(folder)}, **more)


def test_the_table_tells_round_metric_epsilon_speed_and_time_left(tmp_path: Path) -> None:
    config = small(tmp_path, **PRIVATE)
    watcher = Watcher(config, quiet=False)
    shown = []
    console = Console(width=200)

    def watch(row: dict[str, float]) -> None:
        with console.capture() as text, watcher:
            watcher.watch(row)
            console.print(watcher.table(Round.of(row), time.monotonic()))
        shown.append(text.get())

    done = run(config, watch=watch)
    for part in ("intent accuracy", "epsilon spent (RDP)", "devices/s", "time left", "3/3", "0:00"):
        assert part in shown[-1]
    assert done.summary is not None
    spent = done.rounds()[-1].dp_epsilon_spent_rdp
    assert spent is not None
    assert (
        done.summary["privacy"]["epsilon_max"] <= spent < 2 * done.summary["privacy"]["epsilon_max"]
    )
    assert f"{spent:.3f}" in shown[-1]


@pytest.mark.parametrize("terminal", [False, True])
def test_what_is_told_after_the_table_begins_a_line(tmp_path: Path, terminal: bool) -> None:
    shown = StringIO()
    console = Console(file=shown, width=100, force_terminal=terminal)
    run(small(tmp_path), watch=lambda row: row_shown(Watcher(small(tmp_path), False, console), row))
    console.print("failed: the server died")
    lines = [line.rstrip() for line in shown.getvalue().splitlines()]
    assert (
        lines[-1].removeprefix("\x1b[?25h") == "failed: the server died"
    )  # the cursor is shown again
    assert "3/3" in shown.getvalue()


def row_shown(watcher: Watcher, row: dict[str, float]) -> None:
    with watcher as watch:
        watch(row)


def test_without_a_guarantee_there_is_no_epsilon(tmp_path: Path) -> None:
    assert all("dp_epsilon_spent_rdp" not in row for row in run(small(tmp_path)).rows())


def test_a_broken_tracker_is_told_once_and_stops_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Kept.rows.clear()
    done = run(small(tmp_path, place__trackers="test_progress:Broken, test_progress:Kept"))
    told = capsys.readouterr().err
    assert told.count("failed and is left out from here on: OSError: no connection") == 1
    assert [round for round, _ in Kept.rows] == [1, 2, 3]
    assert "intent_accuracy" in Kept.rows[-1][1]
    assert Kept.ended == 1
    assert done.summary is not None
    assert done.summary["status"] == "completed"


def test_tensorboard_gets_the_scalars(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    done = run(small(tmp_path, place__trackers="tensorboard"))
    events = EventAccumulator(str(done.path / "tensorboard"))
    events.Reload()
    seen = [(event.step, event.value) for event in events.Scalars("intent_accuracy")]
    rows = [
        (row["round"], row["intent_accuracy"]) for row in done.rows() if "intent_accuracy" in row
    ]
    assert [step for step, _ in seen] == [round for round, _ in rows]
    assert [value for _, value in seen] == pytest.approx([value for _, value in rows])


def test_a_tracker_that_is_not_known_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(WrongInput, match="did you mean 'tensorboard'"):
        run(small(tmp_path, place__trackers="tensorbord"))
    assert not any(tmp_path.iterdir())
