"""A text model with a gap in one sentence, as the callables that searches for a code work on."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedsim.audit.extraction import Loss, NextLogProbs
from fedsim.errors import WrongInput
from fedsim.types import PAD, Params

Outputs = Mapping[str, Tensor]


def relaxed_loss(
    module: nn.Module,
    params: Params,
    losses: Callable[[Outputs, Tensor], Tensor],
    tokens: Tensor,
    gap: int,
    candidates: Tensor,
) -> Loss:
    """Return mixtures [B, length, candidates] -> losses [B] of the sentence with mixed embeddings
    in its gap.

    tokens: [T] ids, anything in the gap, which begins at `gap`, or [S, T] of several sentences, to
    which the mixtures then belong in S equal parts, one after another; candidates: [V'] ids. The
    sentences get a table of their own, one row a token, so any model that reads its ids through one
    embedding table works unchanged. losses: (outputs, ids [B, T]) -> [B]; of the ids only PAD means
    anything.
    """
    name = _table(module)
    table = params[name]
    sentences = torch.atleast_2d(tokens)
    places = (
        torch.arange(1, sentences.numel() + 1)
        .view(sentences.shape)
        .masked_fill(sentences == PAD, PAD)
    )

    def of(mixtures: Tensor) -> Tensor:
        batch, length, _ = mixtures.shape
        mixed = mixtures @ table[candidates]
        own = torch.cat([table[PAD : PAD + 1], table[sentences.flatten()], mixed.flatten(0, 1)])
        ids = places.repeat_interleave(batch // len(sentences), dim=0)
        first = 1 + sentences.numel()
        ids[:, gap : gap + length] = (first + torch.arange(batch * length)).view(batch, length)
        return losses(functional_call(module, {**params, name: own}, (ids,)), ids)

    return of


def next_log_probs(
    module: nn.Module, params: Params, prefix: Tensor, candidates: Tensor
) -> NextLogProbs:
    """Return the log odds of each candidate behind prefix [T] and the first tokens of a code.

    For a language model, whose outputs have `next` [B, T, vocabulary].
    """

    def of(codes: Tensor) -> Tensor:
        ids = torch.cat([prefix.repeat(len(codes), 1), candidates[codes]], dim=1)
        with torch.no_grad():
            logits = functional_call(module, params, (ids,))["next"][:, -1]
        return logits.log_softmax(-1)[:, candidates]

    return of


def _table(module: nn.Module) -> str:
    tables: Mapping[str, str] = getattr(module, "tables", {})
    if list(tables.values()) != ["tokens"]:
        raise WrongInput(
            "ModIvA mixes the rows of one embedding table over tokens; "
            f"{type(module).__name__}.tables names {dict(tables) or 'none'}"
        )
    return next(iter(tables))
