"""Who trains in a round: a table of rules, each with the properties that privacy relies on.

A rule is a function `(view, settings, rng) -> Cohort` with one entry here. A device without
training examples (public activity 0) or out of reach is never selected.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fedsim.config import Selection
from fedsim.errors import WrongInput
from fedsim.names import import_object, is_own_code, lookup
from fedsim.types import Cohort, View
from strategies.selection.by_activity import (
    activity,
    mixture,
    privacy_aware,
    schedule,
    threshold,
    uniform,
)
from strategies.selection.by_availability import availability
from strategies.selection.by_loss import loss
from strategies.selection.by_participation import least_used, round_robin
from strategies.selection.sampling import draw, inclusion_probabilities, poisson, systematic

__all__ = [
    "SELECTORS",
    "Rule",
    "draw",
    "inclusion_probabilities",
    "poisson",
    "rule_of",
    "select",
    "systematic",
]

Selector = Callable[[View, Selection, np.random.Generator], Cohort]


@dataclass(frozen=True)
class Rule:
    """A selection rule; by default nothing is claimed about it."""

    select: Selector
    independent: bool = False
    """With Poisson sampling each device has its own coin.

    Its probability is a public function of the roster and the round.
    """
    own_score: bool = False
    """Once `selection.total_score` is set, a device's probability depends on no other device."""
    reads_losses: bool = False
    """The rule sees the losses that devices report, which no guarantee covers; others do not."""
    changing: bool = False
    """Probabilities change from round to round by plan, so the ledger rounds them up to a grid."""


SELECTORS = {
    "uniform": Rule(uniform, independent=True, own_score=True),
    "activity": Rule(activity, independent=True, own_score=True),
    "threshold": Rule(threshold, independent=True),
    "mixture": Rule(mixture, independent=True),
    "schedule": Rule(schedule, independent=True, changing=True),
    "round_robin": Rule(round_robin),
    "least_used": Rule(least_used),
    "availability": Rule(availability),
    "privacy_aware": Rule(privacy_aware, independent=True, own_score=True),
    "loss": Rule(loss, reads_losses=True),
}


def _own(view: View, settings: Selection, rng: np.random.Generator) -> Cohort:
    rule = import_object("selection.rule", settings.rule, "view, settings, rng")
    found = rule(view, settings, rng)
    if not isinstance(found, Cohort) or not isinstance(found.devices, np.ndarray):
        kind = type(found if not isinstance(found, Cohort) else found.devices).__name__
        raise WrongInput(
            f"selection.rule = {settings.rule!r} must return a fedsim.types.Cohort whose devices "
            f"are an array of ids, got a {kind}"
        )
    return found


OWN = Rule(_own)
"""Custom code: nothing is claimed about it."""


def rule_of(settings: Selection) -> Rule:
    """Return the rule that the settings name. Raises WrongInput."""
    own = is_own_code(settings.rule)
    return OWN if own else lookup("selection.rule", settings.rule, SELECTORS)


def select(view: View, settings: Selection, rng: np.random.Generator) -> Cohort:
    """Select the round's cohort by the rule that the settings name."""
    return rule_of(settings).select(view, settings, rng)
