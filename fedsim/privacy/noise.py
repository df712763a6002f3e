"""Gaussian noise and coins under keys: the same secret and names give the same values, wherever and whenever.

The bits are the AES-256 keystream in counter mode, under a key that is a keyed hash of the names. Its
float32 Gaussians are not hardened against attacks on floating point (Mironov, 2012); a statement says so.
"""

import hashlib
import math
import os
from collections.abc import Sequence

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from torch import Tensor

from fedsim.config import Config
from fedsim.seeds import Name, keyed_generator

BLOCK = 1 << 10
"""Values that are made together: half of them cosines, half sines."""
CHUNK = 1 << 17
"""Values at a time: so few that they stay in the cache, so many that threads seldom wait for each other."""
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
        return self.normals(out.unsqueeze(0), [names]).squeeze(0)

    def normals(self, out: Tensor, names: Sequence[tuple[Name, ...]]) -> Tensor:
        """Fill each row of a float32 CPU tensor [K, n] from the stream of its names and return it.

        A row's values are the first n of its stream, whatever n is and whatever stands beside it.
        """
        assert out.dtype == torch.float32, f"noise is float32, got {out.dtype}"
        assert len(set(names)) == len(out), "each row has names of its own, or two would share their noise"
        width = -(-out.shape[1] // BLOCK) * BLOCK
        together = max(CHUNK // max(width, 1), 1)
        for first in range(0, len(out), together):
            rows = out[first : first + together]
            streams = [self._stream(name) for name in names[first : first + together]]
            for start in range(0, out.shape[1], CHUNK):
                part, made = rows[:, start : start + CHUNK], min(CHUNK, width - start)
                if part.is_contiguous() and part.shape[1] == made:
                    _fill(part, streams)
                else:
                    part.copy_(_fill(torch.empty(len(part), made), streams)[:, : part.shape[1]])
        return out

    def _stream(self, names: tuple[Name, ...]) -> CipherContext:
        return Cipher(AES(self._key(names)), CTR(_COUNTER)).encryptor()

    def generator(self, *names: Name) -> np.random.Generator:
        """Return a generator for coins, slots and batches, seeded with 128 bits that the secret keys."""
        return keyed_generator(self._key(("generator", *names))[:16])

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


def _fill(out: Tensor, streams: Sequence[CipherContext]) -> Tensor:
    """Fill each row of a tensor [K, width] with the next normals of its stream; width a multiple of BLOCK.

    Each block takes its first half of uniform int32 bits for radii and its second for angles (Box and
    Muller, 1958). The radius comes from u = (m + 1/2) / 2^31, m of 31 bits: fine near 0, so tails reach 6.6.
    """
    width = out.shape[1]
    keystream = bytearray(4 * width * len(streams) + 16)  # update_into wants room for a block more
    view = memoryview(keystream)
    for row, stream in enumerate(streams):
        stream.update_into(memoryview(_ZEROS)[: 4 * width], view[4 * width * row :])
    bits = torch.frombuffer(keystream, dtype=torch.int32, count=width * len(streams))
    first, second = bits.view(-1, 2, BLOCK // 2).unbind(1)
    radius = (first & 0x7FFFFFFF).to(torch.float32).add_(0.5).mul_(2.0**-31)
    _apply(np.log, radius, radius).mul_(-2.0).sqrt_()
    angle = second.to(torch.float32).mul_(2 * math.pi * 2.0**-32)
    cosines, sines = out.view(-1, 2, BLOCK // 2).unbind(1)
    _apply(np.cos, angle, cosines).mul_(radius)
    _apply(np.sin, angle, sines).mul_(radius)
    return out


def _apply(function: np.ufunc, x: Tensor, out: Tensor) -> Tensor:
    """Fill `out`: log, cos and sin by numpy take a third of the time of torch's."""
    function(x.numpy(), out=out.numpy())
    return out
