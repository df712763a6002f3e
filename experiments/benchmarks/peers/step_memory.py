"""Peak memory of one method's step: `python -m experiments.benchmarks.peers.step_memory JOB`.

What a step needs above the imported libraries: model, batch, activations and gradients. A tiny step
of the same method comes first, so that what libraries keep for themselves does not count.
"""

import json
import sys
from pathlib import Path

import torch

from experiments.benchmarks.peers.settings import from_dict, smaller
from experiments.benchmarks.peers.steps import METHODS


def status(key: str) -> float:
    """Return a figure of this process in MiB: VmRSS (now) or VmHWM (peak)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024


def main() -> None:
    job = json.loads(sys.argv[1])
    torch.set_num_threads(job["threads"])
    setting = from_dict(job["setting"])
    method = METHODS[job["method"]]
    tiny = method(
        smaller(setting, batch=2, vocabulary=50, embedding=8, hidden=8), min(2, job["models"])
    )
    tiny.step()
    del tiny
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # start the peak anew
    made = method(setting, job["models"])
    for _ in range(2):
        made.step()
    print(json.dumps({"mib": status("VmHWM") - before, "process_mib": status("VmHWM")}))


if __name__ == "__main__":
    main()
