"""Canaries in Snips against defences: `python experiments/results/canaries.py --data-dir DIR
[--part PART]`.

Runs `experiments/canary_snips.toml` with each defence and each pattern (--part defences), and the
grid of devices x copies x activity (--part grid); prints Markdown tables and puts canaries.json and
a picture beside this file. A run that is there already is not done again, so the command may be
interrupted and repeated.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure

from fedsim.app.engines.local import run_local
from fedsim.app.report.plots.style import SERIES, STYLE
from fedsim.app.rundir.files import Row
from fedsim.app.rundir.run_dir import RunDir
from fedsim.audit.exposure import exposure_standard_error
from fedsim.config import load

HERE = Path(__file__).parent
EXPERIMENT = HERE.parents[0] / "canary_snips.toml"
SEEDS = (1, 2, 3)
EARLY = ["evaluation.every=2", "train.patience=1", "train.patience_metric=loss"]
EXAMPLE = [
    "dp.unit=example",
    "dp.delta=1e-4",
    "dp.noise_multiplier=13.444",
]  # calibrate --epsilon 2
DEVICE = ["dp.unit=device", "dp.noise_multiplier=5.5982"]  # calibrate --epsilon 2; delta is 1e-3
DEFENCES = {
    "none": [],
    "dropout 0.5": ["model.dropout=0.5"],
    "early stopping": EARLY,
    "character CNN": ["model.characters=true"],
    "example-level DP, exact": EXAMPLE,
    "example-level DP, micro-batches (eDP)": [*EXAMPLE, "dp.method=edp"],
    "device-level DP": DEVICE,
    "dropout, early stopping, example-level DP": ["model.dropout=0.5", *EARLY, *EXAMPLE],
}
PATTERNS = {f"none, pattern {name}": [f"canary.pattern={name}"] for name in ("call", "colour")}
GRID = [
    "canary.devices=1,3",
    "canary.copies=1,10,50",
    "canary.holders=light,heavy",
    "canary.count=12",
    "selection.rule=activity",
    "selection.sampling=poisson",
    "selection.cohort=8",
    "train.rounds=40",
    "evaluation.every=40",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", default="")
    parser.add_argument("--out", default="runs")
    parser.add_argument("--seeds", type=int, default=len(SEEDS))
    parser.add_argument("--part", choices=["all", "defences", "grid"], default="all")
    options = parser.parse_args()
    torch.set_num_threads(1)
    begin = time.perf_counter()
    found = {}
    if options.part != "grid":
        for name, settings in (DEFENCES | PATTERNS).items():
            found[name] = [run(settings, seed, options) for seed in SEEDS[: options.seeds]]
            print(f"{name}: {seconds(found[name]):.0f} s of training", flush=True)
        print(*table(found), sep="\n")
        draw({name: rows(runs) for name, runs in found.items()}).savefig(
            HERE / "canaries.png", dpi=150, facecolor="white"
        )
    if options.part != "defences":
        found["grid"] = [run(GRID, seed, options) for seed in SEEDS[: options.seeds]]
        print("\n", *grid_table(rows(found["grid"])), sep="\n")
    write(
        {name: rows(runs) for name, runs in found.items()},
        {n: utility(r) for n, r in found.items()},
    )
    print(f"\n{time.perf_counter() - begin:.0f} s of wall clock, 1 thread")


def run(settings: list[str], seed: int, options: argparse.Namespace) -> RunDir:
    place = [f"place.out={options.out}", f"place.data_dir={options.data_dir}", "place.threads=1"]
    return run_local(load(EXPERIMENT, [*settings, *place, f"seed={seed}"]))


def rows(runs: list[RunDir]) -> list[Row]:
    """Return the last model's canary rows of all seeds."""
    found = []
    for one in runs:
        mine = [
            r for r in one.rows("audit.jsonl") if r["kind"] == "canary" and r["view"] == "final"
        ]
        last = max(r["round"] for r in mine)
        found += [r | {"seed": one.config.seed} for r in mine if r["round"] == last]
    return found


def seconds(runs: list[RunDir]) -> float:
    return sum(r.summary["time"]["train_s"] for r in runs if r.summary)


def utility(runs: list[RunDir]) -> dict[str, float]:
    """Return the mean metrics over seeds."""
    metrics = [r.summary["metrics"] for r in runs if r.summary]
    return {n: statistics.mean(m[n] for m in metrics) for n in ("intent_accuracy", "slot_f1")}


