"""What each device's update weighs, and the constant that the weighted sum is divided by."""

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
"""Stands for the chance of a device that is never chosen."""


def equal(cohort: Cohort, view: View, config: Config) -> Weights:
    """Every device alike."""
    return np.ones(len(cohort))


def examples(cohort: Cohort, view: View, config: Config) -> Weights:
    """By public activity, as FedAvg does (McMahan et al., 2017)."""
    return _activity(cohort, view)


def inverse_probability(cohort: Cohort, view: View, config: Config) -> Weights:
    """(n_k / n) / (pi_k / m), at most `aggregation.weight_cap` (Horvitz and Thompson, 1952).

    n_k is a device's public activity, n that of all devices that could be chosen, pi_k its
    inclusion probability, m `selection.cohort`; 1 is what every device weighs where pi_k is
    proportional to n_k. Divided by the constant m, not by the realised sum of weights, the mean
    update is unbiased for the update of all devices by examples, whatever the selection, as far as
    nobody is over the cap, every device has a chance and all that are chosen answer. Raises
    WrongInput where pi_k is unknown.
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
    """Equal where a device is the unit of privacy, else by examples."""
    return (equal if config.dp.unit == "device" else examples)(cohort, view, config)


WEIGHTS: dict[str, Callable[[Cohort, View, Config], Weights]] = {
    "auto": auto,
    "equal": equal,
    "examples": examples,
    "inverse_probability": inverse_probability,
}


def weights(cohort: Cohort, view: View, config: Config) -> Weights:
    """Return each device's public weight by the rule that `aggregation.weights` names.

    With device-level DP it is at most `dp.max_weight`, which the noise is scaled to.
    """
    found = WEIGHTS[config.aggregation.weights](cohort, view, config)
    return (
        np.minimum(found, device_mechanism(config).max_weight)
        if config.dp.unit == "device"
        else found
    )


def weights_of_all(view: View, probabilities: Weights, config: Config) -> Weights:
    """Return what each device of a view would weigh, given its inclusion probability [devices].

    A device that is never chosen has the weight of the smallest chance.
    """
    everyone = Cohort(view.round, view.devices, np.maximum(probabilities, LEAST))
    return weights(everyone, view, config)


def with_divisor(total: Update, config: Config) -> Update:
    """Return the sum with the weight that a server rule divides it by: realised, or constant.

    By inverse probability it is `selection.cohort`; a round in which nobody answered keeps weight
    0.
    """
    if config.aggregation.weights != "inverse_probability" or not total.devices:
        return total
    return replace(total, weight=float(config.selection.cohort))


def _activity(cohort: Cohort, view: View) -> Weights:
    return view.activity[np.searchsorted(view.devices, cohort.devices)].astype(np.float64)
