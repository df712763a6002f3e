"""Who trains in each round: what selection sees, the draw, its limits and the server's state.

This module does not import Flower: `fedsim show` and every check use it as a run does.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fedsim.config import Config
from fedsim.data.availability import Clock
from fedsim.data.stream import period_of_round
from fedsim.errors import WrongInput
from fedsim.privacy.inclusion_cap import privacy_cap
from fedsim.privacy.noise import NoiseSource, noise_source
from fedsim.seeds import generator
from fedsim.types import Cohort, Params, View
from strategies.aggregation import Aggregator, State, make_aggregator
from strategies.disclosure import asked_of
from strategies.noised_sum import Private, noise_survivors, with_privacy
from strategies.participation_limits import Limits
from strategies.roster import Roster
from strategies.selection import select
from strategies.weights import weights


@dataclass(frozen=True)
class ServerState:
    """The state that the server keeps from round to round."""

    round: int
    params: Params
    aggregator: State
    participation: NDArray[np.int64]
    """Rounds in which each device of the roster was selected."""
    losses: NDArray[np.float64]
    """The last training loss that each device reported, NaN before the first."""


class Cohorts:
    """Draws each round's cohort, by our own device ids and generator.

    The same seed gives the same draws on any nodes. With noise of the operating system, its secret
    replaces the seed. `roster` may be replaced between rounds by one of the same devices, whose
    activity changes with the periods.
    """

    def __init__(
        self,
        config: Config,
        roster: Roster,
        params: Params,
        active_hours: NDArray[np.bool_] | None = None,
        noise: NoiseSource | None = None,
    ) -> None:
        self.config = config
        self.roster = roster
        self.form = asked_of(config)
        self.clock = Clock(config.availability, config.seed, len(roster.devices), active_hours)
        devices = int((roster.activity > 0).sum())
        self.noise = noise or noise_source(config, real=False)
        self.aggregator: Aggregator = with_privacy(
            make_aggregator(config.aggregation), config, devices, self.noise
        )
        self.privacy_cap = privacy_cap(config, devices)
        self.survivors = noise_survivors(config, devices)
        self.limits = Limits(config, roster.devices)
        self.retired = np.zeros(len(roster.devices), dtype=bool)
        """Devices that no cohort includes; the others' chances and the divisor do not change."""
        self.state = ServerState(
            0,
            params,
            self.aggregator.init(params),
            np.zeros(len(roster.devices), np.int64),
            np.full(len(roster.devices), np.nan),
        )

    def select(self, round: int) -> Cohort:
        """Return the cohort of a round.

        It is a pure function of (coins, round, roster, participation, retired).
        """
        view = self.view(round)
        cohort = select(view, self.config.selection, self._coins(round))
        self._check(cohort, view)
        public = weights(cohort, view, self.config)
        whole = replace(
            cohort,
            weights=public,
            period=view.period,
            clip_norm=self.clip_norm,
            survivors=self.survivors,
        )
        stays = ~self.retired[np.searchsorted(view.devices, cohort.devices)]
        return whole if stays.all() else part_of(whole, stays)

    def _coins(self, round: int) -> np.random.Generator:
        """Return the coins of a round's draw, from the run's seed or from the noise's secret.

        Nodes know the seed. Where noise is not simulated, the seed must not reveal who takes part,
        so the coins come from the secret. Another process then draws another cohort, which the
        ledger counts as another attempt.
        """
        if self.config.dp.unit != "none" and self.noise.kind == "os":
            return self.noise.generator("select", round)
        return generator(self.config.seed, "select", round)

    @property
    def clip_norm(self) -> float:
        """The bound on a device's whole change in the next round; 0 without device-level DP."""
        private = isinstance(self.aggregator, Private)
        return self.aggregator.clip_norm(self.state.aggregator) if private else 0.0  # type: ignore[attr-defined]

    def view(self, round: int) -> View:
        """Return what selection may look at in a round."""
        participation = self.state.participation
        return View(
            round=round,
            devices=self.roster.devices,
            activity=self.roster.activity,
            reachable=self.clock.reachable(round) & self.limits.open(round, participation),
            participation=participation,
            period=self.period(round),
            rounds=self.config.train.rounds,
            availability=self.clock.share(),
            losses=self.state.losses if self.form.figures else None,
            privacy_cap=self.privacy_cap,
        )

    def _check(self, cohort: Cohort, view: View) -> None:
        """Raise WrongInput where a custom selector returns what it must not return."""
        found = np.searchsorted(self.roster.devices, cohort.devices).clip(
            max=len(self.roster.devices) - 1
        )
        strangers = cohort.devices[self.roster.devices[found] != cohort.devices]
        if len(strangers) or (cohort.devices[1:] <= cohort.devices[:-1]).any():
            raise WrongInput(
                f"selection.rule = {self.config.selection.rule!r} must return known devices, "
                f"sorted, each once; unknown: {', '.join(map(str, strangers[:3])) or 'none'}"
            )
        away = cohort.devices[~(view.reachable & (view.activity > 0))[found]]
        if len(away):
            raise WrongInput(
                f"selection.rule = {self.config.selection.rule!r} chose {str(away[0])!r} in round "
                f"{view.round}, which is out of reach or has no example; choose among "
                "view.reachable & (view.activity > 0)"
            )

    def period(self, round: int) -> int:
        """Return the period of the stream that a round lies in."""
        return period_of_round(self.config.stream, self.config.train.rounds, round)

    def answering(self, cohort: Cohort) -> Cohort:
        """Return the part of a cohort that does not drop out, by `availability.dropout`."""
        answers = self.clock.answers(cohort.round, self.roster.activity)
        return part_of(cohort, answers[np.searchsorted(self.roster.devices, cohort.devices)])


def part_of(cohort: Cohort, mine: NDArray[np.bool_]) -> Cohort:
    return replace(
        cohort, devices=cohort.devices[mine], probabilities=None, weights=cohort.weights[mine]
    )
