"""What a run will cost before it runs: its guarantee, a plan by activity, settings for a target."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedsim.config import Config, from_flat, to_flat
from fedsim.errors import WrongInput
from fedsim.privacy.accounting import Event, epsilon, epsilon_rdp
from fedsim.privacy.claims import amplification
from fedsim.privacy.entries import local_events
from fedsim.privacy.inclusion_cap import privacy_cap
from fedsim.privacy.mechanism import device_mechanism, most_participations
from fedsim.privacy.renyi_table import RenyiTable, quantise, renyi_curve, renyi_epsilons

Floats = NDArray[np.float64]
Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Plan:
    """Epsilons at `delta` that a run will have spent at its end."""

    delta: float
    guarantee: float
    """No unit can spend more, whatever is drawn."""
    rests_on: str
    """Which public bound the guarantee takes."""
    planned: Floats
    """[devices]: expected participation."""


def make_plan(
    config: Config, delta: float, activity: Ids, probabilities: Floats, weights: Floats
) -> Plan:
    """Return the plan of a run from each device's public activity, inclusion and weight.

    The arrays are aligned. `probabilities` are those of the first round, or a mean over rounds.
    """
    guarantee, rests_on = guaranteed(config, delta, activity)
    return Plan(
        delta, guarantee, rests_on, _planned(config, delta, activity, probabilities, weights)
    )


def guaranteed(config: Config, delta: float, activity: Ids, repeats: int = 0) -> tuple[float, str]:
    """Return the epsilon that no unit can pass, and the sentence on what it rests on.

    A crash ended `repeats` rounds, which were done again with other noise: they count again.
    """
    bound, why = _guaranteed(config, delta, activity, repeats)
    again = (
        f"; {repeats} round(s) that were done again with other noise count again" if repeats else ""
    )
    return bound, why + again


def _guaranteed(config: Config, delta: float, activity: Ids, repeats: int) -> tuple[float, str]:
    most = most_participations(config) + repeats
    rounds = config.train.rounds + repeats
    if config.dp.unit == "device":
        mechanism = device_mechanism(config)
        if amplification(config).claimed:
            cap, why = inclusion_cap(config, int((activity > 0).sum()))
            return epsilon([mechanism.event(cap, mechanism.max_weight, rounds)], delta), why
        event = mechanism.event(1.0, mechanism.max_weight, most)
        return epsilon(
            [event], delta
        ), f"a device takes part in at most {most} rounds (all, or as limited)"
    sizes = np.unique(activity[activity > 0]).tolist()
    return (
        _worst_of_sizes(config, sizes, most, delta),
        f"a device takes part in at most {most} rounds (all, or as limited), whatever its public "
        "activity",
    )


def _worst_of_sizes(config: Config, sizes: list[int], most: int, delta: float) -> float:
    each = [local_events(config, n, most) for n in sizes]
    if config.stream.mode == "static":
        return worst_epsilon(each, delta)
    # a device's size may change from period to period, so the envelope of the curves counts
    curves = [
        sum(e.count * renyi_curve(e.noise_multiplier, e.sampling_rate) for e in events)
        for events in each
    ]
    return float(renyi_epsilons(np.max(np.array(curves), axis=0, keepdims=True), delta)[0])


def inclusion_cap(config: Config, devices: int) -> tuple[float, str]:
    """Return a public upper bound on every device's inclusion probability, and its source."""
    selection = config.selection
    static = config.availability.rule == "always" and config.stream.mode == "static"
    if selection.rule == "uniform" and static:
        total = selection.total_score or devices
        rate = selection.cohort / total
        if rate < selection.cap:
            return rate, f"uniform selection: selection.cohort over {total:g} in public"
    limit = privacy_cap(config, devices) if config.stream.mode == "static" else None
    if limit is not None and limit < selection.cap:
        return limit, "the inclusion probability that dp.target_epsilon leaves room for"
    return selection.cap, "selection.cap, the largest inclusion probability"


def worst_epsilon(each: list[tuple[Event, ...]], delta: float) -> float:
    """Return the largest epsilon of several compositions.

    The slow PLD runs only where a composition could be the largest.
    """
    loose = [epsilon_rdp(events, delta) for events in each]
    worst = 0.0
    for i in np.argsort(loose)[::-1]:
        if loose[i] <= worst:
            break
        worst = max(worst, epsilon(each[i], delta))
    return worst


