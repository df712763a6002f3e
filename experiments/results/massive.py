"""The README's figures on MASSIVE: `python experiments/results/massive.py --data-dir DIR [--out
runs]`.

Runs `experiments/massive.toml` with the seeds 1 to 3 (finished runs are not repeated), prints the
table and puts the first seed's learning curve beside this file.
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
NAMES = ("intent_accuracy", "slot_f1", "frame_accuracy")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--out", default="runs")
    options = parser.parse_args()
    summaries = [run(seed, options.data_dir, options.out) for seed in SEEDS]
    for line in table(summaries):
        print(line)
    first = next(
        (Path(options.out) / "massive" / summaries[0]["config_hash"]).glob("seed=1/figures")
    )
    shutil.copy(first / "learning.png", HERE / "massive_learning.png")


def run(seed: int, data_dir: str, out: str) -> dict:
    command = [sys.executable, "-m", "fedsim", "run", str(ROOT / "experiments/massive.toml")]
    options = ["--data-dir", data_dir, "--out", out, "--set", f"seed={seed}", "--json", "--report"]
    return json.loads(subprocess.run([*command, *options], check=True, capture_output=True).stdout)


def table(summaries: list[dict]) -> list[str]:
    """Markdown: mean and range over the seeds."""
    lines = ["| test metric | federated | centralised | gap |", "|---|---|---|---|"]
    for name in NAMES:
        ours = [s["metrics"][name] for s in summaries]
        central = [s["reference"]["centralised"][name] for s in summaries]
        gap = [100 * (a - b) for a, b in zip(ours, central, strict=True)]
        lines.append(
            f"| {name.replace('_', ' ')} | {spread(ours, 100)} % | {spread(central, 100)} % | "
            f"{statistics.mean(gap):+.1f} points |"
        )
    train = [s["time"]["train_s"] for s in summaries]
    rate = [s["time"]["devices_per_s"] for s in summaries]
    lines.append(
        f"\n{len(summaries)} seeds, mean (lowest to highest). "
        f"Training alone took {spread(train, 1)} s,"
    )
    lines.append(f"{spread(rate, 1, 0)} devices a second.")
    return lines


def spread(values: list[float], scale: float, digits: int = 1) -> str:
    mean = statistics.mean(values)
    low = min(values)
    high = max(values)
    return f"{mean * scale:.{digits}f} ({low * scale:.{digits}f} to {high * scale:.{digits}f})"


if __name__ == "__main__":
    main()
