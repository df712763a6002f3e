"""A plain loop over the cohort, in this process or shared out over several.

`python -m experiments.benchmarks.peers.loop JOB`
"""

import time
from collections.abc import Callable
from multiprocessing.connection import Connection

import torch
from torch import Tensor, multiprocessing, nn

from experiments.benchmarks.peers import plain
from experiments.benchmarks.peers.job import Job, main
from experiments.benchmarks.peers.settings import cohorts, load_data

Data = dict[int, dict[str, Tensor]]
Train = Callable[[dict[str, Tensor], int], int]


class Worker:
    """Trains devices one after another from the same parameters and sums their weighted changes."""

    def __init__(self, job: Job) -> None:
        self.model, self.train = make_client(job)
        self.data = load_data(job.data)
        self.params = [p.detach() for p in self.model.parameters()]

    @torch.no_grad()
    def sum_changes(self, start: list[Tensor], devices: list[int]) -> tuple[list[Tensor], int]:
        total = [torch.zeros_like(p) for p in start]
        weight = 0
        for device in devices:
            for p, s in zip(self.params, start, strict=True):
                p.copy_(s)
            with torch.enable_grad():
                examples = self.train(self.data[device], device)
            for t, p, s in zip(total, self.params, start, strict=True):
                t.add_(p - s, alpha=examples)
            weight += examples
        return total, weight


def make_client(job: Job) -> tuple[nn.Module, Train]:
    """Return the model and what trains it in place on a device's examples."""
    setting = job.setting
    if not job.private:
        model = plain.build(setting)
        return model, lambda fields, seed: plain.train_device(model, setting, fields, seed)
    from experiments.benchmarks.peers import opacus_client  # slow to import

    private = opacus_client.wrap(setting)
    return private.model, lambda fields, seed: opacus_client.train_device(
        private, setting, fields, seed
    )


def in_this_process(job: Job) -> list[float]:
    worker = Worker(job)
    seconds = []
    params = [p.clone() for p in worker.params]
    for devices in cohorts(job.setting, job.warmup + job.rounds):
        start = time.perf_counter()
        total, weight = worker.sum_changes(params, devices)
        params = [p + t / weight for p, t in zip(params, total, strict=True)]
        seconds.append(time.perf_counter() - start)
    return seconds


def serve(job: Job, pipe: Connection, params: list[Tensor], total: list[Tensor]) -> None:
    """Answer each list of devices with their weight; parameters and sum lie in shared memory."""
    torch.set_num_threads(job.threads or 1)
    worker = Worker(job)
    while devices := pipe.recv():
        found, weight = worker.sum_changes(params, devices)
        for t, f in zip(total, found, strict=True):
            t.copy_(f)
        pipe.send(weight)


def in_processes(job: Job, count: int) -> list[float]:
    context = multiprocessing.get_context("spawn")
    params = [p.detach().clone().share_memory_() for p in make_client(job)[0].parameters()]
    totals = [[torch.zeros_like(p).share_memory_() for p in params] for _ in range(count)]
    pipes = [context.Pipe() for _ in range(count)]
    for (_, theirs), total in zip(pipes, totals, strict=True):
        context.Process(target=serve, args=(job, theirs, params, total), daemon=True).start()
    data = load_data(job.data)
    seconds = []
    for devices in cohorts(job.setting, job.warmup + job.rounds):
        start = time.perf_counter()
        for (ours, _), share in zip(pipes, shares(devices, data, count), strict=True):
            ours.send(share)
        weight = sum(ours.recv() for ours, _ in pipes)
        for p, *parts in zip(params, *totals, strict=True):
            p.add_(sum(parts) / weight)
        seconds.append(time.perf_counter() - start)
    for ours, _ in pipes:
        ours.send([])
    return seconds


def shares(devices: list[int], data: Data, count: int) -> list[list[int]]:
    """Share devices out, largest first, each to the process with the fewest examples."""
    found: list[list[int]] = [[] for _ in range(count)]
    load = [0] * count
    for device in sorted(devices, key=lambda d: -len(data[d]["label"])):
        least = load.index(min(load))
        found[least].append(device)
        load[least] += len(data[device]["label"])
    return found


def run(job: Job) -> list[float]:
    count = job.options.get("processes", 1)
    return in_processes(job, count) if count > 1 else in_this_process(job)


if __name__ == "__main__":
    main(run)
