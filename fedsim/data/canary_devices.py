"""Devices added to a federation for an audit: they send a random direction."""

from dataclasses import replace

import numpy as np
import torch

from fedsim.data.pool import Pool
from fedsim.errors import WrongInput
from fedsim.seeds import generator
from fedsim.types import Examples, Params

PREFIX = "canary-device-"
FILLING = -2
"""The canary number of a canary device's records: they give it activity and teach nothing."""


def canary_names(count: int) -> list[str]:
    """Return the ids of the canary devices."""
    return [f"{PREFIX}{i:06d}" for i in range(count)]


def is_canary_device(device: str) -> bool:
    return device.startswith(PREFIX)


def with_canary_devices(pool: Pool, count: int) -> Pool:
    """Return the federation with `count` canary devices.

    Each is as active as the median device with records. Raises WrongInput where a device bears such
    a name already.
    """
    taken = [str(device) for device in pool.devices if is_canary_device(str(device))]
    if taken:
        raise WrongInput(
            f"the federation has a device {taken[0]!r}; that name is kept for audit.canary_devices"
        )
    each = int(np.median(pool.activity[pool.activity > 0]))
    devices = np.concatenate([pool.devices, np.array(canary_names(count), dtype=np.str_)])
    activity = np.concatenate([pool.activity, np.full(count, each)])
    order = np.argsort(devices)
    starts = np.concatenate([pool.start, np.zeros(count, dtype=np.int64)])
    is_new = np.arange(len(devices)) >= len(pool.devices)
    # a canary device holds the federation's first record, again and again
    spans = [
        np.zeros(each, np.int64) if is_new[i] else starts[i] + np.arange(activity[i]) for i in order
    ]
    rows = np.concatenate(spans)
    filling = np.repeat(is_new[order], activity[order])
    return replace(
        pool,
        devices=devices[order],
        activity=activity[order],
        records=Examples({n: t[torch.from_numpy(rows)] for n, t in pool.records.fields.items()}),
        time=None if pool.time is None else pool.time[rows],
        deleted_time=None if pool.deleted_time is None else pool.deleted_time[rows],
        mislabelled=pool.mislabelled[rows] & ~filling,
        canary=np.where(filling, FILLING, pool.canary[rows]),
    )


def random_direction(params: Params, seed: int, *names: str | int) -> Params:
    """Return a uniformly random direction of norm 1 over all parameters, in float64."""
    size = sum(p.numel() for p in params.values())
    flat = torch.from_numpy(generator(seed, "direction", *names).standard_normal(size))
    parts = (flat / flat.norm()).split([p.numel() for p in params.values()])
    return {name: part.view(p.shape) for (name, p), part in zip(params.items(), parts, strict=True)}
