"""The next word of a message."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from fedsim.models.tasks.losses import loss_sums, mean_loss, mean_over_known, token_losses
from fedsim.models.tasks.task import Fields
from fedsim.types import PAD, UNKNOWN, Spec

LARGEST_EXPONENT = 700.0
"""Keeps the perplexity of a diverged model a finite number."""


class Language:
    """Next-word modelling: each token but the first is predicted from all that stand before it.

    The loss of an example is the mean negative log-likelihood (nats) of its *known* next words,
    over all token ids. Unknown next words teach nothing, so the model does not learn to say
    "unknown". `perplexity` is exp of the mean negative log-likelihood over all known next words. It
    leaves unknown ones out, so it cannot be compared between vocabularies. `word_accuracy` counts
    all next words: an unknown one is always wrong. Under hashed buckets every word is known, and a
    hit is the right bucket.
    """

    inputs: tuple[str, ...] = ("tokens",)
    targets: tuple[str, ...] = ("next",)
    metric = "word_accuracy"

    def __init__(self, spec: Spec) -> None:
        self.vocabulary = spec.vocabulary

    def wanted(self, batch: Fields) -> dict[str, tuple[int, ...]]:
        return {"next": (*batch["next"].shape, self.vocabulary)}

    def losses(self, outputs: Fields, batch: Fields) -> Tensor:
        known = batch["next"] > UNKNOWN
        return mean_over_known(token_losses(outputs["next"], batch["next"], known), known)

    def scores(self, outputs: Fields, batch: Fields) -> dict[str, float]:
        target = batch["next"]
        known = target > UNKNOWN
        each = token_losses(outputs["next"], target, known)
        right = (outputs["next"].argmax(-1) == target) & known
        return loss_sums(mean_over_known(each, known), torch.any(known, -1)) | {
            "words": float((target != PAD).sum()),
            "words_known": float(known.sum()),
            "words_right": float(right.sum()),
            "surprise": float(each.double().sum()),
        }

    def right(self, outputs: Fields, batch: Fields) -> tuple[Tensor, Tensor]:
        target = batch["next"]
        return (outputs["next"].argmax(-1) == target) & (target > UNKNOWN), target != PAD

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        metrics = mean_loss(sums)
        if sums["words_known"]:
            metrics["perplexity"] = math.exp(
                min(sums["surprise"] / sums["words_known"], LARGEST_EXPONENT)
            )
        if sums["words"]:
            metrics["word_accuracy"] = sums["words_right"] / sums["words"]
        return metrics
