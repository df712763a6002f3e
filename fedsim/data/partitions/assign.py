"""Gives each training record an owner, by the partition that the config names."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
from flwr_datasets.partitioner import Partitioner
from numpy.typing import NDArray

from fedsim.config import Data, Partition
from fedsim.data.partitions.flower_partitions import FLOWER, rows_of
from fedsim.data.partitions.ours import OURS
from fedsim.data.partitions.owners import OwnerPartitioner, Owners, check_room, column
from fedsim.data.partitions.wanted import VALUE, Rule, Values, Wanted
from fedsim.data.records import Records
from fedsim.errors import WrongInput
from fedsim.names import import_object, is_own_code, lookup
from fedsim.seeds import generator

RULES = FLOWER | OURS
NOBODY = ""
"""The owner of an example that the rule gives to no device."""
OwnRule = Callable[[Data, Partition, Records], Sequence[str | None]]
_INDEX = "index"


@dataclass(frozen=True)
class OwnerAssignment:
    """Who owns which training example."""

    owners: NDArray[np.str_]
    """The device of each record [records]; NOBODY where it has none."""
    devices: NDArray[np.str_]
    """All devices, sorted, each once; also those without examples."""
    notes: tuple[str, ...] = ()

    @property
    def held(self) -> NDArray[np.bool_]:
        """Whether each record has an owner [records]."""
        return self.owners != NOBODY

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the owners in the order of the records."""
        return hashlib.sha256("\n".join(self.owners).encode()).hexdigest()


def assign_devices(
    data: Data, partition: Partition, records: Records, data_dir: Path | None = None
) -> OwnerAssignment:
    """Return the devices "p00000", "p00001", ... of the training records; own code may name others.

    The seed is `data.seed`. Raises WrongInput where the records or the numbers do not allow the
    rule.
    """
    if is_own_code(partition.name):
        return _own(data, partition, records)
    rule = lookup("partition.name", partition.name, RULES)
    if rule.counted:
        check_room(data.devices, records.size, partition.min_size)
    owners, count = _owners(rule, data, partition, records, data_dir)
    names = device_names(count)
    return _assignment(np.append(names, NOBODY)[owners], names, records)


def device_names(count: int) -> NDArray[np.str_]:
    """Return "p00000", "p00001", ...: five digits, or more from 100,001 devices on."""
    width = max(5, len(str(count - 1)))
    return np.char.add("p", np.char.zfill(np.arange(count).astype(np.str_), width))


def _owners(
    rule: Rule, data: Data, partition: Partition, records: Records, data_dir: Path | None
) -> tuple[Owners, int]:
    """Return the number of each record's device (-1 for nobody), and how many devices there are.

    The partitioner sees the records in a seeded order, because several rules cut the data set into
    runs.
    """
    values = rule.values(partition, records) if rule.values else None
    order = generator(data.seed, "partition", "order").permutation(records.size)
    columns: dict[str, Values] = {_INDEX: order}
    if values is not None:
        columns[VALUE] = [values[i] for i in order] if isinstance(values, list) else values[order]
    partitioner = rule.make(Wanted(data, partition, records.size, values, data_dir))
    partitioner.dataset = datasets.Dataset.from_dict(columns)
    try:
        numbers, count = _numbers(partitioner)
    except ValueError as error:  # the library's own refusals
        raise WrongInput(
            f"partition.name = {partition.name!r} failed with data.devices = {data.devices}: "
            f"{' '.join(str(error).split()).rstrip('.')}; {rule.hint}"
        ) from error
    owners = np.empty(records.size, dtype=np.int64)
    owners[np.asarray(column(partitioner.dataset, _INDEX))] = numbers
    return owners, count


def _numbers(partitioner: Partitioner) -> tuple[Owners, int]:
    """Return the partition of each row of the data set (-1 for none), and their number."""
    if isinstance(partitioner, OwnerPartitioner):
        return partitioner.owners, partitioner.num_partitions
    parts = rows_of(partitioner)
    rows = np.concatenate(parts)
    if np.bincount(rows, minlength=1).max() > 1:
        raise ValueError("an example came to two devices")
    numbers = np.full(partitioner.dataset.num_rows, -1, dtype=np.int64)
    numbers[rows] = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    return numbers, len(parts)


def _own(data: Data, partition: Partition, records: Records) -> OwnerAssignment:
    rule: OwnRule = import_object("partition.name", partition.name, "data, partition, records")
    found = [NOBODY if name is None else str(name) for name in rule(data, partition, records)]
    if len(found) != records.size:
        raise WrongInput(
            f"partition.name = {partition.name!r} returned {len(found)} device ids for "
            f"{records.size} records; it must return one for each, None or an empty one for a "
            "record that nobody has"
        )
    owners = np.array(found, dtype=np.str_)
    return _assignment(owners, np.unique(owners[owners != NOBODY]), records)


def _assignment(
    owners: NDArray[np.str_], devices: NDArray[np.str_], records: Records
) -> OwnerAssignment:
    left = int((owners == NOBODY).sum())
    note = f"{left} records of {records.origin} came to no device by the partition: left out"
    return OwnerAssignment(owners, devices, (note,) if left else ())
