"""What a partition rule gets, and how its name becomes a partitioner."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flwr_datasets.partitioner import Partitioner
from numpy.typing import NDArray

from fedsim.config import Data, Partition
from fedsim.data.records import Records

VALUE = "value"
"""The column with what the rule looks at, in the data set that partitioners get."""
Values = list[Any] | NDArray[Any]


@dataclass(frozen=True)
class Wanted:
    """The config, and what is known of the records when a partitioner is made."""

    data: Data
    partition: Partition
    examples: int
    values: Values | None
    """What the rule looks at, one a record; None where it looks at nothing."""
    data_dir: Path | None = None


@dataclass(frozen=True)
class Rule:
    """How a name in `partition.name` becomes a partitioner."""

    make: Callable[[Wanted], Partitioner]
    values: Callable[[Partition, Records], Values] | None = None
    """What the rule looks at in the records; None where it looks at nothing."""
    hint: str = "change data.devices"
    """What to try when the partitioner refuses."""
    counted: bool = True
    """Whether `data.devices` says how many devices there are."""
