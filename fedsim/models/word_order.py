"""What a model can know of the order of words.

Two texts that a model reads alike are the same text to it.
"""

from collections.abc import Callable

from fedsim.types import PAD, Spec

Reads = Callable[[list[int], Spec], list[int]]
"""Token ids of a text -> the same for all texts that the model cannot tell apart."""


def in_order(ids: list[int], spec: Spec) -> list[int]:
    """The whole order."""
    return ids


def as_bag(ids: list[int], spec: Spec) -> list[int]:
    """Which words there are, and how often."""
    return sorted(ids)


def as_bag_or_windows(ids: list[int], spec: Spec) -> list[int]:
    """The words of a bag; where there are tags, each word with both of its neighbours."""
    if not spec.tags:
        return as_bag(ids, spec)
    edged = [PAD, *ids, PAD]
    return [i for window in sorted(zip(edged, edged[1:], edged[2:], strict=False)) for i in window]
