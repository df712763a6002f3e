"""The Flower ClientApp: a node announces the devices that it hosts and trains those that are asked for."""

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from numpy.typing import NDArray

from clients.device_clip import device_clip
from clients.training import Assignment, Trainer
from fedsim.app.place import chunk_bytes, data_dir, torch_device
from fedsim.config import Config, Dp, from_flat
from fedsim.data.activity import public_activity
from fedsim.data.holdings import Holdings, load_holdings
from fedsim.errors import WrongInput
from fedsim.models import build_model
from fedsim.models.evaluation import evaluate_each
from fedsim.models.tasks import make_task
from fedsim.privacy.noise import NoiseSource, noise_source
from fedsim.types import Update
from fedsim.wire import (
    Announcement,
    DeviceScores,
    pack_announcement,
    pack_scores,
    pack_update,
    unpack_evaluation,
    unpack_question,
    unpack_task,
)

app = ClientApp()


@dataclass(frozen=True)
class Node:
    """What a node keeps between messages; all of it can be made anew from the config."""

    config: Config
    holdings: Holdings
    trainer: Trainer
    noise: NoiseSource
    real: bool
    share: slice
    """The devices that the node hosts, out of the federation's sorted ones."""

    @property
    def devices(self) -> NDArray[np.str_]:
        return self.holdings.dataset.devices[self.share]


@app.query()
def announce(message: Message, context: Context) -> Message:
    """Answer with the node's devices and their public activity in the period that is asked for."""
    node = _node(context)
    held = node.holdings.activity(unpack_question(message.content))
    activity = public_activity(held[node.share], node.config.data.activity_public)
    return Message(pack_announcement(Announcement(node.devices, activity, node.real)), reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the devices that the message names, as one batch, and answer with their weighted sum."""
    node = _node(context)
    params, cohort = unpack_task(message.content)
    sizes = public_activity(node.holdings.activity(cohort.period), node.config.data.activity_public)
    members = np.searchsorted(node.holdings.dataset.devices, cohort.devices)
    assigned = [
        Assignment(device, node.holdings.train(device, cohort.period), float(weight), int(size))
        for device, weight, size in zip(cohort.devices.tolist(), cohort.weights, sizes[members], strict=True)
    ]
    clip = device_clip(node.config, params, cohort, node.noise)
    update = node.trainer.train(params, assigned, node.config.seed, cohort.round, clip, cohort.survivors)
    return Message(pack_update(_told(update, node.config.dp), cohort.round), reply_to=message)


def _told(update: Update, dp: Dp) -> Update:
    """Return the update with no more figures than whoever gets it may see.

    Exact losses are functions of protected examples: only a trusted server is told.
    """
    if dp.unit == "none" or dp.trust == "central":
        return update
    return replace(update, metrics={k: v for k, v in update.metrics.items() if k == "steps"})


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Measure the model on what each of the node's devices holds out; answer with the task's metric."""
    node = _node(context)
    params, period = unpack_evaluation(message.content)
    held = node.holdings.held_out_sizes(period)[node.share] > 0
    devices = node.devices[held]
    parts = [node.holdings.held_out(device, period) for device in devices.tolist()]
    task = node.trainer.task
    found = evaluate_each(node.trainer.module, task, params, parts)
    values = np.array([metrics[task.metric] for metrics in found], dtype=np.float64)
    return Message(pack_scores(DeviceScores(devices, task.metric, values)), reply_to=message)


def _node(context: Context) -> Node:
    config = from_flat(context.run_config)
    folder = data_dir(config.place, context.node_config)
    if "data-path" in context.node_config:  # a real node hosts all that its own data hold
        if config.dp.noise_source == "seeded" and not context.node_config.get("insecure-noise"):
            raise WrongInput(
                'dp.noise_source = "seeded" lets who has the seed take the noise off real data; leave it at '
                '"auto", or set insecure-noise=true in the node\'s own config'
            )
        return _make_node(config, folder, 0, 1, real=True)
    first = int(context.node_config.get("partition-id", 0))
    return _make_node(config, folder, first, int(context.node_config.get("num-partitions", 1)))


@lru_cache(maxsize=1024)
def _make_node(config: Config, folder: Path | None, first: int, step: int, real: bool = False) -> Node:
    holdings = load_holdings(config, folder)
    federation = holdings.dataset
    module = build_model(federation.spec, config.model, config.seed).to(torch_device(config.place))
    task, noise = make_task(federation.spec), noise_source(config, real)
    trainer = Trainer(module, task, config.train, chunk_bytes(config.place), config.dp, noise)
    return Node(config, holdings, trainer, noise, real, slice(first, None, step))
