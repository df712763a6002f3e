"""The federation of an experiment, with the changes that an audit makes before training."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedsim.app.experiment.planting import plant
from fedsim.config import Canary, Config, Data, Partition, Stream
from fedsim.data.announced import announced_federation
from fedsim.data.canary_devices import with_canary_devices
from fedsim.data.coins import Coins
from fedsim.data.federation import FederatedDataset, load_federation
from fedsim.data.holdings import Holdings
from fedsim.data.pool import pooled, relabelled

NO_CANARY = Canary()


@dataclass(frozen=True)
class Changes:
    """The changes that an audit makes to the training data; hashable, for a cache of holdings."""

    mislabelled: float = 0.0
    canary: Canary = NO_CANARY
    canary_devices: int = 0
    seed: int = 0
    """The seed of random labels and of canaries; 0 without them."""
    coins: Coins | None = None


def load_holdings(config: Config, data_dir: Path | None, part: bool = False) -> Holdings:
    """Return the holdings of the federation that the config names.

    The last two results are cached: the same settings give the same object. With `part`, the folder
    may hold only a part of the federation. Raises WrongInput when the data cannot be used.
    """
    holdout = config.evaluation.holdout
    return _load(
        config.data, config.partition, config.stream, holdout, data_dir, changes_of(config), part
    )


def announced_holdings(
    config: Config, data_dir: Path | None, devices: NDArray[np.str_], activity: NDArray[np.int64]
) -> Holdings:
    """Return the server's holdings of a federation whose examples stay on its nodes."""
    federation = announced_federation(config.data, data_dir, devices, activity)
    return Holdings(federation, config.stream, config.evaluation.holdout, config.data.seed)


def changes_of(config: Config) -> Changes:
    """Return the changes of the config's audit. Shadows share random labels and canaries."""
    audit = config.audit
    canary = config.canary
    seed = audit.seed or config.seed
    coins = None if audit.coins == "none" else Coins(audit.coins, seed, audit.shadow)
    canaries = canary if canary.count else NO_CANARY
    return Changes(
        audit.mislabelled,
        canaries,
        audit.canary_devices,
        seed if audit.mislabelled or canary.count else 0,
        coins,
    )


@lru_cache(maxsize=2)
def _load(
    data: Data,
    partition: Partition,
    stream: Stream,
    holdout: float,
    data_dir: Path | None,
    changes: Changes,
    part: bool,
) -> Holdings:
    dataset = _changed(load_federation(data, data_dir, partition), data, stream, changes)
    return Holdings(dataset, stream, holdout, data.seed, changes.coins, part)


def _changed(
    dataset: FederatedDataset, data: Data, stream: Stream, changes: Changes
) -> FederatedDataset:
    if changes == Changes():
        return dataset
    pool = pooled(dataset)
    if changes.mislabelled:
        pool = relabelled(pool, changes.mislabelled, changes.seed)
    if changes.canary.count:
        pool = plant(pool, data, stream, changes.canary, changes.seed)
    if changes.canary_devices:
        pool = with_canary_devices(pool, changes.canary_devices)
    return pool
