"""ModIvA: an open-box search for a canary's code by gradients.

After Parikh et al. (2022), arXiv 2203.13920. The unknown tokens are relaxed to mixtures of
candidates. The search minimises the target's loss over the mixtures while a temperature turns them
into choices. Many restarts run as one batch.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fedsim.audit.extraction import Guess, Loss, one_hot
from fedsim.errors import WrongInput


@dataclass(frozen=True)
class Search:
    """How ModIvA searches."""

    restarts: int = 8
    steps: int = 300
    lr: float = 0.05
    warm: float = 1.0
    cold: float = 0.1
    """The temperature falls geometrically from warm to cold."""
    gumbel: bool = False
    """Whether each step adds Gumbel noise to the logits, which makes a mixture a random draw.

    After Jang et al. (2017).
    """
    check: int = 10
    """Every so many steps the choices of the logits are scored, with and without noise."""
    spread: float = 1.0
    """Standard deviation of the first logits."""


def modiva(loss: Loss, length: int, candidates: int, search: Search, rng: torch.Generator) -> Guess:
    """Return the code with the lowest loss that the logits of any restart chose in any step.

    loss: mixtures [B, length, candidates] -> the target's loss [B], differentiable; rows are
    independent.
    """
    return modiva_each(loss, length, candidates, search, rng, 1)[0]


def modiva_each(
    loss: Loss, length: int, candidates: int, search: Search, rng: torch.Generator, targets: int
) -> list[Guess]:
    """Return the same for several targets, whose restarts run as one batch, target by target."""
    if search.restarts < 1 or search.steps < 1:
        raise WrongInput(
            f"a search wants restarts and steps, got {search.restarts} and {search.steps}"
        )
    shape = (targets * search.restarts, length, candidates)
    logits = (search.spread * torch.randn(shape, generator=rng)).requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=search.lr)
    best = score_choice(loss, logits, targets)
    for step in range(1, search.steps + 1):
        temperature = search.warm * (search.cold / search.warm) ** (step / search.steps)
        noise = _gumbel(shape, rng) if search.gumbel else 0.0
        (grad,) = torch.autograd.grad(
            loss(((logits + noise) / temperature).softmax(-1)).sum(), logits
        )
        logits.grad = torch.where(grad.isfinite(), grad, 0.0)
        optimizer.step()
        if step % search.check == 0 or step == search.steps:
            for z in [logits, logits + noise] if search.gumbel else [logits]:
                best = [
                    min(pair, key=_loss)
                    for pair in zip(best, score_choice(loss, z, targets), strict=True)
                ]
    return best


def score_choice(loss: Loss, logits: Tensor, targets: int = 1) -> list[Guess]:
    """Return each target's best code among those its logits [targets · restarts, ...] choose."""
    with torch.no_grad():
        codes = logits.argmax(-1)
        found = loss(one_hot(codes, logits.shape[-1])).nan_to_num(torch.inf)
    rows = found.view(targets, -1).argmin(1) + torch.arange(targets) * (len(found) // targets)
    return [Guess(tuple(codes[row].tolist()), float(found[row])) for row in rows.tolist()]


def _loss(guess: Guess) -> float:
    return guess.loss


def _gumbel(shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
    return -torch.log(-torch.log(torch.rand(shape, generator=rng).clamp(1e-9, 1 - 1e-7)))
