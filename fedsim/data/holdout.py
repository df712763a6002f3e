"""A test split from the devices' own records, where the data bring none."""

from collections.abc import Mapping

import numpy as np

from fedsim.config import Data
from fedsim.data.records import Records
from fedsim.data.times import seconds_or_never
from fedsim.errors import WrongInput
from fedsim.seeds import generator


def hold_out(data: Data, splits: Mapping[str, Records]) -> dict[str, Records]:
    """Return the splits with `data.test_share` of each device's records moved to `test`.

    Each device's number is rounded down, so it keeps at least one record. The draw depends on
    (data.seed, device) and on the order of the device's records. Records whose owner asks for
    deletion are never held out. Raises WrongInput where there is a test split.
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
