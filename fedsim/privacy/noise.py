"""Gaussian noise and coins under keys: the same secret and names give the same values, wherever and whenever.

The bits are the AES-256 keystream in counter mode, under a key that is a keyed hash of the names. Its
float32 Gaussians are not hardened against attacks on floating point (Mironov, 2012); a statement says so.
"""

import hashlib
import math
import os

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from torch import Tensor

from fedsim.config import Config
from fedsim.seeds import Name

CHUNK = 1 << 16
"""Values at a time: keystream and temporaries stay in the cache."""
_ZEROS = bytes(4 * CHUNK)
_COUNTER = bytes(16)


class NoiseSource:
    """A secret that names turn into noise. Make it by `Seeded` or `Os`.

    Guarantee: other names, or another secret, give independent noise (as far as AES and BLAKE2b are what
    they are believed to be). Two releases must never share their names: the noise would cancel.
    """

    kind: str

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def normal(self, out: Tensor, *names: Name) -> Tensor:
        """Fill a flat float32 CPU tensor with independent standard normals and return it."""
        assert out.dtype == torch.float32, f"noise is float32, got {out.dtype}"
        stream = Cipher(AES(self._key(names)), CTR(_COUNTER)).encryptor()
        keystream = bytearray(4 * CHUNK + 16)  # update_into wants room for a block more
        bits = torch.frombuffer(keystream, dtype=torch.int32)
        for start in range(0, len(out), CHUNK):
            part = out[start : start + CHUNK]
            pairs = (len(part) + 1) // 2
            stream.update_into(memoryview(_ZEROS)[: 8 * pairs], keystream)
            _box_muller(bits[: 2 * pairs], part)
        return out

    def generator(self, *names: Name) -> np.random.Generator:
        """Return a generator for coins, slots and batches, seeded with 128 bits that the secret keys."""
        key = int.from_bytes(self._key(("generator", *names))[:16], "little")
        return np.random.Generator(np.random.Philox(key=key))

    def _key(self, names: tuple[Name, ...]) -> bytes:
        text = "\x1f".join(f"{type(name).__name__}:{name}" for name in names)
        return hashlib.blake2b(text.encode(), digest_size=32, key=self._secret).digest()


class Seeded(NoiseSource):
    """Noise that a seed repeats: for simulation. Who knows the seed can take the noise off again."""

    kind = "seeded"

    def __init__(self, seed: int, run: str = "") -> None:
        super().__init__(hashlib.blake2b(f"fedsim noise {seed} {run}".encode(), digest_size=32).digest())


class Os(NoiseSource):
    """Noise under 256 bits of the operating system's entropy, which no file ever holds."""

    kind = "os"

    def __init__(self) -> None:
        super().__init__(os.urandom(32))


def noise_source(config: Config, real: bool) -> NoiseSource:
    """Return the run's noise: seeded in simulation, of the operating system where a node is `real`.

    The config's hash is part of the seed, so that runs with other settings share no noise.
    """
    kind = config.dp.noise_source
    if kind == "os" or (kind == "auto" and real):
        return Os()
    return Seeded(config.seed, config.hash)


def _box_muller(bits: Tensor, out: Tensor) -> None:
    """Write len(out) standard normals made of uniform int32 bits, two values of each two bits.

    The radius comes from u = (m + 1/2) / 2^31, m of 31 bits: fine near 0, so that tails reach 6.6.
    """
    pairs = len(bits) // 2
    radius = (bits[:pairs] & 0x7FFFFFFF).to(torch.float32).add_(0.5).mul_(2.0**-31)
    radius.log_().mul_(-2.0).sqrt_()
    angle = bits[pairs:].to(torch.float32).mul_(2 * math.pi * 2.0**-32)
    torch.mul(radius, angle.cos(), out=out[:pairs])
    rest = len(out) - pairs
    torch.mul(radius[:rest], angle[:rest].sin(), out=out[pairs:])
