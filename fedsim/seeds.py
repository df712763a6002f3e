"""Randomness from names, never from history.

Every random decision has a generator that is named where it is made, as in
`generator(seed, "select", round)`. A result then depends neither on what was drawn before nor on
how devices are packed into batches or spread over nodes, and a resumed run needs no stored state.
"""

import hashlib

import numpy as np
import torch

Name = str | int


def generator(seed: int, *names: Name) -> np.random.Generator:
    """Return the NumPy generator of these names: a counter-based Philox under a hashed key."""
    return np.random.Generator(np.random.Philox(key=int.from_bytes(_digest(seed, names), "little")))


def torch_generator(seed: int, *names: Name) -> torch.Generator:
    """Return the torch CPU generator of these names."""
    key = int.from_bytes(_digest(seed, names)[:8], "little") >> 1
    return torch.Generator().manual_seed(key)


def _digest(seed: int, names: tuple[Name, ...]) -> bytes:
    """Return 16 bytes that differ for different names; the type is part of the name (1 is not "1")."""
    text = "\x1f".join(f"{type(name).__name__}:{name}" for name in (seed, *names))
    return hashlib.blake2b(text.encode(), digest_size=16).digest()
