"""Measures a model on examples."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedsim.models.example_metrics import Metric
from fedsim.models.memory import activation_floats
from fedsim.models.tasks import Fields, Task
from fedsim.types import Examples, Params, concatenate, trim

NO_MORE: Mapping[str, Metric] = {}
FLOATS = 2**25
"""Activations that a batch may hold: 128 MiB, which only models with wide outputs reach."""


def evaluate(
    module: nn.Module,
    task: Task,
    params: Params,
    examples: Examples,
    batch: int = 512,
    metrics: Mapping[str, Metric] = NO_MORE,
) -> dict[str, float]:
    """Return the task's metrics of `params` over `examples`, in evaluation mode, without gradients.

    The mean of each of the other `metrics` over the examples stands beside them.
    """
    sums: Counter[str] = Counter()
    more: Counter[str] = Counter()
    for _, outputs, fields in batches(module, task, params, examples, batch):
        sums.update(task.scores(outputs, fields))
        more.update(
            {name: float(each(outputs, fields).double().sum()) for name, each in metrics.items()}
        )
    return task.metrics(sums) | {name: total / len(examples) for name, total in more.items()}


def evaluate_each(
    module: nn.Module, task: Task, params: Params, parts: Sequence[Examples], batch: int = 512
) -> list[dict[str, float]]:
    """Return the metrics of each part (a device's examples, at least one).

    The model runs on all parts at once.
    """
    if not parts:
        return []
    sums: list[Counter[str]] = [Counter() for _ in parts]
    owner = torch.repeat_interleave(torch.tensor([len(part) for part in parts]))
    for start, outputs, fields in batches(module, task, params, concatenate(parts), batch):
        owners = owner[start : start + len(next(iter(fields.values())))]
        for part in sorted(set(owners.tolist())):
            mine = (owners == part).nonzero().flatten()
            sums[part].update(task.scores(_rows(outputs, mine), _rows(fields, mine)))
    return [task.metrics(counted) for counted in sums]


def batches(
    module: nn.Module, task: Task, params: Params, examples: Examples, batch: int = 512
) -> Iterator[tuple[int, Fields, Fields]]:
    """Yield (first row, outputs, fields) of each batch, in evaluation mode."""
    device = next(module.parameters()).device
    here = {name: p.to(device) for name, p in params.items()}
    batch = max(1, min(batch, FLOATS // max(1, activation_floats(module, task.inputs, examples))))
    module.eval()
    with torch.inference_mode():
        for start in range(0, len(examples), batch):
            fields = trim(examples[start : start + batch].to(device).fields)
            outputs = functional_call(module, here, tuple(fields[name] for name in task.inputs))
            yield start, outputs, fields
    module.train()


def _rows(fields: Fields, index: Tensor) -> dict[str, Tensor]:
    return {name: tensor[index] for name, tensor in fields.items()}
