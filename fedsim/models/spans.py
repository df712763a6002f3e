"""Counting BIO spans, as the CoNLL evaluation does, for whole batches at once."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class SpanCounts:
    """Numbers of spans: in the truth, in the prediction, and equal in both (type, bounds)."""

    true: int
    predicted: int
    right: int


def count_spans(true: Ids, predicted: Ids, names: Sequence[str]) -> SpanCounts:
    """Count the spans of two tag arrays [B, T]; ids index `names`, and -1 is padding.

    Names are "O", "B-x" and "I-x". A span starts at a B-, or at an I- that continues no span of its
    type. It goes on over each I- of its type.
    """
    kinds: dict[str, int] = {}
    types = np.array([_type(name, kinds) for name in names] + [-1])  # the last row is for id -1
    begins = np.array([name.startswith("B-") for name in names] + [False])
    true_start, true_end = _spans(types[true], begins[true])
    start, end = _spans(types[predicted], begins[predicted])
    both = true_start & start & (types[true] == types[predicted]) & (true_end == end)
    return SpanCounts(int(true_start.sum()), int(start.sum()), int(both.sum()))


def _type(name: str, kinds: dict[str, int]) -> int:
    if name[:2] not in ("B-", "I-"):
        return -1
    return kinds.setdefault(name[2:], len(kinds))


def _spans(types: Ids, begins: Flags) -> tuple[Flags, Ids]:
    """Return where spans start, and for each position the last position of the span it lies in."""
    before = np.pad(types, ((0, 0), (1, 0)), constant_values=-1)[:, :-1]
    start = (types >= 0) & (begins | (types != before))
    goes_on = np.pad((types >= 0) & ~start, ((0, 0), (0, 1)))[:, 1:]
    end = np.tile(np.arange(types.shape[1]), (types.shape[0], 1))
    for t in range(types.shape[1] - 2, -1, -1):
        end[:, t] = np.where(goes_on[:, t], end[:, t + 1], end[:, t])
    return start, end
