"""A server rule of your own: `init` and `step`, values in and values out.

[aggregation]
rule = "experiments.own.aggregator:signs"
"""

from fedsim.config import Aggregation
from fedsim.types import Params, Update


class Signs:
    """Moves every parameter by `aggregation.lr` towards the sign of the mean update."""

    def __init__(self, settings: Aggregation) -> None:
        self.lr = settings.lr

    def init(self, params: Params) -> Params:
        return {}

    def step(self, params: Params, total: Update, state: Params) -> tuple[Params, Params]:
        moved = {name: p + self.lr * total.delta[name].sign().float() for name, p in params.items()}
        return moved, state


def signs(settings: Aggregation) -> Signs:
    """Called with the `[aggregation]` section."""
    return Signs(settings)
