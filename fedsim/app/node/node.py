"""A node: it hosts devices, trains those that a task names, and keeps a ledger."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from flwr.app import Context, RecordDict
from numpy.typing import NDArray

from clients.device_clip import device_clip
from clients.training import Assignment, Trainer
from fedsim.app.experiment.loading import load_holdings
from fedsim.app.node.node_ledger import NodeLedger, entry_of
from fedsim.app.node.reply import Job, answer
from fedsim.app.node.terms import Terms, terms_of
from fedsim.app.place import chunk_bytes, data_dir, lanes, threads, torch_device
from fedsim.config import Config, Dp, from_flat
from fedsim.data.activity import public_activity
from fedsim.data.announced import own_part
from fedsim.data.holdings import Holdings
from fedsim.errors import WrongInput
from fedsim.models import build_model
from fedsim.models.tasks import make_task
from fedsim.privacy.mechanism import device_mechanism
from fedsim.privacy.noise import NoiseSource, noise_source
from fedsim.privacy.secure_sum import fewest_survivors
from fedsim.types import Cohort, Examples, Params, Reply
from fedsim.wire import (
    EVER,
    unpack_asked,
    unpack_task,
)

NO_TERMS = Terms()


@dataclass(frozen=True)
class Node:
    """What a node keeps between messages. All of it can be made again from the config."""

    config: Config
    holdings: Holdings
    trainer: Trainer
    noise: NoiseSource
    real: bool
    share: slice
    """The places of the node's devices among the federation's sorted devices."""
    terms: Terms = NO_TERMS
    ledger: NodeLedger | None = None

    @property
    def devices(self) -> NDArray[np.str_]:
        return self.holdings.dataset.devices[self.share]

    def activity(self, period: int) -> NDArray[np.int64]:
        """Return the public activity of the node's devices in a period, or in all (`EVER`)."""
        held = self.holdings.sizes if period == EVER else self.holdings.activity(period)
        return public_activity(held[self.share], self.config.data.activity_public)

    def held_out(self, period: int) -> tuple[NDArray[np.str_], list[Examples]]:
        """Return the node's devices with held-out examples in a period, and these examples."""
        devices = self.devices[self.holdings.held_out_sizes(period)[self.share] > 0]
        return devices, [self.holdings.held_out(device, period) for device in devices.tolist()]


@contextmanager
def errors_kept_local(
    kind: type[Exception], told: str, as_they_are: tuple[type[Exception], ...] = ()
) -> Iterator[None]:
    """Turn an error into a `kind` of error that says only `told`.

    An error's sentence travels to the server, and it could reveal a real node's examples. Errors of
    the types `as_they_are` pass unchanged.
    """
    try:
        yield
    except as_they_are:
        raise
    except Exception as error:
        raise kind(f"{told}; its own log says why") from error


def reply_of(node: Node, content: RecordDict) -> Reply:
    """Return a node's answer to a task. Raises WrongInput if its terms rule the task out."""
    params, asked = unpack_task(content)
    cohort = bounded_by_config(asked, node.config)
    _check_hosted(node, cohort)
    node.terms.check_instruction(node.config, cohort)
    sizes = public_activity(node.holdings.activity(cohort.period), node.config.data.activity_public)
    _write_down(node, cohort, sizes, params)
    members = np.searchsorted(node.holdings.dataset.devices, cohort.devices)
    assigned = [
        Assignment(device, node.holdings.train(device, cohort.period), float(weight), int(size))
        for device, weight, size in zip(
            cohort.devices.tolist(), cohort.weights, sizes[members], strict=True
        )
    ]
    clip = device_clip(node.config, params, cohort, node.noise)
    job = Job(node.trainer, params, assigned, node.config, cohort, clip)
    return disclosed(answer(job, unpack_asked(content)), node.config.dp, node.terms.private)


def _check_hosted(node: Node, cohort: Cohort) -> None:
    """Refuse devices of other nodes, and a device named twice: it would count twice in the sum."""
    strange = cohort.devices[~np.isin(cohort.devices, node.devices)]
    if len(strange):
        raise WrongInput(f"device {str(strange[0])!r} is not on this node")
    if (cohort.devices[1:] <= cohort.devices[:-1]).any():
        raise WrongInput("a task names its devices sorted, each once")


