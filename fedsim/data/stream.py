"""When a device's examples arrive and how long it keeps them.

A stream gives each training record the period of its arrival. Some records also have the period in
which their owner had them deleted. What a device holds in a period is a pure function of (stream,
period). Nothing is stored on the side, so a resumed run holds the same as an undisturbed one.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from fedsim.config import Stream
from fedsim.data.times import instant
from fedsim.errors import WrongInput
from fedsim.seeds import generator

DAY = 86400.0
NEVER = np.iinfo(np.int64).max

Ids = NDArray[np.int64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Arrivals:
    """When the training records of a federation arrive; arrays are aligned with its rows."""

    settings: Stream
    owner: Ids
    """The device of each record, as a number."""
    period: Ids
    """The period of arrival, from 1; `periods` + 1 for a record that never arrives."""
    time: NDArray[np.float64]
    """Seconds."""
    deleted: Ids
    """The period from which the record is gone; NEVER for most."""
    rank: NDArray[np.float64]
    """A keyed random number for each record; the reservoir keeps the smallest."""
    edges: NDArray[np.float64]
    """[periods + 1]: the limits of the periods, in seconds."""

    @property
    def ever(self) -> Flags:
        """Return which records arrive before the run ends."""
        return self.period <= self.settings.periods

    def alive(self, period: int) -> Flags:
        """Return which records have arrived by a period and are not deleted."""
        return (self.period <= period) & (self.deleted > period)

    def held(self, period: int, eligible: Flags | None = None) -> Flags:
        """Return which records their devices hold in a period, by the memory rule.

        Only `eligible` records count (all if None); a reservoir is filled with these alone.
        """
        arrived = self.period <= period
        alive = self.alive(period)
        if eligible is not None:
            arrived = arrived & eligible
            alive = alive & eligible
        settings = self.settings
        if settings.memory == "current":
            return alive & (self.period == period)
        if settings.memory == "window":
            return alive & (self.period > period - settings.window)
        if settings.memory == "age":
            return alive & (self.edges[period] - self.time <= settings.max_age_days * DAY)
        if settings.memory == "reservoir":
            # The rank is among all that arrived. So a deletion frees a place, but brings back no
            # record that the reservoir let go.
            return alive & (self._position(arrived) < settings.reservoir)
        return alive

    def moved(self, records: Flags, period: int) -> "Arrivals":
        """Return the stream with some records at the start of a period, never deleted."""
        return replace(
            self,
            period=np.where(records, period, self.period),
            time=np.where(records, self.edges[period - 1], self.time),
            deleted=np.where(records, NEVER, self.deleted),
        )

    def _position(self, arrived: Flags) -> Ids:
        """Return each arrived record's place among its device's, by `rank`."""
        order = np.lexsort((self.rank, ~arrived, self.owner))
        first = np.concatenate([[True], np.diff(self.owner[order]) != 0])
        start = np.maximum.accumulate(np.where(first, np.arange(len(order)), 0))
        position = np.empty(len(order), dtype=np.int64)
        position[order] = np.arange(len(order)) - start
        return position

    @cached_property
    def sizes(self) -> Ids:
        """Return how many records arrive in each period."""
        return np.bincount(self.period - 1, minlength=self.settings.periods)[
            : self.settings.periods
        ]


def by_time(
    settings: Stream,
    owner: Ids,
    time: NDArray[np.float64],
    seed: int,
    deleted_time: NDArray[np.float64] | None = None,
    part: bool = False,
) -> Arrivals:
    """Return the stream of records with timestamps (seconds).

    `deleted_time` has the times of deletion requests. A record is gone from the period of its
    request on. Raises WrongInput for an empty period, unless these records are only a `part` of the
    federation's.
    """
    edges = cut(settings, time)
    arrivals = _arrivals(settings, owner, time, edges, seed)
    if deleted_time is not None:
        asked = np.where(np.isinf(deleted_time), NEVER, period_of(deleted_time, edges))
        asked = np.where(~np.isinf(deleted_time) & (deleted_time > edges[-1]), NEVER, asked)
        arrivals = replace(arrivals, deleted=np.minimum(arrivals.deleted, asked))
    empty = np.flatnonzero(arrivals.sizes == 0)
    if len(empty) and not part:
        raise WrongInput(
            f"period {empty[0] + 1} of stream.periods = {settings.periods} has no training "
            'example; use fewer periods, or stream.cut = "examples"'
        )
    return arrivals


def cut(settings: Stream, time: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
    """Return the periods' edges in seconds.

    They reach from `begin` to `end`; where one is not set, the records' `time` gives it. Raises
    WrongInput where nothing lies between them.
    """
    if settings.cut == "examples":
        return np.quantile(_known(time), np.linspace(0, 1, settings.periods + 1))
    begin = instant("stream.begin", settings.begin) if settings.begin else _known(time).min()
    end = instant("stream.end", settings.end) if settings.end else _known(time).max()
    if (settings.begin or settings.end) and begin >= end:
        raise WrongInput(
            f"stream.begin = {settings.begin!r} and stream.end = {settings.end!r} leave no time "
            'between them ("" = that of the first, or last, record); name an earlier begin or a '
            "later end"
        )
    return np.linspace(begin, end, settings.periods + 1)


def _known(time: NDArray[np.float64] | None) -> NDArray[np.float64]:
    if time is None:
        raise WrongInput("periods without records want stream.begin and stream.end; name both")
    return time


def check_edges(settings: Stream) -> None:
    """Refuse `begin` and `end` where no rule uses them. Raises WrongInput."""
    by_edges = settings.arrivals == "time" and settings.cut == "duration"
    if (settings.begin or settings.end) and not by_edges:
        raise WrongInput(
            'stream.begin and stream.end want stream.arrivals = "time" and stream.cut = '
            f'"duration", got {settings.arrivals!r} and {settings.cut!r}; set these, or leave '
            "begin and end empty"
        )


def by_poisson(settings: Stream, owner: Ids, seed: int) -> Arrivals:
    """Return a synthetic stream: each device's records arrive as a Poisson process of its own rate.

    The number of a device's records is given. Its arrivals then are independent and uniform over
    the device's stay, with more by day than by night. Some devices join late or leave early. A
    period lasts a day.
    """
    rng = generator(seed, "stream")
    devices = int(owner.max()) + 1
    begin = np.where(rng.random(devices) < settings.joining, rng.uniform(0, 0.8, devices), 0.0)
    end = np.where(rng.random(devices) < settings.leaving, rng.uniform(0.2, 1, devices), 1.0)
    end = np.maximum(end, begin + 0.1).clip(max=1.0)
    share = begin[owner] + rng.random(len(owner)) * (end - begin)[owner]
    day = np.floor(share * settings.periods).clip(max=settings.periods - 1)
    hour = (14 + 5 * rng.standard_normal(len(owner))) % 24
    time = (day * DAY + hour * 3600).astype(np.float64)
    edges = (np.arange(settings.periods + 1) * DAY).astype(np.float64)
    return _arrivals(settings, owner, time, edges, seed)


def _arrivals(
    settings: Stream, owner: Ids, time: NDArray[np.float64], edges: NDArray[np.float64], seed: int
) -> Arrivals:
    rng = generator(seed, "records")
    period = arrival_of(settings, time, edges)
    asked = rng.random(len(owner)) < settings.deletions
    later = period + rng.integers(1, np.maximum(settings.periods - period, 0) + 2)
    deleted = np.where(asked, later, NEVER)
    return Arrivals(settings, owner, period, time, deleted, rng.random(len(owner)), edges)


def arrival_of(settings: Stream, time: NDArray[np.float64], edges: NDArray[np.float64]) -> Ids:
    """Return the period in which each record arrives.

    Records older than the first period arrive in it. From `stream.end` on nothing arrives.
    """
    period = period_of(time, edges)
    return np.where(time >= edges[-1], settings.periods + 1, period) if settings.end else period


def period_of(time: NDArray[np.float64], edges: NDArray[np.float64]) -> Ids:
    """Return the period, from 1, of each time; times outside belong to the first or last."""
    return np.clip(np.searchsorted(edges, time, side="right"), 1, len(edges) - 1)


def rounds_per_period(settings: Stream, rounds: int) -> int:
    """Return how many rounds a period lasts.

    Raises WrongInput when the rounds do not fill the periods evenly.
    """
    if settings.mode == "static":
        return rounds
    each = settings.rounds_per_period or rounds // settings.periods
    if each < 1 or each * settings.periods != rounds:
        raise WrongInput(
            f"train.rounds = {rounds} do not fill stream.periods = {settings.periods} evenly "
            f"({each} rounds each); choose a multiple"
        )
    return each


def period_of_round(settings: Stream, rounds: int, round: int) -> int:
    """Return the period, from 1, in which a round lies."""
    return 1 + (round - 1) // rounds_per_period(settings, rounds)
