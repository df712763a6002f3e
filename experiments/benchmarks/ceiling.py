"""What the machine allows at most: `python experiments/benchmarks/ceiling.py [--help]`.

Measured on all cores: products of large matrices, products of a cohort's small ones (ten rows a
device), noise, and memory. Counted for each setting of `throughput.py`: the floating-point
operations of one device's local training, and the noise values that it draws under DP-SGD with
dense noise. From the two: how many devices a second there could be if nothing else took any time,
beside what was measured.
"""

import argparse
import json
import math
import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from unittest.mock import patch

import torch
from torch.utils.flop_counter import FlopCounterMode

from experiments.benchmarks.peers.figures import RESULTS, Row, short, table, write
from experiments.benchmarks.peers.settings import SETTINGS, Setting, smaller
from experiments.benchmarks.peers.steps import Engine, lstm_by_autograd
from fedsim.app.allocator import keep_freed_memory
from fedsim.models import products, recurrent
from fedsim.privacy.noise import Seeded

CORES = os.cpu_count() or 1
LARGE = 2048
SMALL = (32, 10, 128, 256)
"""Devices, rows, inputs and outputs."""
VALUES = 1 << 20
DRAWS = 20


def main() -> None:
    args = arguments()
    torch.set_num_threads(CORES)
    keep_freed_memory()
    limits = {
        "large_gflops": large_products(args.repeats),
        "small_gflops": small_products(args.repeats),
        "noise_per_s": noise(args.repeats),
        "copied_gb_per_s": copying(args.repeats),
    }
    rows = [
        row(setting, limits, args.results) for setting in SETTINGS.values() if not setting.heavy
    ]
    write(args.out, {"limits": limits}, rows)
    large, small = (short(limits[name]) for name in ("large_gflops", "small_gflops"))
    print(f"Large products {large} GFLOP/s, small ones {small}")
    print(f"Noise {short(limits['noise_per_s'] / 1e6)} million values a second")
    print(f"Copies {short(limits['copied_gb_per_s'])} GB/s\n")
    print(summary(rows))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=7, help="measurements of each limit")
    parser.add_argument(
        "--results",
        type=Path,
        nargs="*",
        default=[RESULTS / "throughput.json"],
        help="raw figures of throughput.py to set beside",
    )
    parser.add_argument("--out", type=Path, default=RESULTS / "ceiling.json", help="raw figures")
    return parser.parse_args()


def seconds(run: Callable[[], object], repeats: int) -> float:
    """Return the median after one run that does not count."""
    run()
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return statistics.median(found)


def large_products(repeats: int) -> float:
    """Return GFLOP/s of one large product, by the engine's kernel."""
    a = torch.randn(1, LARGE, LARGE)
    b = torch.randn(1, LARGE, LARGE)
    return 2 * LARGE**3 / seconds(lambda: products.linear(a, b, None), repeats) / 1e9


def small_products(repeats: int) -> float:
    """Return GFLOP/s of a cohort's products with ten rows a device: a step of a recurrence."""
    devices, rows, inputs, outputs = SMALL
    a = torch.randn(devices, rows, inputs)
    b = torch.randn(devices, inputs, outputs)
    out = torch.empty(devices, rows, outputs)

    def run() -> None:
        for _ in range(50):
            torch.bmm(a, b, out=out)

    return 50 * 2 * math.prod(SMALL) / seconds(run, repeats) / 1e9


def noise(repeats: int) -> float:
    """Return normal values a second, each core drawing its own devices' in a process."""
    with ProcessPoolExecutor(CORES, mp_context=get_context("spawn")) as pool:
        found = seconds(lambda: list(pool.map(draw, range(CORES))), repeats)
    return CORES * DRAWS * VALUES / found


def draw(number: int) -> None:
    torch.set_num_threads(1)
    keep_freed_memory()
    for device in range(DRAWS):
        Seeded(0).normal(torch.empty(VALUES), "ceiling", number, device)


def copying(repeats: int) -> float:
    """Return gigabytes a second, read and written."""
    a = torch.randn(1 << 25)
    b = torch.empty_like(a)
    return 8 * a.numel() / seconds(lambda: b.copy_(a), repeats) / 1e9


def row(setting: Setting, limits: dict[str, float], results: list[Path]) -> Row:
    steps = -(-setting.examples // setting.batch)
    one = Engine(smaller(setting), 1)
    plain = (
        patch.object(recurrent, "lstm", lstm_by_autograd),
        patch.object(products, "ONEDNN", False),
    )
    with plain[0], plain[1], FlopCounterMode(display=False) as counter:
        one.step()  # by products that are counted
    flops = steps * counter.get_total_flops()
    sizes = {name: p.numel() for name, p in one.params.items()}
    values = steps * sum(sizes.values())
    tables = getattr(one.module, "tables", {})
    for (
        name
    ) in tables:  # a row gets noise in each step in which it is read, and once for all others
        read = min(one.params[name].shape[0], setting.batch * setting.tokens)
        values += sizes[name] + steps * (read * setting.embedding - sizes[name])
    return {
        "setting": setting.name,
        "gflop_a_device": flops / 1e9,
        "noise_values_a_device": values,
        "devices_per_s_by_products": 1e9 * limits["large_gflops"] / flops,
        "devices_per_s_by_noise": limits["noise_per_s"] / values,
        "measured": measured(setting, False, results),
        "measured_private": measured(setting, True, results),
    }


def measured(setting: Setting, private: bool, results: list[Path]) -> float | None:
    """Return our median devices a second in `throughput.py`'s results, None if they have none."""
    rows = [r for file in results if file.exists() for r in json.loads(file.read_text())["rows"]]
    speeds = [
        r["cohort"] / s
        for r in rows
        if (r["setting"], r["private"], r["peer"]) == (setting.name, private, "ours")
        for s in r.get("seconds", [])
    ]
    return statistics.median(speeds) if speeds else None


def summary(rows: list[Row]) -> str:
    header = ["setting", "GFLOP a device", "devices/s by products alone", "measured", "share"]
    header += [
        "noise values a device",
        "devices/s by noise alone",
        "by both",
        "DP-SGD, measured",
        "share",
    ]
    return table(header, [line(row) for row in rows])


def line(row: Row) -> list[str]:
    products = row["devices_per_s_by_products"]
    drawn = row["devices_per_s_by_noise"]
    both = 1 / (1 / products + 1 / drawn)

    def beside(found: float | None, limit: float) -> list[str]:
        return ["", ""] if found is None else [short(found), f"{found / limit:.0%}"]

    return [
        row["setting"],
        short(row["gflop_a_device"]),
        short(products),
        *beside(row["measured"], products),
        f"{row['noise_values_a_device']:,}",
        short(drawn),
        short(both),
        *beside(row["measured_private"], both),
    ]


if __name__ == "__main__":
    main()
