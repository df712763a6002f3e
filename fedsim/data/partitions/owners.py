"""The one idea behind our partitioners: an owner for each row, all of them at once."""

from abc import abstractmethod
from functools import cached_property
from typing import Any

import datasets
import numpy as np
from flwr_datasets.partitioner import Partitioner
from numpy.typing import NDArray

from fedsim.data.activity import Counts
from fedsim.errors import WrongInput

Owners = NDArray[np.int64]
"""The partition of each row [examples]."""


class OwnerPartitioner(Partitioner):  # type: ignore[misc]
    """A Flower partitioner whose rule names the owner of each row; every row has one.

    `seed` and the rows in their order decide everything.
    """

    def __init__(self, num_partitions: int, seed: int, min_partition_size: int = 1) -> None:
        super().__init__()
        if num_partitions < 1:
            raise WrongInput(f"a partition wants at least one device, got {num_partitions}")
        self._num_partitions = num_partitions
        self._seed = seed
        self._min_partition_size = min_partition_size

    @abstractmethod
    def assign(self) -> Owners:
        """Return the owner of each row of the data set."""

    @property
    def num_partitions(self) -> int:
        """How many partitions there are."""
        return self._num_partitions

    @cached_property
    def owners(self) -> Owners:
        """The owner of each row. Raises WrongInput where the rule cannot be kept."""
        check_room(self._num_partitions, self.dataset.num_rows, self._min_partition_size)
        return self.assign()

    def load_partition(self, partition_id: int) -> datasets.Dataset:
        """Return the rows that the partition owns, in the order of the data set."""
        start, stop = self._bounds[partition_id : partition_id + 2]
        return self.dataset.select(self._order[start:stop])

    @cached_property
    def _order(self) -> Owners:
        return np.argsort(self.owners, kind="stable")

    @cached_property
    def _bounds(self) -> Counts:
        sizes = np.bincount(self.owners, minlength=self._num_partitions)
        return np.concatenate([[0], np.cumsum(sizes)])


def check_room(devices: int, examples: int, min_size: int) -> None:
    """Raise WrongInput where there are fewer examples than devices, or than `min_size` for each."""
    if devices > examples:
        raise WrongInput(
            f"data.devices = {devices} devices cannot share {examples} examples; "
            f"lower data.devices to at most {examples}"
        )
    if devices * min_size > examples:
        raise WrongInput(
            f"partition.min_size = {min_size} for {devices} devices needs {devices * min_size} "
            f"examples, but there are {examples}; lower it to at most {examples // devices}, or "
            "lower data.devices"
        )


def column(dataset: datasets.Dataset, name: str) -> Any:
    """Return a whole column as a list; `dataset[name]` alone reads it value by value."""
    return dataset.select_columns([name]).with_format(None)[:][name]


def codes(values: Any) -> Owners:
    """Return the position of each value among the sorted different ones."""
    return np.unique(np.asarray(values), return_inverse=True)[1].reshape(-1).astype(np.int64)


def deal(sizes: Counts, rng: np.random.Generator) -> Owners:
    """Return owners that hold `sizes` rows each, chosen at random."""
    return rng.permutation(np.repeat(np.arange(len(sizes)), sizes))


def dirichlet(concentration: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Draw shares from a Dirichlet law; logarithms keep tiny concentrations finite.

    Gamma(a) has the law of Gamma(a + 1) U^(1/a) (Marsaglia and Tsang 2000, section 6).
    """
    with np.errstate(divide="ignore"):
        logs = np.log(rng.standard_gamma(concentration + 1.0)) - (
            rng.standard_exponential(len(concentration)) / concentration
        )
    shares = np.exp(logs - logs.max())
    return shares / shares.sum()
