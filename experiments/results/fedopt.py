"""Server rule x client optimiser: `python experiments/results/fedopt.py --data-dir DIR [--out
runs]`.

Runs `experiments/fedopt.toml` with every server rule and every client optimiser. Each pair gets the
learning rates of a small grid that are best on the dev split (one seed), and is then measured on
the test split with seeds 1 to 3. Prints the table; finished runs are not repeated.
"""

import argparse
import statistics
from itertools import product
from pathlib import Path

import torch

from fedsim.app.engines.local import run_local
from fedsim.config import load
from fedsim.errors import RunFailed

EXPERIMENT = Path(__file__).parents[1] / "fedopt.toml"
SEEDS = (1, 2, 3)
SERVERS = {
    "fedavg": (1.0, 2.0, 4.0),
    "fedavgm": (0.1, 0.3, 1.0),
    "fedadagrad": (0.1, 0.3),
    "fedadam": (0.03, 0.1),
    "fedyogi": (0.03, 0.1),
}
CLIENTS = {
    "sgd": ((3.0, 10.0, 30.0), ["train.optimizer=sgd"]),
    "sgd, momentum 0.9": ((1.0, 3.0, 10.0), ["train.optimizer=sgd", "train.momentum=0.9"]),
    "adam": ((0.03, 0.1, 0.3), ["train.optimizer=adam"]),
    "adamw": ((0.03, 0.1, 0.3), ["train.optimizer=adamw", "train.weight_decay=0.01"]),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--out", default="runs")
    options = parser.parse_args()
    torch.set_num_threads(1)
    place = [f"place.data_dir={options.data_dir}", f"place.out={options.out}", "place.threads=1"]
    print(f"| client | {' | '.join(SERVERS)} |\n|---|{'---|' * len(SERVERS)}")
    for client, (rates, settings) in CLIENTS.items():
        cells = [cell(server, rates, [*settings, *place]) for server in SERVERS]
        print(f"| {client} | {' | '.join(cells)} |", flush=True)


def cell(server: str, client_rates: tuple[float, ...], settings: list[str]) -> str:
    """Choose the rates on dev, then measure on test."""
    pairs = list(product(client_rates, SERVERS[server]))
    best = max(
        pairs, key=lambda rates: accuracy(server, rates, [*settings, "data.test=dev.jsonl.gz"], 1)
    )
    found = [accuracy(server, best, settings, seed) for seed in SEEDS]
    mean = statistics.mean(found)
    return f"{mean:.3f} ({min(found):.3f} to {max(found):.3f}) at {best[0]:g}, {best[1]:g}"


def accuracy(server: str, rates: tuple[float, float], settings: list[str], seed: int) -> float:
    """Return a run's accuracy; a run that diverges knows nothing."""
    chosen = [f"aggregation.rule={server}", f"train.lr={rates[0]}", f"aggregation.lr={rates[1]}"]
    try:
        summary = run_local(load(EXPERIMENT, [*settings, *chosen, f"seed={seed}"])).summary
    except RunFailed:
        return 0.0
    assert summary is not None
    return summary["metrics"]["accuracy"]


if __name__ == "__main__":
    main()
