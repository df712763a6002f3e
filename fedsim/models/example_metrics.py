"""Metrics beside a task's own: each gives every example a value, whose mean is reported.

A metric is a function `(outputs, fields) -> [N]` and one entry here, or user code. Values of
examples add up over batches, so the mean does not depend on how batches are cut.
"""

from collections.abc import Callable, Mapping

from torch import Tensor
from torch.nn.functional import one_hot

from fedsim.errors import WrongInput
from fedsim.models.tasks.task import Fields
from fedsim.names import is_own_code, listed, lookup

Metric = Callable[[Fields, Fields], Tensor]
"""(outputs of the model, fields of the examples) of N examples -> their values, float [N]."""


def brier(outputs: Fields, fields: Fields) -> Tensor:
    """Squared distance of the labels' probabilities from the truth, in [0, 2] (Brier, 1950)."""
    logits = outputs["label"]
    label = fields["label"]
    # a label that training never saw has no logit and counts as a miss
    classes = max(logits.shape[-1], int(label.max()) + 1)
    truth = one_hot(label, classes)
    chances = logits.softmax(-1)
    return (chances - truth[:, : logits.shape[-1]]).square().sum(-1) + truth[
        :, logits.shape[-1] :
    ].sum(-1)


def top5_accuracy(outputs: Fields, fields: Fields) -> Tensor:
    """1 where the true label is among the five likeliest."""
    logits = outputs["label"]
    likeliest = logits.topk(min(5, logits.shape[-1]), -1).indices
    return (likeliest == fields["label"].unsqueeze(-1)).any(-1).float()


METRICS: dict[str, Metric] = {"brier": brier, "top5_accuracy": top5_accuracy}


def metrics_of(text: str) -> Mapping[str, Metric]:
    """Return name -> metric of those that `evaluation.metrics` lists. Raises WrongInput.

    A metric of user code is reported under its function's name.
    """
    found: dict[str, Metric] = {}
    for listing in listed(text):
        name = listing.rpartition(":")[2] if is_own_code(listing) else listing
        if name in found:
            raise WrongInput(
                f"evaluation.metrics names {name!r} twice; rename one of these functions"
            )
        found[name] = lookup("evaluation.metrics", listing, METRICS, takes="outputs, fields")
    return found
