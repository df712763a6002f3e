"""The Flower ClientApp: a node announces, trains and evaluates the devices that it hosts."""

import numpy as np
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedsim.app.node.node import Node, errors_kept_local, node_of, reply_of
from fedsim.errors import RunFailed, WrongInput
from fedsim.models.evaluation import evaluate_each
from fedsim.models.flips import count_flips_each
from fedsim.types import Announcement, Params
from fedsim.wire import (
    DeviceFlips,
    DeviceScores,
    is_comparison,
    pack_announcement,
    pack_flips,
    pack_reply,
    pack_scores,
    unpack_comparison,
    unpack_evaluation,
    unpack_question,
)

app = ClientApp()


@app.query()
def announce(message: Message, context: Context) -> Message:
    """Answer with the node's devices and their public activity in the period of the message."""
    node = node_of(context)
    period = unpack_question(message.content)
    node.terms.check_period(node.config, period)
    announced = Announcement(node.devices, node.activity(period), node.real)
    return Message(pack_announcement(announced), reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the devices that the message names; answer with their weighted sum or their updates."""
    node = node_of(context)
    if not node.real:
        return Message(pack_reply(reply_of(node, message.content)), reply_to=message)
    with errors_kept_local(RunFailed, "this node failed", (WrongInput, RunFailed)):
        return Message(pack_reply(reply_of(node, message.content)), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Measure a model, or compare two, on the held-out examples of the node's devices."""
    node = node_of(context)
    if node.terms.private:
        raise WrongInput(
            "this node tells nothing exact of its examples, and metrics on them are exact; set "
            'evaluation.on = "central"'
        )
    if is_comparison(message.content):
        return Message(
            pack_flips(_compare(node, *unpack_comparison(message.content))), reply_to=message
        )
    params, period = unpack_evaluation(message.content)
    node.terms.check_period(node.config, period)
    devices, parts = node.held_out(period)
    task = node.trainer.task
    found = evaluate_each(node.trainer.module, task, params, parts)
    values = np.array([metrics[task.metric] for metrics in found], dtype=np.float64)
    return Message(pack_scores(DeviceScores(devices, task.metric, values)), reply_to=message)


def _compare(node: Node, before: Params, after: Params, period: int) -> DeviceFlips:
    node.terms.check_period(node.config, period)
    devices, parts = node.held_out(period)
    found = count_flips_each(node.trainer.module, node.trainer.task, before, after, parts)
    counts = np.array([[f.negative, f.positive, f.predictions] for f in found], dtype=np.int64)
    return DeviceFlips(devices, counts.reshape(len(devices), 3))
