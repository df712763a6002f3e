"""The attack ladder: a score for each record from predictions of one model and of references.

Every attack is a pure function of a Target. A larger score means that membership is more likely.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp
from scipy.stats import norm

from fedsim.audit.scores import Bools, Floats, Target
from fedsim.errors import WrongInput

Attack = Callable[[Target], Floats]
RATIO_FROM = 1
POOLED_FROM = 8
PER_EXAMPLE_FROM = 64
"""Fewest references for the ratio, LiRA with one sigma, and LiRA with a sigma for each example.

The automatic choice uses them. LiRA runs from 4 references on. On Snips its AUC at 4 equalled the
ratio's, and its rate at 0.1 % was lower.
"""


def loss(target: Target) -> Floats:
    """Return log p_y (Yeom et al., 2018).

    A model gives the first record's label 3/4 and the second record's label 1/4:

    >>> import numpy as np
    >>> import torch
    >>> from fedsim import Target, loss, predictions
    >>> labels = torch.tensor([0, 1])
    >>> own = predictions(torch.tensor([[0.75, 0.25], [0.75, 0.25]]).log(), labels)
    >>> nobody = predictions(torch.zeros(0, 2, 2), labels)
    >>> target = Target(np.array([True, False]), own, np.zeros((0, 2), dtype=bool), nobody)
    >>> np.exp(loss(target)).round(2).tolist()
    [0.75, 0.25]
    """
    return target.own.logp


def gap(target: Target) -> Floats:
    """Return 1 where the prediction is right, else 0 (Yeom et al., 2018; the "gap attack")."""
    return target.own.correct.astype(np.float64)


def modified_entropy(target: Target) -> Floats:
    """Return minus the modified entropy (Song and Mittal, 2021)."""
    return -target.own.entropy


def calibrated_loss(target: Target) -> Floats:
    """Return phi - mean phi of models that did not see the record (Watson et al., 2022)."""
    out = _only(target, members=False, at_least=1, attack="calibrated loss")
    return target.own.phi - _mean(target.others.phi, out)


def ratio(target: Target) -> Floats:
    """Return log p - log of the references' mean p: BASE, and RMIA online for one fixed target.

    BASE: Lassila et al., 2025; RMIA: Zarifzadeh et al., 2024.

    The model gives both labels 3/4. The reference also gives the second label 3/4, so only the
    first record looks like a member:

    >>> import numpy as np
    >>> import torch
    >>> from fedsim import Target, predictions, ratio
    >>> labels = torch.tensor([0, 0])
    >>> own = predictions(torch.tensor([[0.75, 0.25], [0.75, 0.25]]).log(), labels)
    >>> others = predictions(torch.tensor([[[0.25, 0.75], [0.75, 0.25]]]).log(), labels)
    >>> target = Target(np.array([True, False]), own, np.array([[False, False]]), others)
    >>> np.exp(ratio(target)).round(2).tolist()
    [3.0, 1.0]
    """
    if target.references < 1:
        raise WrongInput("attack 'ratio' needs at least one reference model, got none")
    return target.own.logp - _log_mean(target.others.logp, np.ones_like(target.keep))


def ratio_offline(target: Target, a: float = 0.0) -> Floats:
    """Return log p - log p(x) with p(x) = ((1 + a) mean_out p + 1 - a) / 2.

    After Zarifzadeh et al. (2024).
    """
    out = _only(target, members=False, at_least=1, attack="ratio_offline")
    mean_out = np.exp(_log_mean(target.others.logp, out))
    return target.own.logp - np.log(((1 + a) * mean_out + 1 - a) / 2)


def lira(target: Target, sigma: str = "pooled") -> Floats:
    """Return log N(phi; in) - log N(phi; out) (Carlini et al., 2022).

    sigma: "pooled" takes one standard deviation a side for all records, from the residuals about
    each record's mean. "example" takes each record's own. Raises WrongInput where no deviation can
    be estimated.

    phi is 3 and 5 with the record, -1 and 1 without it, and 4 in the target. This gives two normals
    of variance 2 about 4 and 0, whose log densities at 4 differ by 16 / 4:

    >>> import numpy as np
    >>> import torch
    >>> from fedsim import Target, lira, predictions
    >>> label = torch.tensor([0])
    >>> own = predictions(torch.tensor([[4.0, 0.0]]), label)
    >>> phi = torch.tensor([3.0, 5.0, -1.0, 1.0])
    >>> others = predictions(torch.stack([phi, torch.zeros(4)], dim=1)[:, None], label)
    >>> keep = np.array([[True], [True], [False], [False]])
    >>> lira(Target(np.array([True]), own, keep, others)).round(2).tolist()
    [4.0]
    """
    inside = _fitted(target, True, sigma, "lira")
    outside = _fitted(target, False, sigma, "lira")
    phi = target.own.phi
    return norm.logpdf(phi, *inside) - norm.logpdf(phi, *outside)


def lira_per_example(target: Target) -> Floats:
    """Return the score of LiRA online with each record's own deviations."""
    return lira(target, "example")


