"""The examples that each device holds in each period, without those that it holds out."""

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from fedsim.config import Stream
from fedsim.data.announced import Announced
from fedsim.data.availability import hours_with_records
from fedsim.data.coins import Coins
from fedsim.data.federation import FederatedDataset
from fedsim.data.stream import Arrivals, arrival_of, by_poisson, by_time, check_edges, cut
from fedsim.errors import WrongInput
from fedsim.seeds import generator
from fedsim.types import DeviceId, Examples

Flags = NDArray[np.bool_]
NAME_THEM = 'the data have none: name their column as in data.columns = "time=COLUMN"'


class Holdings:
    """A federation's examples by device and period.

    A static data set without held-out parts costs nothing: its own views are handed out. Otherwise
    a few numbers are kept for each record. Everything is a pure function of (data set, stream,
    seed). A period may be empty where this is only a `part` of the federation, as on one of several
    nodes. For announced devices only sizes and the test examples are known.
    """

    def __init__(
        self,
        dataset: FederatedDataset,
        stream: Stream,
        holdout: float,
        seed: int,
        coins: Coins | None = None,
        part: bool = False,
    ) -> None:
        self.dataset = dataset
        self.stream = stream
        self._holdout = holdout
        _check_deletions(dataset, stream)
        self._announced = isinstance(dataset, Announced)
        self._plain = self._announced or (
            stream.mode == "static" and holdout == 0.0 and coins is None
        )
        self.arrivals: Arrivals | None = None
        if not self._plain:
            self._divide(seed, coins, part)
        self.test_period = self._divide_test(seed) if stream.mode == "continual" else None

    def _divide(self, seed: int, coins: Coins | None, part: bool) -> None:
        dataset = self.dataset
        stream = self.stream
        self._start = np.concatenate([[0], np.cumsum(dataset.activity)])
        self._owner = np.repeat(np.arange(len(dataset.devices)), dataset.activity)
        natural = ~planted(dataset)
        self._held_out = _smallest(self._owner, dataset.activity, self._holdout, seed) & natural
        self.coins = np.ones(len(self._owner), dtype=bool)
        if coins is not None:
            self.coins = coins.toss(self._owner, len(dataset.devices)) | ~natural
        if stream.mode == "continual":
            self.arrivals = _arrivals(dataset, stream, self._owner, seed, part)
        self._kept = lru_cache(maxsize=2)(self._kept_in)
        for period in range(1, 1 if part else stream.periods + 1):
            if not self._kept_in(period).any():
                raise WrongInput(
                    f"no device holds a training example in period {period} of {stream.periods}; "
                    "use fewer periods or a longer memory"
                )

    @property
    def _eligible(self) -> Flags:
        """Records that may be trained on: neither held out for evaluation nor by a coin."""
        return ~self._held_out & self.coins

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Return how many training examples each device could ever hold, aligned with `devices`."""
        if self._plain:
            return self.dataset.activity
        ever = self._eligible if self.arrivals is None else self._eligible & self.arrivals.ever
        return np.bincount(self._owner[ever], minlength=len(self.dataset.devices))

    def activity(self, period: int = 1) -> NDArray[np.int64]:
        """Return each device's number of training examples in a period, aligned with `devices`."""
        if self._plain:
            return self.dataset.activity
        return np.bincount(self._owner[self._kept(period)], minlength=len(self.dataset.devices))

    def train(self, device: DeviceId, period: int = 1) -> Examples:
        """Return the training examples that a device holds in a period."""
        if self._plain:
            return self.dataset.train(device)
        return self._choose(device, self._kept(period))

    def everything(self, device: DeviceId) -> Examples:
        """Return all that a device could ever train on, whatever the period and the memory."""
        if self._plain:
            return self.dataset.train(device)
        never = np.zeros_like(self._held_out)
        if self.arrivals is not None:  # deleted in the period of its arrival
            never = (self.arrivals.deleted <= self.arrivals.period) | ~self.arrivals.ever
        return self._choose(device, self._eligible & ~never)

    def active_hours(self) -> Flags:
        """Return [devices, 24]: the hours of the day in which devices have records.

        Raises WrongInput.
        """
        time = (
            self.arrivals.time if self.arrivals is not None else getattr(self.dataset, "time", None)
        )
        if time is None:
            raise WrongInput(f'availability.rule = "clock" needs timestamps; {NAME_THEM}')
        owner = np.repeat(np.arange(len(self.dataset.devices)), self.dataset.activity)
        return hours_with_records(owner, time, len(self.dataset.devices))

    def held_out(self, device: DeviceId, period: int = 1) -> Examples:
        """Return the held-out examples that a device has in a period; it never trains on them."""
        if self._plain:
            return self.dataset.train(device)[0:0]
        return self._choose(device, self._held_out_in(period))

    def held_out_sizes(self, period: int = 1) -> NDArray[np.int64]:
        """Return how many held-out examples each device has in a period."""
        if self._plain:
            return np.zeros(len(self.dataset.devices), dtype=np.int64)
        return np.bincount(
            self._owner[self._held_out_in(period)], minlength=len(self.dataset.devices)
        )

    @property
    def held_out_flags(self) -> Flags:
        """Return which training records the devices hold out for evaluation."""
        return (
            np.zeros(int(self.dataset.activity.sum()), dtype=bool)
            if self._plain
            else self._held_out
        )

    @property
    def holds_out(self) -> bool:
        """Whether any device holds out an example, in any period.

        For announced devices it says whether they may.
        """
        if self._announced:
            return self._holdout > 0
        return not self._plain and bool(self._held_out.any())

    def test(self, period: int) -> Examples | None:
        """Return the test examples that arrive in a period; None without a test part."""
        test = self.dataset.test
        if test is None or self.test_period is None:
            return test
        return test[torch.from_numpy(np.flatnonzero(self.test_period == period))]

    def _kept_in(self, period: int) -> Flags:
        if self.arrivals is None:
            return self._eligible
        return self.arrivals.held(period, self._eligible)

    def _held_out_in(self, period: int) -> Flags:
        """Return the held-out records that have arrived by a period and are not deleted."""
        if self.arrivals is None:
            return self._held_out
        return self._held_out & self.arrivals.alive(period)

    def _choose(self, device: DeviceId, flags: Flags) -> Examples:
        i = int(np.searchsorted(self.dataset.devices, device))
        mine = flags[self._start[i] : self._start[i + 1]]
        return self.dataset.train(device)[torch.from_numpy(np.flatnonzero(mine))]

    def _divide_test(self, seed: int) -> NDArray[np.int64] | None:
        """Return the period of each test example.

        It comes from the example's time, or at random where arrivals are synthetic.
        """
        if self.dataset.test is None:
            return None
        size = len(self.dataset.test)
        time = getattr(self.dataset, "test_time", None)
        if self.stream.arrivals == "poisson":
            periods = generator(seed, "test").integers(1, self.stream.periods + 1, size)
        elif time is not None:
            edges = cut(self.stream) if self.arrivals is None else self.arrivals.edges
            periods = arrival_of(self.stream, time, edges)
        else:
            raise WrongInput(
                "the test examples have no time; name a time column for them, or hold out a part"
            )
        empty = set(range(1, self.stream.periods + 1)) - set(periods.tolist())
        if empty:
            raise WrongInput(
                f"period {min(empty)} has no test example; use fewer stream.periods, or take test "
                "examples out of the training files with data.test_share"
            )
        return periods


