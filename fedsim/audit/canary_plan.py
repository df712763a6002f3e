"""The plan that says which device holds which canary, how often and from when."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.audit.canary_patterns import Canary
from fedsim.errors import WrongInput
from fedsim.names import suggestion
from fedsim.seeds import generator
from fedsim.types import DeviceId

HOLDERS = {"light": 0.0, "median": 0.45, "heavy": 0.9}
"""Where each tenth of the devices begins in the order of activity, as a share of all."""


@dataclass(frozen=True)
class Planting:
    """One canary in one device."""

    canary: int
    device: DeviceId
    copies: int
    period: int


def plan(
    canaries: Sequence[Canary],
    devices: NDArray[np.str_],
    activity: NDArray[np.int64],
    holders: str,
    each: int,
    copies: int,
    period: int,
    seed: int,
) -> list[Planting]:
    """Return `each` different devices for every canary, from the light, median or heavy tenth.

    devices: [D] sorted by id, activity: [D] examples. Devices without examples hold nothing. The
    draw of a canary's devices is named by (seed, canary), so more canaries move none of the others.
    Raises WrongInput.
    """
    if holders not in HOLDERS:
        raise WrongInput(
            f"canary.holders = {holders!r} is not known; choose one of {', '.join(HOLDERS)}"
            f"{suggestion(holders, HOLDERS)}"
        )
    pool = _tenth(devices, activity, HOLDERS[holders], each)
    return [
        Planting(number, str(device), copies, period)
        for number in range(len(canaries))
        for device in np.sort(
            generator(seed, "canary", "holders", number).choice(pool, each, replace=False)
        )
    ]


def plan_rows(canaries: Sequence[Canary], plantings: Sequence[Planting]) -> list[dict[str, Any]]:
    """Return the plan as flat rows for the run directory; the rows hold the secrets."""
    return [
        asdict(p)
        | {
            "pattern": canaries[p.canary].pattern.name,
            "sentence": " ".join(canaries[p.canary].sentence),
        }
        for p in plantings
    ]


def _tenth(
    devices: NDArray[np.str_], activity: NDArray[np.int64], start: float, each: int
) -> NDArray[np.str_]:
    """Return a tenth of the devices with examples by activity, or more where `each` needs more."""
    order = np.flatnonzero(activity > 0)
    order = order[np.argsort(activity[order], kind="stable")]
    size = max(each, -(-len(order) // 10))
    if each > len(order) or each < 1:
        raise WrongInput(
            f"canary.devices = {each}: choose 1 to {len(order)}, the devices with examples"
        )
    first = min(int(start * len(order)), len(order) - size)
    return devices[order[first : first + size]]
