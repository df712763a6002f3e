"""What a million devices cost before training: `python experiments/benchmarks/million.py [--runs
3]`.

Runs `fedsim show experiments/million.toml` (statistics of the federation and the first selection)
in fresh processes and prints the median wall time and the peak memory.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    runs = parser.parse_args().runs
    command = [sys.executable, "-m", "fedsim", "show", "experiments/million.toml"]
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
        seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print(
        f"fedsim show, 1,000,000 devices: median {statistics.median(seconds):.1f} s, peak "
        f"{peak:.2f} GiB"
    )


if __name__ == "__main__":
    main()
