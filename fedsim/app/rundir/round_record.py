"""The record of a round: frozen in memory, and a flat row in `rounds.jsonl`."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from fedsim.app.rundir.files import Row

DERIVED = ("dev_", "period_")
"""Prefixes of figures that are not metrics of the test examples."""


@dataclass(frozen=True)
class Round:
    """One round of a run. The row omits fields that are None."""

    round: int
    cohort: int
    """The number of selected devices."""
    devices: int
    """The number of devices whose updates are in the model."""
    rejected: int
    steps: int | None = None
    """Local steps of all devices; None where the server is not trusted to know them."""
    skipped: int | None = None
    """1 where too few updates were valid and the model did not change; accounting counts it."""
    train_loss: float | None = None
    reachable: int | None = None
    virtual_s: float | None = None
    """Seconds on the virtual clock."""
    dp_epsilon_spent_rdp: float | None = None
    """The largest epsilon that any unit has spent so far, by RDP: an upper bound."""
    dp_clip_norm: float | None = None
    """The bound on a device's change in the next round."""
    dp_sum_headroom: float | None = None
    dp_released: int | None = None
    period: int | None = None
    time_train_s: float = 0.0
    time_devices_per_s: float = 0.0
    time_evaluate_s: float = 0.0
    measured: Mapping[str, float] = field(default_factory=dict)
    """Name -> metric, if the round was evaluated: on the test, the dev part, this period."""

    @staticmethod
    def of(row: Row) -> "Round":
        """Return the record of a row; keys that are not fields are metrics."""
        known = {name: row[name] for name in NAMES if name in row}
        return Round(**known, measured={k: v for k, v in row.items() if k not in NAMES})

    def row(self) -> Row:
        """Return the flat row of `rounds.jsonl`."""
        found = {name: getattr(self, name) for name in NAMES}
        return {name: value for name, value in found.items() if value is not None} | {
            **self.measured
        }

    @property
    def metrics(self) -> dict[str, float]:
        """The metrics on the whole test, and those over devices."""
        return {
            name: value
            for name, value in self.measured.items()
            if not name.startswith(DERIVED) and name != "device_count"
        }


NAMES = tuple(f.name for f in fields(Round) if f.name != "measured")
"""The keys of a row that are not metrics."""


def is_reserved(name: str) -> bool:
    """Return whether a metric of this name would be mistaken for another figure of a row."""
    return name in (*NAMES, "device_count") or name.startswith((*DERIVED, "time_", "dp_"))
