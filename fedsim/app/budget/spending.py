"""What a run spends: each round's ledger entry, the target epsilon, the figures at the end."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedsim.app.budget.delta import delta_of
from fedsim.app.rundir.run_dir import RunDir
from fedsim.config import Config
from fedsim.data.activity import public_activity
from fedsim.data.announced import Announced, possible_activity
from fedsim.data.holdings import Holdings
from fedsim.errors import RunFailed
from fedsim.privacy.accounting import Event, epsilon
from fedsim.privacy.claims import amplification
from fedsim.privacy.entries import local_entry, scheduled_entry, visible_entry
from fedsim.privacy.ledger import Entry, Ledger, row_events
from strategies.inclusion import inclusion
from strategies.weights import weights_of_all

if TYPE_CHECKING:  # it imports Flower, which `fedsim show` does not need
    from strategies.federated import Federated

Floats = NDArray[np.float64]
EXACT = 12
"""Up to so many different epsilons, PLD computes all of them; otherwise only the largest."""


@dataclass
class Spending:
    """What a run has spent. Without DP it does nothing."""

    config: Config
    strategy: "Federated"
    run: RunDir
    delta: float
    noise_kind: str
    activity: NDArray[np.int64]
    """Public activities of all devices in all periods."""

    @cached_property
    def ledger(self) -> Ledger:
        return Ledger.open(self.run.path, len(self.strategy.roster.devices))

    @cached_property
    def attempt(self) -> str:
        """The name of this attempt at a round.

        With seeded noise a repeated round is the same release; with other noise it is another one.
        """
        return "seeded" if self.noise_kind == "seeded" else os.urandom(8).hex()

    def enter(self, round: int) -> str:
        """Write down what the round will reveal, or return why the run must stop; "" if it goes on.

        A round that brings a device above `dp.target_epsilon` retires that device or stops the run.
        Raises RunFailed if a round with correlated noise was begun with other noise.
        """
        dp = self.config.dp
        strategy = self.strategy
        if dp.unit == "none":
            return ""
        strategy.retired[:] = False
        entry = self._entry(round)
        begun = [
            known
            for known in self.ledger.entries
            if known.round == round and known.key != entry.key
        ]
        if dp.correlation == "banded" and begun:
            raise RunFailed(
                f"round {round} was begun with other noise and, with correlated noise, cannot be "
                "done again; start over with --fresh, which is a new release"
            )
        if dp.target_epsilon:
            over = self._after(entry) > dp.target_epsilon
            if over.any() and dp.on_target == "stop":
                return (
                    f"stopped before round {round}, which would pass the target epsilon "
                    f"{dp.target_epsilon:g}"
                )
            strategy.retired[:] = over
            active = strategy.roster.activity > 0
            if active.any() and over[active].all():
                return (
                    f"stopped before round {round}: every device has reached epsilon "
                    f"{dp.target_epsilon:g}"
                )
            entry = self._entry(round) if over.any() else entry
        self.ledger.write(entry)
        return ""

    @property
    def repeats(self) -> int:
        """Number of rounds repeated as other releases; they count beyond `train.rounds`."""
        entries = self.ledger.entries
        return len(entries) - len({entry.round for entry in entries})

    @property
    def largest(self) -> NDArray[np.int64]:
        """The largest public activity that each device of the roster has in any period."""
        now = self.strategy.roster.activity
        if len(self.activity) % len(now):
            return now  # real nodes hold data that the server's files do not describe
        return np.maximum(now, self.activity.reshape(-1, len(now)).max(axis=0))

    @property
    def members(self) -> NDArray[np.bool_]:
        """Which devices of the roster have examples in any period."""
        return self.largest > 0

    def _after(self, entry: Entry) -> Floats:
        """Return each device's epsilon after the round, 0 for devices without a part in it."""
        table, counts = self.ledger.counts(lambda known: known.key != entry.key, more=[entry])
        return np.where(entry.members >= 0, table.epsilons(counts, self.delta), 0.0)

    def _entry(self, round: int) -> Entry:
        config = self.config
        strategy = self.strategy
        view = strategy.view(round)
        devices = len(view.devices)
        if config.dp.unit == "device" and amplification(config).claimed:
            chances = inclusion(view, config.selection)
            public = weights_of_all(view, chances, config)
            p = np.where(strategy.retired, 0.0, chances)
            return scheduled_entry(config, round, view.period, self.attempt, p, public)
        cohort = strategy.select(round)
        chosen = np.searchsorted(view.devices, cohort.devices)
        if config.dp.unit == "device":
            return visible_entry(
                config, round, view.period, self.attempt, chosen, cohort.weights, devices
            )
        return local_entry(
            config, round, view.period, self.attempt, chosen, view.activity[chosen], devices
        )

    def epsilons(self) -> tuple[Floats, str]:
        """Return each device's epsilon so far [devices], and the accountant.

        In continual mode with the unit "example", a record composes the rounds from its arrival on.
        The result is then the largest epsilon over all periods of arrival.
        """
        periods = self.config.stream.periods if self._by_period else 1
        each = [self._epsilons_from(period) for period in range(1, periods + 1)]
        exact = all(known for _, known in each)
        return np.max(
            [found for found, _ in each], axis=0
        ), "PLD" if exact else "PLD for the largest, else RDP"

    @property
    def _by_period(self) -> bool:
        return self.config.stream.mode == "continual" and self.config.dp.unit == "example"

    def _epsilons_from(self, arrival: int) -> tuple[Floats, bool]:
        last = arrival + self._stay(arrival) - 1
        table, counts = self.ledger.counts(
            lambda e: not self._by_period or arrival <= e.period <= last
        )
        loose = table.epsilons(counts, self.delta)
        kinds, first, inverse = np.unique(loose, return_index=True, return_inverse=True)
        found = kinds.copy()
        few = len(kinds) <= EXACT
        for i in range(len(kinds)) if few else [len(kinds) - 1]:
            found[i] = min(kinds[i], epsilon(row_events(table, counts, int(first[i])), self.delta))
        if not few:  # the others stay as they are by RDP, and may be above the exact one
            return np.where(inverse == len(kinds) - 1, found[-1], loose), False
        return found[inverse], True

    def _stay(self, arrival: int) -> int:
        """Return for how many periods a record of this arrival can be held, by the memory rule."""
        stream = self.config.stream
        stay = {"current": 1, "window": stream.window}
        return stay.get(stream.memory, stream.periods - arrival + 1)

    def worst_events(self) -> tuple[Event, ...]:
        """Return the events of the unit with the largest epsilon so far; none without DP."""
        if self.config.dp.unit == "none":
            return ()
        return worst_events(self.ledger, self.delta)

    def spent_rdp(self) -> float | None:
        """Return the largest epsilon that a unit has spent so far; None without DP.

        It is computed by RDP, which is fast and gives an upper bound.
        """
        if self.config.dp.unit == "none":
            return None
        table, counts = self.ledger.counts()
        return float(table.epsilons(counts, self.delta).max(initial=0.0))


