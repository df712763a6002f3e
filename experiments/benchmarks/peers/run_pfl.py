"""pfl's SimulatedBackend with FederatedAveraging: `PFL_PYTHON -m
experiments.benchmarks.peers.run_pfl JOB`.

Runs in pfl's own virtual environment (`pfl_env.sh`), with torch and pfl alone.
"""

import time
import types
from itertools import chain
from typing import Any

import numpy as np
import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchTensorDataset
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from experiments.benchmarks.peers import plain
from experiments.benchmarks.peers.job import Job, answer, read_job
from experiments.benchmarks.peers.settings import cohorts, load_data


class Stopwatch(TrainingProcessCallback):
    """The seconds of each round."""

    def __init__(self) -> None:
        self.marks: list[float] = []

    def on_train_begin(self, *, model: Any) -> Metrics:
        self.marks.append(time.perf_counter())
        return Metrics()

    def after_central_iteration(
        self, aggregate_metrics: Metrics, model: Any, *, central_iteration: int
    ) -> tuple[bool, Metrics]:
        self.marks.append(time.perf_counter())
        return False, Metrics()


def loss(self: nn.Module, inputs: Tensor, label: Tensor) -> Tensor:
    return cross_entropy(self(inputs), label)


@torch.no_grad()
def metrics(self: nn.Module, inputs: Tensor, label: Tensor) -> dict[str, Weighted]:
    return {"loss": Weighted(float(cross_entropy(self(inputs), label)) * len(label), len(label))}


def make_dataset(job: Job) -> FederatedDataset:
    data = load_data(job.data)
    devices = chain.from_iterable(cohorts(job.setting, job.warmup + job.rounds))

    def one(device: int) -> PyTorchTensorDataset:
        fields = data[device]
        return PyTorchTensorDataset(
            [fields[job.setting.input], fields["label"]], user_id=str(device)
        )

    return FederatedDataset(one, lambda: next(devices))


def run(job: Job) -> list[float]:
    np.random.seed(0)
    module = plain.build(job.setting)
    module.loss, module.metrics = types.MethodType(loss, module), types.MethodType(metrics, module)
    model = PyTorchModel(module, torch.optim.SGD, torch.optim.SGD(module.parameters(), lr=1.0))
    training = make_dataset(job)
    stopwatch = Stopwatch()
    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=job.warmup + job.rounds,
            evaluation_frequency=10**9,  # only before the first round, which is warm-up
            train_cohort_size=job.setting.cohort,
            val_cohort_size=None,
        ),
        SimulatedBackend(training, training, postprocessors=[WeightByDatapoints()]),
        model,
        NNTrainHyperParams(
            local_batch_size=job.setting.batch,
            local_num_epochs=1,
            local_learning_rate=job.setting.lr,
        ),
        NNEvalHyperParams(local_batch_size=None),
        callbacks=[stopwatch],
        send_metrics_to_platform=False,
    )
    return np.diff(stopwatch.marks).tolist()


if __name__ == "__main__":
    asked = read_job()
    found = run(asked)
    if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
        answer(found, asked.warmup)
