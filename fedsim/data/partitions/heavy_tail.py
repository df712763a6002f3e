"""Few devices with much and many with little; rows at random."""

from fedsim.data.partitions.owners import OwnerPartitioner, Owners, deal
from fedsim.data.partitions.tails import Tail
from fedsim.seeds import generator


class HeavyTailPartitioner(OwnerPartitioner):
    """Sizes by a heavy-tailed law, at least `min_partition_size` each."""

    def __init__(
        self, num_partitions: int, tail: Tail, seed: int, min_partition_size: int = 1
    ) -> None:
        super().__init__(num_partitions, seed, min_partition_size)
        self._tail = tail

    def assign(self) -> Owners:
        rng = generator(self._seed, "partition", "heavy_tail")
        examples = self.dataset.num_rows
        return deal(
            self._tail.sizes(self._num_partitions, examples, self._min_partition_size, rng), rng
        )
