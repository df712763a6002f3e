"""Which examples a device trains on in each local step."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedsim.config import Train


@dataclass(frozen=True)
class Schedule:
    """The batches of one device: row numbers [steps, batch], and which of them are real."""

    rows: NDArray[np.int64]
    mask: NDArray[np.bool_]


def count_steps(train: Train, examples: int) -> int:
    """Return the local steps of a device with so many examples."""
    return train.local_steps or train.local_epochs * math.ceil(examples / train.batch_size)


def make_schedule(train: Train, examples: int, rng: np.random.Generator) -> Schedule:
    """Return shuffled batches: every epoch visits each example once, its last batch may be smaller."""
    batch = min(train.batch_size, examples)
    steps, per_epoch = count_steps(train, examples), math.ceil(examples / batch)
    epochs = math.ceil(steps / per_epoch)
    rows = np.zeros((epochs, per_epoch * batch), dtype=np.int64)
    for epoch in range(epochs):
        rows[epoch, :examples] = rng.permutation(examples)
    mask = np.broadcast_to(np.arange(per_epoch * batch) < examples, rows.shape)
    shape = (epochs * per_epoch, batch)
    return Schedule(rows.reshape(shape)[:steps], mask.reshape(shape)[:steps])
