"""The weight of each device's update, and the number that divides the weighted sum."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fedsim.config import Config
from fedsim.errors import WrongInput
from fedsim.privacy.mechanism import device_mechanism
from fedsim.types import Cohort, Update, View

Weights = NDArray[np.float64]
LEAST = 1e-12
"""Replaces the chance 0 of a device that is never chosen."""


def equal(cohort: Cohort, view: View, config: Config) -> Weights:
    """Return weight 1 for every device."""
    return np.ones(len(cohort))


def examples(cohort: Cohort, view: View, config: Config) -> Weights:
    """Return the public activity, as FedAvg does (McMahan et al., 2017)."""
    return _activity(cohort, view)


def inverse_probability(cohort: Cohort, view: View, config: Config) -> Weights:
    """Return (n_k / n) / (pi_k / m), at most `aggregation.weight_cap` (Horvitz and Thompson, 1952).

    n_k is a device's public activity, n that of all devices that could be chosen. pi_k is the
    device's inclusion probability, m is `selection.cohort`. Every weight is 1 where pi_k is
    proportional to n_k.

    The sum is divided by the constant m, not by the realised sum of weights. The mean update is
    then unbiased for the update of all devices by examples, whatever the selection. This holds as
    long as no device is over the cap, every device has a chance and all chosen devices answer.

    Raises WrongInput where pi_k is unknown.
    """
    if cohort.probabilities is None:
        raise WrongInput(
            'aggregation.weights = "inverse_probability" needs inclusion probabilities, and '
            f"selection.rule = {config.selection.rule!r} states none; choose a rule that does, as "
            'activity or uniform, or weights = "equal"'
        )
    everyone = view.activity[view.reachable].sum(dtype=np.float64)
    share = _activity(cohort, view) / max(everyone, 1.0)
    return np.minimum(
        config.selection.cohort * share / cohort.probabilities, config.aggregation.weight_cap
    )


def auto(cohort: Cohort, view: View, config: Config) -> Weights:
    """Return equal weights where a device is the unit of privacy, else weights by examples."""
    return (equal if config.dp.unit == "device" else examples)(cohort, view, config)


WEIGHTS: dict[str, Callable[[Cohort, View, Config], Weights]] = {
    "auto": auto,
    "equal": equal,
    "examples": examples,
    "inverse_probability": inverse_probability,
}


def weights(cohort: Cohort, view: View, config: Config) -> Weights:
    """Return each device's public weight by the rule that `aggregation.weights` names.

    With device-level DP it is at most `dp.max_weight`, which sets the scale of the noise.
    """
    found = WEIGHTS[config.aggregation.weights](cohort, view, config)
    return (
        np.minimum(found, device_mechanism(config).max_weight)
        if config.dp.unit == "device"
        else found
    )


def weights_of_all(view: View, probabilities: Weights, config: Config) -> Weights:
    """Return the weight that each device of a view would have, given its chance [devices].

    A device that is never chosen gets the weight of the smallest chance.
    """
    everyone = Cohort(view.round, view.devices, np.maximum(probabilities, LEAST))
    return weights(everyone, view, config)


def with_divisor(total: Update, config: Config) -> Update:
    """Return the sum with the weight that a server rule divides it by: realised, or constant.

    With inverse probabilities it is `selection.cohort`. A round without answers keeps weight 0.
    """
    if config.aggregation.weights != "inverse_probability" or not total.devices:
        return total
    return replace(total, weight=float(config.selection.cohort))


def _activity(cohort: Cohort, view: View) -> Weights:
    return view.activity[np.searchsorted(view.devices, cohort.devices)].astype(np.float64)
