"""What selecting from a million devices costs: `python experiments/benchmarks/selection.py [--runs
7]`.

Prints the median milliseconds of one selection for every rule and both kinds of sampling.
"""

import argparse
import statistics
import time

import numpy as np

from fedsim.config import Selection
from fedsim.seeds import generator
from fedsim.types import View
from strategies.selection import SELECTORS, select

DEVICES = 1_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=7)
    runs = parser.parse_args().runs
    view = View(
        round=2,
        devices=np.char.add("d", np.char.zfill(np.arange(DEVICES).astype(str), 6)),
        activity=generator(0, "activity").zipf(1.5, DEVICES).clip(max=5000),
        reachable=np.ones(DEVICES, dtype=bool),
        participation=generator(0, "participation").integers(0, 9, DEVICES),
        rounds=9,
        availability=generator(0, "availability").random(DEVICES),
        losses=generator(0, "losses").random(DEVICES),
        privacy_cap=1e-4,
    )
    print("| rule | poisson, ms | fixed, ms |\n|---|---|---|")
    for rule in SELECTORS:
        kinds = ("poisson",) if rule == "privacy_aware" else ("poisson", "fixed")  # its size varies
        cells = [f"{median_ms(view, rule, sampling, runs):.0f}" for sampling in kinds]
        print(f"| {rule} | {' | '.join([*cells, ''][:2])} |")


def median_ms(view: View, rule: str, sampling: str, runs: int) -> float:
    settings = Selection.model_validate({"rule": rule, "cohort": 100, "sampling": sampling})
    seconds = []
    for i in range(runs):
        start = time.perf_counter()
        select(view, settings, generator(i, "select"))
        seconds.append(time.perf_counter() - start)
    return 1000 * statistics.median(seconds)


if __name__ == "__main__":
    main()
