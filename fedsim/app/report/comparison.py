"""The chapters of a report about several runs, and about a sweep."""

import shlex
from collections.abc import Sequence

import pandas as pd

from fedsim.app.report.parts import Chapter, Drawing, PageSection, Table, Tile
from fedsim.app.report.plots import of_sweeps as figures
from fedsim.app.report.readings import repeating
from fedsim.app.rundir.metrics import SHOWN, last_metrics
from fedsim.app.rundir.run_dir import RunDir
from fedsim.app.rundir.runs_table import ATTACK_AUC, AUDITED_EPSILON, EXPOSURE, differing, frame_of
from fedsim.app.sweeps.pareto import AXIS, cheapest_sentence, first_metric, pareto_table, shown
from fedsim.app.sweeps.sweep_dir import SweepDir
from fedsim.config import Scalar, to_flat

HEADS = {
    "privacy.epsilon_guarantee": "epsilon promised",
    "privacy.epsilon_max": "epsilon spent",
    ATTACK_AUC: "membership auc",
    EXPOSURE: "canary exposure mean",
    AUDITED_EPSILON: "audit epsilon low",
}
"""Column -> a longer head, where the column's name does not say enough."""
CURVES = 8
"""The largest number of runs whose curves share a figure."""
FIGURES = (
    "metrics.loss",
    "privacy.epsilon_guarantee",
    "privacy.epsilon_max",
    ATTACK_AUC,
    EXPOSURE,
    AUDITED_EPSILON,
)
"""Columns of `load_runs` in the table of runs, beside the metrics in [0, 1]."""


def runs_chapter(runs: Sequence[RunDir]) -> Chapter:
    """Return the chapter that compares runs side by side."""
    frame = frame_of(runs)
    names = labels(runs)
    metric = first_metric(frame)
    sections = [PageSection("runs", "Side by side", tables=[_side_by_side(frame, names)])]
    drawn = _curves(runs, names)
    if drawn:
        sections.append(PageSection("curves", "Utility by round", drawings=drawn))
    done = frame[frame["status"] == "completed"]
    if metric and not done.empty:
        sections.append(_tradeoff(pareto_table(frame, [], metric), metric))
    sections.append(_repeating(runs, names))
    words = f"{len(runs)} runs that differ in {_in_words(differing_only(runs))}."
    return Chapter(f"{len(runs)} runs side by side", words, _tiles(frame, metric), sections)


def sweep_chapter(folder: SweepDir, within: float) -> Chapter:
    """Return the chapter about a sweep."""
    plan = folder.plan
    frame = folder.frame()
    failed = folder.failed()
    metric = plan["metric"] or first_metric(frame)
    table = pareto_table(frame, folder.axes, metric) if metric else pd.DataFrame()
    sections = []
    if not table.empty:
        sections.append(
            _tradeoff(table, metric, cheapest_sentence(table, folder.axes, metric, within))
        )
        texts = shown(table)
        means = Table(list(texts.columns), texts.to_numpy().tolist(), numbers=False)
        words = [
            "Means over seeds with 95 % intervals by Student's t; epsilon is the largest "
            "guarantee. The same table as Markdown, CSV and Parquet lies in the sweep's folder."
        ]
        sections.append(PageSection("table", "All settings", words, tables=[means]))
    if failed:
        rows = [[name, why] for name, why in failed.items()]
        red = Table(["run", "why"], rows, numbers=False, marks=[False] * len(rows))
        sections.append(PageSection("failed", "Runs that failed", tables=[red]))
    ended = int((frame["status"] == "completed").sum())
    seeds = len({row["seed"] for row in plan["runs"]})
    told = (
        f"{ended} of {len(plan['runs'])} runs are finished: {len(plan['runs']) // seeds} settings "
        f"of {_in_words(plan['axes'])}, {seeds} seed(s)."
    )
    command = " ".join(["fedsim", *(shlex.quote(part) for part in plan["command"][1:])])
    repeat = ["The command that did it, and goes on where it ended:"]
    sections.append(PageSection("repeat", "How to repeat it", repeat, code=command))
    return Chapter(f"Sweep {folder.path.name}", told, _tiles(frame, metric), sections)


