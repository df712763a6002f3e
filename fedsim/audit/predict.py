"""Predictions of one model on records: the bridge from a model and a task to the score store."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedsim.audit.scores import Predictions, predictions, stack
from fedsim.models.evaluation import batches
from fedsim.models.tasks import Classification, Task
from fedsim.types import Examples, Params

TINY = float(np.finfo(np.float64).tiny)


def predict(module: nn.Module, task: Task, params: Params, examples: Examples) -> Predictions:
    """Return the predictions [N] of one model.

    With one label an example they are exact. For other tasks p is exp(-loss) of the trained loss,
    so an example's tags or next words count by the mean of their log-likelihoods.
    """
    parts = []
    for _, outputs, fields in batches(module, task, params, examples):
        if isinstance(task, Classification):
            found = predictions(outputs["label"].cpu(), fields["label"].cpu())
        else:
            right, counted = task.right(outputs, fields)
            all_right = ((right | ~counted).all(-1)).cpu().numpy()
            found = of_losses(task.losses(outputs, fields).double().cpu(), all_right)
        parts.append(found)
    return stack(parts)


def of_losses(losses: torch.Tensor, correct: NDArray[np.bool_]) -> Predictions:
    """Return predictions where only the true outcome's probability exp(-loss) is known."""
    logp = -losses.numpy()
    rest = np.log(np.maximum(-np.expm1(logp), TINY))  # log(1 - p)
    entropy = -2 * np.exp(rest) * logp
    return Predictions(logp, logp - rest, entropy, correct)


def by_group(
    found: Predictions, owner: NDArray[np.int64], groups: NDArray[np.int64]
) -> Predictions:
    """Return the mean predictions of each group's records: [..., N] -> [..., G]."""
    which = (owner[:, None] == groups[None, :]).astype(np.float64)
    which /= which.sum(0)
    return Predictions(
        found.logp @ which, found.phi @ which, found.entropy @ which, found.correct @ which > 0.5
    )
