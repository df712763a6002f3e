"""Which examples a device trains on in each local step."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedsim.config import Train
from fedsim.privacy.local_plan import LocalPlan


@dataclass(frozen=True)
class Schedule:
    """The batches of one device: row numbers [steps, slots, size], and which of them are real.

    A slot is a micro-batch, which is clipped as one. Without micro-batches the one slot is the
    whole batch.
    """

    rows: NDArray[np.int64]
    mask: NDArray[np.bool_]


def count_steps(train: Train, examples: int) -> int:
    """Return the number of local steps of a device with this many examples."""
    return train.local_steps or train.local_epochs * math.ceil(examples / train.batch_size)


def make_schedule(train: Train, examples: int, rng: np.random.Generator) -> Schedule:
    """Return shuffled batches: an epoch visits each example once, its last batch may be smaller."""
    batch = min(train.batch_size, examples)
    steps = count_steps(train, examples)
    per_epoch = math.ceil(examples / batch)
    epochs = math.ceil(steps / per_epoch)
    rows = np.zeros((epochs, per_epoch * batch), dtype=np.int64)
    for epoch in range(epochs):
        rows[epoch, :examples] = rng.permutation(examples)
    mask = np.broadcast_to(np.arange(per_epoch * batch) < examples, rows.shape)
    shape = (epochs * per_epoch, 1, batch)
    return Schedule(rows.reshape(shape)[:steps], mask.reshape(shape)[:steps])


def make_poisson_schedule(
    plan: LocalPlan, examples: int, slots: int, rng: np.random.Generator
) -> Schedule:
    """Return Poisson batches: one coin puts an example into a step, another picks its slot.

    Guarantee: whether and where an example is in a batch does not depend on any other example. No
    batch is cut. An empty batch is a step like any other.
    """
    inside = rng.random((plan.steps, examples)) < plan.sampling_rate
    slot = rng.integers(slots, size=inside.shape)
    step, row = np.nonzero(inside)
    group = step * slots + slot[step, row]
    order = np.argsort(group, kind="stable")
    counts = np.bincount(group, minlength=plan.steps * slots)
    place = np.arange(len(group)) - np.repeat(np.cumsum(counts) - counts, counts)
    size = max(int(counts.max(initial=0)), 1)
    rows = np.zeros((plan.steps * slots, size), dtype=np.int64)
    mask = np.zeros(rows.shape, dtype=bool)
    rows[group[order], place] = row[order]
    mask[group[order], place] = True
    shape = (plan.steps, slots, size)
    return Schedule(rows.reshape(shape), mask.reshape(shape))
