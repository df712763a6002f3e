"""Codes of canaries extracted from a model: by beam, by greedy search and by ModIvA."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from fedsim.app.audits.audited import Audited
from fedsim.app.audits.canaries.canary_search import CanarySearch, Exposed
from fedsim.app.rundir.files import Row
from fedsim.audit.extraction import Guess, beam, success
from fedsim.audit.modiva import Search, modiva_each
from fedsim.audit.whitebox import next_log_probs, relaxed_loss
from fedsim.seeds import torch_generator
from fedsim.types import Params

BEAM = 10


def extracted(search: CanarySearch, found: Sequence[Exposed]) -> dict[int, Row]:
    """Return how right the code is that is extracted for each canary, beside ceiling and control.

    Searches: greedy and beam in language models; ModIvA in models with one embedding table; the ceiling is
    the likeliest of all codes. Empty where there is no search for the model.
    """
    audited, joined = search.audited, search.reading.pattern.joined
    if audited.config.data.task == "language" and not joined:
        return {i: _row(search, i, _beamed(search, i), found[i]) for i in range(len(found))}
    module, _ = _one_table(audited)
    mixed = list(getattr(module, "tables", {}).values()) == ["tokens"]
    if joined or not mixed or audited.config.data.ngrams:
        return {i: _row(search, i, {}, found[i]) for i in range(len(found)) if found[i].likeliest}
    return {i: _row(search, i, {"": guess}, found[i]) for i, guess in enumerate(_modiva(search))}


def _row(search: CanarySearch, number: int, guesses: Mapping[str, Guess], found: Exposed) -> Row:
    """Return the figures of guesses (by a prefix of their names), of the ceiling and of the control."""
    canary, control = search.canaries[number], search.nulls(number)[0]
    ceiling = {"ceiling_": Guess(found.likeliest, 0.0)} if found.likeliest else {}
    row: Row = {}
    for prefix, guess in {**guesses, **ceiling}.items():
        right = success(guess, canary.code.tolist(), len(canary.pattern.candidates))
        row |= {
            f"{prefix}digit_accuracy": right.digit_accuracy,
            f"{prefix}exact_match": float(right.exact_match),
        }
    for guess in guesses.values():
        right = success(guess, control.code.tolist(), len(canary.pattern.candidates))
        row["control_digit_accuracy"] = right.digit_accuracy
    return row


def _modiva(search: CanarySearch) -> list[Guess]:
    """Return the code that ModIvA finds for each canary; all are sought as one batch."""
    audited, pattern = search.audited, search.reading.pattern
    fields = search.reading.examples([c.sentence for c in search.canaries]).fields  # codes only fill the gap
    candidates = torch.tensor(search.reading.vocabulary.ids(pattern.candidates))
    module, params = _one_table(audited)

    def losses(outputs: Mapping[str, Tensor], ids: Tensor) -> Tensor:
        # label and tags are those of all canaries
        batch = {name: t[:1].expand(len(ids), *t.shape[1:]) for name, t in fields.items()}
        return audited.task.losses(outputs, {**batch, "tokens": ids})

    module.eval()
    loss = relaxed_loss(module, params, losses, fields["tokens"], pattern.gap, candidates)
    rng, targets = torch_generator(search.seed, "canary", "modiva"), len(search.canaries)
    guesses = modiva_each(loss, pattern.length, len(candidates), Search(), rng, targets)
    module.train()
    return guesses


def _one_table(audited: Audited) -> tuple[nn.Module, Params]:
    """Return the model with all that it knows of a word in one row, which mixtures of words then mix."""
    params = {name: p.cpu() for name, p in audited.params.items()}
    fold = getattr(audited.module, "as_one_table", None)
    return fold(params) if fold else (audited.module, params)


def _beamed(search: CanarySearch, number: int) -> dict[str, Guess]:
    audited, canary = search.audited, search.canaries[number]
    pattern = canary.pattern
    ids = torch.tensor([search.reading.ids(canary.sentence)[: pattern.gap]])
    candidates = torch.tensor(search.reading.vocabulary.ids(pattern.candidates))
    params = {name: p.cpu() for name, p in audited.params.items()}
    audited.module.eval()
    odds = next_log_probs(audited.module, params, ids[0], candidates)
    found = {"": beam(odds, pattern.length, BEAM)[0], "greedy_": beam(odds, pattern.length, 1)[0]}
    audited.module.train()
    return found
