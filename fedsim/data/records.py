"""What a source returns: records by split, with columns named by their roles."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Records:
    """One split as columns by role (`tokens`, `text`, `label`, `tags`, `image`, `device`)."""

    columns: Mapping[str, Sequence]  # type: ignore[type-arg]
    size: int
    origin: str
    """Where the records were read from, for messages."""
    available: tuple[str, ...] = ()
    """The columns that the files have, for messages."""

    def rows(self, keep: NDArray[np.int64]) -> "Records":
        columns = {
            role: values[keep] if isinstance(values, np.ndarray) else [values[i] for i in keep]
            for role, values in self.columns.items()
        }
        return Records(columns, len(keep), self.origin, self.available)

    def only(self, role: str) -> "Records":
        """Return one column."""
        return Records({role: self.columns[role]}, self.size, self.origin, self.available)


@dataclass(frozen=True)
class Splits:
    """The records of `train` and, where there are any, of `dev` and `test`."""

    records: Mapping[str, Records]
    fingerprint: dict[str, str]
    """Name -> SHA-256 of what the records were read from."""
