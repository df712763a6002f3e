"""Fair coins, drawn before training: they hold out half of the records or of the devices."""

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

        Each record has an independent fair coin, or each device has one for all of its records.
        Only the seed, the kind and the pair name the draw, so no other setting of a run changes it.
        """
        rng = generator(self.seed, "coins", self.of, (self.shadow + 1) // 2)
        heads = (
            rng.random(len(owner)) < 0.5
            if self.of == "record"
            else (rng.random(devices) < 0.5)[owner]
        )
        return heads ^ (self.shadow > 0 and self.shadow % 2 == 0)
