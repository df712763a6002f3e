"""Timestamps of records as seconds."""

from collections.abc import Sequence
from datetime import UTC, date, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.data.records import Records
from fedsim.errors import WrongInput


def seconds(records: Records, role: str = "time") -> NDArray[np.float64]:
    """Return each record's time in seconds: numbers are Unix seconds, strings ISO 8601 (UTC).

    The order of the records does not matter. Raises WrongInput where a time is missing or
    unreadable.
    """
    values = records.columns[role]
    gaps = [i for i, value in enumerate(values) if value is None or value == ""]
    if gaps:
        raise WrongInput(
            f"{len(gaps)} records of {records.origin} have no {role}; fill it in, or drop these "
            "records"
        )
    return _parse(values, records.origin, role)


def seconds_or_never(records: Records, role: str) -> NDArray[np.float64]:
    """Return each record's time in seconds, infinity where it has none."""
    values = records.columns[role]
    # NaN is a gap, too: it differs from itself
    known = np.array([value is not None and value != "" and value == value for value in values])
    times = np.full(len(values), np.inf)
    if known.any():
        times[known] = _parse(
            [v for v, k in zip(values, known, strict=True) if k], records.origin, role
        )
    return times


def instant(key: str, text: str) -> float:
    """Return the seconds of a time that the config has under `key`, read as in records.

    Raises WrongInput.
    """
    try:
        return _seconds(datetime.fromisoformat(text))
    except ValueError:
        raise WrongInput(
            f"{key} = {text!r} cannot be read; want ISO 8601, as in 2024-06-01 or "
            "2024-06-01T09:14+02:00 (UTC where no zone is named)"
        ) from None


def _parse(values: Sequence[Any], origin: str, role: str) -> NDArray[np.float64]:
    """Read numbers, ISO strings, or the date objects that `datasets` makes of such strings."""
    try:
        times = np.array([_seconds(value) for value in values], dtype=np.float64)
    except (ValueError, TypeError) as error:
        raise WrongInput(
            f"a {role!r} of {origin} cannot be read: {error}; want Unix seconds or ISO 8601, as in "
            "2004-12-25T09:14"
        ) from error
    if not np.isfinite(times).all():
        raise WrongInput(f"{origin} has a {role!r} that is no finite number; drop these records")
    return times


def _seconds(value: Any) -> float:
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    if isinstance(value, np.datetime64):
        value = value.astype("datetime64[us]").item()
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day)
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
    return float(value)
