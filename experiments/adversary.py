"""A ClientApp some of whose devices lie, on nodes that do not: for tests and experiments on robust
rules.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from clients.training import Assignment, Trainer
from fedsim.app.node.app import announce, evaluate
from fedsim.app.node.node import node_of, reply_of
from fedsim.seeds import generator
from fedsim.types import DeviceId, Params, Update, no_update
from fedsim.wire import pack_reply

Lie = Callable[[Params], Params]
"""What a bad device, or the sum of some, makes of its change."""


def flipped(factor: float) -> Lie:
    """They send what they learned with the other sign, `factor` times."""
    return lambda delta: {name: -factor * d for name, d in delta.items()}


def poisoned(delta: Params) -> Params:
    """They send NaN."""
    return {name: torch.full_like(d, float("nan")) for name, d in delta.items()}


def is_bad(device: DeviceId, share: float) -> bool:
    """Whether a device belongs to the `share` of bad ones: a seeded coin a device."""
    return bool(generator(0, "bad", device).random() < share)


class Liar:
    """A trainer whose bad devices train as they should and then lie."""

    def __init__(self, trainer: Trainer, share: float, lie: Lie) -> None:
        self.trainer = trainer
        self.share = share
        self.lie = lie

    def train(self, params: Params, assigned: Sequence[Assignment], *how: Any) -> Update:
        total = no_update(params)
        for bad in (False, True):
            part = [a for a in assigned if is_bad(a.device, self.share) == bad]
            if part:
                update = self.trainer.train(params, part, *how)
                total = total + (replace(update, delta=self.lie(update.delta)) if bad else update)
        return total


def adversarial(share: float, lie: Lie) -> ClientApp:
    """Return the ClientApp with a share of bad devices."""
    app = ClientApp()
    app.query()(announce)
    app.evaluate()(evaluate)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        node = node_of(context)
        liar = Liar(node.trainer, share, lie)
        return Message(
            pack_reply(reply_of(replace(node, trainer=liar), message.content)), reply_to=message
        )

    return app
