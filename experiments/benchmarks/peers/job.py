"""What a worker process is asked, and how it answers."""

import json
import resource
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from experiments.benchmarks.peers.settings import Setting, from_dict


@dataclass(frozen=True)
class Job:
    """Train `warmup` rounds that do not count and `rounds` that do."""

    setting: Setting
    data: str
    rounds: int
    warmup: int
    private: bool
    threads: int
    """torch threads; 0 = as torch chooses."""
    options: dict[str, Any]


def read_job() -> Job:
    fields = json.loads(sys.argv[1])
    job = Job(**{**fields, "setting": from_dict(fields["setting"])})
    if job.threads:
        torch.set_num_threads(job.threads)
    return job


def answer(seconds: list[float], warmup: int, **more: Any) -> None:
    """Print the seconds of the rounds that count, as the last line."""
    peaks = [
        resource.getrusage(who).ru_maxrss
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    ]
    row = {
        "seconds": seconds[warmup:],
        "warmup_seconds": seconds[:warmup],
        "peak_mib": max(peaks) / 1024,
    }
    print(json.dumps(row | more), flush=True)


def main(run: Callable[[Job], list[float]]) -> None:
    """Run the job of the command line; `run` returns the seconds of every round."""
    job = read_job()
    answer(run(job), job.warmup)
