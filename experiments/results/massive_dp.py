"""Utility under DP on MASSIVE: `python experiments/results/massive_dp.py --data-dir DIR [--out
runs]`.

Runs `massive_dp.toml` and `massive_dp_example.toml`, at epsilon 8 and 2, with the seeds 1 to 3
(finished runs are not repeated), prints the table and writes `massive_dp.json` beside this file.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tomllib
from pathlib import Path

from fedsim.privacy.accounting import Event, epsilon

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SEEDS = (1, 2, 3)
DELTAS = (1e-3, 1e-4, 1e-5)
ROWS: dict[tuple[str, int], list[str]] = {
    ("massive_dp", 8): [],
    ("massive_dp", 2): ["dp.noise_multiplier=10.972", "aggregation.lr=15.0"],
    ("massive_dp_example", 8): [],
    ("massive_dp_example", 2): ["dp.noise_multiplier=10.926", "train.lr=88.0"],
}
"""(experiment, epsilon) -> settings; the multipliers are those that `fedsim calibrate` printed."""
HEADS = (
    "unit, trust",
    "test intent accuracy",
    *(f"ε at δ = {delta:g}" for delta in DELTAS),
    "seconds a run",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--out", default="runs")
    options = parser.parse_args()
    rows = [
        row(name, settings, [run(name, seed, settings, options) for seed in SEEDS])
        for (name, _), settings in ROWS.items()
    ]
    (HERE / "massive_dp.json").write_text(json.dumps(rows, indent=2) + "\n")
    for line in table(rows):
        print(line)


def run(name: str, seed: int, settings: list[str], options: argparse.Namespace) -> dict:
    command = [sys.executable, "-m", "fedsim", "run", str(ROOT / f"experiments/{name}.toml")]
    command += [
        "--json",
        "--data-dir",
        options.data_dir,
        "--out",
        options.out,
        "--set",
        f"seed={seed}",
    ]
    command += [part for setting in settings for part in ("--set", setting)]
    return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)


def row(name: str, settings: list[str], summaries: list[dict]) -> dict:
    """Return the figures of one guarantee; every unit takes part in every round, so nothing is
    amplified.
    """
    privacy = summaries[0]["privacy"]
    rounds = summaries[0]["rounds"]
    own = dict(setting.split("=") for setting in settings)
    z = float(own.get("dp.noise_multiplier") or experiment(name)["dp"]["noise_multiplier"])
    at = {f"{delta:g}": epsilon([Event(z, 1.0, rounds)], delta) for delta in DELTAS}
    stated = at[f"{privacy['delta']:g}"]
    if abs(stated - privacy["epsilon_guarantee"]) > 1e-3 * stated:
        raise SystemExit(
            f"{name}: the run's epsilon {privacy['epsilon_guarantee']} is not {stated}"
        )
    return {
        "experiment": name,
        "settings": settings,
        "seeds": list(SEEDS),
        "unit": privacy["unit"],
        "trust": privacy["trust"],
        "relation": privacy["relation"],
        "headline_delta": privacy["delta"],
        "epsilon": at,
        "accuracy": [s["metrics"]["accuracy"] for s in summaries],
        "seconds": [s["time"]["setup_s"] + s["time"]["train_s"] for s in summaries],
    }


def experiment(name: str) -> dict:
    return tomllib.loads((ROOT / f"experiments/{name}.toml").read_text())


def table(rows: list[dict]) -> list[str]:
    """Markdown: mean and range over the seeds; the headline's ε is bold."""
    lines = [f"| {' | '.join(HEADS)} |", "|" + "---|" * len(HEADS)]
    for each in rows:
        accuracy = [100 * a for a in each["accuracy"]]
        spread = f"{statistics.mean(accuracy):.1f} ({min(accuracy):.1f} to {max(accuracy):.1f}) %"
        trust = {"central": "trusted server", "secure_sum": "simulated secure sum"}[each["trust"]]
        epsilons = [
            f"**{e:.2f}**" if float(delta) == each["headline_delta"] else f"{e:.2f}"
            for delta, e in each["epsilon"].items()
        ]
        seconds = f"{statistics.mean(each['seconds']):.0f}"
        lines.append(f"| {' | '.join([each['unit'] + ', ' + trust, spread, *epsilons, seconds])} |")
    return lines


if __name__ == "__main__":
    main()
