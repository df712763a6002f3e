"""A simulated secure sum: devices send integers modulo 2^bits that hold their noise shares.

No cryptography happens here. It is the arithmetic of a secure aggregation, so its rounding, its
overflow and its drop-outs are those of a real one. Integers travel as float64, which holds them
exactly.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fedsim.config import Dp
from fedsim.errors import WrongInput

LEAST_CELLS = 4.0
"""The least stddev of a share, in cells.

From there on a sum of rounded shares is a rounded Gaussian up to e^-300.
"""


@dataclass(frozen=True)
class SecureSum:
    """Fixed-point numbers of width `cell` modulo 2^bits, and shares that add up to the noise.

    Guarantee: while `survivors` honest devices answer besides the protected one, their shares total
    at least `stddev`. With fewer, nothing is released.
    """

    bits: int
    cell: float
    stddev: float
    """Stddev of the noise that the sum shall have."""
    survivors: int
    """Fewest honest devices that answer, without the protected one."""

    @property
    def share_stddev(self) -> float:
        return self.stddev / math.sqrt(self.survivors)

    def may_release(self, answered: int) -> bool:
        """Whether so many answers hold enough noise; the protected device's own does not count."""
        return answered - 1 >= self.survivors

    def clip_norm(self, norm: float, size: int) -> float:
        """Return the clip that keeps a rounded vector of `size` numbers within `norm`."""
        room = norm - math.sqrt(size) / 2 * self.cell
        if room <= 0:
            raise WrongInput(
                f"cells of {self.cell:g} are too wide for {size} parameters and a clip norm of "
                f"{norm:g}; lower dp.sum_scale"
            )
        return room

    def encode(self, value: Tensor, noise: Tensor) -> Tensor:
        """Return what a device sends: rounded value plus rounded noise share.

        It is taken modulo 2^bits, in float64.
        """
        share = (noise.double() * (self.share_stddev / self.cell)).round()
        return self.reduce((value / self.cell).round() + share)

    def reduce(self, total: Tensor) -> Tensor:
        """Return integers modulo 2^bits, in [0, 2^bits)."""
        return torch.remainder(total, 2.0**self.bits)

    def decode(self, total: Tensor) -> Tensor:
        """Return the sum as numbers; right while its true size stays below half the modulus."""
        reduced = self.reduce(total)
        return (
            torch.where(reduced >= 2.0 ** (self.bits - 1), reduced - 2.0**self.bits, reduced)
            * self.cell
        )

    def headroom(self, decoded: Tensor) -> float:
        """Return a decoded sum's largest number over the overflow limit; near 1 is a warning."""
        return (
            float(decoded.abs().max() / (self.cell * 2.0 ** (self.bits - 1)))
            if decoded.numel()
            else 0.0
        )


def secure_sum(dp: Dp, clip: float, stddev: float, survivors: int) -> SecureSum:
    """Return the sum that carries `stddev` of noise while `survivors` others answer.

    Raises WrongInput.
    """
    if survivors < 1:
        raise WrongInput(
            "a secure sum needs at least one honest device beside the protected one; raise "
            "selection.cohort or dp.min_survivors"
        )
    made = SecureSum(dp.sum_bits, dp.sum_scale * clip, stddev, survivors)
    if made.share_stddev < LEAST_CELLS * made.cell:
        raise WrongInput(
            f"a noise share of {made.share_stddev:g} is too fine for cells of {made.cell:g}: lower "
            f"dp.sum_scale = {dp.sum_scale:g}"
        )
    return made


def fewest_survivors(share: float, invited: int) -> int:
    """Return the public number of honest answers for which the noise is set.

    The protected device is not among them.
    """
    return max(1, math.floor(share * invited) - 1)
