"""Sweeps: what their file means, runs side by side, failures, kills, searches."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from conftest import Cli

from fedsim.app.rundir.runs_table import load_runs
from fedsim.app.sweeps.grid import Sweep, load_sweep, members, values
from fedsim.app.sweeps.pareto import cheapest, frontier, t_interval
from fedsim.app.sweeps.sweep_dir import SweepDir
from fedsim.config import Config
from fedsim.errors import WrongInput

BASE = """
data.devices = 20
data.examples = 200
model.embedding = 8
train.rounds = 3
selection.cohort = 5
evaluation.every = 3
"""
GRID = """
base = "tiny.toml"
seeds = [1, 2]
[grid]
selection.rule = ["uniform", "activity"]
"""


def written(folder: Path, text: str = GRID, base: str = BASE) -> Path:
    (folder / "tiny.toml").write_text(base)
    (folder / "s.sweep.toml").write_text(text)
    return folder / "s.sweep.toml"


def never(config: Config, epsilon: float) -> Config:
    raise AssertionError("nothing is to calibrate")


def where(sweep: Sweep) -> list[tuple[str, ...]]:
    return [(*m.where.values(), str(m.config.seed)) for m in members(sweep, {}, never)]


def steady(table: pd.DataFrame) -> pd.DataFrame:
    return table.drop(columns="seconds")


def test_a_grid_is_every_combination_with_seeds_innermost(tmp_path: Path) -> None:
    sweep = load_sweep(written(tmp_path, GRID + 'train.lr = [0.1, 1.0]\n[set]\n"train.rounds" = 7'))
    assert where(sweep) == [
        (rule, lr, seed) for rule in ("uniform", "activity") for lr in ("0.1", "1") for seed in "12"
    ]
    found = members(sweep, {"place.threads": 1}, never)[0].config
    assert (found.name, found.train.rounds, found.data.devices, found.place.threads) == (
        "s",
        7,
        20,
        1,
    )


def test_coupled_values_are_set_together(tmp_path: Path) -> None:
    text = (
        GRID
        + """
