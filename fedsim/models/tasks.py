"""What is learned: the loss of an example, and the sums from which metrics are made.

A task is the seam between data and models. It knows which field a model reads, what an example's loss
is and how to score outputs; the trainer and the evaluator know nothing of labels or tags.
"""

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from fedsim.models.spans import count_spans
from fedsim.types import Spec

Fields = Mapping[str, Tensor]


class Task(Protocol):
    """One kind of problem. Tensors may have leading axes; losses never mix examples."""

    input: str
    """The field of the examples that the model's forward reads."""
    metric: str
    """The metric that early stopping watches unless told otherwise."""

    def losses(self, outputs: Fields, batch: Fields) -> Tensor:
        """Return the loss of each example, [..., B]."""

    def scores(self, outputs: Fields, batch: Fields) -> dict[str, float]:
        """Return sums over the batch [B]; sums of batches add up."""

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Turn sums into metrics in [0, 1] (loss in nats an example)."""


class Classification:
    """One label an example."""

    metric = "accuracy"

    def __init__(self, spec: Spec, input: str) -> None:
        self.classes = len(spec.labels)
        self.input = input

    def losses(self, outputs: Fields, batch: Fields) -> Tensor:
        return label_losses(outputs["label"], batch["label"])

    def scores(self, outputs: Fields, batch: Fields) -> dict[str, float]:
        right = outputs["label"].argmax(-1) == batch["label"]
        return loss_sums(self.losses(outputs, batch), batch["label"] < self.classes) | {
            "right": float(right.sum())
        }

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        return mean_loss(sums) | {"accuracy": sums["right"] / sums["examples"]}


class IntentSlots:
    """The intent of a request and a BIO tag for each of its tokens.

    The loss of an example is the intent's cross entropy plus the mean one of its tags.
    """

    input = "tokens"
    metric = "intent_accuracy"

    def __init__(self, spec: Spec) -> None:
        self.classes = len(spec.labels)
        self.tag_names = (*spec.tags, *spec.tags_unseen)

    def losses(self, outputs: Fields, batch: Fields) -> Tensor:
        logits, tags = outputs["tags"], batch["tags"]
        known = (tags >= 0) & (tags < logits.shape[-1])
        each = token_losses(logits, tags, known)
        return label_losses(outputs["label"], batch["label"]) + each.sum(-1) / known.sum(-1).clamp(1)

    def scores(self, outputs: Fields, batch: Fields) -> dict[str, float]:
        tags = batch["tags"]
        predicted = torch.where(tags >= 0, outputs["tags"].argmax(-1), -1)
        intent = outputs["label"].argmax(-1) == batch["label"]
        frame = intent & (predicted == tags).all(-1)
        spans = count_spans(tags.cpu().numpy(), predicted.cpu().numpy(), self.tag_names)
        usable = (batch["label"] < self.classes) & (tags < outputs["tags"].shape[-1]).all(-1)
        return loss_sums(self.losses(outputs, batch), usable) | {
            "right": float(intent.sum()),
            "frames": float(frame.sum()),
            "spans_true": float(spans.true),
            "spans_predicted": float(spans.predicted),
            "spans_right": float(spans.right),
        }

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        found = sums["spans_true"] + sums["spans_predicted"]
        return mean_loss(sums) | {
            "intent_accuracy": sums["right"] / sums["examples"],
            "slot_f1": 2 * sums["spans_right"] / found if found else 1.0,
            "frame_accuracy": sums["frames"] / sums["examples"],
        }


def make_task(spec: Spec) -> Task:
    """Return the task that the spec names."""
    if spec.task == "intent_slots":
        return IntentSlots(spec)
    return Classification(spec, input="image" if spec.task == "image" else "tokens")


def label_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of each example, [...]; 0 where the label is one that training never saw."""
    return token_losses(logits, labels, labels < logits.shape[-1])


def token_losses(logits: Tensor, labels: Tensor, known: Tensor) -> Tensor:
    """Cross entropy of each position, [...], and 0 where not `known`. logits: [..., classes]."""
    target = torch.where(known, labels, -100)
    each = cross_entropy(logits.flatten(0, -2), target.flatten(), reduction="none", ignore_index=-100)
    return each.view(labels.shape)


def loss_sums(losses: Tensor, usable: Tensor) -> dict[str, float]:
    """Sum the losses of examples whose label and tags the model knows; the rest only counts."""
    return {
        "examples": float(len(losses)),
        "loss_sum": float(losses[usable].double().sum()),
        "loss_examples": float(usable.sum()),
    }


def mean_loss(sums: Mapping[str, float]) -> dict[str, float]:
    """The mean loss of the usable examples, absent where there are none."""
    count = sums["loss_examples"]
    return {"loss": sums["loss_sum"] / count} if count else {}