def pooled(mine: list[Row], name: str) -> np.ndarray:
    return np.concatenate([np.atleast_1d(r[name]) for r in mine if name in r] or [np.zeros(0)])


def exposed(mine: list[Row]) -> tuple[float, float]:
    """Return the mean exposure of all seeds' canaries and its standard error, the null's for fewer
    than 5.
    """
    values = pooled(mine, "exposures")
    if len(values) < 5:
        return float(values.mean()), exposure_standard_error(len(values))
    return float(values.mean()), float(values.std(ddof=1) / len(values) ** 0.5)


def table(found: dict[str, list[RunDir]]) -> list[str]:
    """Markdown: exposure by copies beside its bound, and the digits found at most copies beside
    chance.
    """
    lines = [
        "| defence | intent / slot F1 | exposure at 1, 10, 50 copies (s.e.) | allowed at 1, 10, "
        "50 | null | ModIvA digits at 50 | exhaustive | control | exact codes | chance |",
        "|---" * 10 + "|",
    ]
    for name, runs in found.items():
        each = rows(runs)
        most = {r["copies"] for r in rows(runs)}
        shown = [[r for r in each if r["copies"] == copies] for copies in sorted(most)]
        metrics = utility(runs)
        last = shown[-1]
        bits = ", ".join("{:.2f} ({:.2f})".format(*exposed(mine)) for mine in shown)
        allowed = [pooled(mine, "epsilon_bound") for mine in shown]
        bounds = ", ".join(f"{b.max():.2f}" if len(b) else "any" for b in allowed)
        digits = " | ".join(
            f"{pooled(last, n).mean():.2f}"
            for n in (
                "digit_accuracy",
                "ceiling_digit_accuracy",
                "control_digit_accuracy",
                "exact_match",
            )
        )
        lines.append(
            f"| {name} | {metrics['intent_accuracy']:.3f} / {metrics['slot_f1']:.3f} | {bits} | "
            f"{bounds} | {pooled(each, 'null_exposures').mean():.2f} | {digits} | "
            f"{last[0]['chance']:.2f} |"
        )
    return lines


def grid_table(each: list[Row]) -> list[str]:
    """Markdown: the mean exposure by holders' activity, devices and copies."""
    copies = sorted({r["copies"] for r in each})
    lines = [
        "| holders | devices | " + " | ".join(f"{c} copies (s.e.)" for c in copies) + " |",
        "|---" * (2 + len(copies)) + "|",
    ]
    for holders in ("light", "heavy"):
        for devices in sorted({r["devices"] for r in each}):
            cells = [
                "{:.2f} ({:.2f})".format(
                    *exposed(
                        [
                            r
                            for r in each
                            if (r["holders"], r["devices"], r["copies"]) == (holders, devices, c)
                        ]
                    )
                )
                for c in copies
            ]
            lines.append(f"| {holders} | {devices} | {' | '.join(cells)} |")
    return lines


def write(found: dict[str, list[Row]], metrics: dict[str, dict[str, float]]) -> None:
    """Add what was measured to canaries.json."""
    path = HERE / "canaries.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    known |= {name: {"metrics": metrics[name], "rows": each} for name, each in found.items()}
    path.write_text(json.dumps(known, indent=1) + "\n")


def draw(found: dict[str, list[Row]]) -> Figure:
    """The mean exposure by copies: each defence a line, the null dashed."""
    with mpl.rc_context(STYLE | {k: "black" for k in STYLE if "color" in k}):
        figure = Figure(figsize=(7.2, 4.2), layout="constrained")
        axes = figure.add_subplot()
        for i, name in enumerate(DEFENCES):
            copies = sorted({r["copies"] for r in found[name]})
            each = [exposed([r for r in found[name] if r["copies"] == c]) for c in copies]
            mean, error = zip(*each, strict=True)
            style = "-o" if i < len(SERIES) else "--s"
            axes.errorbar(
                np.array(copies) * 1.03**i,
                mean,
                error,
                fmt=style,
                color=SERIES[i % len(SERIES)],
                label=name,
            )
        axes.axhline(1 / np.log(2), color="black", linestyle=":", label="without leakage")
        axes.set_xscale("log")
        axes.set_xticks([1, 10, 50], ["1", "10", "50"])
        axes.minorticks_off()
        axes.set_xlabel("copies of a canary, all on one device")
        axes.set_ylabel("mean exposure (bits of 13.3)")
        axes.legend(fontsize=9)
    return figure


if __name__ == "__main__":
    main()
