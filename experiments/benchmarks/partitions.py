"""Seconds that each partition rule takes: python experiments/benchmarks/partitions.py [--out
FILE.json].

Every rule divides the same made-up texts with ten labels; a refusal shows its sentence.
"""

import argparse
import json
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from fedsim.config import Data, Partition
from fedsim.data.activity import gini
from fedsim.data.partitions.assign import RULES, assign_devices
from fedsim.data.records import Records
from fedsim.errors import WrongInput
from fedsim.seeds import generator

LABELS = 10
WORDS = 5000
SETTINGS: dict[str, dict[str, Any]] = {
    "dirichlet": {"min_size": 0},
    "heavy_tail": {"tail": "power"},
}


def made_up(examples: int, devices: int) -> Records:
    """Return texts of 3 to 12 words from a Zipf law, a label each, and ten natural ids for each
    device.
    """
    rng = generator(0, "benchmark", examples)
    label = rng.integers(0, LABELS, examples)
    lengths = rng.integers(3, 13, examples)
    words = (rng.zipf(1.3, lengths.sum()) + 97 * np.repeat(label, lengths)) % WORDS
    tokens = [[f"w{w}" for w in row] for row in np.split(words, np.cumsum(lengths)[:-1])]
    device = rng.integers(0, 10 * devices, examples)
    return Records(
        {"tokens": tokens, "label": label, "device": device}, examples, "made-up records"
    )


def measure(name: str, records: Records, devices: int) -> dict[str, Any]:
    """Return seconds, devices with examples and the Gini of their sizes, or the refusal."""
    data = Data(devices=devices)
    partition = Partition.model_validate({"name": name, **SETTINGS.get(name, {})})
    start = time.perf_counter()
    try:
        given = assign_devices(data, partition, records)
    except WrongInput as refusal:
        return {"rule": name, "devices": devices, "refused": str(refusal)}
    seconds = time.perf_counter() - start
    sizes = np.unique(given.owners[given.held], return_counts=True)[1]
    return {
        "rule": name,
        "devices": len(given.devices),
        "seconds": seconds,
        "held": len(sizes),
        "gini": gini(sizes),
        "left_out": int((~given.held).sum()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", type=int, default=10_000)
    parser.add_argument("--examples", type=int, default=100_000)
    parser.add_argument("--rules", default=",".join(RULES), help="names with commas between")
    parser.add_argument("--out", type=Path, help="file for the raw figures (JSON)")
    args = parser.parse_args()
    records = made_up(args.examples, args.devices)
    table = Table("rule", "seconds", "devices with examples", "Gini", "left out")
    rows = []
    for name in args.rules.split(","):
        row = measure(name, records, args.devices)
        rows.append(row)
        if "refused" in row:
            table.add_row(name, "refused")
        else:
            table.add_row(
                name,
                f"{row['seconds']:.2f}",
                str(row["held"]),
                f"{row['gini']:.3f}",
                str(row["left_out"]),
            )
    console = Console()
    console.print(f"{args.devices} devices, {args.examples} examples, {platform.machine()}", table)
    console.print(*[row["refused"] for row in rows if "refused" in row], sep="\n")
    if args.out:
        args.out.write_text(json.dumps({"examples": args.examples, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