[[grid.strength]]
label = "soft"
train.lr = 0.1
train.momentum = 0.9
[[grid.strength]]
train.lr = 2.0
"""
    )
    found = members(load_sweep(written(tmp_path, text)), {}, never)
    assert [m.where["strength"] for m in found[:4]] == ["soft", "soft", "train.lr=2", "train.lr=2"]
    assert [(m.config.train.lr, m.config.train.momentum) for m in found[:4:2]] == [
        (0.1, 0.9),
        (2.0, 0.0),
    ]


def test_an_epsilon_on_the_grid_is_calibrated_for_each_combination(tmp_path: Path) -> None:
    asked = []

    def calibrate(config: Config, epsilon: float) -> Config:
        asked.append((config.selection.rule, epsilon))
        return config.model_copy(update={"dp": config.dp.model_copy(update={"clip_norm": epsilon})})

    found = members(load_sweep(written(tmp_path, GRID + "epsilon = [2, 8]")), {}, calibrate)
    assert asked == [("uniform", 2.0), ("uniform", 8.0), ("activity", 2.0), ("activity", 8.0)]
    assert len(found) == 8
    assert found[-1].config.dp.clip_norm == 8.0


def test_the_same_run_stands_once(tmp_path: Path) -> None:
    sweep = load_sweep(
        written(tmp_path, GRID.replace('"uniform", "activity"', '"uniform", "uniform"'))
    )
    assert where(sweep) == [("uniform", "1"), ("uniform", "2")]


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ([1, "a"], [1, "a"]),
        ({"from": 1, "to": 7, "step": 3}, [1, 4, 7]),
        ({"from": 0.1, "to": 0.3, "step": 0.1}, [0.1, 0.2, 0.3]),
        ({"log_from": 1, "log_to": 100, "count": 3}, [1.0, 10.0, 100.0]),
    ],
)
def test_ranges_hold_both_ends(given: object, wanted: list[object]) -> None:
    assert values("train.lr", given) == wanted


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("train.lrr = [1]", "unknown config key 'train.lrr'; did you mean 'train.lr'?"),
        ("train.lr = 3", "give a list"),
        ("train.lr = []", "give at least one"),
        ("train.lr = {from = 1, to = 0, step = 1}", "a range goes up"),
        ("train.lr = {log_from = 0, log_to = 1, count = 2}", "a logarithmic range"),
        ("seed = [1]", "seeds = "),
        ("[[grid.x]]\nselection.rule = 'loss'", "set by two axes"),
        ("[set]\ntrain.lr = [1]", "a setting is a text, a number"),
        ("[sett]\ntrain.lr = 1", "did you mean 'set'?"),
        ("train.lr = [-1.0]", "train.lr = -1.0 is not allowed"),
    ],
)
def test_what_a_sweep_cannot_mean_is_told(tmp_path: Path, line: str, sentence: str) -> None:
    with pytest.raises(WrongInput, match=re.escape(sentence)):
        members(load_sweep(written(tmp_path, GRID + line)), {}, never)


def test_the_frontier_is_what_no_other_point_beats() -> None:
    utility = pd.Series([0.5, 0.7, 0.6, 0.7]).to_numpy()
    epsilon = pd.Series([1.0, 8.0, 9.0, 4.0]).to_numpy()
    assert frontier(utility, epsilon).tolist() == [True, False, False, True]


def test_the_cheapest_good_run_costs_least_epsilon_then_least_time() -> None:
    table = pd.DataFrame(
        {
            "utility": [0.70, 0.68, 0.68, 0.5],
            "epsilon": [8.0, 4.0, 4.0, 1.0],
            "seconds": [1.0, 9.0, 5.0, 1.0],
        }
    )
    found = cheapest(table, 0.05)
    assert found is not None
    assert found.name == 2
    assert cheapest(table[:0], 0.05) is None


def test_an_interval_over_seeds_is_student_s() -> None:
    low, high = t_interval(pd.Series([1.0, 2.0, 3.0]).to_numpy())
    assert (low + high) / 2 == pytest.approx(2.0)
    assert (high - low) / 2 == pytest.approx(4.302653 / 3**0.5)  # t(.975, 2) / sqrt(3), stddev 1
    assert pd.isna(t_interval(pd.Series([1.0]).to_numpy())[0])


def test_a_dry_run_tells_the_plan_and_trains_nothing(fedsim: Cli, tmp_path: Path) -> None:
    written(tmp_path)
    text = fedsim("sweep", "s.sweep.toml", "--dry-run").stdout
    assert text.count(" new ") == 4
    assert "is not known: no run of this base or sweep is finished yet" in text
    assert not (tmp_path / "runs").exists()
    fedsim("run", "tiny.toml")
    assert "from 1 finished run(s)" in fedsim("sweep", "s.sweep.toml", "--dry-run").stdout


@pytest.mark.slow
def test_a_failed_run_stops_no_other(fedsim: Cli, tmp_path: Path) -> None:
    text = GRID.replace('["uniform", "activity"]', '["uniform", "broken:rule"]')
    (tmp_path / "broken.py").write_text("def rule(view, settings, rng):\n    1 / 0\n")
    done = fedsim("sweep", str(written(tmp_path, text)), "--jobs", "2", check=False)
    assert done.returncode == 1
    assert "2 of 4 runs failed" in done.stderr
    table = (tmp_path / "runs/s/table.md").read_text()
    assert "| uniform | 2 |" in table
    assert (
        "**Failed:** selection.rule broken:rule, seed 1: ZeroDivisionError: division by zero"
        in table
    )
    (tmp_path / "broken.py").write_text("from strategies.selection import uniform as rule\n")
    again = fedsim("sweep", "s.sweep.toml", "--jobs", "2")
    assert "2 of 4 runs were finished already" in again.stdout
    assert "Failed" not in (tmp_path / "runs/s/table.md").read_text()


@pytest.mark.slow
def test_the_tables_are_the_same_in_three_formats(fedsim: Cli, tmp_path: Path) -> None:
    fedsim("sweep", str(written(tmp_path)))
    folder = tmp_path / "runs/s"
    csv = pd.read_csv(folder / "table.csv")
    parquet = pd.read_parquet(folder / "table.parquet")
    pd.testing.assert_frame_equal(csv, parquet, check_dtype=False)
    assert csv["seeds"].tolist() == [2, 2]
    assert csv["epsilon"].tolist() == [float("inf")] * 2
    runs = load_runs(folder)
    frame = SweepDir(folder).frame()
    assert sorted(runs["path"]) == sorted(frame["path"])
    assert frame["selection.rule"].tolist() == frame["where.selection.rule"].tolist()
    each = runs[runs["selection.rule"] == "uniform"]["metrics.intent_accuracy"]
    assert csv["utility"][csv["rule"] == "uniform"].item() == pytest.approx(each.mean())


def begin(folder: Path) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-m", "fedsim", "sweep", "s.sweep.toml", "--jobs", "2"],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def rows_written(folder: Path) -> int:
    return sum(
        len(path.read_text().splitlines()) for path in folder.glob("runs/s/*/*/rounds.jsonl")
    )


def kill_at(folder: Path, rows: int) -> None:
    """Begin the sweep and kill it with SIGKILL as soon as all runs together have so many rounds."""
    process = begin(folder)
    while rows_written(folder) < rows and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.mark.process
@pytest.mark.slow
def test_a_sweep_killed_at_five_random_points_ends_with_the_same_table(tmp_path: Path) -> None:
    base = BASE.replace("train.rounds = 3", "train.rounds = 60")
    calm = tmp_path / "calm"
    killed = tmp_path / "killed"
    for folder in (calm, killed):
        folder.mkdir()
        written(folder, base=base)
    assert begin(calm).wait() == 0
    finished: dict[str, str] = {}
    for rows in sorted(random.Random(9).sample(range(1, 235), 5)):
        kill_at(killed, rows)
        now = {
            str(p): json.loads(p.read_text())["finished"]
            for p in killed.glob("runs/s/*/*/manifest.json")
        }
        assert all(
            now[path] == when for path, when in finished.items()
        )  # no finished run is repeated
        finished = {path: when for path, when in now.items() if when}
    assert begin(killed).wait() == 0
    tables = [steady(pd.read_csv(folder / "runs/s/table.csv")) for folder in (calm, killed)]
    pd.testing.assert_frame_equal(tables[0], tables[1], check_exact=True)
    assert rows_written(killed) == rows_written(calm) == 240


@pytest.mark.slow
def test_a_search_goes_on_where_it_ended(fedsim: Cli, tmp_path: Path) -> None:
    text = """
