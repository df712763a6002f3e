"""One table of all training records of a federation, as audits need it."""

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray

from fedsim.data.federation import FederatedDataset
from fedsim.errors import WrongInput
from fedsim.seeds import generator
from fedsim.types import DeviceId, Examples, Spec, concatenate

Flags = NDArray[np.bool_]


@dataclass
class Pool:
    """A federation in memory; its N training records stand device by device."""

    spec: Spec
    devices: NDArray[np.str_]
    activity: NDArray[np.int64]
    records: Examples
    dev: Examples | None
    test: Examples | None
    fingerprint: dict[str, str]
    notes: tuple[str, ...] = ()
    time: NDArray[np.float64] | None = None
    """Seconds of each record."""
    test_time: NDArray[np.float64] | None = None
    deleted_time: NDArray[np.float64] | None = None
    mislabelled: Flags = field(default_factory=lambda: np.zeros(0, dtype=bool))
    """[N]: records that were given a random label."""
    canary: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """[N]: which canary a record copies; -1 for natural records, -2 for canary devices'."""
    arrival: int = 1
    """The period in which canaries arrive."""

    @property
    def owner(self) -> NDArray[np.int64]:
        """[N]: the place of each record's device in `devices`."""
        return np.repeat(np.arange(len(self.devices)), self.activity)

    @property
    def start(self) -> NDArray[np.int64]:
        """The first record of each device."""
        return np.cumsum(self.activity) - self.activity

    def train(self, device: DeviceId) -> Examples:
        """Return views of the device's records."""
        i = int(np.searchsorted(self.devices, device))
        if i == len(self.devices) or self.devices[i] != device:
            raise WrongInput(f"the federation has no device {device!r}")
        first = int(self.start[i])
        return self.records[first : first + int(self.activity[i])]


def pooled(dataset: FederatedDataset) -> Pool:
    """Return the federation with its training records in one table."""
    if isinstance(dataset, Pool):
        return dataset
    owners = dataset.devices[dataset.activity > 0]
    records = concatenate([dataset.train(str(device)) for device in owners])
    return Pool(
        spec=dataset.spec,
        devices=dataset.devices,
        activity=dataset.activity,
        records=records,
        dev=dataset.dev,
        test=dataset.test,
        fingerprint=dict(dataset.fingerprint),
        notes=tuple(dataset.notes),
        time=getattr(dataset, "time", None),
        test_time=getattr(dataset, "test_time", None),
        deleted_time=getattr(dataset, "deleted_time", None),
        mislabelled=np.zeros(len(records), dtype=bool),
        canary=np.full(len(records), -1, dtype=np.int64),
    )


def relabelled(pool: Pool, share: float, seed: int) -> Pool:
    """Return the pool with random labels on a share of its records.

    Each record is drawn by a coin of its own. A model can only learn such a record by heart. Raises
    WrongInput where records have no label.
    """
    if "label" not in pool.records.fields or len(pool.spec.labels) < 2:
        raise WrongInput(
            f"audit.mislabelled = {share} draws labels, and data.task = {pool.spec.task!r} has "
            "none to draw"
        )
    rng = generator(seed, "mislabelled")
    chosen = rng.random(len(pool.records)) < share
    labels = pool.records.fields["label"].clone()
    drawn = rng.integers(len(pool.spec.labels), size=len(labels))
    labels[torch.from_numpy(chosen)] = torch.from_numpy(drawn[chosen])
    return replace(
        pool, records=Examples({**pool.records.fields, "label": labels}), mislabelled=chosen
    )


def repeated(records: Examples) -> Flags:
    """Return which records occur more than once, word for word and label for label."""
    rows = np.concatenate([_flat(t) for t in records.fields.values()], axis=1)
    _, inverse, counts = np.unique(rows, axis=0, return_inverse=True, return_counts=True)
    found: Flags = counts[inverse.ravel()] > 1
    return found


def _flat(field: torch.Tensor) -> NDArray[np.float64]:
    return field.reshape(len(field), -1).numpy().astype(np.float64)
