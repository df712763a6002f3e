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
    """Return mixtures [B, length, candidates] -> losses [B] of the sentence with mixed embeddings in its gap.

    tokens: [T] ids, anything in the gap, which begins at `gap`; candidates: [V'] ids. The sentence gets a
    table of its own, one row a token, so any model that reads its ids through one embedding table works
    unchanged. losses: (outputs, ids [B, T]) -> [B]; of the ids only PAD means anything.
    """
    name = _table(module)
    table = params[name]

    def of(mixtures: Tensor) -> Tensor:
        batch, length, _ = mixtures.shape
        mixed = mixtures @ table[candidates]
        own = torch.cat([table[PAD : PAD + 1], table[tokens], mixed.flatten(0, 1)])
        ids = torch.arange(1, len(tokens) + 1).masked_fill(tokens == PAD, PAD).repeat(batch, 1)
        ids[:, gap : gap + length] = (1 + len(tokens) + torch.arange(batch * length)).view(batch, length)
        return losses(functional_call(module, {**params, name: own}, (ids,)), ids)

    return of


def next_log_probs(module: nn.Module, params: Params, prefix: Tensor, candidates: Tensor) -> NextLogProbs:
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
            f"ModIvA mixes the rows of one embedding table over tokens; {type(module).__name__}.tables "
            f"names {dict(tables) or 'none'}"
        )
    return next(iter(tables))
