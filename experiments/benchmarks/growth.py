"""Time and memory as a federation grows: `python experiments/benchmarks/growth.py [--help]`.

Devices from 10³ to 10⁶ at a fixed cohort, then cohorts from 10 to 10⁴ at fixed devices: a whole
experiment on made-up requests for each point, in a process of its own. The points take turns,
`--repeats` times; medians over the rounds behind the first.
"""

import argparse
import statistics
import sys
from pathlib import Path

from experiments.benchmarks.peers.figures import RESULTS, Row, short, table, write
from experiments.benchmarks.peers.launch import ask


def main() -> None:
    args = arguments()
    points = [(devices, args.cohort) for devices in numbers(args.devices)]
    points += [(args.fixed_devices, cohort) for cohort in numbers(args.cohorts)]
    rows: list[Row] = []
    for turn in range(args.repeats):
        for devices, cohort in points:
            found = measure(devices, cohort, args)
            rows.append({"devices": devices, "cohort": cohort, "turn": turn} | found)
            write(args.out, vars(args) | {"out": args.out.name}, rows)
            print(".", end="", file=sys.stderr, flush=True)
    print(summary(rows))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", default="1000,10000,100000,1000000", help="commas between")
    parser.add_argument("--cohort", type=int, default=100, help="devices a round as devices grow")
    parser.add_argument("--cohorts", default="10,100,1000,10000", help="commas between")
    parser.add_argument(
        "--fixed-devices", type=int, default=100_000, help="devices as cohorts grow"
    )
    parser.add_argument("--examples", type=int, default=50, help="examples a device")
    parser.add_argument("--activity", default="equal", help="equal | lognormal | zipf")
    parser.add_argument("--model", default="bag", help="bag | bilstm | transformer")
    parser.add_argument("--rounds", type=int, default=6, help="rounds of each experiment")
    parser.add_argument("--warmup", type=int, default=1, help="rounds of them that do not count")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each point")
    parser.add_argument("--timeout", type=float, default=900, help="seconds for one point")
    parser.add_argument("--out", type=Path, default=RESULTS / "growth.json", help="raw figures")
    return parser.parse_args()


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",") if part]


def measure(devices: int, cohort: int, args: argparse.Namespace) -> Row:
    config = {
        "name": "growth",
        "data.source": "requests",
        "data.devices": devices,
        "data.examples": devices * args.examples,
        "data.activity": args.activity,
        "data.vocabulary": "hashed",
        "model.name": args.model,
        "train.rounds": args.rounds,
        "evaluation.every": args.rounds,
        "selection.rule": "uniform",
        "selection.sampling": "fixed",
        "selection.cohort": cohort,
        "aggregation.rule": "fedavg",
        "aggregation.lr": 1.0,
    }
    command = [sys.executable, "-m", "experiments.benchmarks.peers.grow"]
    return ask(command, {"config": config, "warmup": args.warmup}, args.timeout)


def summary(rows: list[Row]) -> str:
    lines = []
    for devices, cohort in dict.fromkeys((r["devices"], r["cohort"]) for r in rows):
        here = [r for r in rows if (r["devices"], r["cohort"]) == (devices, cohort)]
        seconds = [s for r in here for s in r.get("seconds", [])]
        if not seconds:
            lines.append(
                [f"{devices:,}", f"{cohort:,}", "failed: " + here[0]["failed"], "", "", ""]
            )
            continue
        middle = statistics.median(seconds)
        rest = statistics.median(r["rest_seconds"] for r in here if "seconds" in r)
        peak = max(r["peak_mib"] for r in here if "seconds" in r)
        cells = [short(middle), short(cohort / middle), short(rest), f"{peak:.0f}"]
        lines.append([f"{devices:,}", f"{cohort:,}", *cells])
    header = ["devices", "cohort", "s a round", "devices a second", "s for all else", "peak MiB"]
    return table(header, lines)


if __name__ == "__main__":
    main()
