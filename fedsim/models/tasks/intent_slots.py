"""The intent of a request and its slots."""

from collections.abc import Mapping

import torch
from torch import Tensor

from fedsim.models.tasks.losses import label_losses, loss_sums, mean_loss, tag_losses
from fedsim.models.tasks.tagging import predicted_tags, span_f1, span_sums
from fedsim.models.tasks.task import Fields
from fedsim.types import Spec


class IntentSlots:
    """The intent of a request and a BIO tag for each of its tokens.

    The loss of an example is the intent's cross entropy plus the mean cross entropy of its tags.
    """

    inputs: tuple[str, ...] = ("tokens",)
    targets: tuple[str, ...] = ("label", "tags")
    metric = "intent_accuracy"

    def __init__(self, spec: Spec) -> None:
        self.classes = len(spec.labels)
        self.tags = len(spec.tags)
        self.tag_names = (*spec.tags, *spec.tags_unseen)

    def wanted(self, batch: Fields) -> dict[str, tuple[int, ...]]:
        return {
            "label": (*batch["label"].shape, self.classes),
            "tags": (*batch["tags"].shape, self.tags),
        }

    def losses(self, outputs: Fields, batch: Fields) -> Tensor:
        return label_losses(outputs["label"], batch["label"]) + tag_losses(
            outputs["tags"], batch["tags"]
        )

    def scores(self, outputs: Fields, batch: Fields) -> dict[str, float]:
        tags = batch["tags"]
        predicted = predicted_tags(outputs["tags"], tags)
        intent = outputs["label"].argmax(-1) == batch["label"]
        frame = intent & (predicted == tags).all(-1)
        usable = (batch["label"] < self.classes) & (tags < outputs["tags"].shape[-1]).all(-1)
        return (
            loss_sums(self.losses(outputs, batch), usable)
            | {"right": float(intent.sum()), "frames": float(frame.sum())}
            | span_sums(tags, predicted, self.tag_names)
        )

    def right(self, outputs: Fields, batch: Fields) -> tuple[Tensor, Tensor]:
        """Count one unit for each example: its intent, as the metric does."""
        right = (outputs["label"].argmax(-1) == batch["label"]).unsqueeze(-1)
        return right, torch.ones_like(right)

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        return mean_loss(sums) | {
            "intent_accuracy": sums["right"] / sums["examples"],
            "slot_f1": span_f1(sums),
            "frame_accuracy": sums["frames"] / sums["examples"],
        }
