"""Cost of privacy: a DP-SGD step over a non-private one: `python
experiments/benchmarks/privacy_cost.py`.

Three models; every method first shows that its clipped sums are those of one backward pass an
example. All methods of a table take turns step by step in one process; medians. Noise and the SGD
update are included. The peak memory of a step is measured in a process of its own for each method:
above what the imported libraries take, and that of the whole process.

One model: the ratio is to torch's own layers without privacy. Cohorts: `--cohort-batch` examples a
device, the ratio is to our engine without privacy on as many devices; a method without a device
axis trains devices one after another (four are measured, and scaled up).

    python experiments/benchmarks/privacy_cost.py --methods nn,engine,loop,hooks,ghost,vmap --tiny
"""

import argparse
import os
import statistics
import sys
import time
import warnings
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as our command line does, before torch

import torch

from experiments.benchmarks.peers import plain
from experiments.benchmarks.peers.figures import RESULTS, Row, short, table, write
from experiments.benchmarks.peers.launch import ask
from experiments.benchmarks.peers.settings import Setting, as_dict, smaller
from experiments.benchmarks.peers.steps import METHODS, Method, check
from fedsim.app.allocator import keep_freed_memory

CASES = {
    "bilstm": Setting("bilstm", "bilstm", 1, 1, embedding=100, hidden=128, batch=64),
    "transformer": Setting(
        "transformer",
        "transformer",
        1,
        1,
        tokens=64,
        embedding=256,
        hidden=1024,
        layers=4,
        batch=32,
    ),
    "cnn": Setting("cnn", "cnn", 1, 1, classes=10, layers=2, image=(1, 28, 28), batch=64),
}
TINY = {"vocabulary": 40, "tokens": 6, "embedding": 8, "hidden": 8, "batch": 5}
TOLERANCE = 1e-5
"""Opacus adds 1e-6 to every norm."""
MEASURED = 4
"""Devices that a method without a device axis trains for a cohort's figure."""


def main() -> None:
    args = arguments()
    warnings.filterwarnings(
        "ignore", message="Full backward hook"
    )  # of Opacus' hooks on embeddings
    torch.set_num_threads(args.threads)
    keep_freed_memory()  # as our command line does
    names = args.methods.split(",")
    rows: list[Row] = []
    for case in args.models.split(","):
        setting = smaller(CASES[case], **(TINY if args.tiny else {}))
        checked = {name: verdict(name, CASES[case]) for name in names}
        for devices in map(int, args.cohorts.split(",")):
            sized = setting if devices == 1 else smaller(setting, batch=args.cohort_batch)
            found = measure(sized, devices, checked, args)
            rows += [
                {"model": case, "devices": devices, "batch": sized.batch} | row for row in found
            ]
            write(args.out, vars(args) | {"out": args.out.name}, rows)
            print(f"\n{case}, {devices} of {sized.batch} examples, {args.threads} threads\n")
            print(summary(found, base="nn" if devices == 1 else "engine"))
            values, alone = noise_milliseconds(sized, devices)
            print(f"\nNoise alone: {values:,} values by `normal_` in {short(alone)} ms", flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default=",".join(CASES), help="names with commas between")
    parser.add_argument("--methods", default=",".join(METHODS), help="names with commas between")
    parser.add_argument(
        "--cohorts", default="1,16,64,256", help="models side by side, commas between"
    )
    parser.add_argument("--cohort-batch", type=int, default=10, help="examples a device in cohorts")
    parser.add_argument("--steps", type=int, default=15, help="steps of each method that count")
    parser.add_argument(
        "--seconds", type=float, default=120, help="a table takes no new turn after these"
    )
    parser.add_argument("--threads", type=int, default=2, help="torch threads")
    parser.add_argument("--gib", type=float, default=12, help="memory that a method may take")
    parser.add_argument("--no-memory", action="store_true", help="leave out peak memory")
    parser.add_argument("--tiny", action="store_true", help="tiny models, to try the script")
    parser.add_argument(
        "--out", type=Path, default=RESULTS / "privacy_cost.json", help="raw figures"
    )
    return parser.parse_args()


