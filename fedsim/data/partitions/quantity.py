"""Quantity skew: sizes from a Dirichlet law, rows at random."""

import numpy as np

from fedsim.data.activity import apportion
from fedsim.data.partitions.owners import OwnerPartitioner, Owners, deal, dirichlet
from fedsim.seeds import generator


class QuantityPartitioner(OwnerPartitioner):
    """Sizes ~ Dir(beta) over the rows beyond `min_partition_size` a device (FedNLP's rule)."""

    def __init__(
        self, num_partitions: int, beta: float, seed: int, min_partition_size: int = 1
    ) -> None:
        super().__init__(num_partitions, seed, min_partition_size)
        self._beta = beta

    def assign(self) -> Owners:
        rng = generator(self._seed, "partition", "quantity")
        shares = dirichlet(np.full(self._num_partitions, self._beta), rng)
        free = self.dataset.num_rows - self._num_partitions * self._min_partition_size
        return deal(self._min_partition_size + apportion(shares, free), rng)