def _write_down(node: Node, cohort: Cohort, sizes: NDArray[np.int64], params: Params) -> None:
    """Enter the release in the node's own ledger, before anything trains.

    With seeded noise the same task is the same release. A task with another model is another
    release, because equal noise on both would cancel. With noise of the operating system every
    attempt is another release.
    """
    if node.ledger is None or node.config.dp.unit == "none":
        return
    attempt = f"seeded-{digest(params)}" if node.noise.kind == "seeded" else os.urandom(8).hex()
    entry = entry_of(node.config, cohort, node.devices, sizes[node.share], attempt)
    node.ledger.enter(node.config, entry, node.terms)


def digest(params: Params) -> str:
    """Return a short SHA-256 of a model's parameters."""
    found = hashlib.sha256()
    for name, p in params.items():
        found.update(name.encode() + p.numpy().tobytes())
    return found.hexdigest()[:16]


def bounded_by_config(cohort: Cohort, config: Config) -> Cohort:
    """Return the cohort with no less noise and no more weight than the node's config allows.

    The node does not know how many devices there are. It therefore allows `survivors` up to the
    fewest survivors of the whole expected cohort.
    """
    dp = config.dp
    most = 1
    if dp.unit != "none" and dp.trust == "secure_sum":
        most = fewest_survivors(dp.min_survivors, config.selection.cohort)
    weights = cohort.weights
    if dp.unit == "device":
        weights = np.nan_to_num(weights).clip(0.0, device_mechanism(config).max_weight)
    return replace(cohort, survivors=max(1, min(cohort.survivors, most)), weights=weights)


def disclosed(reply: Reply, dp: Dp, private: bool = False) -> Reply:
    """Return the reply without the figures that its receiver may not see.

    Exact losses depend on protected examples, so only a trusted server gets them. Steps depend on a
    device's exact size; with the unit "example" they depend on its public activity. A `private`
    node trusts no server. Its count of unclipped devices is part of the accounted release.
    """
    if dp.unit == "none" or (dp.trust == "central" and not private):
        return reply
    public = (
        {"steps"} if dp.unit == "example" else {"unclipped"} if dp.trust == "central" else set()
    )
    steps = {name: value for name, value in reply.update.metrics.items() if name in public}
    figures = {name: values for name, values in reply.figures.items() if name in public}
    return replace(reply, update=replace(reply.update, metrics=steps), figures=figures)


def node_of(context: Context) -> Node:
    """Return the node that answers in this context. Raises WrongInput if its terms refuse the run.

    Its holdings and its trainer are kept from message to message.
    """
    config = from_flat(context.run_config)
    folder = data_dir(config.place, context.node_config)
    terms = terms_of(context.node_config)
    terms.check(config)
    if terms.real:  # a real node hosts all devices of its own data
        own = _own(config)
        with errors_kept_local(WrongInput, "the data of this node do not fit the experiment"):
            node = make_node(own, folder, 0, 1, real=True)
        return replace(node, config=config, terms=terms, ledger=_node_ledger(node, config, context))
    first = int(context.node_config.get("partition-id", 0))
    node = make_node(config, folder, first, int(context.node_config.get("num-partitions", 1)))
    return replace(node, terms=terms)


def _own(config: Config) -> Config:
    """Return the config by which a real node reads only training files, from its own folder."""
    if config.data.source != "files":
        return config
    return config.model_copy(update={"data": own_part(config.data)})


def _node_ledger(node: Node, config: Config, context: Context) -> NodeLedger | None:
    """Return the ledger on the node's disk.

    Raises WrongInput if real data would be released without a ledger.
    """
    named = context.node_config.get("state-path")
    if named:
        return NodeLedger(Path(str(named)).expanduser(), node.devices)
    if config.dp.unit != "none" and not terms_of(context.node_config).insecure_noise:
        raise WrongInput(
            "a real node under differential privacy keeps its own ledger; name a folder on its "
            "disk in node-config state-path"
        )
    return None


@lru_cache(maxsize=1024)
def make_node(
    config: Config, folder: Path | None, first: int, step: int, real: bool = False
) -> Node:
    """Return the node that hosts every `step`-th device from the `first` one on."""
    holdings = load_holdings(config, folder, part=real)
    federation = holdings.dataset
    module = build_model(federation.spec, config.model, config.seed).to(torch_device(config.place))
    task = make_task(federation.spec)
    noise = noise_source(config, real)
    workers = threads(config.place)
    processes = not real and lanes(config, step) == "processes"
    trainer = Trainer(
        module, task, config.train, chunk_bytes(config.place), config.dp, noise, workers, processes
    )
    return Node(config, holdings, trainer, noise, real, slice(first, None, step))
