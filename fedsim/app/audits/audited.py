"""A run as its auditors see it, and the type of an audit."""

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
"""A function that trains another run to its end. Audits train shadow models with it.

It is handed in, because audits do not import the code that starts runs.
"""


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
    """Whether this is the run's last model. References are trained only for the last model."""
    events: tuple[Event, ...] = ()
    """The releases so far that involved the most exposed unit; empty without DP."""
    delta: float = 0.0


Evaluator = Callable[[Audited], Sequence[Finding]]


def accept(config: Config) -> None:
    """Refuse no experiment."""


@dataclass(frozen=True)
class Auditor:
    """An entry of a table of audits.

    `find` returns its findings. `check` refuses experiments before they train.
    """

    find: Evaluator
    check: Callable[[Config], None] = accept
    """Raises WrongInput."""
