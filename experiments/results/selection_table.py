"""Tables and figures of the experiment `selection`: `python
experiments/results/selection_table.py`.

Reads `selection_runs.jsonl` beside this file; prints the differences and writes all tables to
`selection.md`, figures to `selection_accuracy.png` and `selection_deciles.png`. Intervals are 95 %
t-intervals over seeds. Differences are paired by seed: the same seed gives the same first model,
and batches by device and round.
"""

import json
from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import t

from fedsim.app.report.plots.style import SERIES, STYLE

HERE = Path(__file__).parent
SELECTIONS = ("uniform", "activity 0.5", "activity 1", "mixture", "threshold")
WEIGHTS = ("equal", "examples", "inverse_probability")
MODES = ("static", "continual")
SETS = ("massive", "star")
ROUNDS = {"massive": 100, "star": 60}

ABOUT = (
    "Written by `selection_table.py` from `selection_runs.jsonl`: means, 95 % t-intervals over "
    "seeds.\n\n"
    "Differences: accuracy in points, a rule less uniform selection with the same weights, paired "
    'by seed. "Equal\n'
    'steps" compares when a run has taken as many local steps as uniform selection in all its '
    "rounds; it means\n"
    "nothing where data arrive by period. Rounds to target: until 75 % (massive) or 40 % (star), "
    "of 100 or 60,\n"
    "measured every 5 or 4 rounds. Tenths are devices by activity, measured on what each holds "
    "out; those of the\n"
    "least active tenth hold out very little."
)

Run = dict
Runs = dict[tuple[str, str, str, str], list[Run]]


