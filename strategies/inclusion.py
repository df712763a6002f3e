"""The inclusion probability of every device in a round, chosen or not, for the accountant."""

import numpy as np
from numpy.typing import NDArray

from fedsim.config import Selection
from fedsim.types import View
from strategies.selection import select


class _EveryCoinFalls(np.random.Generator):
    """Coins that always include: the cohort is then every possible device, with its probability."""

    def __init__(self) -> None:
        super().__init__(np.random.Philox(key=0))

    def random(self, size: int) -> NDArray[np.float64]:  # type: ignore[override]
        return np.zeros(size)


def inclusion(view: View, settings: Selection) -> NDArray[np.float64]:
    """Return [devices]: the chance that a rule of independent coins gives each device, 0 for none.

    The rule itself computes it, with coins that always include. So the accountant uses the same
    probabilities as the draw.
    """
    cohort = select(view, settings, _EveryCoinFalls())
    assert cohort.probabilities is not None, f"{settings.rule} states no probabilities"
    p = np.zeros(len(view.devices))
    p[np.searchsorted(view.devices, cohort.devices)] = cohort.probabilities
    return p
