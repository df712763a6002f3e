"""Devices a second of our engine and its peers: `python experiments/benchmarks/throughput.py
[--help]`.

Every peer trains the same devices on the same made-up data, each in a process of its own. The peers
take turns, `--repeats` times; in every turn a peer's first rounds are warm-up and do not count. The
table has medians over all rounds and ratios to ours; every raw figure goes to the JSON file.

    sh experiments/benchmarks/peers/pfl_env.sh FOLDER          # once
    python experiments/benchmarks/throughput.py --pfl-python FOLDER/bin/python
    python experiments/benchmarks/throughput.py --settings nlu --peers ours,loop \\
        --devices 20 --cohort 4
"""

import argparse
import os
import statistics
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.benchmarks.peers.figures import RESULTS, Row, short, table, write
from experiments.benchmarks.peers.launch import ask
from experiments.benchmarks.peers.settings import SETTINGS, Setting, as_dict, make_data, smaller

CORES = os.cpu_count() or 1
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={CORES}")


@dataclass(frozen=True)
class Peer:
    """A way to train a cohort: which worker, with how many torch threads and which options."""

    module: str
    threads: int = 0
    options: dict[str, Any] = field(default_factory=dict)
    private: bool = True
    """Whether it can train with DP-SGD."""
    only_private: bool = False
    launcher: tuple[str, ...] = ()
    few_nodes: bool = False
    """Whether only a cohort's worth of Flower's virtual nodes is registered."""


PEERS = {
    "ours": Peer("ours", CORES),
    "ours (1 thread)": Peer("ours", 1),
    "ours (summed noise)": Peer("ours", CORES, {"layout": "summed"}, only_private=True),
    "flower": Peer("flower"),
    "flower (1 CPU an actor)": Peer("flower", 1, {"cpus": 1}),
    "flower (1 CPU and few nodes)": Peer("flower", 1, {"cpus": 1}, few_nodes=True),
    "pfl": Peer("run_pfl", private=False),
    "pfl (1 thread)": Peer("run_pfl", 1, private=False),
    "pfl (a process a core)": Peer("run_pfl", 1, private=False, launcher=TORCHRUN),
    "loop": Peer("loop"),
    "loop (1 thread)": Peer("loop", 1),
    "loop (a process a core)": Peer("loop", 1, {"processes": CORES}),
}
"""Each as it comes (torch threads, CPUs an actor) and as it is fastest."""


def main() -> None:
    args = arguments()
    rows: list[Row] = []
    for name in args.settings.split(","):
        for private in {"no": [False], "yes": [True], "both": [False, True]}[args.private]:
            setting = smaller(
                SETTINGS[name], devices=args.devices, cohort=args.cohort, private_cohort=args.cohort
            )
            if private and setting.heavy:
                continue  # under DP a device's work does not depend on its size
            setting = smaller(setting, examples=args.examples, zipf=args.zipf or None)
            if private:
                setting = smaller(setting, cohort=setting.private_cohort)
            found = measure(setting, private, args)
            rows += found
            told = {"out": args.out.name, "pfl_python": Path(args.pfl_python).name}
            write(args.out, vars(args) | told, rows)
            print(
                f"\n{name}, {'DP-SGD' if private else 'non-private'}, "
                f"{setting.cohort} devices a round\n"
            )
            print(summary(found), flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--settings", default=",".join(SETTINGS), help="names with commas between")
    parser.add_argument(
        "--peers", default="", help="beginnings of names, commas between; empty = all"
    )
    parser.add_argument("--private", choices=("no", "yes", "both"), default="both", help="DP-SGD")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each peer")
    parser.add_argument("--rounds", type=int, default=3, help="rounds a turn that count")
    parser.add_argument("--warmup", type=int, default=1, help="rounds a turn that do not count")
    parser.add_argument("--devices", type=int, help="devices in all, instead of the setting's")
    parser.add_argument("--cohort", type=int, help="devices a round, instead of the setting's")
    parser.add_argument("--examples", type=int, help="examples a device, instead of the setting's")
    parser.add_argument(
        "--zipf", action="store_true", help="words by Zipf's law instead of all alike"
    )
    parser.add_argument(
        "--pfl-python", default="", help="python of pfl's environment; empty = no pfl"
    )
    parser.add_argument(
        "--as-they-come",
        action="store_true",
        help="peers without the allocator's settings that our command line makes; "
        "they are then slower",
    )
    parser.add_argument("--timeout", type=float, default=600, help="seconds for one turn of a peer")
    parser.add_argument("--out", type=Path, default=RESULTS / "throughput.json", help="raw figures")
    return parser.parse_args()


def measure(setting: Setting, private: bool, args: argparse.Namespace) -> list[Row]:
    """Let the peers take turns; a peer that failed has no further turn."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data.pt"
        make_data(setting, args.warmup + args.rounds, data)
        failed: set[str] = set()
        for turn in range(args.repeats):
            for name, peer in chosen(private, args).items():
                if name in failed:
                    continue
                found = take_turn(peer, setting, private, data, args)
                rows.append(
                    {"setting": setting.name, "private": private, "peer": name, "turn": turn}
                    | found
                )
                rows[-1]["cohort"] = setting.cohort
                if "failed" in found:
                    failed.add(name)
                print(".", end="", file=sys.stderr, flush=True)
    return rows


def chosen(private: bool, args: argparse.Namespace) -> dict[str, Peer]:
    wanted = tuple(filter(None, args.peers.split(",")))
    return {
        name: peer
        for name, peer in PEERS.items()
        if (not wanted or name.startswith(wanted))
        and (peer.private if private else not peer.only_private)
        and (peer.module != "run_pfl" or args.pfl_python)
    }


def take_turn(
    peer: Peer, setting: Setting, private: bool, data: Path, args: argparse.Namespace
) -> Row:
    nodes = setting.cohort if peer.few_nodes else setting.devices
    job = {
        "setting": as_dict(setting),
        "data": str(data),
        "rounds": args.rounds,
        "warmup": args.warmup,
        "private": private,
        "threads": peer.threads,
        "options": peer.options | ({"nodes": nodes} if peer.module == "flower" else {}),
    }
    python = args.pfl_python if peer.module == "run_pfl" else sys.executable
    command = [python, *peer.launcher, "-m", f"experiments.benchmarks.peers.{peer.module}"]
    return ask(command, job, args.timeout, kept=peer.module == "ours" or not args.as_they_come)


def summary(rows: list[Row]) -> str:
    """Return medians over all turns, fastest and slowest round, and the first line of ours over
    each.
    """
    speeds = {
        name: [r["cohort"] / s for r in rows if r["peer"] == name for s in r.get("seconds", [])]
        for name in dict.fromkeys(r["peer"] for r in rows)
    }
    peaks = {r["peer"]: r.get("peak_mib", 0.0) for r in rows}
    reasons = {r["peer"]: r["failed"] for r in rows if "failed" in r}
    mine = next((found for name, found in speeds.items() if found and name.startswith("ours")), [])
    lines = []
    for name, found in speeds.items():
        if not found:
            lines.append([name, "failed: " + reasons[name], "", "", ""])
            continue
        middle = statistics.median(found)
        ratio = f"{statistics.median(mine) / middle:.3g}" if mine else ""
        spread = f"{short(min(found))} to {short(max(found))}"
        lines.append([name, short(middle), spread, ratio, f"{peaks[name]:.0f}"])
    header = [
        "peer",
        "devices a second",
        "slowest to fastest",
        "ours over this",
        "largest process, MiB",
    ]
    return table(header, lines)


if __name__ == "__main__":
    main()
