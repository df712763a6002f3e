"""FedNLP's label rule: equal sizes, and labels from a Dirichlet law around the pool's."""

import numpy as np
from numpy.typing import NDArray

from fedsim.data.activity import Counts, apportion
from fedsim.data.partitions.owners import OwnerPartitioner, Owners, codes, column, dirichlet
from fedsim.seeds import generator


class LabelPartitioner(OwnerPartitioner):
    """Labels q_k ~ Dir(alpha prior) for each device k, around the pool's label shares.

    The prior is those shares (sum 1). Sizes differ by one at most. A device whose label is
    exhausted takes from what is left. Lin et al. 2022 (FedNLP), section 3.2, after Hsu et al. 2019.
    """

    def __init__(self, num_partitions: int, partition_by: str, alpha: float, seed: int) -> None:
        super().__init__(num_partitions, seed)
        self._partition_by = partition_by
        self._alpha = alpha

    def assign(self) -> Owners:
        labels = codes(column(self.dataset, self._partition_by))
        sizes = apportion(np.ones(self._num_partitions), len(labels))
        return draw_by_label(
            labels, sizes, self._alpha, generator(self._seed, "partition", "fednlp_label")
        )


def draw_by_label(labels: Owners, sizes: Counts, alpha: float, rng: np.random.Generator) -> Owners:
    """Return the owner of each row; devices draw `sizes` rows, without replacement.

    A device's label shares are q ~ Dir(alpha prior). `labels` are codes 0, 1, ... and `sizes` sum
    to their number. Devices draw in a random order, so a device's id does not decide who takes what
    is left.
    """
    left = np.bincount(labels)
    concentration = alpha * left / len(labels)
    devices = []
    kinds = []
    counts = []
    for device in rng.permutation(len(sizes)):
        taken = _draw(dirichlet(concentration, rng), left, int(sizes[device]), rng)
        left = left - taken
        held = np.flatnonzero(taken)
        devices.append(np.full(len(held), device))
        kinds.append(held)
        counts.append(taken[held])
    return _hand_out(
        labels, np.concatenate(devices), np.concatenate(kinds), np.concatenate(counts), rng
    )


def _draw(shares: NDArray[np.float64], left: Counts, size: int, rng: np.random.Generator) -> Counts:
    """Return how many rows of each label a device takes: by its shares, of what is left."""
    taken = np.zeros_like(left)
    while missing := size - int(taken.sum()):
        room = left - taken
        odds = np.where(room > 0, shares, 0.0)
        if odds.sum() < 1e-12:  # all that the device likes is exhausted
            odds = room.astype(np.float64)
        taken += np.minimum(rng.multinomial(missing, odds / odds.sum()), room)
    return taken


def _hand_out(
    labels: Owners, devices: Owners, kinds: Owners, counts: Counts, rng: np.random.Generator
) -> Owners:
    """Turn (device, label, count) triples into an owner for each row.

    The rows of a label are shared out at random.
    """
    shuffled = rng.permutation(len(labels))
    rows = shuffled[np.argsort(labels[shuffled], kind="stable")]
    by_label = np.argsort(kinds, kind="stable")
    owners = np.empty(len(labels), dtype=np.int64)
    owners[rows] = np.repeat(devices[by_label], counts[by_label])
    return owners
