"""The clip of examples, and the result of clipping a batch."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from clients.rows import Rows
from fedsim.errors import WrongInput

MARGIN = 1e-6
"""Relative room below the bound for the rounding of norms and sums."""


@dataclass(frozen=True)
class Clip:
    """A bound on the L2 norm of one example's part in a gradient sum.

    `flat` multiplies by min(1, C / |g|). `per_layer` clips each of the L layers that own parameters
    to C / √L, so that the whole is at most C. `automatic` multiplies by C / (|g| + gamma) (Bu et
    al., 2023).

    Guarantee: whatever the example, NaN and Inf included, its part has a norm of at most `norm`.

    >>> import torch
    >>> from fedsim import Clip
    >>> norms = torch.tensor([0.5, 4.0, float("nan")])
    >>> [round(factor, 3) for factor in Clip(1.0).factors(norms, layers=1).tolist()]
    [1.0, 0.25, 0.0]
    """

    norm: float
    rule: Literal["flat", "per_layer", "automatic"] = "flat"
    gamma: float = 0.01

    def __post_init__(self) -> None:
        if not (0 < self.norm < float("inf") and self.gamma > 0):
            raise WrongInput(
                f"a clip norm and gamma must be positive numbers, got {self.norm}, {self.gamma}"
            )

    def factors(self, norms: Tensor, layers: int) -> Tensor:
        """Return the factors of gradients with these norms; a norm of 0, NaN or Inf gets 0."""
        bound = self.norm * (1 - MARGIN)
        if self.rule == "per_layer":
            bound /= layers**0.5
        scale = (
            bound / (norms + self.gamma)
            if self.rule == "automatic"
            else (bound / norms).clamp(max=1.0)
        )
        return torch.where(norms.isfinite() & (norms > 0), scale, torch.zeros_like(norms))


@dataclass(frozen=True)
class Clipped:
    """The clipped gradients of a batch, summed over its examples."""

    sums: dict[str, Tensor | Rows]
    """By parameter, [...] or [K, ...]; the sum of a table may be `Rows`."""
    norms: Tensor
    """The examples' gradient norms before the clip, [B] or [K, B]; NaN or Inf are kept."""
    losses: Tensor
    """The examples' losses, in the shape of `norms`."""
