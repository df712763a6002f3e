"""Measuring a model on examples."""

from collections import Counter

import torch
from torch import nn
from torch.func import functional_call

from fedsim.models.tasks import Task
from fedsim.types import Examples, Params


def evaluate(
    module: nn.Module, task: Task, params: Params, examples: Examples, batch: int = 512
) -> dict[str, float]:
    """Return the task's metrics of `params` over `examples`, in evaluation mode, without gradients."""
    device = next(module.parameters()).device
    here = {name: p.to(device) for name, p in params.items()}
    sums: Counter[str] = Counter()
    module.eval()
    with torch.inference_mode():
        for start in range(0, len(examples), batch):
            fields = examples[start : start + batch].to(device).fields
            outputs = functional_call(module, here, (fields[task.input],))
            sums.update(task.scores(outputs, fields))
    module.train()
    return task.metrics(sums)
