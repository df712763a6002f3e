"""A text model with a gap in one sentence, as functions for the searches for a code."""

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
    """Return the function from mixtures [B, length, candidates] to the sentence's losses [B].

    The gap of the sentence holds the mixed embeddings. tokens: [T] ids; the gap begins at `gap`,
    and its ids do not matter. With [S, T] ids of several sentences, the mixtures belong to them in
    S equal parts, one after another. candidates: [V'] ids. losses: (outputs, ids [B, T]) -> [B];
    only PAD has a meaning among these ids.

    The sentences get their own table, with one row a token. So any model that reads its ids through
    one embedding table works unchanged.
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
    """Return the log odds of each candidate after prefix [T] and the first tokens of a code.

    It needs a language model, whose outputs have `next` [B, T, vocabulary].
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