def planted(dataset: FederatedDataset) -> Flags:
    """Return which training records are canaries, or belong to canary devices."""
    numbers: NDArray[np.int64] | None = getattr(dataset, "canary", None)
    return np.zeros(int(dataset.activity.sum()), dtype=bool) if numbers is None else numbers != -1


def _arrivals(
    dataset: FederatedDataset, stream: Stream, owner: NDArray[np.int64], seed: int, part: bool
) -> Arrivals:
    """Return when each record arrives; canaries come in the period that they were planted for."""
    check_edges(stream)
    natural = _natural_arrivals(dataset, stream, owner, seed, part)
    canaries = planted(dataset)
    if not canaries.any():
        return natural
    period = int(getattr(dataset, "arrival", 1))
    return natural.moved(canaries, period)


def _natural_arrivals(
    dataset: FederatedDataset, stream: Stream, owner: NDArray[np.int64], seed: int, part: bool
) -> Arrivals:
    if stream.arrivals == "poisson":
        return by_poisson(stream, owner, seed)
    time = getattr(dataset, "time", None)
    if time is None:
        raise WrongInput(
            f'stream.arrivals = "time" needs timestamps; {NAME_THEM}, or set stream.arrivals = '
            '"poisson"'
        )
    return by_time(stream, owner, time, seed, getattr(dataset, "deleted_time", None), part)


def _check_deletions(dataset: FederatedDataset, stream: Stream) -> None:
    """Refuse to ignore people's requests for deletion. Raises WrongInput."""
    by_time = stream.mode == "continual" and stream.arrivals == "time"
    if getattr(dataset, "deleted_time", None) is not None and not by_time:
        raise WrongInput(
            'data.columns names times of deletion requests, which only stream.mode = "continual" '
            'with stream.arrivals = "time" can honour; set these, or drop the deleted records and '
            "the column"
        )


def _smallest(
    owner: NDArray[np.int64], activity: NDArray[np.int64], share: float, seed: int
) -> Flags:
    """Return flags that hold out the given share of each device's records, rounded down.

    A seeded random rank chooses the records.
    """
    rank = generator(seed, "holdout").random(len(owner))
    order = np.lexsort((rank, owner))
    position = np.empty(len(owner), dtype=np.int64)
    position[order] = np.arange(len(owner)) - np.repeat(np.cumsum(activity) - activity, activity)
    return position < np.floor(share * activity)[owner]