def labels(runs: Sequence[RunDir]) -> list[str]:
    """Return short names that tell runs apart: the settings in which they differ, and the seed."""
    keys = differing_only(runs)
    names = []
    for run in runs:
        flat = to_flat(run.config)
        parts = [f"{key.rpartition('.')[2]} {_short(flat[key])}" for key in keys[:3]]
        names.append(", ".join([*parts, f"seed {run.config.seed}"]))
    return (
        names
        if len(set(names)) == len(names)
        else [f"{i}: {n}" for i, n in enumerate(names, start=1)]
    )


def differing_only(runs: Sequence[RunDir]) -> list[str]:
    """Return the settings in which runs do differ."""
    flat = [to_flat(run.config) for run in runs]
    keys = differing([run.config for run in runs])
    return [key for key in keys if len({str(each[key]) for each in flat}) > 1]


def _tradeoff(table: pd.DataFrame, metric: str, notice: str = "") -> PageSection:
    caption = (
        "Utility against epsilon, with 95 % intervals over seeds where there are several; the line "
        "joins what no other setting beats."
    )
    drawings = [Drawing("pareto", figures.pareto(table, metric), caption)]
    words = []
    if table["attack_auc"].isna().all():
        words = [
            "No attack was measured in these runs, so empirical leakage does not stand beside "
            "epsilon."
        ]
    else:
        caption = (
            "What attacks found against epsilon: AUC of the strongest (left), mean exposure "
            "(right, dashed)."
        )
        drawings.append(Drawing("leakage", figures.leakage(table), caption))
    return PageSection("pareto", "Utility against privacy", words, drawings, notice=notice)


def _curves(runs: Sequence[RunDir], names: Sequence[str]) -> list[Drawing]:
    rows = [run.rows() for run in runs]
    metric = next(
        (name for name in SHOWN if all(name in last_metrics(each) for each in rows)), None
    )
    if metric is None:
        return []
    series = {
        name: [(row["round"], row[metric]) for row in each if metric in row]
        for name, each in list(zip(names, rows, strict=True))[:CURVES]
    }
    left = f" The first {CURVES} of {len(runs)} runs." if len(runs) > CURVES else ""
    return [Drawing("curves", figures.curves(series, metric), f"Test metric by round.{left}")]


def _side_by_side(frame: pd.DataFrame, names: Sequence[str]) -> Table:
    columns = ["status", *(f"metrics.{name}" for name in SHOWN), *FIGURES, "time.train_s"]
    columns = [column for column in columns if column in frame]
    rows = [
        [name, *(_short(value) for value in row)]
        for name, row in zip(names, frame[columns].values, strict=True)
    ]
    heads = [
        HEADS.get(column) or column.partition(".")[2].replace("_", " ") or column
        for column in columns
    ]
    return Table(["run", *heads], rows, numbers=False)


def _repeating(runs: Sequence[RunDir], names: Sequence[str]) -> PageSection:
    rows = [[name, repeating(run)] for name, run in zip(names, runs, strict=True)]
    return PageSection(
        "repeat", "How to repeat them", tables=[Table(["run", "command"], rows, numbers=False)]
    )


def _tiles(frame: pd.DataFrame, metric: str) -> list[Tile]:
    tiles = [
        Tile(
            "runs",
            str(int((frame["status"] == "completed").sum())),
            f"finished, of {len(frame)} begun",
        )
    ]
    for title, column, best in (
        (f"best {metric.replace('_', ' ')}", f"metrics.{metric}", "max"),
        ("least promised epsilon", "privacy.epsilon_guarantee", "min"),
        ("highest attack AUC", ATTACK_AUC, "max"),
        ("highest exposure, bits", EXPOSURE, "max"),
    ):
        if column in frame and frame[column].notna().any():
            tiles.append(Tile(title, f"{frame[column].agg(best):.3f}", "of one run"))
    return tiles


def _in_words(keys: Sequence[str]) -> str:
    return ", ".join(key.removeprefix(AXIS) for key in keys) or "nothing but the seed"


def _short(value: Scalar) -> str:
    if isinstance(value, float):
        return "" if pd.isna(value) else f"{value:.4g}"
    return str(value)
