"""What a round will reveal, by groups of devices: its ledger entry, made before the round."""

import math

import numpy as np
from numpy.typing import NDArray

from fedsim.config import Config
from fedsim.privacy.accounting import Event
from fedsim.privacy.claims import amplification
from fedsim.privacy.ledger import NOBODY, Entry
from fedsim.privacy.local_plan import local_plan
from fedsim.privacy.mechanism import device_mechanism
from fedsim.privacy.renyi_table import RATES, quantise
from strategies.selection import rule_of

Floats = NDArray[np.float64]
Ids = NDArray[np.int64]
STEP = 1.01
"""Ratio of the grid that changing rates are rounded up to."""


def scheduled_entry(
    config: Config, round: int, period: int, attempt: str, probabilities: Floats, weights: Floats
) -> Entry:
    """Return the entry of a device-level round whose coins stay secret; it counts for every device.

    `probabilities` [devices] are 0 for devices that cannot be in it; `weights` [devices] are
    public.
    """
    mechanism = device_mechanism(config)
    changing = rule_of(config.selection).changing
    rates = _on_grid(probabilities) if changing else quantise(probabilities)
    pairs, inverse = np.unique(np.stack([rates, weights]), axis=1, return_inverse=True)
    groups = tuple((mechanism.event(float(q), float(v)),) for q, v in pairs.T)
    return Entry(round, period, "model", attempt, groups, inverse.reshape(-1).astype(np.int32))


def visible_entry(
    config: Config,
    round: int,
    period: int,
    attempt: str,
    chosen: Ids,
    weights: Floats,
    devices: int,
) -> Entry:
    """Return the entry of a device-level round whose participants are taken as known.

    It claims no amplification.
    """
    mechanism = device_mechanism(config)
    values, inverse = np.unique(weights, return_inverse=True)
    groups = tuple((mechanism.event(1.0, float(v)),) for v in values)
    return Entry(round, period, "model", attempt, groups, _members(chosen, inverse, devices))


def local_entry(
    config: Config, round: int, period: int, attempt: str, chosen: Ids, activity: Ids, devices: int
) -> Entry:
    """Return the entry of an example-level round: the local steps of each device that takes part.

    `activity` is the public activity of the `chosen` ones.
    """
    values, inverse = np.unique(activity, return_inverse=True)
    groups = tuple(local_events(config, int(n)) for n in values)
    return Entry(round, period, "steps", attempt, groups, _members(chosen, inverse, devices))


def local_events(config: Config, activity: int, rounds: int = 1) -> tuple[Event, ...]:
    """Return what `rounds` rounds of local steps cost one example of a device."""
    plan = local_plan(config.dp, config.train, activity)
    rate = plan.sampling_rate if amplification(config).claimed else 1.0
    return tuple(Event(z, rate, n * rounds) for z, n in plan.multipliers().items())


def _members(chosen: Ids, groups: Ids, devices: int) -> NDArray[np.int32]:
    members = np.full(devices, NOBODY, dtype=np.int32)
    members[chosen] = groups
    return members


def _on_grid(rates: Floats) -> Floats:
    """Return the rates rounded up to powers of STEP, so that rounds share their events."""
    if len(np.unique(rates)) > RATES:
        rates = quantise(rates)
    with np.errstate(divide="ignore"):
        power = np.where(rates > 0, np.ceil(np.log(rates) / math.log(STEP) - 1e-9), -np.inf)
    return np.minimum(np.maximum(STEP**power, rates), 1.0)
