"""Selection x weights x stream x seeds: `python experiments/results/selection.py --data-dir DIR`.

Runs `experiments/selection_massive.toml` (ten seeds) and `selection_star.toml` (five) with every
selection rule, every weight, statically and in five periods; two processes of one thread each
unless `--workers` says otherwise. Finished runs are left as they are, so that a repeated command
goes on. Then it writes what it measured to `selection_runs.jsonl` beside this file, of which
`selection_table.py` makes tables and figures.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fedsim.app.engines.local import run_local
from fedsim.app.experiment.loading import load_holdings
from fedsim.app.rundir.run_dir import RunDir
from fedsim.config import Config, load
from fedsim.data.activity import gini, public_activity
from fedsim.data.stream import period_of_round
from strategies.federated import Federated
from strategies.roster import Roster

HERE = Path(__file__).parent
RAW = HERE / "selection_runs.jsonl"
SETS = {"massive": range(1, 11), "star": range(1, 6)}
TARGETS = {"massive": 0.75, "star": 0.40}
MODES = ("static", "continual")
SELECTIONS = {
    "uniform": ["selection.rule=uniform"],
    "activity 0.5": ["selection.rule=activity", "selection.power=0.5"],
    "activity 1": ["selection.rule=activity", "selection.power=1.0"],
    "mixture": ["selection.rule=mixture", "selection.mixture=0.3"],
    "threshold": ["selection.rule=threshold", "selection.quantile=0.5"],
}
WEIGHTS = ("equal", "examples", "inverse_probability")


@dataclass(frozen=True)
class Cell:
    """One run of the grid."""

    set: str
    mode: str
    selection: str
    weights: str
    seed: int

    def config(self, data_dir: str, out: str) -> Config:
        settings = [
            f"seed={self.seed}",
            f"stream.mode={self.mode}",
            f"aggregation.weights={self.weights}",
            f"place.data_dir={data_dir}",
            f"place.out={out}",
            "place.threads=1",
            *SELECTIONS[self.selection],
        ]
        return load(HERE.parent / f"selection_{self.set}.toml", settings)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--out", default="runs")
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument(
        "--share", help="I/N: only run each N-th cell from the I-th, measure nothing"
    )
    options = parser.parse_args()
    cells = list(grid(options.sets.split(",")))
    if options.share or options.workers == 1:
        run_share(cells, options.share or "0/1", options.data_dir, options.out)
    else:
        run_workers(options.workers)
    if not options.share:
        write(cells, options.data_dir, options.out)


def grid(sets: list[str]) -> Iterator[Cell]:
    """Yield the cells, all of one seed before the next, so that an interrupted grid compares
    fairly.
    """
    for seed in range(1, 1 + max(max(SETS[name]) for name in sets)):
        for name in sets:
            for mode in MODES if seed in SETS[name] else ():
                for selection in SELECTIONS:
                    for weights in WEIGHTS:
                        yield Cell(name, mode, selection, weights, seed)


def run_share(cells: list[Cell], share: str, data_dir: str, out: str) -> None:
    torch.set_num_threads(1)
    first, step = map(int, share.split("/"))
    mine = cells[first::step]
    # one federation after the other, so that each is loaded once a seed
    for number, cell in enumerate(mine, start=1):
        run_local(cell.config(data_dir, out))
        print(f"{number}/{len(mine)} {cell}", flush=True)


def run_workers(count: int) -> None:
    commands = [[sys.executable, *sys.argv, "--share", f"{i}/{count}"] for i in range(count)]
    workers = [subprocess.Popen(command) for command in commands]
    failed = [worker.args for worker in workers if worker.wait()]
    if failed:
        raise SystemExit(f"a worker failed: {failed[0]}")


def write(cells: list[Cell], data_dir: str, out: str) -> None:
    """Measure the finished runs and write one line each; lines of sets that were not asked for
    stay.
    """
    asked = {cell.set for cell in cells}
    lines = RAW.read_text(encoding="utf-8").splitlines() if RAW.exists() else []
    kept = [line for line in lines if json.loads(line)["set"] not in asked]
    order = sorted(cells, key=lambda c: (c.set, c.mode, c.selection, c.weights, c.seed))
    new = [json.dumps(measure(cell, data_dir, out)) for cell in order]
    RAW.write_text("\n".join([*kept, *new]) + "\n", encoding="utf-8")


def measure(cell: Cell, data_dir: str, out: str) -> dict:
    """Return what the experiment asks of a run; null where a run never got there."""
    config = cell.config(data_dir, out)
    run = RunDir.of(config)
    summary = run.summary
    rows = run.rows()
    assert summary is not None, f"{run.path} is not finished"
    metrics = summary["metrics"]
    there = [row["round"] for row in rows if row.get("accuracy", 0.0) >= TARGETS[cell.set]]
    figures = {
        "accuracy": metrics["accuracy"],
        "device_accuracy": metrics["device_accuracy_mean"],
        "worst_decile": metrics["device_accuracy_worst_decile"],
        "prequential": metrics.get("prequential_accuracy"),
        "rounds_to_target": min(there, default=None),
        "curve": [row["accuracy"] for row in rows if "accuracy" in row],
        "steps": [
            sum(r["steps"] for r in rows[: row["round"]]) for row in rows if "accuracy" in row
        ],
        "deciles": [metrics[f"device_accuracy_decile_{i:02d}"] for i in range(1, 11)],
    }
    return vars(cell) | {k: rounded(v) for k, v in (figures | participation(config, run)).items()}


def participation(config: Config, run: RunDir) -> dict[str, float]:
    """Return how evenly devices took part, and the weight of the 1 % with the most training
    examples.

    Selection is a pure function of seed, round and roster, so the run's cohorts are drawn once
    more.
    """
    holdings = load_holdings(config, Path(config.place.data_dir))
    dataset = holdings.dataset
    weight = np.zeros(len(dataset.devices))
    strategy = Federated(config, roster(config, 1), {})
    for round in range(1, config.train.rounds + 1):
        period = period_of_round(config.stream, config.train.rounds, round)
        strategy.roster = roster(config, period)
        cohort = strategy.select(round)
        members = np.searchsorted(dataset.devices, cohort.devices)
        constant = config.aggregation.weights == "inverse_probability"
        weight[members] += cohort.weights / (
            config.selection.cohort if constant else cohort.weights.sum()
        )
        seen = strategy.state.participation.copy()
        seen[members] += 1
        strategy.state = replace(strategy.state, round=round, participation=seen)
    checkpoint = run.last_checkpoint()
    assert checkpoint is not None
    assert (checkpoint.participation == strategy.state.participation).all(), (
        "the cohorts are others"
    )
    held = dataset.activity > 0
    top = np.argsort(-dataset.activity, kind="stable")[: int(np.ceil(held.sum() / 100))]
    return {
        "top_1_weight": weight[top].sum() / weight.sum(),
        "top_1_examples": dataset.activity[top].sum() / dataset.activity.sum(),
        "participation_gini": gini(strategy.state.participation[held]),
        "never": float((strategy.state.participation[held] == 0).mean()),
    }


def roster(config: Config, period: int) -> Roster:
    holdings = load_holdings(config, Path(config.place.data_dir))
    activity: NDArray[np.int64] = public_activity(
        holdings.activity(period), config.data.activity_public
    )
    return Roster(holdings.dataset.devices, activity, np.zeros(len(activity), dtype=np.uint64))


def rounded(value: object) -> object:
    if isinstance(value, float):
        return round(float(value), 4)
    return [rounded(v) for v in value] if isinstance(value, list) else value


if __name__ == "__main__":
    main()
