"""Checks of your own code: it is tried on two examples before anything is written."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from traceback import extract_tb

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.app.rundir.round_record import is_reserved
from fedsim.config import Config
from fedsim.data.announced import Announced
from fedsim.data.federation import FederatedDataset
from fedsim.errors import RunFailed, WrongInput
from fedsim.models import parameters_of
from fedsim.models.evaluation import batches
from fedsim.models.example_metrics import Metric, metrics_of
from fedsim.models.tasks import Fields, Task
from fedsim.names import check_takes, is_own_code
from fedsim.types import Examples, Params, no_update
from strategies.aggregation import make_aggregator

TRIED = 2
"""Number of examples on which own code is tried."""


def check_own_code(
    config: Config, federation: FederatedDataset, module: nn.Module, task: Task
) -> None:
    """Refuse data, a model, metrics or a server rule that do not fit the task.

    Raises WrongInput.
    """
    metrics = metrics_of(config.evaluation.metrics)
    if metrics and config.evaluation.on == "devices":
        raise WrongInput(
            "evaluation.metrics are measured on the server's test examples; set evaluation.on = "
            '"central" or "both", or leave them out'
        )
    check_aggregator(config, parameters_of(module))
    examples = some_examples(federation)
    if examples is not None:
        check_fields(config, examples, task)
        check_model(module, task, examples)
        check_metrics(metrics, module, task, examples)


def some_examples(federation: FederatedDataset) -> Examples | None:
    """Return a few examples of a device, or of the test split if the server has no others.

    None if the server has no examples at all. Raises WrongInput for anything but Examples.
    """
    if isinstance(federation, Announced):
        return None if federation.test is None else federation.test[:TRIED]
    device = federation.devices[np.argmax(federation.activity > 0)]
    found = federation.train(str(device))
    if not isinstance(found, Examples):
        raise WrongInput(
            f"train({str(device)!r}) of the data set must return fedsim.types.Examples, got a "
            f"{type(found).__name__}"
        )
    return found[:TRIED]


def check_fields(config: Config, examples: Examples, task: Task) -> None:
    """Refuse examples that lack what the task reads. Raises WrongInput."""
    fields = examples.fields
    lacking = [
        name for name in (*task.inputs, *task.targets) if not isinstance(fields.get(name), Tensor)
    ]
    if lacking:
        raise WrongInput(
            f"data.source = {config.data.source!r}: examples of data.task = {config.data.task!r} "
            f"need the tensors {', '.join((*task.inputs, *task.targets))}, got {_shapes(fields)}"
        )
    lengths = {len(tensor) for tensor in fields.values()}
    if len(lengths) != 1:
        raise WrongInput(
            f"data.source = {config.data.source!r}: the fields of a device's examples must have "
            f"one length, got {_shapes(fields)}"
        )


def check_model(module: nn.Module, task: Task, examples: Examples) -> None:
    """Refuse a model whose outputs on `examples` are not the ones that the task wants.

    Raises WrongInput.
    """
    name = type(module).__name__
    with _trying(f"the model {name} failed on {_shapes(examples.fields, task.inputs)}"):
        outputs, fields = _run(module, task, examples)
    wanted = task.wanted(fields)
    found = outputs if isinstance(outputs, Mapping) else {}
    fits = all(
        isinstance(found.get(key), Tensor)
        and tuple(found[key].shape) == shape
        and found[key].is_floating_point()
        for key, shape in wanted.items()
    )
    if not fits:
        told = ", ".join(f"{key} {list(shape)}" for key, shape in wanted.items())
        got = _shapes(outputs) if isinstance(outputs, Mapping) else f"a {type(outputs).__name__}"
        raise WrongInput(
            f"the model {name} must return the logits {told} by name on {len(examples)} examples, "
            f"got {got}"
        )


def check_metrics(
    metrics: Mapping[str, Metric], module: nn.Module, task: Task, examples: Examples
) -> None:
    """Refuse metrics that give anything but a number for each example. Raises WrongInput."""
    if not metrics:
        return
    outputs, fields = _run(module, task, examples)
    own = task.metrics(task.scores(outputs, fields))
    for name, metric in metrics.items():
        if name in own or is_reserved(name):
            raise WrongInput(
                f"evaluation.metrics: {name!r} names another figure; rename the function"
            )
        with _trying(f"evaluation.metrics: {name!r} failed on outputs {_shapes(outputs)}"):
            values = metric(outputs, fields)
        shape = tuple(values.shape) if isinstance(values, Tensor) else None
        if shape != (len(examples),) or values.is_complex() or not values.isfinite().all():
            got = values.tolist() if shape == (len(examples),) else _shapes({"the value": values})
            raise WrongInput(
                f"evaluation.metrics: {name!r} must return one finite number an example, a tensor "
                f"[{len(examples)}] here, got {got}"
            )


def check_aggregator(config: Config, params: Params) -> None:
    """Refuse a server rule of your own that does not behave as an Aggregator.

    Raises WrongInput.
    """
    if not is_own_code(config.aggregation.rule):
        return
    what = f"aggregation.rule = {config.aggregation.rule!r}"
    aggregator = make_aggregator(config.aggregation)
    for method, takes in (("init", "params"), ("step", "params, total, state")):
        if not callable(getattr(aggregator, method, None)):
            raise WrongInput(
                f"{what} must return an object with init(params) and step(params, total, state), "
                f"got a {type(aggregator).__name__} without {method}"
            )
        check_takes(f"{what}: {method}", getattr(aggregator, method), takes)
    still = no_update(params)
    with _trying(f"{what} failed on an update of zeros"):
        state = aggregator.init(params)
        found = aggregator.step(params, type(still)(still.delta, 1.0, 1, {}), state)
    if (
        not isinstance(found, tuple)
        or len(found) != 2
        or not all(isinstance(part, dict) for part in found)
    ):
        raise WrongInput(f"{what}: step must return (params, state), got a {type(found).__name__}")
    if {n: p.shape for n, p in found[0].items()} != {n: p.shape for n, p in params.items()}:
        raise WrongInput(f"{what}: step must return {_shapes(params)}, got {_shapes(found[0])}")
    if not all(isinstance(value, Tensor) for part in (state, found[1]) for value in part.values()):
        raise WrongInput(f"{what}: the state must be a dict of tensors, as a checkpoint holds it")


def _run(module: nn.Module, task: Task, examples: Examples) -> tuple[Fields, Fields]:
    """Return outputs and fields of one batch; the state of torch's generator does not change."""
    with torch.random.fork_rng(devices=[]):
        _, outputs, fields = next(iter(batches(module, task, parameters_of(module), examples)))
    module.train()
    return outputs, fields


@contextmanager
def _trying(what: str) -> Iterator[None]:
    """Turn an error of your own code into a WrongInput that says where the error was."""
    try:
        yield
    except (WrongInput, RunFailed, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        places = extract_tb(error.__traceback__)
        theirs = [place for place in places[1:] if "site-packages" not in place.filename]
        place = theirs[-1] if theirs else places[-1]
        why = str(error).split("\n", 1)[0]
        raise WrongInput(
            f"{what}: {type(error).__name__}: {why} ({Path(place.filename).name}, line "
            f"{place.lineno})"
        ) from error


def _shapes(fields: Mapping[str, object], names: tuple[str, ...] = ()) -> str:
    """Return a text with `name [shape]` of each field."""
    chosen = {name: fields[name] for name in names or fields}
    parts = [
        f"{name} {list(field.shape) if isinstance(field, Tensor) else type(field).__name__}"
        for name, field in chosen.items()
    ]
    return ", ".join(parts) or "nothing"
