"""How uneven a federation is: activity and labels over devices."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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
    """Return how many examples the devices have, and how unevenly they are spread."""
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


@dataclass(frozen=True)
class LabelCounts:
    """How often each label stands on each device, over a limited number of devices."""

    devices: NDArray[np.str_]
    counts: NDArray[np.int64]
    """[devices, labels]."""
    sampled: bool
    """Whether the devices are a seeded sample of the federation's."""


def label_counts(federation: FederatedDataset, seed: int, most: int = SAMPLE) -> LabelCounts | None:
    """Count labels over at most `most` devices (a seeded sample); None without labels."""
    owners = federation.devices[federation.activity > 0]
    sampled = len(owners) > most
    rng = generator(seed, "statistics")
    chosen = np.sort(rng.choice(owners, most, replace=False)) if sampled else owners
    histograms = []
    for device in chosen:
        fields = federation.train(str(device)).fields
        if "label" not in fields:
            return None
        histograms.append(np.bincount(fields["label"], minlength=len(federation.spec.labels)))
    return LabelCounts(chosen, np.array(histograms, dtype=np.int64), sampled)


def divergence_matrix(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the Jensen-Shannon divergence (bits) between every two rows of counts."""
    shares = counts / counts.sum(1, keepdims=True)
    return jensen_shannon(shares[:, None], shares[None, :])


def jensen_shannon(p: NDArray[np.float64], q: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the Jensen-Shannon divergence (bits) of shares along the last axis.

    The other axes broadcast.
    """
    between = _entropy((p + q) / 2) - (_entropy(p) + _entropy(q)) / 2
    return np.maximum(between, 0.0)


def _entropy(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the entropy in bits along the last axis."""
    # not scipy's `xlogy`: its import would cost half a second
    logs = np.log2(shares, out=np.zeros_like(shares), where=shares > 0)
    total: NDArray[np.float64] = -(shares * logs).sum(-1)
    return total


def label_skew(federation: FederatedDataset, seed: int) -> Skew | None:
    """Return how much devices' labels differ, over at most 200 devices; None without labels."""
    found = label_counts(federation, seed)
    if found is None:
        return None
    pool = found.counts.sum(0) / found.counts.sum()
    rng = generator(seed, "statistics", "chance")
    random = np.array([rng.multinomial(n, pool) for n in found.counts.sum(1)])
    measured = _divergence(found.counts, pool)
    by_chance = _divergence(random, pool)
    return Skew(measured, by_chance, len(found.devices), found.sampled)


def _divergence(counts: NDArray[np.int64], pool: NDArray[np.float64]) -> float:
    shares = counts / counts.sum(1, keepdims=True)
    return float(jensen_shannon(shares, pool).mean())
