"""Everything that a run refuses; `show`, `calibrate`, `audit` and `sweep` use the same checks.

`check_config` reads no data, so it comes first. `check_experiment` reads the federation and builds
the model and the first round. Neither writes anything.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import nn

from fedsim.app.experiment.checks import (
    check_canaries,
    check_evaluation,
    check_patience,
    check_training,
)
from fedsim.app.experiment.loading import load_holdings
from fedsim.app.experiment.own_code import check_own_code
from fedsim.app.place import data_dir, torch_device
from fedsim.app.server.trackers import trackers_of
from fedsim.config import Audit, Canary, Config
from fedsim.data.activity import public_activity
from fedsim.data.holdings import Holdings
from fedsim.data.stream import rounds_per_period
from fedsim.errors import WrongInput
from fedsim.models import build_model, parameters_of
from fedsim.models.evaluation import evaluate
from fedsim.models.tasks import Task, make_task
from fedsim.privacy.claims import check_dp
from fedsim.privacy.noise import NoiseSource
from fedsim.types import Examples
from strategies.aggregation import make_aggregator
from strategies.cohorts import Cohorts
from strategies.roster import Roster


@dataclass(frozen=True)
class Experiment:
    """An experiment that passed every check, with the parts built to check it."""

    config: Config
    holdings: Holdings
    module: nn.Module
    task: Task
    cohorts: Cohorts


def check_config(config: Config) -> None:
    """Refuse settings that can never work, whatever the data. Raises WrongInput."""
    torch_device(config.place)
    trackers_of(config)
    check_dp(config)
    rounds_per_period(config.stream, config.train.rounds)
    make_aggregator(config.aggregation)
    check_audited(config, real=False)


def check_audited(config: Config, real: bool) -> None:
    """Refuse audits that cannot be done. Raises WrongInput."""
    if config.audit != Audit() or config.canary != Canary():
        from fedsim.app.audits.settings import check_audits  # takes half a second: scipy

        check_audits(config, real)


def check_experiment(
    config: Config,
    holdings: Holdings,
    roster: Roster | None = None,
    noise: NoiseSource | None = None,
) -> Experiment:
    """Return the experiment as a run begins it. Raises WrongInput for what a run would refuse.

    `roster` and `noise` come from the run's nodes. By default they are those of one node in this
    process.
    """
    federation = holdings.dataset
    check_examples(holdings.sizes)
    roster = roster or local_roster(config, holdings)
    module = build_model(federation.spec, config.model, config.seed).to(torch_device(config.place))
    task = make_task(federation.spec)
    check_own_code(config, federation, module, task)
    params = parameters_of(module)
    hours = holdings.active_hours() if config.availability.rule == "clock" else None
    cohorts = Cohorts(config, roster, params, hours, noise)
    cohorts.select(1)  # a selector that cannot work fails before anything is written
    check_training(config, module)
    check_evaluation(config, holdings)
    check_canaries(config, federation.spec)

    def measure(examples: Examples) -> dict[str, float]:
        return evaluate(module, task, params, examples)

    check_patience(measure, config, federation)
    return Experiment(config, holdings, module, task, cohorts)


def checked(config: Config) -> Experiment:
    """Return the experiment of a config, loaded in this process. Raises WrongInput."""
    check_config(config)
    return check_experiment(config, load_holdings(config, data_dir(config.place, {})))


def local_roster(config: Config, holdings: Holdings) -> Roster:
    """Return the devices of the first period, all on one node."""
    devices = holdings.dataset.devices
    activity = public_activity(holdings.activity(1), config.data.activity_public)
    return Roster(devices, activity, np.zeros(len(devices), dtype=np.uint64))


def check_examples(sizes: NDArray[np.int64]) -> None:
    """Refuse a federation in which no device holds an example in any period. Raises WrongInput."""
    if not sizes.any():
        raise WrongInput(
            "no node has a training example for this experiment; check the nodes' data, and "
            "stream.begin and stream.end where these are set"
        )
