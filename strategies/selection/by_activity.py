"""Rules that use a device's activity, or treat all devices the same."""

import numpy as np
from numpy.typing import NDArray

from fedsim.config import Selection
from fedsim.errors import WrongInput
from fedsim.types import Cohort, View
from strategies.selection.sampling import draw, eligible, inclusion_probabilities, powered, sample


def uniform(view: View, settings: Selection, rng: np.random.Generator) -> Cohort:
    """Draw every device with the same chance."""
    return draw(view, np.ones(len(view.devices)), settings, rng)


def activity(view: View, settings: Selection, rng: np.random.Generator) -> Cohort:
    """Draw in proportion to activity ** power, with a chance of at most 1."""
    return draw(view, powered(view, settings), settings, rng)


def threshold(view: View, settings: Selection, rng: np.random.Generator) -> Cohort:
    """Draw uniformly from devices whose activity is at least the eligible ones' `quantile`."""
    least = _quantile(view.activity[eligible(view)], settings.quantile)
    return draw(view, (view.activity >= least).astype(np.float64), settings, rng)


def mixture(view: View, settings: Selection, rng: np.random.Generator) -> Cohort:
    """Draw the share `mixture` uniformly and the rest by activity, so every device has a chance."""
    return _mix(view, settings.mixture, settings, rng)


def schedule(view: View, settings: Selection, rng: np.random.Generator) -> Cohort:
    """Draw by activity in the first round, uniformly in the last, linearly mixed between them."""
    return _mix(view, (view.round - 1) / max(view.rounds - 1, 1), settings, rng)


def privacy_aware(view: View, settings: Selection, rng: np.random.Generator) -> Cohort:
    """Draw by activity, with a cap on each device's chance.

    At the cap a device's planned epsilon meets `dp.target_epsilon`. No other device gets the chance
    that the cap cuts off, so chances do not depend on who is capped. Raises WrongInput without a
    cap.
    """
    if view.privacy_cap is None:
        raise WrongInput(
            'selection.rule = "privacy_aware" needs the inclusion probability at which a device '
            'spends dp.target_epsilon; set dp.unit = "device", dp.noise_multiplier and '
            "dp.target_epsilon"
        )
    scores = np.where(eligible(view), powered(view, settings), 0.0)
    p = settings.cohort * scores / (settings.total_score or max(scores.sum(), np.finfo(float).tiny))
    return sample(
        view, np.minimum(p, np.minimum(view.privacy_cap, 1.0)), settings, rng, whole=False
    )


def _mix(view: View, uniformly: float, settings: Selection, rng: np.random.Generator) -> Cohort:
    able = eligible(view)
    by_activity = inclusion_probabilities(
        np.where(able, powered(view, settings), 0.0), settings.cohort
    )
    alike = inclusion_probabilities(able.astype(np.float64), settings.cohort)
    return sample(view, (1 - uniformly) * by_activity + uniformly * alike, settings, rng)


def _quantile(values: NDArray[np.int64], share: float) -> float:
    """Return the same as np.quantile, in linear time; 0 where there are no values."""
    if not len(values):
        return 0.0
    place = share * (len(values) - 1)
    low = int(np.floor(place))
    high = int(np.ceil(place))
    parted = np.partition(values, (low, high))
    return float(parted[low] + (place - low) * (parted[high] - parted[low]))
