"""Measuring a model on examples."""

from collections import Counter

import torch
from torch import nn
from torch.func import functional_call

from fedsim.models.memory import activation_floats
from fedsim.models.tasks import Task
from fedsim.types import Examples, Params, trim

FLOATS = 2**25
"""Activations that a batch may hold: 128 MiB, which only models with wide outputs reach."""


def evaluate(
    module: nn.Module, task: Task, params: Params, examples: Examples, batch: int = 512
) -> dict[str, float]:
    """Return the task's metrics of `params` over `examples`, in evaluation mode, without gradients."""
    device = next(module.parameters()).device
    here = {name: p.to(device) for name, p in params.items()}
    batch = max(1, min(batch, FLOATS // max(1, activation_floats(module, task.inputs, examples))))
    sums: Counter[str] = Counter()
    module.eval()
    with torch.inference_mode():
        for start in range(0, len(examples), batch):
            fields = trim(examples[start : start + batch].to(device).fields)
            outputs = functional_call(module, here, tuple(fields[name] for name in task.inputs))
            sums.update(task.scores(outputs, fields))
    module.train()
    return task.metrics(sums)
