"""Memory rules on STAR by real time: `python experiments/results/continual.py --data-dir DIR [--out
runs]`.

Runs `experiments/continual_star.toml` with each memory rule, and statically with as many rounds,
seeds 1 to 3; prints the table and puts the forgetting matrix and the prequential curve of memory =
"current" beside this file.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SEEDS = (1, 2, 3)
MODES = {
    "static": ["stream.mode=static", "stream.periods=1"],
    "all": ["stream.memory=all"],
    "window of 2": ["stream.memory=window"],
    "reservoir of 50": ["stream.memory=reservoir", "stream.reservoir=50"],
    "current": ["stream.memory=current"],
}
COLUMNS = (
    "accuracy",
    "prequential_accuracy",
    "forgetting_accuracy",
    "backward_transfer_accuracy",
    "negative_flip_rate",
    "positive_flip_rate",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--out", default="runs")
    options = parser.parse_args()
    print(
        "| memory | accuracy at the end | before training on a period | forgetting | backward "
        "transfer | right before, wrong now | wrong before, right now |"
    )
    print("|---|---|---|---|---|---|---|")
    for mode, settings in MODES.items():
        runs = [run(seed, settings, options.data_dir, options.out) for seed in SEEDS]
        cells = [
            cell([r["metrics"][name] for r in runs if name in r["metrics"]]) for name in COLUMNS
        ]
        print(f"| {mode} | {' | '.join(cells)} |", flush=True)
    folder = Path(options.out) / "continual_star" / runs[0]["config_hash"] / "seed=1" / "figures"
    for name in ("forgetting", "prequential"):
        shutil.copy(folder / f"{name}.png", HERE / f"continual_star_{name}.png")


def run(seed: int, settings: list[str], data_dir: str, out: str) -> dict:
    command = [
        sys.executable,
        "-m",
        "fedsim",
        "run",
        str(ROOT / "experiments/continual_star.toml"),
    ]
    changes = [f"seed={seed}", "train.centralised=false", *settings]
    options = [part for change in changes for part in ("--set", change)]
    place = ["--data-dir", data_dir, "--out", out, "--json", "--report"]
    return json.loads(
        subprocess.run([*command, *options, *place], check=True, capture_output=True).stdout
    )


def cell(values: list[float]) -> str:
    if not values:
        return ""
    return f"{statistics.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


if __name__ == "__main__":
    main()
