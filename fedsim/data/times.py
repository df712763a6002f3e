"""Timestamps of records as seconds."""

import numpy as np
from numpy.typing import NDArray

from fedsim.data.records import Records
from fedsim.errors import WrongInput


def seconds(records: Records) -> NDArray[np.float64]:
    """Return each record's time in seconds: numbers are Unix seconds, strings ISO 8601 (UTC).

    The order of the records does not matter. Raises WrongInput where a time is missing or unreadable.
    """
    values = records.columns["time"]
    for i, value in enumerate(values):
        if value is None or value == "":
            raise WrongInput(
                f"record {i + 1} of {records.origin} (sorted by device) has no time; fill it in or drop it"
            )
    try:
        if isinstance(values[0], str):
            return np.array([np.datetime64(v.rstrip("Z"), "ms") for v in values]).astype(np.float64) / 1000
        stamps = np.asarray(values)
        if stamps.dtype.kind == "M":
            return stamps.astype("datetime64[ms]").astype(np.float64) / 1000
        times = stamps.astype(np.float64)
    except (ValueError, TypeError) as error:
        raise WrongInput(
            f"a time of {records.origin} cannot be read: {error}; want Unix seconds or ISO 8601, as in "
            "2004-12-25T09:14"
        ) from error
    if not np.isfinite(times).all():
        raise WrongInput(f"{records.origin} has times that are no finite numbers; drop these records")
    return times
