"""The replay of a run's rounds, device by device. It gives updates that no file holds.

A round depends only on the checkpoint before it and on named random streams. A device that trains
again therefore gives the update that it sent, with its noise, up to the rounding of float32 sums.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from fedsim.app.audits.audited import Audited
from fedsim.app.node.node import make_node, reply_of
from fedsim.app.place import data_dir
from fedsim.app.rundir.run_dir import Checkpoint
from fedsim.config import Config
from fedsim.data.activity import public_activity
from fedsim.data.stream import period_of_round
from fedsim.errors import RunFailed, WrongInput
from fedsim.models import build_model, parameters_of
from fedsim.types import Asked, Cohort, DeviceId, Params
from fedsim.wire import pack_params, pack_task
from strategies.cohorts import ServerState
from strategies.federated import Federated
from strategies.roster import Roster


@dataclass(frozen=True)
class Round:
    """A round as the server saw it, without the updates."""

    round: int
    period: int
    before: Params
    """The model that the devices were sent."""
    after: Params
    cohort: Cohort
    """The devices that answered."""


class Replay:
    """The rounds of a run, from its checkpoints. Raises WrongInput if they cannot be replayed."""

    def __init__(self, audited: Audited) -> None:
        self.run = audited.run
        # noise streams are named by the config of the training, not by the config of the audit
        self.config = audited.run.config.model_copy(update={"place": audited.config.place})
        check_seeded(self.config, self.run.manifest["noise_source"])
        self.node = make_node(self.config, data_dir(self.config.place, {}), 0, 1)
        self.holdings = self.node.holdings
        first = parameters_of(
            build_model(self.holdings.dataset.spec, self.config.model, self.config.seed)
        )
        hours = self.holdings.active_hours() if self.config.availability.rule == "clock" else None
        self.strategy = Federated(self.config, self._roster(1), first, hours, self.node.noise)
        self.first = self.strategy.state

    def round(self, number: int) -> Round:
        """Return a round. The strategy selects its cohort again.

        Raises RunFailed if the selection differs from the run's.
        """
        strategy = self.strategy
        after = self._checkpoint(number)
        strategy.state = self.state(number - 1)
        period = period_of_round(self.config.stream, self.config.train.rounds, number)
        strategy.roster = self._roster(period)
        took_part = after.participation > strategy.state.participation
        strategy.retired = ~took_part  # devices that reached their epsilon or were not drawn
        cohort = strategy.select(number)
        if not np.array_equal(cohort.devices, strategy.roster.devices[took_part]):
            raise RunFailed(
                f"the replay of round {number} selects other devices than the run did; replay it "
                "with the version of the code that made it"
            )
        return Round(
            number, period, strategy.state.params, after.params, strategy.answering(cohort)
        )

    def updates(self, round: Round) -> Iterator[tuple[DeviceId, Params]]:
        """Yield each device of a round and its update, without devices that their node left out."""
        for device in round.cohort.devices.tolist():
            change = self.update(round, device)
            if change is not None:
                yield device, change

    def update(self, round: Round, device: DeviceId, start: Params | None = None) -> Params | None:
        """Return a device's unweighted change, clipped and noised as it left the device.

        If `start` is given, the device gets that model instead of the run's. The result is None if
        its node left it out.
        """
        cohort = round.cohort
        mine = cohort.devices == device
        part = replace(
            cohort, devices=cohort.devices[mine], probabilities=None, weights=cohort.weights[mine]
        )
        params = pack_params(round.before if start is None else start)
        reply = reply_of(self.node, pack_task(params, part, Asked(single=True)))
        return (
            {name: d[0] for name, d in reply.update.delta.items()} if len(reply.devices) else None
        )

    def state(self, round: int) -> ServerState:
        """Return the server's state after a round; round 0 is the state before the first."""
        if round == 0:
            return self.first
        found = self._checkpoint(round)
        return ServerState(
            found.round, found.params, found.aggregator, found.participation, found.losses
        )

    def _checkpoint(self, round: int) -> Checkpoint:
        found = self.run.checkpoint(round)
        if found is None:
            raise WrongInput(
                f"rounds are replayed from their checkpoints, and that of round {round} is not "
                'there; run the experiment with place.keep = "all" (place.* changes no result)'
            )
        return found

    def _roster(self, period: int) -> Roster:
        devices = self.holdings.dataset.devices
        activity = public_activity(self.holdings.activity(period), self.config.data.activity_public)
        return Roster(devices, activity, np.zeros(len(devices), dtype=np.uint64))


def check_seeded(config: Config, noise: str) -> None:
    """Refuse to replay noise that no seed can repeat. Raises WrongInput."""
    if config.dp.unit != "none" and noise == "os":
        raise WrongInput(
            "rounds are replayed from a seed, and this run draws its coins and noise from the "
            'operating system; set dp.noise_source = "seeded" in a simulation that shall be '
            "attacked by its updates"
        )


def check_kept(config: Config, view: str) -> None:
    """Refuse a view of past rounds if the run keeps no models. Raises WrongInput."""
    if config.place.keep != "all":
        raise WrongInput(
            f"audit.view names {view!r}, which looks at the checkpoint of every round, and "
            f'place.keep = {config.place.keep!r} drops them; set place.keep = "all" before '
            "training"
        )


def check_replayed(config: Config, view: str) -> None:
    """Refuse a view of replayed rounds that this run cannot give. Raises WrongInput."""
    check_kept(config, view)
    if view == "updates":
        check_single(config)
    check_seeded(config, config.dp.noise_source)


def check_single(config: Config) -> None:
    """Refuse attacks on single updates if nobody sees any. Raises WrongInput."""
    dp = config.dp
    if dp.trust == "secure_sum":
        raise WrongInput(
            'audit.view names "updates", and under dp.trust = "secure_sum" the server sees only '
            'sums; set audit.view = "sums"'
        )
    if dp.unit == "example" and dp.noise_layout == "summed":
        raise WrongInput(
            'audit.view names "updates", and dp.noise_layout = "summed" draws noise for a whole '
            'sum, so that no single update is defined; set dp.noise_layout = "dense", or '
            'audit.view = "sums"'
        )


def visible(config: Config) -> str:
    """Return a text about what an honest-but-curious server sees of a device."""
    dp = config.dp
    if dp.unit == "example":
        return "each device's update, with the noise that it added for example-level DP"
    if dp.unit == "device":
        return f"each device's update, clipped to {dp.clip_norm:g} at first and without noise"
    return "each device's update as it is"


REPLAYED = ("updates", "sums")