base = "tiny.toml"
[search]
trials = 2
objectives = ["utility"]
[search.space]
train.lr = {log_from = 0.1, log_to = 10.0}
selection.rule = ["uniform", "activity"]
"""
    written(tmp_path, text)
    fedsim("sweep", "s.sweep.toml", "--jobs", "1")
    first = pd.read_csv(tmp_path / "runs/s/table.csv")
    written(tmp_path, text.replace("trials = 2", "trials = 3"))
    fedsim("sweep", "s.sweep.toml", "--jobs", "1")
    second = pd.read_csv(tmp_path / "runs/s/table.csv")
    assert len(second) == 3
    pd.testing.assert_frame_equal(steady(first), steady(second)[:2][first.columns.drop("seconds")])


@pytest.mark.parametrize(
    ("search", "sentence"),
    [
        ("trials = 0", "wants trials = N"),
        ("trials = 1", "wants a [search.space]"),
        ("trials = 1\nobjectives = ['speed']", "choose utility, epsilon, attack_auc"),
        ("trials = 1\nspace.train.lrr = [1]", "did you mean 'train.lr'?"),
        ("trails = 1", "did you mean 'trials'?"),
    ],
)
def test_a_search_that_cannot_be_is_told(tmp_path: Path, search: str, sentence: str) -> None:
    from fedsim.app.sweeps.search import check_search

    path = written(tmp_path, f'base = "tiny.toml"\n[search]\n{search}')
    with pytest.raises(WrongInput, match=re.escape(sentence)):
        check_search(load_sweep(path))
