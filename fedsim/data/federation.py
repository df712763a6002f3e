"""A federation: its devices, their activity and examples, and the server's test examples."""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fedsim.config import Data, Partition
from fedsim.data.digits import digits
from fedsim.data.hub import hub
from fedsim.data.local_files import files
from fedsim.data.records import Splits
from fedsim.data.synthetic_requests import Requests
from fedsim.data.table import RecordTable
from fedsim.errors import WrongInput
from fedsim.names import lookup
from fedsim.types import DeviceId, Examples, Spec


class FederatedDataset(Protocol):
    """Devices and their examples.

    A device's examples are made or viewed when they are asked for.
    """

    spec: Spec
    devices: NDArray[np.str_]
    """Device ids, sorted, each once; also those without training examples."""
    activity: NDArray[np.int64]
    """Training examples per device, aligned with `devices`."""
    dev: Examples | None
    """Examples for early stopping."""
    test: Examples | None
    """Examples for central evaluation."""
    fingerprint: dict[str, str]
    """Name -> SHA-256 of what the data were read or made from."""
    notes: tuple[str, ...]
    """Sentences on what was odd in the data but usable."""

    def train(self, device: DeviceId) -> Examples:
        """Return the training examples of a device, at least one."""


Source = Callable[[Data, Path | None], FederatedDataset | Splits]
"""Makes a federation, or reads records that `[partition]` divides among devices."""
SOURCES: dict[str, Source] = {
    "requests": Requests,
    "digits": digits,
    "files": files,
    "hub": hub,
}

NATURAL = Partition()


@lru_cache(maxsize=2)
def load_federation(
    data: Data, data_dir: Path | None, partition: Partition = NATURAL
) -> FederatedDataset:
    """Return the federation that the config names; the same object for the same arguments.

    `data_dir` is the folder that holds `data.path`, or None where none was named. `partition`
    divides records that have no devices of their own. Raises WrongInput when the data cannot be
    used.
    """
    found = lookup("data.source", data.source, SOURCES, "data, data_dir")(data, data_dir)
    if isinstance(found, Splits):
        federation: FederatedDataset = RecordTable(data, partition, found, data_dir)
    elif partition.name == "natural":
        federation = found
    else:
        raise WrongInput(
            f"data.source = {data.source!r} makes devices of its own, so partition.name = "
            f'{partition.name!r} has nothing to divide; leave partition.name = "natural", or read '
            'data.source = "files"'
        )
    _check(data.source, federation)
    if not len(federation.devices) or federation.activity.sum() == 0:
        raise WrongInput(
            f"the federation has no training example ({len(federation.devices)} devices); "
            "check data.train, data.columns and the split column"
        )
    return federation


def count_unseen_labels(federation: FederatedDataset) -> int:
    """Return how many test examples have a label that training never saw."""
    if federation.test is None or "label" not in federation.test.fields:
        return 0
    return int((federation.test.fields["label"] >= len(federation.spec.labels)).sum())


def _check(source: str, federation: FederatedDataset) -> None:
    """Refuse a user's data set that lacks a part or whose devices are not sorted."""
    wanted = ("spec", "devices", "activity", "dev", "test", "fingerprint", "notes", "train")
    lacking = [name for name in wanted if not hasattr(federation, name)]
    if lacking:
        raise WrongInput(
            f"data.source = {source!r} gave a {type(federation).__name__} without "
            f"{', '.join(lacking)}; see FederatedDataset in fedsim/data/federation.py"
        )
    devices = federation.devices
    activity = federation.activity
    for name, value, kind in (
        ("spec", federation.spec, Spec),
        ("devices", devices, np.ndarray),
        ("activity", activity, np.ndarray),
    ):
        if not isinstance(value, kind):
            raise WrongInput(
                f"data.source = {source!r}: {name} must be a {kind.__name__}, got a "
                f"{type(value).__name__}"
            )
    if len(activity) != len(devices) or (devices[1:] <= devices[:-1]).any():
        raise WrongInput(
            f"data.source = {source!r}: devices must be sorted, each once, with one activity "
            f"each; got {len(devices)} devices and {len(activity)} activities"
        )
