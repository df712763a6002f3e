"""The same model, trained centrally on the pooled data as a reference for the federation."""

import math

import numpy as np

from clients.training import Assignment, Trainer
from fedsim.app.place import torch_device
from fedsim.config import Config
from fedsim.data.holdings import Holdings
from fedsim.models import build_model, parameters_of
from fedsim.models.evaluation import evaluate
from fedsim.models.example_metrics import metrics_of
from fedsim.models.tasks import make_task
from fedsim.types import concatenate


def train_centralised(config: Config, holdings: Holdings) -> dict[str, float]:
    """Return the test metrics after `train.centralised_epochs` of Adam on all examples.

    One device holds all data, and training starts from the same first parameters. If training
    diverged, metrics that are not finite are absent.
    """
    federation = holdings.dataset
    if federation.test is None:
        return {}
    owners = federation.devices[federation.activity > 0]
    pooled = concatenate([holdings.everything(str(device)) for device in np.sort(owners)])
    settings = config.train.model_copy(
        update={
            "optimizer": "adam",
            "lr": config.train.centralised_lr,
            "batch_size": config.train.centralised_batch,
            "local_epochs": config.train.centralised_epochs,
            "local_steps": 0,
        }
    )
    module = build_model(federation.spec, config.model, config.seed).to(torch_device(config.place))
    task = make_task(federation.spec)
    params = parameters_of(module)
    trainer = Trainer(module, task, settings)
    update = trainer.train(params, [Assignment("pooled", pooled, 1.0)], config.seed, round=0)
    trained = {name: (p.double() + update.delta[name]).float() for name, p in params.items()}
    more = metrics_of(config.evaluation.metrics)
    metrics = evaluate(module, task, trained, federation.test, metrics=more)
    return {name: value for name, value in metrics.items() if math.isfinite(value)}
