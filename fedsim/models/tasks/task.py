"""The shape of a task: what a new kind of problem must define."""

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

Fields = Mapping[str, Tensor]


class Task(Protocol):
    """One kind of problem. Tensors may have leading axes; losses never mix examples."""

    inputs: tuple[str, ...]
    """The fields of the examples that the model's forward reads, in its order."""
    targets: tuple[str, ...]
    """The fields of the examples that losses and scores compare with."""
    metric: str
    """The metric that early stopping watches unless told otherwise."""

    def wanted(self, batch: Fields) -> dict[str, tuple[int, ...]]:
        """Return the outputs that a model must have on a batch: name -> shape, [B, ...]."""

    def losses(self, outputs: Fields, batch: Fields) -> Tensor:
        """Return the loss of each example, [..., B]."""

    def scores(self, outputs: Fields, batch: Fields) -> dict[str, float]:
        """Return sums over the batch [B]; sums of batches add up."""

    def right(self, outputs: Fields, batch: Fields) -> tuple[Tensor, Tensor]:
        """Return what the prediction got right and what counts, both [B, units].

        A unit is a label, a tag or a word.
        """

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Turn sums into metrics in [0, 1]; only loss (nats an example) and perplexity are not."""
