"""How long it takes to know every device's epsilon: 1,000,000 devices, 64 rates, 1,000 rounds, in a
ledger.

Two cases: every scheduled round counts for every device (device-level DP), and each device's own
realised participations count (example-level DP). Prints medians of three runs and the peak of
memory.
"""

import resource
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedsim.privacy.accounting import Event
from fedsim.privacy.ledger import NOBODY, Entry, Ledger
from fedsim.privacy.renyi_table import renyi_curve

DEVICES = 1_000_000
ROUNDS = 1000
DELTA = 1e-7
RUNS = 3
RATES = np.geomspace(1e-5, 0.05, 64)


def main() -> None:
    group = np.random.default_rng(0).integers(0, len(RATES), DEVICES).astype(np.int16)
    for name, realised in (("every round counts", False), ("realised rounds count", True)):
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            write(Path(folder), group, realised)
            written = time.perf_counter() - start
            taken = [read(Path(folder)) for _ in range(RUNS)]
        seconds = statistics.median(each[0] for each in taken)
        found = taken[-1][1]
        print(
            f"{name}: all epsilons in {seconds:.1f} s (written in {1000 * written / ROUNDS:.1f} "
            "ms a round)"
        )
        print(f"  max {found.max():.3f}, median {np.median(found):.3f}")
    print(f"peak memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


def write(folder: Path, group: NDArray[np.int16], realised: bool) -> None:
    """Write a ledger of ROUNDS rounds."""
    ledger = Ledger.open(folder, DEVICES)
    groups = tuple((Event(1.0, float(q)),) for q in RATES)
    for round in range(1, ROUNDS + 1):
        coins = np.random.default_rng(round).random(DEVICES) < RATES[group]
        members = np.where(coins, group, np.int16(NOBODY)) if realised else group
        ledger.write(Entry(round, 1, "model", "seeded", groups, members))


def read(folder: Path) -> tuple[float, NDArray[np.float64]]:
    """Return the seconds from files to every epsilon, and the epsilons; Renyi curves are new."""
    renyi_curve.cache_clear()
    start = time.perf_counter()
    table, counts = Ledger.open(folder, DEVICES).counts()
    found = table.epsilons(counts, DELTA)
    return time.perf_counter() - start, found


if __name__ == "__main__":
    main()
