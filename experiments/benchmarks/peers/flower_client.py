"""The ClientApp that Flower's actors run: the plain client behind a message."""

import os
from functools import lru_cache
from typing import Any

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor

from experiments.benchmarks.peers import plain
from experiments.benchmarks.peers.settings import Setting, from_dict, load_data

app = ClientApp()


@lru_cache(maxsize=1)
def actor(job: str) -> tuple[Setting, dict[int, dict[str, Tensor]], dict[str, Any]]:
    """Return what an actor keeps from message to message: setting, data and options."""
    import json

    fields = json.loads(job)
    if fields["threads"]:
        torch.set_num_threads(fields["threads"])
    return from_dict(fields["setting"]), load_data(fields["data"]), fields


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the device that the message names, from the parameters that it brings."""
    setting, data, fields = actor(os.environ["BENCHMARK_JOB"])
    device = int(message.content["config"]["device"])
    state = message.content["arrays"].to_torch_state_dict()
    if fields["private"]:
        from experiments.benchmarks.peers import opacus_client

        private = opacus_client.wrap(setting)
        model = private.model._module
        model.load_state_dict(state)
        examples = opacus_client.train_device(private, setting, data[device], device)
    else:
        model = plain.build(setting)
        model.load_state_dict(state)
        examples = plain.train_device(model, setting, data[device], device)
    reply = {
        "arrays": ArrayRecord(model.state_dict()),
        "metrics": MetricRecord({"num-examples": examples}),
    }
    return Message(content=RecordDict(reply), reply_to=message)
