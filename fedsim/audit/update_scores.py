"""Attacks on updates: what the change of one device or of several reveals about single records.

Scores are arrays [K, N] of K updates and N records. A larger score means that membership is more
likely. An update is delta = local - global. Training on a record moves it along the record's
descent direction, which is minus its gradient.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import norm
from torch import Tensor, nn

from fedsim.audit.scores import Bools, Floats
from fedsim.errors import WrongInput
from fedsim.models.evaluation import batches
from fedsim.models.tasks import Task
from fedsim.types import PAD, Examples, Params

Losses = Callable[[Params], Floats]
"""Parameters -> the loss of each of N records."""
STEP = 1e-5
"""Step length of a central difference: in float64 its error is about STEP² + 1e-16 / STEP."""


@dataclass(frozen=True)
class Observed:
    """What K updates of one round say about N records; all arrays but `before` are [K, N]."""

    product: Floats
    """Update times descent direction."""
    cosine: Floats
    before: Floats
    """[N]: the loss of the model that the round began with."""
    loss: Floats
    """The loss of the model with the update."""


def cosine(seen: Observed) -> Floats:
    """Return the cosine of update and descent direction (Li et al., 2023)."""
    return seen.cosine


def product_score(seen: Observed) -> Floats:
    """Return the inner product of update and descent direction."""
    return seen.product


def loss_drop(seen: Observed) -> Floats:
    """Return loss(theta) - loss(theta + delta)."""
    return seen.before - seen.loss


def device_loss(seen: Observed) -> Floats:
    """Return minus the loss of the device's model."""
    return -seen.loss


def fedmia_loss(seen: Observed) -> Floats:
    """Return FedMIA-I: the device's loss relative to other devices' (Zhu et al., 2025)."""
    return standing(-seen.loss, "fedmia_loss")


def fedmia_cosine(seen: Observed) -> Floats:
    """Return FedMIA-II: the device's cosine relative to other devices' (Zhu et al., 2025)."""
    return standing(seen.cosine, "fedmia_cosine")


UPDATE_ATTACKS: dict[str, Callable[[Observed], Floats]] = {
    "cosine": cosine,
    "product": product_score,
    "loss_drop": loss_drop,
    "device_loss": device_loss,
    "fedmia_loss": fedmia_loss,
    "fedmia_cosine": fedmia_cosine,
}
SUM_ATTACKS = {name: UPDATE_ATTACKS[name] for name in ("cosine", "loss_drop")}
"""The attacks that a secure sum allows: those that do not compare devices."""
FEWEST_DEVICES = 3
"""Fewest devices for FedMIA, whose deviation needs two other devices."""


def observe(losses: Losses, norms: Floats, params: Params, changes: Iterable[Params]) -> Observed:
    """Return what updates say about N records whose gradients at `params` have these norms [N].

    It takes three forward passes for each update, and one for all. No gradient of a record is
    stored.
    """
    start = {name: p.double() for name, p in params.items()}
    before = losses(start)
    found: list[tuple[Floats, Floats, Floats]] = []
    for change in changes:
        toward = -directional(losses, start, change)
        length = norms * norm_of(change)
        angle = np.divide(toward, length, out=np.zeros_like(toward), where=length > 0)
        found.append((toward, angle, losses(moved_along(start, change, 1.0))))
    products, angles, after = np.array(found).reshape(-1, 3, len(before)).transpose(1, 0, 2)
    return Observed(products, angles, before, after)


def directional(losses: Losses, params: Params, change: Params) -> Floats:
    """Return the product of each record's gradient with a change, [N].

    It is a central difference in float64.
    """
    length = norm_of(change)
    if length == 0.0:
        return np.zeros_like(losses(params))
    ahead, behind = (
        losses(moved_along(params, change, sign * STEP / length)) for sign in (1.0, -1.0)
    )
    return (ahead - behind) / (2 * STEP) * length


def moved_along(params: Params, change: Params, factor: float) -> Params:
    """Return params + factor · change, in float64."""
    return {name: p.double() + factor * change[name].double() for name, p in params.items()}


def norm_of(change: Params) -> float:
    """Return the L2 norm over all parameters."""
    return float(np.sqrt(sum(float(c.double().square().sum()) for c in change.values())))


def standing(scores: Floats, attack: str = "FedMIA") -> Floats:
    """Return Phi((score - mean of the other updates) / their standard deviation), [K, N] -> [K, N].

    It is 0.5 where all others agree with the score. Raises WrongInput below 3 updates.
    """
    count = len(scores)
    if count < FEWEST_DEVICES:
        raise WrongInput(
            f"attack {attack!r} compares a device with at least {FEWEST_DEVICES - 1} others of "
            f"its round, got {max(0, count - 1)}; raise selection.cohort, or look at other rounds"
        )
    centred = scores - scores.mean(0)
    others = -centred / (count - 1)  # the mean of the others, centred alike
    squares = (centred**2).sum(0) - centred**2 - (count - 1) * others**2
    spread = np.sqrt(np.maximum(squares, 0.0) / (count - 2))
    gap = centred - others
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.where(gap == 0.0, 0.0, gap / spread)
    placed: Floats = norm.cdf(found)
    return placed


def record_losses(module: nn.Module, task: Task, examples: Examples) -> Losses:
    """Return the function from a model's parameters to each record's loss, in their precision."""

    def of(params: Params) -> Floats:
        precision = next(iter(params.values())).dtype
        fields = {
            n: t.to(precision) if t.is_floating_point() else t for n, t in examples.fields.items()
        }
        found = [
            task.losses(outputs, batch).double().cpu()
            for _, outputs, batch in batches(module, task, params, Examples(fields))
        ]
        return torch.cat(found).numpy()

    return of


def leaked_tokens(table: Tensor) -> Bools:
    """Return which token ids a plain update reveals, [V]: the embedding rows that moved."""
    found: Bools = (table != 0).any(-1).cpu().numpy()
    found[PAD] = False
    return found


def leaked_labels(bias: Tensor) -> Bools:
    """Return the labels whose bias rose.

    This is exact for one plain step in which no label is predicted well. A label's bias moves by
    lr · (its share of the batch - its mean probability) (after Zhao et al., 2020).
    """
    found: Bools = (bias > 0).cpu().numpy()
    return found


def hits(said: Bools, truth: Bools) -> tuple[float, float]:
    """Return precision and recall of a set.

    Precision is 1 for an empty answer, recall is 1 where there is nothing to find.
    """
    right = float((said & truth).sum())
    return right / said.sum() if said.any() else 1.0, right / truth.sum() if truth.any() else 1.0
