"""A run as its auditors see it, and what an audit is."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from fedsim.app.rundir.run_dir import RunDir
from fedsim.audit.findings import Finding
from fedsim.config import Config
from fedsim.data.holdings import Holdings
from fedsim.models.tasks import Task
from fedsim.privacy.accounting import Event
from fedsim.types import Params

Another = Callable[[Config], object]
"""Does another run to its end: how audits get shadow models. Handed in: audits import no run."""


@dataclass(frozen=True)
class Audited:
    """A run as its auditors see it after a round."""

    config: Config
    holdings: Holdings
    module: nn.Module
    task: Task
    run: RunDir
    round: int
    params: Params
    another: Another
    ended: bool
    """Whether this is the run's last model; only then are references trained."""
    events: tuple[Event, ...] = ()
    """What the most exposed unit has been part of so far; empty without DP."""
    delta: float = 0.0


Evaluator = Callable[[Audited], Sequence[Finding]]


def accept(config: Config) -> None:
    """Refuse no experiment."""


@dataclass(frozen=True)
class Auditor:
    """An entry of a table of audits: what it finds, and which experiments it refuses before they
    train.
    """

    find: Evaluator
    check: Callable[[Config], None] = accept
    """Raises WrongInput."""
