"""Rules by which devices take turns."""

import numpy as np
from numpy.typing import NDArray

from fedsim.config import Selection
from fedsim.types import Cohort, View
from strategies.selection.sampling import eligible


def round_robin(view: View, settings: Selection, rng: np.random.Generator) -> Cohort:
    """Select the devices that were selected least so far, in the order of their ids.

    The rule is deterministic, so it states no probabilities.
    """
    sure, tied, missing = _least_used(view, settings)
    return Cohort(view.round, view.devices[np.sort(np.concatenate([sure, tied[:missing]]))], None)


def least_used(view: View, settings: Selection, rng: np.random.Generator) -> Cohort:
    """Select the devices that were selected least so far; a draw decides among ties.

    The inclusion probabilities are conditional on the participation so far.
    """
    sure, tied, missing = _least_used(view, settings)
    p = np.zeros(len(view.devices))
    p[sure] = 1.0
    if len(tied):
        p[tied] = missing / len(tied)
    chosen = np.sort(np.concatenate([sure, rng.permutation(tied)[:missing]]))
    return Cohort(view.round, view.devices[chosen], p[chosen])


def _least_used(
    view: View, settings: Selection
) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """Return the certain devices, the tied ones, and how many of the tied ones fit."""
    found = np.flatnonzero(eligible(view))
    used = view.participation[found]
    size = min(settings.cohort, len(found))
    last = np.partition(used, size - 1)[size - 1] if size else 0
    sure = found[used < last]
    tied = found[used == last]
    return sure, tied, size - len(sure)
