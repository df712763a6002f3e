"""Extraction of canaries' codes from a model: by beam search, greedy search and ModIvA."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from fedsim.app.audits.audited import Audited
from fedsim.app.audits.canaries.canary_search import CanarySearch, Exposed
from fedsim.audit.canary_patterns import Canary
from fedsim.audit.extraction import Guess, beam, success
from fedsim.audit.findings import Extraction
from fedsim.audit.modiva import Search, modiva_each
from fedsim.audit.whitebox import next_log_probs, relaxed_loss
from fedsim.seeds import torch_generator
from fedsim.types import Params

BEAM = 10


def extracted(search: CanarySearch, found: Sequence[Exposed]) -> dict[int, Extraction]:
    """Return how correct each canary's extracted code is, with the ceiling and the control.

    Language models are searched greedily and by beam. Models with one embedding table are searched
    by ModIvA. The ceiling is the likeliest of all codes. The result is empty if no search fits the
    model.
    """
    audited = search.audited
    joined = search.reading.pattern.joined
    if audited.config.data.task == "language" and not joined:
        return {i: _extraction(search, i, found[i], *_beamed(search, i)) for i in range(len(found))}
    module, _ = _one_table(audited)
    mixed = list(getattr(module, "tables", {}).values()) == ["tokens"]
    if joined or not mixed or audited.config.data.ngrams:
        return {
            i: _extraction(search, i, found[i]) for i in range(len(found)) if found[i].likeliest
        }
    return {i: _extraction(search, i, found[i], guess) for i, guess in enumerate(_modiva(search))}


def _extraction(
    search: CanarySearch,
    number: int,
    found: Exposed,
    best: Guess | None = None,
    greedy: Guess | None = None,
) -> Extraction:
    """Return how correct the guesses are, with the ceiling and the control.

    The greedy guess, or else the best one, is also compared with the control.
    """
    own = search.canaries[number]
    control = search.nulls(number)[0]
    digits, exact = _right(best, own)
    greedy_digits, greedy_exact = _right(greedy, own)
    ceiling_digits, ceiling_exact = _right(
        Guess(found.likeliest, 0.0) if found.likeliest else None, own
    )
    return Extraction(
        digit_accuracy=digits,
        exact_match=exact,
        greedy_digit_accuracy=greedy_digits,
        greedy_exact_match=greedy_exact,
        ceiling_digit_accuracy=ceiling_digits,
        ceiling_exact_match=ceiling_exact,
        control_digit_accuracy=_right(greedy or best, control)[0],
    )


def _right(guess: Guess | None, canary: Canary) -> tuple[float | None, float | None]:
    """Return the share of a code's tokens that a guess has right, and 1.0 if all are right."""
    if guess is None:
        return None, None
    right = success(guess, canary.code.tolist(), len(canary.pattern.candidates))
    return right.digit_accuracy, float(right.exact_match)


def _modiva(search: CanarySearch) -> list[Guess]:
    """Return the code that ModIvA finds for each canary; it searches for all in one batch."""
    audited = search.audited
    pattern = search.reading.pattern
    fields = search.reading.examples(
        [c.sentence for c in search.canaries]
    ).fields  # the codes are placeholders in the gap
    candidates = torch.tensor(search.reading.vocabulary.ids(pattern.candidates))
    module, params = _one_table(audited)

    def losses(outputs: Mapping[str, Tensor], ids: Tensor) -> Tensor:
        # all canaries share one label and the same tags
        batch = {name: t[:1].expand(len(ids), *t.shape[1:]) for name, t in fields.items()}
        return audited.task.losses(outputs, {**batch, "tokens": ids})

    module.eval()
    loss = relaxed_loss(module, params, losses, fields["tokens"], pattern.gap, candidates)
    rng = torch_generator(search.seed, "canary", "modiva")
    targets = len(search.canaries)
    guesses = modiva_each(loss, pattern.length, len(candidates), Search(), rng, targets)
    module.train()
    return guesses


def _one_table(audited: Audited) -> tuple[nn.Module, Params]:
    """Return the model with one embedding table, and its parameters on the CPU.

    Each word then has a single row, so a mixture of words is a mixture of rows.
    """
    params = {name: p.cpu() for name, p in audited.params.items()}
    fold = getattr(audited.module, "as_one_table", None)
    return fold(params) if fold else (audited.module, params)


def _beamed(search: CanarySearch, number: int) -> tuple[Guess, Guess]:
    """Return the best code by beam search and by greedy search."""
    audited = search.audited
    canary = search.canaries[number]
    pattern = canary.pattern
    ids = torch.tensor([search.reading.ids(canary.sentence)[: pattern.gap]])
    candidates = torch.tensor(search.reading.vocabulary.ids(pattern.candidates))
    params = {name: p.cpu() for name, p in audited.params.items()}
    audited.module.eval()
    odds = next_log_probs(audited.module, params, ids[0], candidates)
    found = (beam(odds, pattern.length, BEAM)[0], beam(odds, pattern.length, 1)[0])
    audited.module.train()
    return found