def main() -> None:
    runs = read()
    compared = "\n".join(differences(runs))
    print(compared)
    parts = ["# Selection x weights: every cell", ABOUT, compared]
    for rows in (table, decile_table):
        parts += ["\n".join(rows(runs, name, mode)) for name in SETS for mode in MODES]
    (HERE / "selection.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    draw(runs, accuracy_panel, "selection_accuracy.png")
    draw(runs, decile_panel, "selection_deciles.png")


def read() -> Runs:
    """Return the runs of each cell in the order of their seeds."""
    found: Runs = {}
    for line in (HERE / "selection_runs.jsonl").read_text(encoding="utf-8").splitlines():
        run = json.loads(line)
        found.setdefault((run["set"], run["mode"], run["selection"], run["weights"]), []).append(
            run
        )
    for cell in found.values():
        cell.sort(key=lambda run: run["seed"])
    return found


def table(runs: Runs, name: str, mode: str) -> list[str]:
    """Every cell of one set and mode: what the experiment was asked for."""
    seeds = len(runs[name, mode, "uniform", "equal"])
    static = mode == "static"
    lines = [
        f"## {name}, {mode}, {seeds} seeds",
        "",
        "| selection | weights | accuracy, % | rounds to target | at uniform's steps, % | least "
        "active tenth | most active tenth | weight of the top 1 %, % | participation Gini |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for selection in SELECTIONS:
        for weights in WEIGHTS:
            cell = runs[name, mode, selection, weights]
            columns = [
                percent([run["accuracy"] for run in cell]),
                rounds_to_target(cell, ROUNDS[name]),
                percent(at_equal_steps(cell, runs[name, mode, "uniform", weights]))
                if static
                else "",
                percent([run["deciles"][0] for run in cell]),
                percent([run["deciles"][-1] for run in cell]),
                percent([run["top_1_weight"] for run in cell]),
                interval([run["participation_gini"] for run in cell], 2),
            ]
            lines.append(f"| {selection} | {weights.replace('_', ' ')} | {' | '.join(columns)} |")
    top = runs[name, mode, "uniform", "equal"][0]["top_1_examples"]
    return [
        *lines,
        "",
        f"The top 1 % of the devices hold {100 * top:.1f} % of the training examples.",
    ]


def deciles(cell: list[Run]) -> list[tuple[float, float]]:
    """Return mean and half-width of the accuracy on each tenth of the devices."""
    return [t_interval([run["deciles"][i] for run in cell]) for i in range(10)]


def decile_table(runs: Runs, name: str, mode: str) -> list[str]:
    lines = [
        f"## {name}, {mode}: accuracy on devices by tenth of activity, %, equal weights",
        "",
        f"| selection | {' | '.join(map(str, range(1, 11)))} |",
        f"|---|{'---|' * 10}",
    ]
    for selection in SELECTIONS:
        cells = [
            f"{100 * m:.1f} ± {100 * h:.1f}"
            for m, h in deciles(runs[name, mode, selection, "equal"])
        ]
        lines.append(f"| {selection} | {' | '.join(cells)} |")
    return lines


def differences(runs: Runs) -> list[str]:
    """Activity less uniform for every weight, statically and continually, and how much more
    continually.
    """
    lines = [
        "| set | weights | rule | static | continual | continual less static | static, equal "
        "steps |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in SETS:
        for weights in WEIGHTS:
            for rule in SELECTIONS[1:]:
                gaps = [gap(runs, name, mode, rule, weights) for mode in MODES]
                steps = gap_at_equal_steps(runs, name, rule, weights)
                more = [b - a for a, b in zip(*gaps, strict=True)]
                cells = [interval(values, 1, 100, "+") for values in (*gaps, more, steps)]
                lines.append(
                    f"| {name} | {weights.replace('_', ' ')} | {rule} | {' | '.join(cells)} |"
                )
    return lines


def gap(runs: Runs, name: str, mode: str, rule: str, weights: str) -> list[float]:
    pairs = zip(runs[name, mode, rule, weights], runs[name, mode, "uniform", weights], strict=True)
    return [a["accuracy"] - b["accuracy"] for a, b in pairs]


def gap_at_equal_steps(runs: Runs, name: str, rule: str, weights: str) -> list[float]:
    base = runs[name, "static", "uniform", weights]
    there = at_equal_steps(runs[name, "static", rule, weights], base)
    return [a - b["accuracy"] for a, b in zip(there, base, strict=True)]


def at_equal_steps(cell: list[Run], base: list[Run]) -> list[float]:
    """Return each run's accuracy when it has taken as many local steps as its uniform twin in all.

    Linear between evaluations; a run with fewer steps in all stands at its end.
    """
    return [
        float(np.interp(b["steps"][-1], run["steps"], run["curve"]))
        for run, b in zip(cell, base, strict=True)
    ]


def rounds_to_target(cell: list[Run], rounds: int) -> str:
    there = [run["rounds_to_target"] for run in cell]
    if None in there:
        return f"{sum(r is not None for r in there)} of {len(there)} get there in {rounds}"
    return interval(there, 0)


def percent(values: list[float]) -> str:
    return interval(values, 1, 100)


def interval(values: list[float], digits: int, scale: float = 1.0, sign: str = "") -> str:
    mean, half = t_interval(values)
    return f"{mean * scale:{sign}.{digits}f} ± {half * scale:.{digits}f}"


def t_interval(values: list[float]) -> tuple[float, float]:
    """Return the mean and half the width of its 95 % t-interval."""
    n = len(values)
    if n < 2:
        return float(np.mean(values)), float("nan")
    return float(np.mean(values)), float(t.ppf(0.975, n - 1) * np.std(values, ddof=1) / np.sqrt(n))


def draw(runs: Runs, panel: Callable[[Axes, Runs, str, str], None], name: str) -> None:
    """Two sets by two modes."""
    with mpl.rc_context(STYLE | {key: "black" for key in STYLE if "color" in key}):
        figure = Figure(figsize=(11, 7.4), layout="constrained")
        for row, axes in zip(SETS, figure.subplots(2, 2, sharey="row"), strict=True):
            for mode, one in zip(MODES, axes, strict=True):
                panel(one, runs, row, mode)
                one.grid(axis="y", alpha=0.25)
                one.set_title(f"{row}, {mode}", fontsize=13)
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
        figure.savefig(HERE / name, dpi=120, facecolor="white")


def accuracy_panel(axes: Axes, runs: Runs, name: str, mode: str) -> None:
    """Final accuracy by selection, one colour a weight."""
    for i, weights in enumerate(WEIGHTS):
        found = [
            t_interval([r["accuracy"] for r in runs[name, mode, s, weights]]) for s in SELECTIONS
        ]
        mean, half = np.array(found).T * 100
        x = np.arange(len(SELECTIONS)) + (i - 1) * 0.18
        label = f"weights: {weights.replace('_', ' ')}"
        axes.errorbar(x, mean, half, fmt="o", color=SERIES[i], capsize=3, label=label)
    axes.set_xticks(range(len(SELECTIONS)), SELECTIONS)
    axes.set_ylabel("test accuracy, %")


def decile_panel(axes: Axes, runs: Runs, name: str, mode: str) -> None:
    """Accuracy on the devices' own held-out examples by tenth of activity, equal weights."""
    for i, selection in enumerate(SELECTIONS):
        mean, half = 100 * np.array(deciles(runs[name, mode, selection, "equal"])).T
        x = np.arange(1, 11) + (i - 2) * 0.08
        axes.errorbar(
            x, mean, half, fmt="o-", color=SERIES[i], label=selection, markersize=4, elinewidth=0.8
        )
    axes.set_xticks(range(1, 11))
    axes.set_xlabel("tenth of the devices, least active first")
    axes.set_ylabel("accuracy on devices, %")


if __name__ == "__main__":
    main()
