"""CPU seconds until a command can work: `python experiments/benchmarks/startup.py [--turns 9]`.

Each command runs in a process of its own, in turns. A ratio is over `import torch, flwr.app`, which
no run can do without. The first turn does not count: it writes Python's bytecode, as an ordinary
first start does.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
from pathlib import Path

from experiments.benchmarks.peers.figures import RESULTS, Row, table, write

ROOT = Path(__file__).parents[2]
LEAST = "import torch, flwr.app"
COMMANDS = {
    LEAST: ["-c", LEAST],
    "import fedsim.app.engines.local": ["-c", "import fedsim.app.engines.local"],
    "from fedsim.app import run": ["-c", "from fedsim.app import run"],
    "fedsim show": ["-m", "fedsim", "show", "experiments/quickstart.toml"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=9, help="turns that count")
    parser.add_argument("--out", type=Path, default=RESULTS / "startup.json", help="raw figures")
    args = parser.parse_args()
    rows: list[Row] = []
    for turn in range(args.turns + 1):
        found = {name: cpu_seconds(command) for name, command in COMMANDS.items()}
        if turn:
            rows += [
                {"command": name, "turn": turn, "cpu_s": seconds} for name, seconds in found.items()
            ]
    write(args.out, {"turns": args.turns}, rows)
    print(summary(rows))


def cpu_seconds(arguments: list[str]) -> float:
    """Return the user and system seconds of a Python process that does this."""
    unset = ("PYTHONDONTWRITEBYTECODE",)
    env = {key: value for key, value in os.environ.items() if key not in unset} | {
        "PYTHONPATH": str(ROOT)
    }
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=env, check=True, stdout=subprocess.DEVNULL
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def summary(rows: list[Row]) -> str:
    medians = {
        name: statistics.median(row["cpu_s"] for row in rows if row["command"] == name)
        for name in COMMANDS
    }
    lines = [
        [name, f"{each:.2f}", f"{each / medians[LEAST]:.2f}"] for name, each in medians.items()
    ]
    return table(["command", "CPU seconds", "ratio"], lines)


if __name__ == "__main__":
    main()
