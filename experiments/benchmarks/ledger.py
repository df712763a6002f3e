"""How long it takes to know every device's epsilon: 1,000,000 devices, 64 rates, 1,000 rounds.

Two cases: every scheduled round counts for every device (device-level DP), and each device's own realised
participations count (example-level DP). Prints medians of five runs and the peak of memory.
"""

import resource
import statistics
import time
from collections.abc import Callable

import numpy as np
from scipy.sparse import csr_array

from fedsim.privacy.accounting import Event
from fedsim.privacy.table import Table, renyi_curve

DEVICES, RATES, ROUNDS, DELTA = 1_000_000, 64, 1000, 1e-7


def main() -> None:
    rates = np.geomspace(1e-5, 0.05, RATES)
    table = Table(tuple(Event(1.0, float(q)) for q in rates))
    rng = np.random.default_rng(0)
    group = rng.integers(0, RATES, DEVICES)
    cases = {
        "every round counts": np.full(DEVICES, ROUNDS),
        "realised rounds": rng.binomial(ROUNDS, rates[group]),
    }
    for name, counts in cases.items():
        seconds, found = timed(lambda counts=counts: epsilons(table, group, counts))  # type: ignore[misc]
        print(f"{name}: {seconds:.2f} s, max epsilon {found.max():.3f}, median {np.median(found):.3f}")
    print(f"peak memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


def epsilons(table: Table, group: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return each device's epsilon, curves computed anew."""
    renyi_curve.cache_clear()
    rows = np.arange(len(group) + 1)
    return table.epsilons(csr_array((counts, group, rows), shape=(len(group), len(table.events))), DELTA)


def timed(work: Callable[[], np.ndarray]) -> tuple[float, np.ndarray]:
    """Return the median seconds of five runs, and the last one's result."""
    taken = []
    for _ in range(5):
        start = time.perf_counter()
        found = work()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken), found


if __name__ == "__main__":
    main()