def _planned(
    config: Config, delta: float, activity: Ids, probabilities: Floats, weights: Floats
) -> Floats:
    rounds = config.train.rounds
    claim = amplification(config).claimed
    times = np.round(probabilities * rounds).astype(np.int64)
    if config.dp.unit == "example":
        keys = np.stack([activity, times])
    elif claim:
        keys = np.stack([quantise(probabilities), weights])
    else:
        keys = np.stack([times, weights])
    distinct, inverse = np.unique(keys, axis=1, return_inverse=True)
    found = np.array([_one(config, delta, a, b, claim) for a, b in distinct.T.tolist()])
    return np.where(activity > 0, found[inverse.reshape(-1)], 0.0)


def _one(config: Config, delta: float, first: float, second: float, claim: bool) -> float:
    """Return the planned epsilon of one kind of device, by Renyi accounting.

    The two numbers are its activity and rounds, or its rate and weight, or its rounds and weight.
    """
    if config.dp.unit == "example":
        if first < 1 or second < 1:
            return 0.0
        events = local_events(config, int(first), int(second))
    elif claim:
        events = (device_mechanism(config).event(first, second, config.train.rounds),)
    else:
        events = (device_mechanism(config).event(1.0, second, int(first)),)
    table = RenyiTable(tuple(Event(e.noise_multiplier, e.sampling_rate) for e in events))
    return float(table.epsilons(np.array([[e.count for e in events]]), delta)[0]) if events else 0.0


FOR = {"noise": "dp.noise_multiplier", "cap": "selection.cap", "rounds": "train.rounds"}


def calibrate(config: Config, target: float, what: str, delta: float, activity: Ids) -> Config:
    """Return the config whose guarantee is at most `target`.

    It has the least noise, the largest cap or the most rounds, as `what` says. Raises WrongInput
    where no value of that setting reaches the target.

    >>> import numpy as np
    >>> from fedsim import Config, calibrate
    >>> config = Config(dp={"unit": "device"}, train={"rounds": 10})
    >>> found = calibrate(config, target=4.0, what="noise", delta=1e-5, activity=np.full(200, 25))
    >>> round(found.dp.noise_multiplier, 1)
    3.4
    """
    if what not in FOR:
        raise WrongInput(f"--for {what!r} is not known; choose {', '.join(FOR)}")
    if not target > 0:
        raise WrongInput(
            f"epsilon = {target:g} cannot be reached: only what is independent of the data has "
            "epsilon 0; ask for more than 0"
        )
    key = FOR[what]

    def spent(value: float) -> float:
        try:
            return guaranteed(_with(config, key, value), delta, activity)[0]
        except WrongInput:
            if what == "noise":  # adaptive clipping: the count's noise is a bound of its own
                return 0.0
            raise

    if what == "rounds":
        return _with(config, key, _most_rounds(spent, target))
    grows = what == "cap"
    low, high = (1e-6, 1.0) if grows else (0.01, 1e4)
    best = _bisect(spent, target, low, high, grows)
    if best is None:
        raise WrongInput(
            f"no {key} between {low:g} and {high:g} gives epsilon {target:g}; change another "
            "setting"
        )
    found = _with(config, key, best)
    if guaranteed(found, delta, activity)[0] > target:
        raise WrongInput(
            f"no {key} gives epsilon {target:g} with these settings; change another one"
        )
    return found


def _bisect(
    spent: Callable[[float], float], target: float, low: float, high: float, grows: bool
) -> float | None:
    """Return the value to 0.1 % whose epsilon is at most the target, nearest to it."""
    good, bad = (low, high) if grows else (high, low)
    if spent(bad) <= target:
        return bad
    if spent(good) > target:
        return None
    while max(good, bad) / min(good, bad) > 1.001:
        middle = (good * bad) ** 0.5
        if spent(middle) <= target:
            good = middle
        else:
            bad = middle
    return good


def _most_rounds(spent: Callable[[float], float], target: float) -> int:
    if spent(1) > target:
        raise WrongInput(
            f"one round alone costs more than epsilon {target:g}; calibrate the noise instead"
        )
    good = 1
    bad = 2
    while spent(bad) <= target:
        good = bad
        bad = 2 * bad
        if bad > 10**6:
            return good
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if spent(middle) <= target else (good, middle)
    return good


def _with(config: Config, key: str, value: float) -> Config:
    return from_flat(to_flat(config) | {key: int(value) if key == "train.rounds" else float(value)})
