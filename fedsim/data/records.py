"""What was read, before it becomes numbers: one split as columns by role."""

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
