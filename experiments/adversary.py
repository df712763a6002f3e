"""A ClientApp some of whose devices lie: for tests and experiments on robust rules."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedsim.app.client import app as honest
from fedsim.seeds import generator
from fedsim.types import Cohort, Params, Reply
from fedsim.wire import pack_params, pack_reply, pack_task, unpack_form, unpack_reply, unpack_task

Lie = Callable[[Params], Params]
"""What bad devices make of the sum, or the rows, of their own changes."""


def flipped(factor: float) -> Lie:
    """They send what they learned with the other sign, `factor` times."""
    return lambda delta: {name: -factor * d for name, d in delta.items()}


def poisoned(delta: Params) -> Params:
    """They send NaN."""
    return {name: torch.full_like(d, float("nan")) for name, d in delta.items()}


def is_bad(device: str, share: float) -> bool:
    """Whether a device belongs to the `share` of bad ones: a seeded coin a device."""
    return bool(generator(0, "bad", device).random() < share)


def adversarial(share: float, lie: Lie) -> ClientApp:
    """Return the ClientApp with bad devices among those of every node."""
    app = ClientApp()

    @app.query()
    def announce(message: Message, context: Context) -> Message:
        return honest(message, context)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return honest(message, context)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        params, cohort = unpack_task(message.content)
        bad = np.array([is_bad(device, share) for device in cohort.devices.tolist()], dtype=bool)
        good = _part(message, context, params, cohort, ~bad)
        lies = _part(message, context, params, cohort, bad)
        lies = replace(lies, update=replace(lies.update, delta=lie(lies.update.delta)))
        return Message(pack_reply(_joined(good, lies)), reply_to=message)

    return app


def _part(message: Message, context: Context, params: Params, cohort: Cohort, mine: np.ndarray) -> Reply:
    """Return what the honest app answers for a part of the cohort."""
    part = replace(cohort, devices=cohort.devices[mine], weights=cohort.weights[mine])
    inner = Message(
        pack_task(pack_params(params), part, unpack_form(message.content)),
        dst_node_id=context.node_id,
        message_type=message.metadata.message_type,
    )
    inner.metadata.__dict__["_message_id"] = message.metadata.message_id
    return unpack_reply(honest(inner, context).content)


def _joined(a: Reply, b: Reply) -> Reply:
    update = replace(a.update, delta={}) + replace(b.update, delta={})
    join = (lambda x, y: torch.cat([x, y])) if a.single else torch.add
    delta = {name: join(d, b.update.delta[name]) for name, d in a.update.delta.items()}
    figures = {
        name: np.concatenate([part.figures[name] for part in (a, b) if part.figures])
        for name in {**a.figures, **b.figures}
    }
    devices = np.concatenate([a.devices, b.devices])
    return replace(a, devices=devices, update=replace(update, delta=delta), figures=figures)
