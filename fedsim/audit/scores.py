"""The score store: which model trained on which record, and how well each model predicts it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim.errors import WrongInput
from fedsim.seeds import generator

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
NAMES = ("logp", "phi", "entropy", "correct")


@dataclass(frozen=True)
class Predictions:
    """Predictions of models on the true labels of N records; all arrays are [..., N]."""

    logp: Floats
    """log p_y."""
    phi: Floats
    """log p_y - log of the other labels' probability: the logit of p_y."""
    entropy: Floats
    """Modified entropy: small where the model is sure and right."""
    correct: Bools

    def __getitem__(self, models: int | NDArray[np.int64]) -> "Predictions":
        return Predictions(
            self.logp[models], self.phi[models], self.entropy[models], self.correct[models]
        )


@dataclass(frozen=True)
class Target:
    """One model under attack and the reference models that the attacker has trained.

    The second record is easy for every model, and the reference shows it:

    >>> import numpy as np
    >>> import torch
    >>> from fedsim import Target, predictions
    >>> labels = torch.tensor([0, 0])
    >>> own = predictions(torch.tensor([[3.0, 0.0], [3.0, 0.0]]), labels)
    >>> others = predictions(torch.tensor([[[0.0, 0.0], [3.0, 0.0]]]), labels)
    >>> keep = np.array([[False, True]])
    >>> target = Target(np.array([True, False]), own, keep, others)
    >>> target.references
    1
    >>> (target.own.phi - target.others.phi[0]).tolist()
    [3.0, 0.0]
    """

    member: Bools
    """[N], the truth; no attack reads it."""
    own: Predictions
    """[N], of the model under attack."""
    keep: Bools
    """[R, N]: which reference trained on which record."""
    others: Predictions
    """[R, N], of the references."""

    @property
    def references(self) -> int:
        return len(self.keep)


@dataclass(frozen=True)
class Scores:
    """M models, each trained on half of N records; models 2i and 2i + 1 on complementary halves."""

    keep: Bools
    """[M, N]"""
    predictions: Predictions
    """[M, N]"""

    def __post_init__(self) -> None:
        models, records = self.keep.shape
        if self.predictions.phi.shape != (models, records):
            raise WrongInput(
                f"keep is {self.keep.shape} and the scores are {self.predictions.phi.shape}"
            )
        if models % 2 or (self.keep[0::2] == self.keep[1::2]).any():
            raise WrongInput(
                "models want complementary pairs: each record in exactly one of 2i and 2i + 1"
            )

    def target(self, model: int, references: int | None = None) -> Target:
        """Return `model` as the target; the pairs after its own, cyclically, are its references.

        The other model of its pair is excluded, because it reveals the answer. Raises WrongInput
        for an odd number of references, or more than there are.
        """
        models = len(self.keep)
        wanted = models - 2 if references is None else references
        if wanted % 2 or not 0 <= wanted <= models - 2:
            raise WrongInput(
                f"{wanted} references are not to be had: an even number up to {models - 2}"
            )
        first = model - model % 2 + 2
        chosen = (first + np.arange(wanted)) % models
        return Target(
            self.keep[model], self.predictions[model], self.keep[chosen], self.predictions[chosen]
        )

    def save(self, path: Path) -> None:
        """Write the store as npz; a failed write leaves an older file as it was."""
        p = self.predictions
        aside = path.with_suffix(".part.npz")
        np.savez_compressed(
            aside, keep=self.keep, logp=p.logp, phi=p.phi, entropy=p.entropy, correct=p.correct
        )
        aside.replace(path)


def load_scores(path: Path) -> Scores:
    """Return the store that `save` wrote."""
    with np.load(path, allow_pickle=False) as arrays:
        return Scores(arrays["keep"], Predictions(*(arrays[name] for name in NAMES)))


def fair_coins(models: int, records: int, seed: int) -> Bools:
    """Return keep [models, records]: a fair coin for each record and pair of models.

    The second model of a pair has the opposite coins. Raises WrongInput for an odd number of
    models.
    """
    if models < 2 or models % 2:
        raise WrongInput(
            f"shadow models come in complementary pairs; want an even number, got {models}"
        )
    first = [generator(seed, "coins", pair).random(records) < 0.5 for pair in range(models // 2)]
    return np.stack([half for coins in first for half in (coins, ~coins)])


def predictions(logits: Tensor, labels: Tensor) -> Predictions:
    """Return the predictions of logits [..., N, C] on the labels [N].

    phi is z_y - log sum_{y' != y} exp z_{y'} (Carlini et al., 2022, stable form); modified entropy
    is -(1 - p_y) log p_y - sum_{y' != y} p_{y'} log(1 - p_{y'}) (Song and Mittal, 2021).

    >>> import torch
    >>> from fedsim import predictions
    >>> found = predictions(torch.tensor([[2.0, 0.0], [2.0, 0.0]]), labels=torch.tensor([0, 1]))
    >>> found.phi.tolist()
    [2.0, -2.0]
    >>> found.correct.tolist()
    [True, False]
    """
    if logits.shape[-1] < 2:
        raise WrongInput("a membership score needs at least two labels")
    z = logits.double()
    log_p = z.log_softmax(-1)
    at = labels.expand(z.shape[:-1]).unsqueeze(-1)
    others = z.scatter(-1, at, -torch.inf)
    logp = log_p.gather(-1, at).squeeze(-1)
    phi = z.gather(-1, at).squeeze(-1) - others.logsumexp(-1)
    right = z.argmax(-1) == at.squeeze(-1)
    return Predictions(
        logp.numpy(), phi.numpy(), _modified_entropy(log_p, at).numpy(), right.numpy()
    )


def side_by_side(models: Sequence[Predictions]) -> Predictions:
    """Return the predictions of M models, [N] each, as [M, N]."""
    return Predictions(*(np.stack([getattr(p, name) for p in models]) for name in NAMES))


def stack(parts: Sequence[Predictions]) -> Predictions:
    """Join the predictions of several groups of models, [m, N] each, along the models."""
    return Predictions(*(np.concatenate([getattr(p, name) for p in parts]) for name in NAMES))


def _modified_entropy(log_p: Tensor, at: Tensor) -> Tensor:
    log_rest = torch.log((-torch.expm1(log_p)).clamp(min=torch.finfo(log_p.dtype).tiny))
    wrong = (log_p.exp() * log_rest).scatter(-1, at, 0.0).sum(-1)
    return -(log_rest.gather(-1, at).exp() * log_p.gather(-1, at)).squeeze(-1) - wrong
