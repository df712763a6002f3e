"""Label skew and heavy-tailed activity at once, as real federations have them."""

from fedsim.data.partitions.labels import draw_by_label
from fedsim.data.partitions.owners import OwnerPartitioner, Owners, codes, column
from fedsim.data.partitions.tails import Tail
from fedsim.seeds import generator


class LabelHeavyTailPartitioner(OwnerPartitioner):
    """Sizes by a heavy-tailed law, labels by FedNLP's rule: q_k ~ Dir(alpha prior)."""

    def __init__(
        self,
        num_partitions: int,
        partition_by: str,
        alpha: float,
        tail: Tail,
        seed: int,
        min_partition_size: int = 1,
    ) -> None:
        super().__init__(num_partitions, seed, min_partition_size)
        self._partition_by = partition_by
        self._alpha = alpha
        self._tail = tail

    def assign(self) -> Owners:
        rng = generator(self._seed, "partition", "label_heavy_tail")
        labels = codes(column(self.dataset, self._partition_by))
        sizes = self._tail.sizes(self._num_partitions, len(labels), self._min_partition_size, rng)
        return draw_by_label(labels, sizes, self._alpha, rng)
