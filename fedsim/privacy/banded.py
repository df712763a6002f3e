"""Correlated noise for DP-FTRL: a banded Toeplitz factor of the prefix sum.

A stands for the prefix sums (all that training is a function of), and C is lower triangular with b
bands. A·x is released with A·C⁻¹ times white noise: each round's sum gets row t of C⁻¹z. C has the
first b coefficients of (1 - x)^(-1/2) (banded square root: Kalinin and Lampert, 2024;
participation: Choquette-Choo et al., 2023).
"""

import math
from collections.abc import Sequence

from torch import Tensor


def coefficients(bands: int) -> list[float]:
    """Return C's first column: binom(2j, j) / 4^j for j < bands; 1, 1/2, 3/8, ..."""
    found = [1.0]
    for j in range(1, bands):
        found.append(found[-1] * (2 * j - 1) / (2 * j))
    return found


def column_norm(bands: int) -> float:
    """Return the largest L2 norm of a column of C.

    Guarantee: a device that takes part at most k times, at least `bands` rounds apart, with vectors
    of norm at most 1, moves C·x by at most √k times this: the columns that it touches do not
    overlap.
    """
    return math.sqrt(sum(c * c for c in coefficients(bands)))


def correlated(white: Tensor, before: Sequence[Tensor], bands: int) -> Tensor:
    """Return row t of C⁻¹z: z_t - Σ_j c_j y_(t-j), with `before` = the earlier rows y, newest
    first.
    """
    out = white.clone()
    for c, earlier in zip(coefficients(bands)[1:], before, strict=False):
        out -= c * earlier
    return out
