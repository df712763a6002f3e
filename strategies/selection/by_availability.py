"""Who stays long in reach is likelier."""

import numpy as np

from fedsim.config import Selection
from fedsim.errors import WrongInput
from fedsim.types import Cohort, View
from strategies.selection.sampling import draw


def availability(view: View, settings: Selection, rng: np.random.Generator) -> Cohort:
    """Inclusion in proportion to (share of the day in reach) ** power: who stays long is safe to
    ask.
    """
    if view.availability is None:
        raise WrongInput(
            'selection.rule = "availability" needs to know how long devices are in reach'
        )
    return draw(view, view.availability**settings.power, settings, rng)