def lira_offline(target: Target, sigma: str = "pooled") -> Floats:
    """Return log P(Z <= phi), Z ~ N(out), from models without the record.

    This is the one-sided LiRA of Carlini et al. (2022). With one sigma for all records it orders
    them as `calibrated_loss` does.
    """
    return norm.logcdf(target.own.phi, *_fitted(target, False, sigma, "lira_offline"))


ATTACKS: dict[str, Attack] = {
    "loss": loss,
    "gap": gap,
    "modified_entropy": modified_entropy,
    "calibrated_loss": calibrated_loss,
    "ratio": ratio,
    "ratio_offline": ratio_offline,
    "lira": lira,
    "lira_per_example": lira_per_example,
    "lira_offline": lira_offline,
}


def choose(references: int, online: bool = True) -> str:
    """Return the attack that suits this many references.

    Without `online` none of the references saw the records.
    """
    if references < RATIO_FROM:
        return "loss"
    if references < POOLED_FROM:
        return "ratio" if online else "ratio_offline"
    if not online:
        return "lira_offline"
    return "lira" if references < PER_EXAMPLE_FROM else "lira_per_example"


def relative(own: Floats, population: Floats, gamma: float = 1.0) -> Floats:
    """Return RMIA's score: the share of population records z with ratio(x) >= gamma * ratio(z).

    `own` [N] and `population` [Z] are log ratios of one target. The share rises with the ratio, so
    the population only lowers the resolution (Zarifzadeh et al., 2024).
    """
    ranked = np.sort(population)
    return np.searchsorted(ranked, own - np.log(gamma), side="right") / len(ranked)


def _fitted(target: Target, members: bool, sigma: str, attack: str) -> tuple[Floats, Floats]:
    """Return mean and deviation of phi, [N] each, over the references on one side of the coin."""
    side = _only(target, members, at_least=2, attack=attack)
    phi = target.others.phi
    mean = _mean(phi, side)
    squares = np.where(side, (phi - mean) ** 2, 0.0)
    if sigma == "pooled":
        spread = np.full_like(mean, np.sqrt(squares.sum() / (side.sum() - side.shape[1])))
    elif sigma == "example":
        spread = np.sqrt(squares.sum(0) / (side.sum(0) - 1))
    else:
        raise WrongInput(f"sigma = {sigma!r} is not known; choose pooled or example")
    if not (spread > 0).all():
        raise WrongInput(
            f"attack {attack!r}: {int((spread <= 0).sum())} records have the same phi in all "
            "references, so that no deviation is known; use 'ratio'"
        )
    return mean, spread


def _only(target: Target, members: bool, at_least: int, attack: str) -> Bools:
    """Return keep or its complement [R, N].

    Raises WrongInput where a record has too few such references.
    """
    side = target.keep if members else ~target.keep
    fewest = int(side.sum(0).min()) if len(side) else 0
    if fewest < at_least:
        word = "IN" if members else "OUT"
        raise WrongInput(
            f"attack {attack!r} needs at least {at_least} {word} reference(s) for each record; "
            f"one has {fewest} of {target.references}; use "
            f"{choose(min(target.references, POOLED_FROM - 1))!r}"
        )
    return side


def _mean(values: Floats, side: Bools) -> Floats:
    return np.where(side, values, 0.0).sum(0) / side.sum(0)


def _log_mean(logs: Floats, side: NDArray[np.bool_]) -> Floats:
    return logsumexp(np.where(side, logs, -np.inf), axis=0) - np.log(side.sum(0))
