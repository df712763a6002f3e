"""How often and how soon again a device may be selected: limits that hold whatever the rule draws."""

import zlib

import numpy as np
from numpy.typing import NDArray

from fedsim.config import Config


class Limits:
    """`dp.min_separation` by slots, `dp.max_participations` by counting.

    Each device has a slot by a hash of its id, and is open in one round out of `min_separation`.

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
        """Return which devices may be selected in a round, given in how many they were already."""
        free = self.slots == round % self.separation
        return free & (participation < self.most) if self.most else free
