"""Randomness from names, never from history.

Every random decision has a generator that is named where it is made, as in
`generator(seed, "select", round)`. A result then depends neither on what was drawn before nor on
how devices are packed into batches or spread over nodes, and a resumed run needs no stored state.
"""

import hashlib

import numpy as np
import torch
from numpy.random.bit_generator import ISeedSequence
from numpy.typing import NDArray

Name = str | int


def generator(seed: int, *names: Name) -> np.random.Generator:
    """Return the NumPy generator of these names: a counter-based Philox under a hashed key."""
    return keyed_generator(_digest(seed, names))


def keyed_generator(key: bytes) -> np.random.Generator:
    """Return the stream of `Philox(key=key)` for 16 bytes.

    NumPy's own constructor would first ask the system for entropy.
    """
    return np.random.Generator(np.random.Philox(_Key(key)))  # type: ignore[arg-type]


class _Key(ISeedSequence):
    """Gives Philox its key as it is."""

    def __init__(self, key: bytes) -> None:
        self.words = np.frombuffer(key, dtype="<u8")

    def generate_state(self, n_words: int, dtype: object = np.uint64) -> NDArray[np.uint64]:
        return self.words


def torch_generator(seed: int, *names: Name) -> torch.Generator:
    """Return the torch CPU generator of these names."""
    key = int.from_bytes(_digest(seed, names)[:8], "little") >> 1
    return torch.Generator().manual_seed(key)


def _digest(seed: int, names: tuple[Name, ...]) -> bytes:
    """Return 16 bytes that differ for different names.

    The type is part of a name: 1 is not "1".
    """
    text = "\x1f".join(f"{type(name).__name__}:{name}" for name in (seed, *names))
    return hashlib.blake2b(text.encode(), digest_size=16).digest()
