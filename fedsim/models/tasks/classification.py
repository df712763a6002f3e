"""One label an example."""

from collections.abc import Mapping

import torch
from torch import Tensor

from fedsim.models.tasks.losses import label_losses, loss_sums, mean_loss
from fedsim.models.tasks.task import Fields
from fedsim.types import Spec


class Classification:
    """One label an example; a label that training never saw counts as wrong."""

    targets: tuple[str, ...] = ("label",)
    metric = "accuracy"

    def __init__(self, spec: Spec, input: str = "tokens") -> None:
        self.classes = len(spec.labels)
        self.inputs: tuple[str, ...] = (input,)

    def wanted(self, batch: Fields) -> dict[str, tuple[int, ...]]:
        return {"label": (*batch["label"].shape, self.classes)}

    def losses(self, outputs: Fields, batch: Fields) -> Tensor:
        return label_losses(outputs["label"], batch["label"])

    def scores(self, outputs: Fields, batch: Fields) -> dict[str, float]:
        right = outputs["label"].argmax(-1) == batch["label"]
        return loss_sums(self.losses(outputs, batch), batch["label"] < self.classes) | {
            "right": float(right.sum())
        }

    def right(self, outputs: Fields, batch: Fields) -> tuple[Tensor, Tensor]:
        right = (outputs["label"].argmax(-1) == batch["label"]).unsqueeze(-1)
        return right, torch.ones_like(right)

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        return mean_loss(sums) | {"accuracy": sums["right"] / sums["examples"]}
