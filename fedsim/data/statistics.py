"""How uneven a federation is: activity and labels over devices."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import jensenshannon

from fedsim.data.activity import gini
from fedsim.data.federation import FederatedDataset
from fedsim.seeds import generator

SAMPLE = 200


@dataclass(frozen=True)
class Skew:
    """The mean Jensen-Shannon divergence (bits, 0 to 1) of devices' labels from the pooled ones."""

    measured: float
    by_chance: float
    """What devices of the same sizes would show if their labels were drawn from the pool."""
    devices: int
    sampled: bool
    """Whether the devices are a seeded sample of the federation's."""


def activity_statistics(activity: NDArray[np.int64]) -> dict[str, float]:
    """Return size and unevenness of the devices that have examples."""
    held = np.sort(activity[activity > 0])
    top = held[-max(1, len(held) // 100) :]
    return {
        "devices": len(activity),
        "devices with examples": len(held),
        "examples": int(held.sum()),
        "examples per device, median": float(np.median(held)),
        "examples per device, most": int(held[-1]),
        "share of the top 1 % of devices": float(top.sum() / held.sum()),
        "Gini of activity": gini(held),
    }


def label_skew(federation: FederatedDataset, seed: int) -> Skew | None:
    """Return how much devices' labels differ, over at most 200 devices; None without labels."""
    owners = federation.devices[federation.activity > 0]
    rng = generator(seed, "statistics")
    sampled = len(owners) > SAMPLE
    chosen = np.sort(rng.choice(owners, SAMPLE, replace=False)) if sampled else owners
    histograms = []
    for device in chosen:
        fields = federation.train(str(device)).fields
        if "label" not in fields:
            return None
        histograms.append(np.bincount(fields["label"], minlength=len(federation.spec.labels)))
    counts = np.array(histograms, dtype=np.int64)
    pool = counts.sum(0) / counts.sum()
    random = np.array([rng.multinomial(n, pool) for n in counts.sum(1)])
    return Skew(_divergence(counts, pool), _divergence(random, pool), len(chosen), sampled)


def _divergence(counts: NDArray[np.int64], pool: NDArray[np.float64]) -> float:
    shares = counts / counts.sum(1, keepdims=True)
    return float(np.mean([jensenshannon(share, pool, base=2) ** 2 for share in shares]))
