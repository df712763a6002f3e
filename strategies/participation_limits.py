"""Limits on how often and how soon again a device may be selected, for every selection rule."""

import zlib

import numpy as np
from numpy.typing import NDArray

from fedsim.config import Config


class Limits:
    """The limits `dp.min_separation` and `dp.max_participations`.

    A hash of its id gives each device a slot, which is open in one round out of `min_separation`.

    Guarantee: a device is selected at most `max_participations` times, and two of its rounds are at
    least `min_separation` apart.
    """

    def __init__(self, config: Config, devices: NDArray[np.str_]) -> None:
        self.separation = config.dp.min_separation
        self.most = config.dp.max_participations
        slots = (
            [zlib.crc32(str(d).encode()) % self.separation for d in devices]
            if self.separation > 1
            else 0
        )
        self.slots = np.broadcast_to(np.asarray(slots, dtype=np.int64), len(devices))

    def open(self, round: int, participation: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which devices may be selected, given the number of rounds each has been in."""
        free = self.slots == round % self.separation
        return free & (participation < self.most) if self.most else free
