"""The horizontal partitioners of `flwr_datasets` by name, and the owners that they make.

All are quick at 10,000 devices except InnerDirichletPartitioner. It draws example by example over
all devices: about a minute for 100,000 examples. `fednlp_label` is the same idea in a fraction of a
second. Vertical partitioners are left out, because they divide columns rather than examples.
`natural` stands for NaturalIdPartitioner.
"""

import warnings
from bisect import bisect_left
from collections.abc import Callable

import numpy as np
from flwr_datasets import partitioner as flwr
from numpy.typing import NDArray

from fedsim.data.activity import Counts, apportion
from fedsim.data.partitions.values import label_codes, natural_ids, numbers
from fedsim.data.partitions.wanted import VALUE, Rule, Wanted
from fedsim.errors import WrongInput
from fedsim.seeds import generator

Units = Callable[[NDArray[np.float64]], NDArray[np.float64]]


def rows_of(partitioner: flwr.Partitioner) -> list[NDArray[np.int64]]:
    """Return the rows of each partition, in the partitioner's own data set (which `shards` sorts).

    It reads what the partitioner worked out. `load_partition` would make a data set for each of
    perhaps ten thousand partitions. Raises ValueError as the library does.
    """
    # its shards are contiguous, and it works them out anew at each call
    if isinstance(partitioner, flwr.IidPartitioner):
        return np.array_split(np.arange(partitioner.dataset.num_rows), partitioner.num_partitions)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        # unused labels, repeated draws: our notes and errors tell of them
        warnings.simplefilter("ignore")
        partitioner.load_partition(0)
    found = partitioner._partition_id_to_indices
    return [np.asarray(found[i], dtype=np.int64) for i in range(len(found))]


def _seed(wanted: Wanted) -> int:
    return int(generator(wanted.data.seed, "partition", wanted.partition.name).integers(2**63))


def _iid(wanted: Wanted) -> flwr.Partitioner:
    return flwr.IidPartitioner(wanted.data.devices)


def _dirichlet(wanted: Wanted) -> flwr.Partitioner:
    p = wanted.partition
    return flwr.DirichletPartitioner(
        wanted.data.devices,
        VALUE,
        p.alpha,
        p.min_size,
        p.balance,
        shuffle=False,
        seed=_seed(wanted),
    )


def _inner_dirichlet(wanted: Wanted) -> flwr.Partitioner:
    return flwr.InnerDirichletPartitioner(
        _sizes(wanted), VALUE, wanted.partition.alpha, shuffle=False, seed=_seed(wanted)
    )


def _pathological(wanted: Wanted) -> flwr.Partitioner:
    p = wanted.partition
    return flwr.PathologicalPartitioner(
        wanted.data.devices, VALUE, p.classes, p.choice, shuffle=False, seed=_seed(wanted)
    )


def _shards(wanted: Wanted) -> flwr.Partitioner:
    p = wanted.partition
    return flwr.ShardPartitioner(
        wanted.data.devices,
        VALUE,
        p.shards,
        p.shard_size or None,
        shuffle=False,
        seed=_seed(wanted),
    )


def _size(wanted: Wanted) -> flwr.Partitioner:
    return flwr.SizePartitioner(_sizes(wanted).tolist())


def _distribution(wanted: Wanted) -> flwr.Partitioner:
    """Return lognormal shares of each label among its devices, as in the class's own example.

    Li et al. (2020).
    """
    p = wanted.partition
    devices = wanted.data.devices
    labels = len(np.unique(np.asarray(wanted.values)))
    if devices % labels:
        raise WrongInput(
            f"partition.name = 'distribution' wants data.devices to be a multiple of the {labels} "
            f"labels, got {devices}; try {max(1, round(devices / labels)) * labels}"
        )
    shape = (labels, p.classes * devices // labels)
    shares = generator(wanted.data.seed, "partition", "shares").lognormal(0.0, p.tail_shape, shape)
    return flwr.DistributionPartitioner(
        shares,
        devices,
        p.classes,
        VALUE,
        -(-p.min_size // p.classes),
        shuffle=False,
        seed=_seed(wanted),
    )


def _continuous(wanted: Wanted) -> flwr.Partitioner:
    return flwr.ContinuousPartitioner(
        wanted.data.devices, VALUE, wanted.partition.strictness, shuffle=False, seed=_seed(wanted)
    )


def _grouped_natural(wanted: Wanted) -> flwr.Partitioner:
    p = wanted.partition
    return flwr.GroupedNaturalIdPartitioner(VALUE, p.group, p.remainder)


def _by_id(
    make: Callable[[int], flwr.Partitioner], units: Units
) -> Callable[[Wanted], flwr.Partitioner]:
    """Return the rule whose sizes grow with the device's number.

    The rule raises WrongInput where the first device gets nothing.
    """

    def rule(wanted: Wanted) -> flwr.Partitioner:
        def empty(devices: int) -> bool:
            share = units(np.arange(1.0, devices + 1))
            return int(share[0] / share.sum() * wanted.examples) < 1

        devices = wanted.data.devices
        if empty(devices):
            most = bisect_left(range(1, devices + 1), True, key=empty)
            raise WrongInput(
                f"partition.name = {wanted.partition.name!r} leaves the smallest of {devices} "
                f"devices without an example; with {wanted.examples} examples data.devices = "
                f"{most} is the most"
            )
        return make(devices)

    return rule


def _sizes(wanted: Wanted) -> Counts:
    """Return the sizes in `partition.sizes`, or sizes as equal as can be."""
    devices = wanted.data.devices
    text = wanted.partition.sizes.strip()
    if not text:
        return apportion(np.ones(devices), wanted.examples)
    sizes = np.array([int(part) for part in text.split(",")], dtype=np.int64)
    if len(sizes) != devices or sizes.sum() > wanted.examples or sizes.min() < 1:
        raise WrongInput(
            f"partition.sizes wants data.devices = {devices} sizes of at least 1 and at most "
            f"{wanted.examples} (the examples) in all, got {len(sizes)} sizes from {sizes.min()} "
            f"that sum to {sizes.sum()}"
        )
    return sizes


FLOWER = {
    "iid": Rule(_iid),
    "dirichlet": Rule(
        _dirichlet,
        label_codes,
        "lower partition.min_size (0 lets devices stay empty), raise partition.alpha, lower "
        'data.devices, or use partition.name = "fednlp_label", which keeps sizes equal',
    ),
    "inner_dirichlet": Rule(
        _inner_dirichlet,
        label_codes,
        'raise partition.alpha, or use partition.name = "fednlp_label"',
    ),
    "pathological": Rule(
        _pathological,
        label_codes,
        'lower data.devices or partition.classes, or set partition.choice = "deterministic"',
    ),
    "shards": Rule(
        _shards, label_codes, "lower data.devices, partition.shards or partition.shard_size"
    ),
    "size": Rule(_size),
    "linear": Rule(_by_id(flwr.LinearPartitioner, lambda number: number)),
    "square": Rule(_by_id(flwr.SquarePartitioner, np.square)),
    "exponential": Rule(
        _by_id(flwr.ExponentialPartitioner, lambda number: np.exp(number - len(number)))
    ),
    "distribution": Rule(
        _distribution, label_codes, "lower data.devices, partition.classes or partition.min_size"
    ),
    "grouped_natural": Rule(_grouped_natural, natural_ids, "change partition.group", counted=False),
    "continuous": Rule(_continuous, numbers, "look at another role with partition.by"),
}
