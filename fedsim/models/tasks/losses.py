"""Cross entropy of labels and of tokens, and its sum over examples."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy


def label_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of each example, [...]; 0 where the label is one that training never saw."""
    return token_losses(logits, labels, labels < logits.shape[-1])


def token_losses(logits: Tensor, labels: Tensor, known: Tensor) -> Tensor:
    """Cross entropy of each position, [...], and 0 where not `known`. logits: [..., classes]."""
    target = torch.where(known, labels, -100)
    each = cross_entropy(
        logits.flatten(0, -2), target.flatten(), reduction="none", ignore_index=-100
    )
    return each.view(labels.shape)


def mean_over_known(each: Tensor, known: Tensor) -> Tensor:
    """Mean over the known positions of each example, [..., T] -> [...]; 0 where there is none."""
    return each.sum(-1) / known.sum(-1).clamp(1)


def tag_losses(logits: Tensor, tags: Tensor) -> Tensor:
    """Mean cross entropy of each example's tags, [...]; tags unseen in training are left out."""
    known = (tags >= 0) & (tags < logits.shape[-1])
    return mean_over_known(token_losses(logits, tags, known), known)


def loss_sums(losses: Tensor, usable: Tensor) -> dict[str, float]:
    """Sum the losses of examples whose label and tags the model knows; `examples` counts all."""
    return {
        "examples": float(len(losses)),
        "loss_sum": float(losses[usable].double().sum()),
        "loss_examples": float(usable.sum()),
    }


def mean_loss(sums: Mapping[str, float]) -> dict[str, float]:
    """The mean loss of the usable examples, absent where there are none."""
    count = sums["loss_examples"]
    return {"loss": sums["loss_sum"] / count} if count else {}
