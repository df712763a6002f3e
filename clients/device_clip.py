"""Device-level DP on the device: its whole change is clipped before it is added to others'."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedsim.config import Config
from fedsim.privacy.mechanism import device_mechanism
from fedsim.privacy.noise import NoiseSource
from fedsim.privacy.secure_sum import SecureSum, secure_sum
from fedsim.seeds import Name
from fedsim.types import Cohort, Params

MARGIN = 1e-6
"""Relative room for the rounding of float32 products and sums."""


@dataclass(frozen=True)
class DeviceClip:
    """The bound on a device's change and, under a secure sum, the noise shares that it adds."""

    norm: float
    summed: SecureSum | None = None
    noise: NoiseSource | None = None


def device_clip(
    config: Config, params: Params, cohort: Cohort, noise: NoiseSource
) -> DeviceClip | None:
    """Return how the devices of a cohort are clipped; None without device-level DP."""
    if config.dp.unit != "device":
        return None
    mechanism = device_mechanism(config)
    clip = cohort.clip_norm
    if config.dp.trust != "secure_sum":
        return DeviceClip(clip)
    bound = mechanism.sensitivity(clip)
    summed = secure_sum(config.dp, bound, mechanism.stddev(clip), cohort.survivors)
    size = sum(p.numel() for p in params.values())
    return DeviceClip(summed.clip_norm(bound, size) / mechanism.max_weight, summed, noise)


def clip_factors(changes: Mapping[str, Tensor], norm: float) -> tuple[Tensor, int]:
    """Return factors [K] that bound each device's change to `norm`, and how many it left whole.

    `changes` are [K, ...] by name. A device whose change is not finite gets the factor 0 and counts
    as clipped. Mask its change with `finite` before you multiply.

    Guarantee: a device's change over all parameters, times its factor, has an L2 norm of at most
    `norm`.
    """
    squares = sum(change.double().flatten(1).square().sum(1) for change in changes.values())
    assert isinstance(squares, Tensor), "a model has parameters"
    norms = squares.sqrt()
    finite = norms.isfinite()
    factors = torch.where(
        finite, (norm * (1 - MARGIN) / norms).clamp(max=1.0), torch.zeros_like(norms)
    )
    return factors, int((finite & (norms <= norm)).sum())


def finite(change: Tensor) -> Tensor:
    """Return the change with 0 in place of NaN and Inf."""
    return torch.nan_to_num(change, nan=0.0, posinf=0.0, neginf=0.0)


def add_in_secret(
    total: Params, value: Params, names: tuple[Name, ...], clip: DeviceClip
) -> Params:
    """Return the modular sum with one device's part added.

    Its part is its clipped change, rounded, and its noise share. `names` (attempt, round, device)
    begin the share's key.
    """
    assert clip.summed is not None, "a secure sum is set up"
    assert clip.noise is not None, "shares need a noise source"
    after = {}
    for name, one in value.items():
        share = clip.noise.normal(torch.empty(one.numel()), *names, "share", name)
        after[name] = clip.summed.reduce(
            total[name] + clip.summed.encode(one, share.view(one.shape))
        )
    return after
