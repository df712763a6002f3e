"""Divides data sets without natural devices; each rule is a `flwr_datasets` Partitioner.

Any Flower app can use them as it uses Flower's own:

    partitioner = LabelPartitioner(num_partitions=100, partition_by="label", alpha=0.5, seed=0)
    partitioner.dataset = dataset
    partitioner.load_partition(3)
"""

from fedsim.data.partitions.clusters import ClusterPartitioner
from fedsim.data.partitions.heavy_tail import HeavyTailPartitioner
from fedsim.data.partitions.label_heavy_tail import LabelHeavyTailPartitioner
from fedsim.data.partitions.labels import LabelPartitioner
from fedsim.data.partitions.quantity import QuantityPartitioner
from fedsim.data.partitions.tails import Tail

__all__ = [
    "ClusterPartitioner",
    "HeavyTailPartitioner",
    "LabelHeavyTailPartitioner",
    "LabelPartitioner",
    "QuantityPartitioner",
    "Tail",
]
