"""Which devices can be reached in a round, which answer, and how long the round takes.

Everything is drawn from names, on a virtual clock that starts at midnight. It is the same on any
machine.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedsim.config import Availability
from fedsim.seeds import generator

HOURS = 24
USUAL_BEGIN = 22.0
SPREAD = 3.0
"""day_cycle: devices come in reach (idle, charging) around 22:00, give or take three hours."""


@dataclass(frozen=True)
class Clock:
    """Availability of a federation's devices; arrays are aligned with its sorted devices."""

    settings: Availability
    seed: int
    devices: int
    active_hours: NDArray[np.bool_] | None = None
    """[devices, 24]: hours of the day in which a device has records; for `rule = "clock"`."""

    def hour(self, round: int) -> float:
        """Return the hour of the day at which a round begins."""
        return (round - 1) * self.settings.round_minutes / 60 % HOURS

    def reachable(self, round: int) -> NDArray[np.bool_]:
        """Return which devices can be selected in a round."""
        if self.settings.rule == "always":
            return np.ones(self.devices, dtype=bool)
        if self.settings.rule == "clock" and self.active_hours is not None:
            return self.active_hours[:, int(self.hour(round))]
        begin = USUAL_BEGIN + SPREAD * generator(self.seed, "awake").standard_normal(self.devices)
        return (self.hour(round) - begin) % HOURS < self.settings.hours

    def share(self) -> NDArray[np.float64]:
        """Return the share of the day in which each device is in reach."""
        if self.settings.rule == "always":
            return np.ones(self.devices)
        if self.settings.rule == "clock" and self.active_hours is not None:
            return self.active_hours.mean(1)
        return np.full(self.devices, self.settings.hours / HOURS)

    def answers(self, round: int, activity: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which devices would answer in a round.

        The chance that one does not may depend on public activity.
        """
        settings = self.settings
        if settings.dropout == 0.0:
            return np.ones(self.devices, dtype=bool)
        held = np.maximum(activity, 1)
        median = np.median(held[activity > 0]) if (activity > 0).any() else 1.0
        chance = np.clip(settings.dropout * (held / median) ** settings.dropout_size, 0.0, 1.0)
        return generator(self.seed, "dropout", round).random(self.devices) >= chance

    def speeds(self) -> NDArray[np.float64]:
        """Return each device's speed: its local steps a second over those of the median device."""
        return generator(self.seed, "speed").lognormal(0.0, self.settings.speed_sigma, self.devices)

    def seconds(self, members: NDArray[np.int64], steps: NDArray[np.int64]) -> float:
        """Return the virtual seconds of a round: the server waits for the slowest device."""
        if not len(members):
            return 0.0
        return float((steps * self.settings.step_seconds / self.speeds()[members]).max())


def hours_with_records(
    owner: NDArray[np.int64], time: NDArray[np.float64], devices: int
) -> NDArray[np.bool_]:
    """Return [devices, 24]: the hours (UTC) with a record of the device, and their neighbours."""
    found = np.zeros((devices, HOURS), dtype=bool)
    found[owner, (time // 3600 % HOURS).astype(np.int64)] = True
    return found | np.roll(found, 1, axis=1) | np.roll(found, -1, axis=1)
