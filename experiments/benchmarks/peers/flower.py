"""Flower's Ray simulation: `python -m experiments.benchmarks.peers.flower JOB`.

The runtime is that of `flwr run` (`run_simulation` starts the same engine, without the process that
`flwr run` adds); messages, actors and the average are Flower's own. Each message names its device,
so that all peers train the same ones; `options.nodes` virtual nodes are registered.
"""

import json
import os
import sys
import time

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

from experiments.benchmarks.peers.flower_client import app as client_app
from experiments.benchmarks.peers.job import Job, main
from experiments.benchmarks.peers.settings import cohorts


def first_parameters(job: Job) -> ArrayRecord:
    if job.private:
        from experiments.benchmarks.peers import opacus_client

        return ArrayRecord(opacus_client.wrap(job.setting).model._module.state_dict())
    from experiments.benchmarks.peers import plain

    return ArrayRecord(plain.build(job.setting).state_dict())


def make_server(job: Job, seconds: list[float]) -> ServerApp:
    server = ServerApp()

    @server.main()
    def serve(grid: Grid, context: Context) -> None:
        strategy = FedAvg()
        arrays = first_parameters(job)
        nodes = wait_for_nodes(grid, job.options["nodes"])
        for round, devices in enumerate(cohorts(job.setting, job.warmup + job.rounds), start=1):
            start = time.perf_counter()
            messages = [
                Message(
                    content=RecordDict(
                        {"arrays": arrays, "config": ConfigRecord({"device": device})}
                    ),
                    message_type=MessageType.TRAIN,
                    dst_node_id=node,
                )
                for node, device in zip(nodes, devices, strict=False)
            ]
            replies = list(grid.send_and_receive(messages))
            broken = [reply.error.reason for reply in replies if reply.has_error()]
            if broken or len(replies) < len(devices):
                raise RuntimeError(f"{len(replies)} of {len(devices)} replies; {broken[:1]}")
            arrays, _ = strategy.aggregate_train(round, replies)
            seconds.append(time.perf_counter() - start)

    return server


def wait_for_nodes(grid: Grid, count: int) -> list[int]:
    while len(nodes := list(grid.get_node_ids())) < count:
        time.sleep(0.1)
    return nodes


def run(job: Job) -> list[float]:
    os.environ["BENCHMARK_JOB"] = sys.argv[1]
    seconds: list[float] = []
    backend: dict[str, dict[str, int | float | str]] = {
        "init_args": {"num_cpus": os.cpu_count() or 1}
    }
    if job.options.get("cpus"):  # else Flower's default, two a ClientApp
        backend["client_resources"] = {"num_cpus": job.options["cpus"], "num_gpus": 0.0}
    run_simulation(
        make_server(job, seconds), client_app, job.options["nodes"], backend_config=backend
    )
    if len(seconds) < job.warmup + job.rounds:
        raise RuntimeError(f"only {len(seconds)} rounds ended: {json.dumps(job.options)}")
    return seconds


if __name__ == "__main__":
    main(run)
