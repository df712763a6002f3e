"""A BIO tag for each token: named entities."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fedsim.models.spans import count_spans
from fedsim.models.tasks.losses import loss_sums, mean_loss, tag_losses
from fedsim.models.tasks.task import Fields
from fedsim.types import Spec


class Tagging:
    """Entities as BIO tags; the loss of an example is the mean cross entropy of its tags.

    `span_f1` counts spans whose type and bounds are both right, over all examples (micro F1);
    `token_accuracy` counts tags. Tags that training never saw count as wrong in both.
    """

    inputs: tuple[str, ...] = ("tokens",)
    targets: tuple[str, ...] = ("tags",)
    metric = "span_f1"

    def __init__(self, spec: Spec) -> None:
        self.tags = len(spec.tags)
        self.tag_names = (*spec.tags, *spec.tags_unseen)

    def wanted(self, batch: Fields) -> dict[str, tuple[int, ...]]:
        return {"tags": (*batch["tags"].shape, self.tags)}

    def losses(self, outputs: Fields, batch: Fields) -> Tensor:
        return tag_losses(outputs["tags"], batch["tags"])

    def scores(self, outputs: Fields, batch: Fields) -> dict[str, float]:
        tags = batch["tags"]
        predicted = predicted_tags(outputs["tags"], tags)
        usable = (tags < outputs["tags"].shape[-1]).all(-1)
        return (
            loss_sums(self.losses(outputs, batch), usable)
            | {
                "tokens": float((tags >= 0).sum()),
                "right": float(((predicted == tags) & (tags >= 0)).sum()),
            }
            | span_sums(tags, predicted, self.tag_names)
        )

    def right(self, outputs: Fields, batch: Fields) -> tuple[Tensor, Tensor]:
        tags = batch["tags"]
        return predicted_tags(outputs["tags"], tags) == tags, tags >= 0

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        accuracy = {"token_accuracy": sums["right"] / sums["tokens"]} if sums["tokens"] else {}
        return mean_loss(sums) | {"span_f1": span_f1(sums)} | accuracy


def predicted_tags(logits: Tensor, tags: Tensor) -> Tensor:
    """Return the likeliest tag of each token, -1 where `tags` has padding."""
    return torch.where(tags >= 0, logits.argmax(-1), -1)


def span_sums(tags: Tensor, predicted: Tensor, names: Sequence[str]) -> dict[str, float]:
    """Count the spans of truth and prediction [B, T], and those that agree."""
    spans = count_spans(tags.cpu().numpy(), predicted.cpu().numpy(), names)
    return {
        "spans_true": float(spans.true),
        "spans_predicted": float(spans.predicted),
        "spans_right": float(spans.right),
    }


def span_f1(sums: Mapping[str, float]) -> float:
    """Micro F1 of spans; 1 where neither truth nor prediction has any."""
    found = sums["spans_true"] + sums["spans_predicted"]
    return 2 * sums["spans_right"] / found if found else 1.0