def verdict(name: str, case: Setting) -> str:
    """Return "" if the method clips rightly, else why it is not measured."""
    if not METHODS[name].private:
        return ""
    for models in (1, 3) if METHODS[name].beside else (1,):
        apart = check(name, smaller(case, **TINY), models)
        if not apart < TOLERANCE:
            return f"wrong: clipped sums differ by {apart:.1e}"
    return ""


def measure(
    setting: Setting, devices: int, checked: dict[str, str], args: argparse.Namespace
) -> list[Row]:
    """Return a row a method: its seconds, its peak memory, or why it was left out."""
    rows: dict[str, Row] = {}
    for name, reason in checked.items():
        need = gib_needed(name, setting, devices)
        if not reason and need > args.gib:
            reason = f"left out: it would take about {need:.0f} GiB"
        rows[name] = (
            {"method": name, "left_out": reason} if reason else {"method": name, "seconds": []}
        )
    able = [name for name in rows if "seconds" in rows[name]]
    if not args.no_memory:
        for name in able:
            rows[name] |= step_memory(name, setting, devices, args.threads)
    made = {name: METHODS[name](setting, measured(METHODS[name], devices)) for name in able}
    end = time.perf_counter() + args.seconds
    for turn in range(args.steps + 2):  # two of them warm up
        if turn > 3 and time.perf_counter() > end:
            break
        for name, method in made.items():
            start = time.perf_counter()
            method.step()
            scale = devices / method.models
            if turn > 1:
                rows[name]["seconds"].append((time.perf_counter() - start) * scale)
        print(".", end="", file=sys.stderr, flush=True)
    return list(rows.values())


def measured(method: type[Method], devices: int) -> int:
    return devices if method.beside else min(devices, MEASURED)


def gib_needed(name: str, s: Setting, devices: int) -> float:
    """Return a rough upper figure: copies of the parameters, per-example gradients, activations."""
    devices = measured(METHODS[name], devices)
    with torch.device("meta"):
        parameters = sum(
            p.numel() for p in METHODS["nn"](smaller(s, batch=1), 1).model.parameters()
        )
    each = {"vmap": 2.5, "hooks": 2.0}.get(name, 0.0) * s.batch
    alive = devices if METHODS[name].beside else 1
    return alive * parameters * (4 + each) * 4 / 2**30


def step_memory(name: str, setting: Setting, devices: int, threads: int) -> Row:
    job = {
        "setting": as_dict(setting),
        "method": name,
        "models": measured(METHODS[name], devices),
        "threads": threads,
    }
    command = [sys.executable, "-m", "experiments.benchmarks.peers.step_memory"]
    # freed memory goes back at once, so that the peak is that of what is alive
    return ask(command, job, 600, MALLOC_MMAP_THRESHOLD_="65536", MALLOC_TRIM_THRESHOLD_="65536")


def summary(rows: list[Row], base: str) -> str:
    medians = {r["method"]: statistics.median(r["seconds"]) for r in rows if r.get("seconds")}
    memory = {r["method"]: r["mib"] for r in rows if "mib" in r}
    lines = []
    for row in rows:
        name = row["method"]
        if name not in medians:
            lines.append([name, row["left_out"], *[""] * 5])
            continue
        ratio = f"{medians[name] / medians[base]:.2f}" if base in medians else ""
        more = f"{memory[name] / memory[base]:.2f}" if base in memory and name in memory else ""
        mib = short(memory[name]) if name in memory else ""
        steps = row["seconds"]
        spread = f"{short(1000 * min(steps))} to {short(1000 * max(steps))}"
        whole = short(row["process_mib"]) if name in memory else ""
        lines.append([name, short(1000 * medians[name]), spread, ratio, mib, more, whole])
    header = [
        "method",
        "ms a step",
        "fastest to slowest",
        f"over {base}",
        "peak MiB",
        f"over {base}",
    ]
    return table([*header, "whole process"], lines)


def noise_milliseconds(setting: Setting, devices: int) -> tuple[int, float]:
    """Return how much noise a step needs, and the time to draw that alone: a floor for every
    method.
    """
    values = devices * sum(p.numel() for p in plain.build(setting).parameters())
    flat = torch.empty(values)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        flat.normal_()
        seconds.append(time.perf_counter() - start)
    return values, 1000 * statistics.median(seconds)


if __name__ == "__main__":
    main()
