"""Fair coins, drawn before training, that hold half of the records or of the devices out of it."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fedsim.seeds import generator


@dataclass(frozen=True)
class Coins:
    """What is held out, by which seed, for the run itself (0) or for one of its shadow models."""

    of: Literal["record", "device"]
    seed: int
    shadow: int = 0
    """Shadows 2i - 1 and 2i are trained on complementary halves."""

    def toss(self, owner: NDArray[np.int64], devices: int) -> NDArray[np.bool_]:
        """Return which of the records are trained on; `owner` [N] numbers their devices.

        One independent fair coin a record, or one a device that all of its records share. The draw
        is named by seed and pair alone, so that no choice of a run can look at it.
        """
        rng = generator(self.seed, "coins", self.of, (self.shadow + 1) // 2)
        heads = (
            rng.random(len(owner)) < 0.5
            if self.of == "record"
            else (rng.random(devices) < 0.5)[owner]
        )
        return heads ^ (self.shadow > 0 and self.shadow % 2 == 0)
