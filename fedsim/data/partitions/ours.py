"""Our rules by name."""

from flwr_datasets.partitioner import Partitioner

from fedsim.data.partitions.clusters import ClusterPartitioner
from fedsim.data.partitions.counts import read_counts
from fedsim.data.partitions.heavy_tail import HeavyTailPartitioner
from fedsim.data.partitions.label_heavy_tail import LabelHeavyTailPartitioner
from fedsim.data.partitions.labels import LabelPartitioner
from fedsim.data.partitions.quantity import QuantityPartitioner
from fedsim.data.partitions.tails import Tail
from fedsim.data.partitions.values import contents, label_codes
from fedsim.data.partitions.wanted import VALUE, Rule, Wanted


def _label(wanted: Wanted) -> Partitioner:
    data = wanted.data
    return LabelPartitioner(data.devices, VALUE, wanted.partition.alpha, data.seed)


def _quantity(wanted: Wanted) -> Partitioner:
    data = wanted.data
    partition = wanted.partition
    return QuantityPartitioner(data.devices, partition.beta, data.seed, partition.min_size)


def _cluster(wanted: Wanted) -> Partitioner:
    data = wanted.data
    p = wanted.partition
    return ClusterPartitioner(data.devices, VALUE, p.alpha, data.seed, p.clusters, p.dimensions)


def _heavy_tail(wanted: Wanted) -> Partitioner:
    data = wanted.data
    return HeavyTailPartitioner(data.devices, _tail(wanted), data.seed, wanted.partition.min_size)


def _label_heavy_tail(wanted: Wanted) -> Partitioner:
    data = wanted.data
    p = wanted.partition
    return LabelHeavyTailPartitioner(
        data.devices, VALUE, p.alpha, _tail(wanted), data.seed, p.min_size
    )


def _tail(wanted: Wanted) -> Tail:
    partition = wanted.partition
    counts = read_counts(partition.copy_from, wanted.data_dir) if partition.tail == "copy" else ()
    return Tail(partition.tail, partition.tail_shape, partition.gini, counts)


OURS = {
    "fednlp_label": Rule(_label, label_codes),
    "quantity": Rule(_quantity),
    "cluster": Rule(_cluster, contents),
    "heavy_tail": Rule(_heavy_tail),
    "label_heavy_tail": Rule(_label_heavy_tail, label_codes),
}
