"""Extraction of a code: guesses, how right they are, and searches that need no gradient."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedsim.audit.canary_patterns import ENUMERABLE
from fedsim.errors import WrongInput

Loss = Callable[[Tensor], Tensor]
"""Mixtures of candidates [B, length, candidates], rows summing to 1 -> the target's loss [B]."""
NextLogProbs = Callable[[Tensor], Tensor]
"""First tokens of codes [B, k], as candidate indices -> next log odds [B, candidates]."""


@dataclass(frozen=True)
class Guess:
    """A code as indices into the candidates, and the target's loss on it."""

    code: tuple[int, ...]
    loss: float


@dataclass(frozen=True)
class Success:
    """How right a guess is; beside each figure is the average of a blind guess."""

    exact_match: bool
    digit_accuracy: float
    hamming: float
    """The share of wrong places: the normalised Hamming distance."""
    chance_exact: float
    chance_digit: float


def success(guess: Guess, code: Sequence[int], candidates: int) -> Success:
    """Return how right the guess is."""
    right = [g == int(c) for g, c in zip(guess.code, code, strict=True)]
    share = sum(right) / len(right)
    return Success(
        exact_match=all(right),
        digit_accuracy=share,
        hamming=1 - share,
        chance_exact=float(candidates) ** -len(right),
        chance_digit=1 / candidates,
    )


def exhaustive(loss: Loss, length: int, candidates: int, batch: int = 1000) -> Guess:
    """Return the code with the lowest loss of all, which no search can beat.

    Up to 10,000 codes.
    """
    if candidates**length > ENUMERABLE:
        raise WrongInput(
            f"an exhaustive search covers up to {ENUMERABLE:,} codes, not {candidates**length:,}"
        )
    best = Guess((), torch.inf)
    for codes in _batches(length, candidates, batch):
        with torch.no_grad():
            found = loss(one_hot(codes, candidates))
        row = int(found.argmin())
        best = min(best, Guess(tuple(codes[row].tolist()), float(found[row])), key=lambda g: g.loss)
    return best


def beam(next_log_probs: NextLogProbs, length: int, width: int) -> list[Guess]:
    """Return up to `width` codes by a beam search from left to right, the likeliest first.

    A width of 1 is greedy search. A guess's loss is minus the log odds of the whole code.
    """
    if width < 1:
        raise WrongInput(f"a beam has a width of at least 1, got {width}")
    codes = torch.zeros(1, 0, dtype=torch.int64)
    total = torch.zeros(1)
    for _ in range(length):
        each = total[:, None] + next_log_probs(codes)
        total, flat = each.flatten().topk(min(width, each.numel()))
        row = flat // each.shape[1]
        token = flat % each.shape[1]
        codes = torch.cat([codes[row], token[:, None]], dim=1)
    return [Guess(tuple(c.tolist()), -float(t)) for c, t in zip(codes, total, strict=True)]


def one_hot(codes: Tensor, candidates: int) -> Tensor:
    """Return mixtures [B, length, candidates] that put all weight on one candidate."""
    return torch.nn.functional.one_hot(codes, candidates).float()


def _batches(length: int, candidates: int, batch: int) -> Iterator[Tensor]:
    every = itertools.product(range(candidates), repeat=length)
    while rows := list(itertools.islice(every, batch)):
        yield torch.tensor(rows)
