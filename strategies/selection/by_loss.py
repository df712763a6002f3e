"""Power of choice: a rule that prefers devices on which the model is worst."""

import numpy as np

from fedsim.config import Selection
from fedsim.errors import WrongInput
from fedsim.types import Cohort, View
from strategies.selection.sampling import eligible, inclusion_probabilities, poisson, powered


def loss(view: View, settings: Selection, rng: np.random.Generator) -> Cohort:
    """Draw `candidates` by activity and keep those with the highest last loss (Cho et al., 2020).

    This is power-of-choice with remembered losses; devices without one come first. The devices'
    reports decide who trains. So no chance is stated, and no claim that needs one may be made.
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
