"""Flips between two releases: predictions that become wrong, and those that become right.

Two models of the same accuracy can differ for every user. The negative flip rate (Yan et al., 2021)
is the share of predictions that were right before and are wrong now. The positive one is the share
that were wrong and are right. Their difference is the change of accuracy.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedsim.models.evaluation import batches
from fedsim.models.tasks import Task
from fedsim.types import Examples, Params, concatenate


@dataclass(frozen=True)
class Flips:
    """Counts over predictions: labels, tags or words, as the task's metric counts them."""

    negative: int
    positive: int
    predictions: int

    @property
    def rates(self) -> dict[str, float]:
        """Both rates; empty where nothing was predicted."""
        if not self.predictions:
            return {}
        return {
            "negative_flip_rate": self.negative / self.predictions,
            "positive_flip_rate": self.positive / self.predictions,
        }


def count_flips(
    module: nn.Module, task: Task, before: Params, after: Params, examples: Examples
) -> Flips:
    """Compare two releases on the same examples."""
    return count_flips_each(module, task, before, after, [examples])[0]


def count_flips_each(
    module: nn.Module, task: Task, before: Params, after: Params, parts: Sequence[Examples]
) -> list[Flips]:
    """Compare two releases on each part (a device's examples, at least one)."""
    if not parts:
        return []
    everything = concatenate(parts)
    old, counts = _right(module, task, before, everything)
    new, _ = _right(module, task, after, everything)
    edges = np.cumsum([0] + [len(part) for part in parts])
    units = np.concatenate([[0], np.cumsum(counts)])[edges]  # where each part's predictions begin
    return [_compare(old[a:b], new[a:b]) for a, b in pairwise(units.tolist())]


def _right(
    module: nn.Module, task: Task, params: Params, examples: Examples
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Return whether each prediction is right, one after another, and how many each example has."""
    found: list[Tensor] = []
    counts: list[Tensor] = []
    for _, outputs, fields in batches(module, task, params, examples):
        right, counted = task.right(outputs, fields)
        found.append(right[counted].cpu())
        counts.append(counted.sum(-1).cpu())
    return torch.cat(found).numpy(), torch.cat(counts).numpy()


def _compare(old: NDArray[np.bool_], new: NDArray[np.bool_]) -> Flips:
    return Flips(int((old & ~new).sum()), int((~old & new).sum()), len(old))
