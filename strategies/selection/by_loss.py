"""Power of choice: the devices on which the model is worst."""

import numpy as np

from fedsim.config import Selection
from fedsim.errors import WrongInput
from fedsim.types import Cohort, View
from strategies.selection.sampling import eligible, inclusion_probabilities, poisson, powered


def loss(view: View, settings: Selection, rng: np.random.Generator) -> Cohort:
    """Of `candidates` drawn by activity those whose training loss was last the highest (Cho et al.,
    2020).

    Power-of-choice with remembered losses; devices that never told one come first. What devices
    tell decides who trains, so no chance is stated, and nothing that rests on one may be claimed.
    """
    if view.losses is None:
        raise WrongInput(
            'selection.rule = "loss" needs the losses that devices told; none are asked for'
        )
    scores = np.where(eligible(view), powered(view, settings), 0.0)
    drawn = poisson(
        inclusion_probabilities(scores, settings.candidates or 2 * settings.cohort), rng
    )
    known = np.nan_to_num(view.losses[drawn], nan=np.inf)
    chosen = drawn[
        np.lexsort((rng.random(len(drawn)), -known))[: settings.cohort]
    ]  # ties by chance
    return Cohort(view.round, view.devices[np.sort(chosen)], None)
