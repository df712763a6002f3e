"""A rule that prefers devices that are in reach for long."""

import numpy as np

from fedsim.config import Selection
from fedsim.errors import WrongInput
from fedsim.types import Cohort, View
from strategies.selection.sampling import draw


def availability(view: View, settings: Selection, rng: np.random.Generator) -> Cohort:
    """Draw in proportion to (share of the day in reach) ** power.

    A device that is in reach for long is likely to answer.
    """
    if view.availability is None:
        raise WrongInput(
            'selection.rule = "availability" needs to know how long devices are in reach'
        )
    return draw(view, view.availability**settings.power, settings, rng)