def worst_events(ledger: Ledger, delta: float) -> tuple[Event, ...]:
    """Return the events of the unit with the largest epsilon.

    It compares the largest units by Renyi accounting, and takes the largest of them by PLD.
    """
    table, counts = ledger.counts(lambda entry: True)
    loose = table.epsilons(counts, delta)
    _, first = np.unique(-loose, return_index=True)
    candidates = [row_events(table, counts, int(device)) for device in first[:EXACT]]
    return max(candidates, key=lambda events: epsilon(events, delta), default=())


def public_over_time(config: Config, holdings: Holdings) -> NDArray[np.int64]:
    """Return the public activities that devices have in each period, one period after another.

    Nobody knows the later periods of announced devices yet. For them the result is every activity
    that they may have.
    """
    if config.stream.mode == "continual" and isinstance(holdings.dataset, Announced):
        return possible_activity(holdings.dataset)
    periods = range(1, config.stream.periods + 1) if config.stream.mode == "continual" else [1]
    held = np.concatenate([holdings.activity(period) for period in periods])
    return public_activity(held, config.data.activity_public)


def make_spending(
    config: Config, holdings: Holdings, strategy: "Federated", run: RunDir
) -> Spending:
    """Return a run's spending, with the ledger of its run folder."""
    delta = delta_of(config, holdings.dataset).value
    return Spending(
        config, strategy, run, delta, strategy.noise.kind, public_over_time(config, holdings)
    )


def privacy_figures(spending: Spending, guarantee: float, relation: str) -> Mapping[str, Any]:
    """Return `summary.json["privacy"]`.

    `epsilon_guarantee` is promised: no unit can spend more, whatever is drawn. `epsilon_spent` is
    the largest epsilon that a unit has spent, by PLD. `epsilon_max` is its older name.
    """
    config = spending.config
    found, accountant = spending.epsilons()
    members = found[spending.members]
    members = members if len(members) else np.zeros(1)
    spent = float(found.max(initial=0.0))
    target = config.dp.target_epsilon
    promised = min(guarantee, target) if target else guarantee
    return {
        "unit": config.dp.unit,
        "relation": relation,
        "trust": config.dp.trust,
        "delta": spending.delta,
        "epsilon_guarantee": max(promised, spent),
        "epsilon_spent": spent,
        "epsilon_max": spent,
        "epsilon_median": float(np.median(members)),
        "epsilon_p95": float(np.quantile(members, 0.95)),
        "amplification": amplification(config).claimed,
        "accountant": f"dp-accounting, {accountant}",
        "noise_source": spending.noise_kind,
    }
