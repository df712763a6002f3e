"""Robust rules where a fifth of the devices lies: `python experiments/results/robust.py [--out
runs]`.

Runs `experiments/robust.toml` honestly and with a fifth of the devices sending five times the
opposite of what they learned, seeds 1 to 3, with every rule; prints the table and puts the curves
beside this file.
"""

import argparse
import statistics
import sys
from pathlib import Path

import matplotlib as mpl
import torch
from matplotlib.figure import Figure

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # experiments is no installed package

from experiments.adversary import adversarial, flipped  # noqa: E402
from fedsim.app.engines.local import run_local  # noqa: E402
from fedsim.app.engines.local_grid import LocalGrid  # noqa: E402
from fedsim.app.report.plots.style import SERIES, STYLE  # noqa: E402
from fedsim.app.rundir.run_dir import RunDir  # noqa: E402
from fedsim.app.server.serve import serve  # noqa: E402
from fedsim.config import load, to_flat  # noqa: E402

HERE = Path(__file__).parent
SEEDS = (1, 2, 3)
BAD = 0.2
RULES = {
    "fedavg": [],
    "norm-bounded": ["aggregation.max_norm=0.3", "aggregation.over_norm=clip"],
    "median": ["aggregation.rule=median"],
    "trimmed mean": ["aggregation.rule=trimmed_mean"],
    "multi-Krum": ["aggregation.rule=multi_krum"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="runs")
    out = parser.parse_args().out
    torch.set_num_threads(1)
    curves = {}
    print("| rule | all honest | a fifth lies |\n|---|---|---|")
    for rule, settings in RULES.items():
        cells = []
        for share in (0.0, BAD):
            runs = [run(settings, share, seed, out) for seed in SEEDS]
            cells.append(cell([final(r) for r in runs]))
            curves[rule, share] = [
                [row["accuracy"] for row in r.rows() if "accuracy" in row] for r in runs
            ]
        print(f"| {rule} | {' | '.join(cells)} |", flush=True)
    draw(curves).savefig(HERE / "robust.png", dpi=150, facecolor="white")


def run(settings: list[str], share: float, seed: int, out: str) -> RunDir:
    """Run or find one; what devices do is no setting, so each share has a folder of its own."""
    place = [f"place.out={Path(out) / f'robust-{share:g}'}", f"seed={seed}", "place.threads=1"]
    config = load(ROOT / "experiments" / "robust.toml", [*settings, *place])
    grid = LocalGrid(adversarial(share, flipped(5.0)), to_flat(config), 1)
    return serve(grid, config, {}, run_local)


def final(found: RunDir) -> float:
    assert found.summary is not None
    return found.summary["metrics"]["accuracy"]


def cell(values: list[float]) -> str:
    return f"{statistics.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def draw(curves: dict) -> Figure:
    with mpl.rc_context(STYLE | {k: "black" for k in STYLE if "color" in k}):
        figure = Figure(figsize=(6.4, 4.0), layout="constrained")
        axes = figure.add_subplot()
        for (rule, share), values in curves.items():
            if share or rule == "fedavg":
                colour = "black" if not share else SERIES[list(RULES).index(rule)]
                mean = [statistics.mean(point) for point in zip(*values, strict=True)]
                label = rule if share else "fedavg, all honest"
                rounds = [2 * i for i in range(1, 1 + len(mean))]
                axes.plot(rounds, mean, "--" if not share else "-", color=colour, label=label)
        axes.set_ylim(0, 1.02)
        axes.set_xlabel("round")
        axes.set_ylabel("test accuracy, a fifth of devices lies")
        axes.legend(loc="lower right", bbox_to_anchor=(1.0, 0.14), fontsize=11)
    return figure


if __name__ == "__main__":
    main()
