"""A selection rule of your own: a function of what the server may look at, and of a generator.

[selection]
rule = "experiments.own.selector:rested"
"""

import numpy as np

from fedsim.config import Selection
from fedsim.types import Cohort, View
from strategies.selection import draw


def rested(view: View, settings: Selection, rng: np.random.Generator) -> Cohort:
    """The less a device has trained so far, the likelier it is chosen."""
    return draw(view, 1.0 / (1.0 + view.participation), settings, rng)
