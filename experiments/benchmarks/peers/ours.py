"""Our engine, a cohort in one call: `python -m experiments.benchmarks.peers.ours JOB`."""

import time

import torch

from clients.training import Assignment
from experiments.benchmarks.peers.engine import make_trainer
from experiments.benchmarks.peers.job import Job, main
from experiments.benchmarks.peers.settings import cohorts, load_data
from fedsim.models import parameters_of
from fedsim.types import Examples


def run(job: Job) -> list[float]:
    torch.manual_seed(0)
    trainer, module = make_trainer(job.setting, job.private, job.options.get("layout", "dense"))
    params = parameters_of(module)
    data = load_data(job.data)
    seconds = []
    for round, devices in enumerate(cohorts(job.setting, job.warmup + job.rounds), start=1):
        start = time.perf_counter()
        assigned = [
            Assignment(f"d{device:06d}", Examples(data[device]), float(n), n)
            for device in devices
            for n in [len(data[device]["label"])]
        ]
        update = trainer.train(params, assigned, seed=1, round=round)
        params = {
            name: p + (update.delta[name] / update.weight).float() for name, p in params.items()
        }
        seconds.append(time.perf_counter() - start)
    return seconds


if __name__ == "__main__":
    main(run)
