"""How a metric spreads over devices."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

DECILES = 10


def spread(
    metric: str, values: NDArray[np.float64], activity: NDArray[np.int64], devices: NDArray[np.str_]
) -> dict[str, Any]:
    """Return flat figures of a metric (more is better) over devices; every device counts the same.

    `device_<metric>_mean` is the mean. `_p10` is what nine devices in ten reach. `_worst_decile` is
    the mean over the worst tenth. `_decile_01` ... `_decile_10` are means over tenths of the
    devices by public activity, least active first (ties by device id).
    """
    by_activity = np.array_split(np.lexsort((devices, activity)), min(DECILES, len(devices)))
    worst = np.sort(values)[: max(1, len(values) // DECILES)]
    figures: dict[str, Any] = {
        "device_count": len(devices),
        f"device_{metric}_mean": float(values.mean()),
        f"device_{metric}_p10": float(np.quantile(values, 0.1)),
        f"device_{metric}_worst_decile": float(worst.mean()),
    }
    for number, part in enumerate(by_activity, start=1):
        figures[f"device_{metric}_decile_{number:02d}"] = float(values[part].mean())
    return figures
