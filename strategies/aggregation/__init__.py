"""How updates become a model: a table of server rules, each with what it must see.

`Aggregator.init` and `step` take values and return values. The server's state is one flat dict of
tensors, which a checkpoint holds as it is. Each rule has one entry here.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fedsim.config import Aggregation
from fedsim.names import import_object, is_own_code, lookup
from fedsim.types import Reply, Update
from strategies.aggregation.averages import (
    Aggregator,
    FedAvg,
    FedAvgM,
    State,
    fedadagrad,
    fedadam,
    fedyogi,
)
from strategies.aggregation.robust import Combiner, combined, median, multi_krum, trimmed_mean

__all__ = [
    "AGGREGATORS",
    "Aggregator",
    "Rule",
    "State",
    "averages",
    "combine",
    "make_aggregator",
    "rule_of",
]


@dataclass(frozen=True)
class Rule:
    """A server rule; by default nothing is claimed about it."""

    make: Callable[[Aggregation], Aggregator]
    of_sum: bool = False
    """The rule needs only the sum, so a clip bounds a device's influence on it."""
    combine: Combiner | None = None
    """Combines single updates, which devices must then send; `make` steps on the result."""


def step_of(settings: Aggregation) -> Aggregator:
    """Return the rule that steps on a robust rule's result. Raises WrongInput."""
    return rule_of(settings.model_copy(update={"rule": settings.step})).make(settings)


AGGREGATORS = {
    "fedavg": Rule(FedAvg, of_sum=True),
    "fedavgm": Rule(FedAvgM, of_sum=True),
    "fedadagrad": Rule(fedadagrad, of_sum=True),
    "fedadam": Rule(fedadam, of_sum=True),
    "fedyogi": Rule(fedyogi, of_sum=True),
    "median": Rule(step_of, combine=median),
    "trimmed_mean": Rule(step_of, combine=trimmed_mean),
    "multi_krum": Rule(step_of, combine=multi_krum),
}


def averages() -> dict[str, Rule]:
    """Return the rules that need only the sum."""
    return {name: rule for name, rule in AGGREGATORS.items() if rule.of_sum}


def _own(settings: Aggregation) -> Aggregator:
    return import_object("aggregation.rule", settings.rule, "settings")(settings)


OWN = Rule(_own)
"""Custom code: nothing is claimed about it."""


def rule_of(settings: Aggregation) -> Rule:
    """Return the rule that the settings name. Raises WrongInput."""
    own = is_own_code(settings.rule)
    return OWN if own else lookup("aggregation.rule", settings.rule, AGGREGATORS)


def make_aggregator(settings: Aggregation) -> Aggregator:
    """Return the rule that `aggregation.rule` names, or `aggregation.step` for a robust one.

    Raises WrongInput for an unknown name, also where `aggregation.step` has no effect.
    """
    lookup("aggregation.step", settings.step, averages())
    return rule_of(settings).make(settings)


def combine(replies: Sequence[Reply], zero: Update, settings: Aggregation) -> Update:
    """Return the robust rule's result as a sum of weight 1, or `zero` without any update."""
    found = rule_of(settings).combine
    assert found is not None, f"{settings.rule} takes sums, not single updates"
    return combined(found, replies, zero, settings)
