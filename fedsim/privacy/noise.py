"""Gaussian noise and coins under keys: the same secret and names always give the same values.

The bits are the AES-256 keystream in counter mode, under a key that is a keyed hash of the names.
The float32 Gaussians are not hardened against attacks on floating point (Mironov, 2012); a run's
privacy statement says so.
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
from numpy.typing import NDArray
from torch import Tensor

from fedsim.config import Config
from fedsim.seeds import Name, keyed_generator

BLOCK = 1 << 10
"""Values that are made together: half of them cosines, half sines."""
CHUNK = 1 << 17
"""Values at a time: few enough for the cache, enough that threads seldom wait for each other."""
_ZEROS = bytes(4 * CHUNK)
_COUNTER = bytes(16)


class NoiseSource:
    """A secret that names turn into noise. Make it by `Seeded` or `Os`.

    Guarantee: other names, or another secret, give independent noise (as far as AES and BLAKE2b are
    what they are believed to be). Two releases must never share their names: the noise would
    cancel.
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
        assert len(set(names)) == len(out), (
            "each row has names of its own, or two would share their noise"
        )
        values = out.numpy()
        width = -(-out.shape[1] // BLOCK) * BLOCK  # whole blocks, so that values do not depend on n
        together = max(CHUNK // max(width, 1), 1)
        for first in range(0, len(out), together):
            rows = values[first : first + together]
            streams = [self._stream(name) for name in names[first : first + together]]
            for start in range(0, out.shape[1], CHUNK):
                part = rows[:, start : start + CHUNK]
                made = min(CHUNK, width - start)
                # fill in place where the memory has the shape of whole blocks
                if part.flags.c_contiguous and part.shape[1] == made:
                    _fill(part, streams)
                else:
                    part[:] = _fill(np.empty((len(part), made), np.float32), streams)[
                        :, : part.shape[1]
                    ]
        return out

    def _stream(self, names: tuple[Name, ...]) -> CipherContext:
        return Cipher(AES(self._key(names)), CTR(_COUNTER)).encryptor()

    def generator(self, *names: Name) -> np.random.Generator:
        """Return a generator for coins, slots and batches; the secret keys its 128-bit seed."""
        return keyed_generator(self._key(("generator", *names))[:16])

    def _key(self, names: tuple[Name, ...]) -> bytes:
        text = "\x1f".join(f"{type(name).__name__}:{name}" for name in names)
        return hashlib.blake2b(text.encode(), digest_size=32, key=self._secret).digest()


class Seeded(NoiseSource):
    """Noise that a seed repeats: for simulation.

    Anyone who knows the seed can remove the noise.
    """

    kind = "seeded"

    def __init__(self, seed: int, run: str = "") -> None:
        super().__init__(
            hashlib.blake2b(f"fedsim noise {seed} {run}".encode(), digest_size=32).digest()
        )


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


def _fill(out: NDArray[np.float32], streams: Sequence[CipherContext]) -> NDArray[np.float32]:
    """Fill each row of [K, width] with the next normals of its stream; width a multiple of BLOCK.

    Each block takes its first half of uniform int32 bits for radii and its second for angles (Box
    and Muller, 1958). The radius comes from u = (m + 1/2) / 2^31, m of 31 bits: fine near 0, so
    tails reach 6.6. numpy's logarithm and cosine take a third of the time of torch's.
    """
    width = out.shape[1]
    keystream = bytearray(4 * width * len(streams) + 16)  # update_into wants room for a block more
    view = memoryview(keystream)
    for row, stream in enumerate(streams):
        stream.update_into(memoryview(_ZEROS)[: 4 * width], view[4 * width * row :])
    bits = np.frombuffer(keystream, np.int32, width * len(streams)).reshape(-1, 2, BLOCK // 2)
    radius = (bits[:, 0] & 0x7FFFFFFF).astype(np.float32)
    radius += 0.5  # never 0, whose logarithm is infinite
    radius *= 2.0**-31
    np.log(radius, out=radius)
    radius *= -2.0
    np.sqrt(radius, out=radius)
    angle = bits[:, 1].astype(np.float32)
    angle *= 2 * math.pi * 2.0**-32
    blocks = out.reshape(-1, 2, BLOCK // 2)
    np.multiply(np.cos(angle, out=blocks[:, 0]), radius, out=blocks[:, 0])
    np.multiply(np.sin(angle, out=blocks[:, 1]), radius, out=blocks[:, 1])
    return out
