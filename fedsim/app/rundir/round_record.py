"""What a round leaves in `rounds.jsonl`: a frozen record, and the flat row that it becomes."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from fedsim.app.rundir.files import Row

DERIVED = ("dev_", "period_")
"""Begin the names of figures that are no metrics of the test examples."""


@dataclass(frozen=True)
class Round:
    """One round of a run. A field that is None stands in no row."""

    round: int
    cohort: int
    """Devices that were selected."""
    devices: int
    """Devices whose updates are in the model."""
    rejected: int
    steps: int | None = None
    """Local steps of all devices; None where the server is not trusted with them."""
    skipped: int | None = None
    """1 where too few updates were valid and the model stayed: accounting counts such a round."""
    train_loss: float | None = None
    reachable: int | None = None
    virtual_s: float | None = None
    """Seconds on the virtual clock."""
    dp_epsilon_spent_rdp: float | None = None
    """The largest epsilon that a unit has spent so far, by RDP: an upper bound."""
    dp_clip_norm: float | None = None
    """The next round's bound on a device's change."""
    dp_sum_headroom: float | None = None
    dp_released: int | None = None
    period: int | None = None
    time_train_s: float = 0.0
    time_devices_per_s: float = 0.0
    time_evaluate_s: float = 0.0
    measured: Mapping[str, float] = field(default_factory=dict)
    """Metrics by name, where the round was evaluated: of the test, the dev part, this period."""

    @staticmethod
    def of(row: Row) -> "Round":
        """Return the record of a row; keys that are no field are metrics."""
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
        """The metrics of the whole test, and those over devices."""
        return {
            name: value
            for name, value in self.measured.items()
            if not name.startswith(DERIVED) and name != "device_count"
        }


NAMES = tuple(f.name for f in fields(Round) if f.name != "measured")
"""The keys of a row that are no metrics."""


def is_reserved(name: str) -> bool:
    """Whether a metric of this name would be taken for another figure of a row."""
    return name in (*NAMES, "device_count") or name.startswith((*DERIVED, "time_", "dp_"))
