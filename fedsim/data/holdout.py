"""A test split from the devices' own records, where the data bring none."""

from collections.abc import Mapping

import numpy as np

from fedsim.config import Data
from fedsim.data.records import Records
from fedsim.data.times import seconds_or_never
from fedsim.errors import WrongInput
from fedsim.seeds import generator


def hold_out(data: Data, splits: Mapping[str, Records]) -> dict[str, Records]:
    """Return `train` without, and `test` with, `data.test_share` of each device's records.

    A device's number is rounded down and leaves it at least one record. The draw is named by
    (data.seed, device) and the order of the device's records. Records whose deletion is asked for
    are never held out. Raises WrongInput where there is a test split.
    """
    if "test" in splits:
        raise WrongInput(
            f"data.test_share = {data.test_share} would hold out a second test split; the data "
            f"bring one ({splits['test'].origin}): set data.test_share = 0"
        )
    train = splits["train"]
    owners = np.array([str(owner) for owner in train.columns["device"]], dtype=np.str_)
    held = np.zeros(len(owners), dtype=bool)
    order = np.argsort(owners, kind="stable")
    kept = np.ones(len(owners), dtype=bool)
    if "deleted" in train.columns:
        kept = np.isinf(seconds_or_never(train, "deleted"))
    devices, start = np.unique(owners[order], return_index=True)
    for device, rows in zip(devices, np.split(order, start[1:]), strict=True):
        count = int(len(rows) * data.test_share)
        drawn = generator(data.seed, "test", str(device)).permutation(rows)
        held[drawn[kept[drawn]][:count]] = True
    return {"train": train.rows(np.flatnonzero(~held)), "test": train.rows(np.flatnonzero(held))}
