"""The canaries of a run sought in its models: exposure by exact ranking, codes extracted, the rows.

Every canary is compared with codes that were drawn alike and never planted: their exposure is the null of
this very model, and a code that was extracted is held against one of them, too (the control).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim.app.audits import FILE, Audited
from fedsim.app.loading import changes_of
from fedsim.app.membership import deciles
from fedsim.app.planting import Cell, Reading, canaries_of, cells, natural_activity, plan_of, reading_of
from fedsim.app.rundir import Row
from fedsim.audit.canaries import ENUMERABLE, Canary, completions, position, references
from fedsim.audit.exposure import (
    exposure,
    exposure_by_fit,
    joint_p_value,
    largest_mean,
    null_mean,
    null_standard_error,
    rank,
    rank_among,
)
from fedsim.audit.extraction import Guess, beam, success
from fedsim.audit.modiva import Search, modiva_each
from fedsim.audit.openbox import next_log_probs, relaxed_loss
from fedsim.audit.scores import Floats
from fedsim.data.pool import pooled
from fedsim.models.evaluation import batches
from fedsim.privacy.accounting import epsilon, group_epsilon
from fedsim.seeds import generator, torch_generator
from fedsim.types import Params

NULLS = 10
"""Codes never planted that are ranked beside each canary."""
REFERENCES = 4095
"""Codes that a canary of a space too large to list is ranked among: at most 12 bits."""
BATCH = 2000
BEAM = 10


@dataclass(frozen=True)
class Exposed:
    """How one canary stands in one model."""

    exposure: float
    nulls: Floats
    """[NULLS] exposures of codes that were never planted, behind the same words."""
    fitted: float | None = None
    """By a skew-normal: an estimate, for spaces too large to list."""
    likeliest: tuple[int, ...] = ()
    """The code with the lowest loss of all; empty for those spaces."""


@dataclass(frozen=True)
class Hunt:
    """What seeks the canaries of a run in a model."""

    audited: Audited
    reading: Reading
    canaries: Sequence[Canary]
    seed: int

    @cached_property
    def codes(self) -> NDArray[np.int64]:
        """The codes [n, length] that canaries are ranked among."""
        pattern = self.reading.pattern
        if pattern.space <= ENUMERABLE:
            return completions(pattern)
        return references(pattern, REFERENCES, generator(self.seed, "canary", "references"))

    def nulls(self, number: int) -> list[Canary]:
        """Return canaries of the same words whose codes were never planted."""
        canary, rng = self.canaries[number], generator(self.seed, "canary", "null", number)
        return [Canary(canary.pattern, canary.word, c) for c in references(canary.pattern, NULLS, rng)]

    def losses(self, params: Params, word: str, codes: NDArray[np.int64]) -> Floats:
        """Return the loss [n] of the sentences with this word and each of the codes."""
        audited, examples = self.audited, self.reading.completed(word, codes)
        found = [
            audited.task.losses(outputs, fields).double().cpu()
            for _, outputs, fields in batches(audited.module, audited.task, params, examples, BATCH)
        ]
        return torch.cat(found).numpy()


def canary_rows(audited: Audited) -> list[Row]:
    """Return a row for each way of planting, and slices over holders' activity."""
    hunt = _hunt(audited)
    found = exposures(hunt, lambda word, codes: hunt.losses(audited.params, word, codes))
    right = extracted(hunt, found) if audited.ended else {}
    kinds, rows = cells(audited.config.canary), []
    for turn, cell in enumerate(kinds):
        mine = range(turn, len(found), len(kinds))
        row = threat(hunt, cell, "final") | figures(hunt, [found[i] for i in mine])
        row |= _mean([right[i] for i in mine]) if right else {}
        rows.append(row | _bound(audited, cell, hunt.reading.pattern.space))
    if audited.ended and "rounds" in audited.config.audit.view:
        rows += [best for row in rows if (best := over_rounds(audited, row))]
    return rows + list(_slices(hunt, found))


def exposures(hunt: Hunt, losses: Callable[[str, NDArray[np.int64]], Floats]) -> list[Exposed]:
    """Return each canary's exposure by a loss [n] of codes [n, length] behind a word."""
    return [_exposed(hunt, number, losses) for number in range(len(hunt.canaries))]


def _exposed(hunt: Hunt, number: int, losses: Callable[[str, NDArray[np.int64]], Floats]) -> Exposed:
    canary, nulls = hunt.canaries[number], hunt.nulls(number)
    space = canary.pattern.space
    rng = generator(hunt.seed, "canary", "ties", hunt.audited.round, number)
    if space <= ENUMERABLE:
        found = losses(canary.word, hunt.codes)
        own, *others = (exposure(rank(found, position(c), rng), space) for c in (canary, *nulls))
        return Exposed(own, np.array(others), None, tuple(hunt.codes[int(found.argmin())].tolist()))
    planted = np.stack([canary.code, *(null.code for null in nulls)])
    found = losses(canary.word, np.concatenate([planted, hunt.codes]))
    among = found[len(planted) :]
    own, *others = (exposure(rank_among(x, among, rng), len(among) + 1) for x in found[: len(planted)])
    return Exposed(own, np.array(others), exposure_by_fit(float(found[0]), among, space))


def extracted(hunt: Hunt, found: Sequence[Exposed]) -> dict[int, Row]:
    """Return how right the code is that is extracted for each canary, beside ceiling and control.

    Searches: greedy and beam in language models; ModIvA in models with one embedding table; the ceiling is
    the likeliest of all codes. Empty where there is no search for the model.
    """
    audited = hunt.audited
    if audited.config.data.task == "language":
        return {i: _row(hunt, i, _beamed(hunt, i), found[i]) for i in range(len(found))}
    if list(getattr(audited.module, "tables", {}).values()) != ["tokens"] or audited.config.data.ngrams:
        return {i: _row(hunt, i, {}, found[i]) for i in range(len(found)) if found[i].likeliest}
    return {i: _row(hunt, i, {"": guess}, found[i]) for i, guess in enumerate(_modiva(hunt))}


def _row(hunt: Hunt, number: int, guesses: Mapping[str, Guess], found: Exposed) -> Row:
    """Return the figures of guesses (by a prefix of their names), of the ceiling and of the control."""
    canary, control = hunt.canaries[number], hunt.nulls(number)[0]
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


def _modiva(hunt: Hunt) -> list[Guess]:
    """Return the code that ModIvA finds for each canary; all are sought as one batch."""
    audited, pattern = hunt.audited, hunt.reading.pattern
    fields = hunt.reading.examples([c.sentence for c in hunt.canaries]).fields  # codes only fill the gap
    candidates = torch.tensor(hunt.reading.vocabulary.ids(pattern.candidates))
    params = {name: p.cpu() for name, p in audited.params.items()}

    def losses(outputs: Mapping[str, Tensor], ids: Tensor) -> Tensor:
        # label and tags are those of all canaries
        batch = {name: t[:1].expand(len(ids), *t.shape[1:]) for name, t in fields.items()}
        return audited.task.losses(outputs, {**batch, "tokens": ids})

    audited.module.eval()
    loss = relaxed_loss(audited.module, params, losses, fields["tokens"], pattern.gap, candidates)
    rng, targets = torch_generator(hunt.seed, "canary", "modiva"), len(hunt.canaries)
    guesses = modiva_each(loss, pattern.length, len(candidates), Search(), rng, targets)
    audited.module.train()
    return guesses


def _beamed(hunt: Hunt, number: int) -> dict[str, Guess]:
    audited, canary = hunt.audited, hunt.canaries[number]
    pattern = canary.pattern
    ids = torch.tensor([hunt.reading.ids(canary.sentence)[: pattern.gap]])
    candidates = torch.tensor(hunt.reading.vocabulary.ids(pattern.candidates))
    params = {name: p.cpu() for name, p in audited.params.items()}
    audited.module.eval()
    odds = next_log_probs(audited.module, params, ids[0], candidates)
    found = {"": beam(odds, pattern.length, BEAM)[0], "greedy_": beam(odds, pattern.length, 1)[0]}
    audited.module.train()
    return found


def threat(hunt: Hunt, cell: Cell, view: str) -> Row:
    """Return whose secret is sought where: the row's first fields."""
    settings = hunt.audited.config.canary
    unit = "group" if cell.devices > 1 else "device" if cell.copies > 1 else "example"
    return {
        "kind": "canary",
        "pattern": settings.pattern,
        "copies": cell.copies,
        "devices": cell.devices,
        "holders": cell.holders,
        "period": settings.period or 1,
        "view": view,
        "unit": unit,
    }


def figures(hunt: Hunt, found: Sequence[Exposed]) -> Row:
    """Return the exposures of canaries and of their nulls, with the joint p-value of the former."""
    pattern = hunt.reading.pattern
    own, nulls = np.array([f.exposure for f in found]), np.concatenate([f.nulls for f in found])
    row: Row = {
        "space": float(pattern.space),
        "canaries": len(found),
        "exposure_mean": float(own.mean()),
        "exposure_max": float(own.max()),
        "exposure_se": float(own.std(ddof=1) / len(own) ** 0.5) if len(own) > 1 else null_standard_error(1),
        "null_mean": float(nulls.mean()),
        "null_expected": null_mean(min(pattern.space, len(hunt.codes) + 1)),
        "p_value": joint_p_value(own),
        "chance": 1 / len(pattern.candidates),
        "exposures": own.tolist(),
        "null_exposures": nulls.tolist(),
    }
    fitted = [f.fitted for f in found if f.fitted is not None]
    return row | ({"exposure_fitted_mean": float(np.mean(fitted))} if fitted else {})


def over_rounds(audited: Audited, last: Row) -> Row | None:
    """Return the row of an attacker who keeps the model of every audited round and takes the best.

    Canaries and nulls both have their best round; the p-value pays for the choice (Bonferroni).
    """
    named = ("kind", "pattern", "copies", "devices", "holders", "period", "unit", "space", "canaries")
    same = [r for r in audited.run.rows(FILE) if all(r.get(n) == last[n] for n in named)]
    seen = [row for row in same if row["view"] == "final" and row["round"] != audited.round] + [last]
    if len(seen) < 2:
        return None
    own = np.max([row["exposures"] for row in seen], axis=0)
    nulls = np.max([row["null_exposures"] for row in seen], axis=0)
    paid = np.maximum(own - np.log2(len(seen)), 0.0)
    return {name: last[name] for name in (*named, "chance")} | {
        "view": "rounds",
        "rounds_seen": len(seen),
        "exposure_mean": float(own.mean()),
        "exposure_max": float(own.max()),
        "null_mean": float(nulls.mean()),
        "p_value": joint_p_value(paid),
        "exposures": own.tolist(),
        "null_exposures": nulls.tolist(),
    }


def _hunt(audited: Audited) -> Hunt:
    config = audited.config
    seed = changes_of(config).seed
    reading = reading_of(audited.holdings.dataset.spec, config.data, config.canary)
    return Hunt(audited, reading, canaries_of(config.canary, seed), seed)


def _bound(audited: Audited, cell: Cell, space: int) -> Row:
    """Return what DP allows the mean exposure to be, where its unit covers all copies of a canary.

    (1 + eps)/ln 2 and delta log2 |R|, at most log2 |R|. Copies on one device are one unit of device-level DP,
    and a group under example-level DP. The events are those of the unit with the largest epsilon.
    """
    dp = audited.config.dp
    if dp.unit == "none" or cell.devices > 1:
        return {}
    if dp.unit == "device":
        spent = epsilon(audited.events, audited.delta)
    else:
        spent = group_epsilon(audited.events, cell.copies, audited.delta)
    most = float(np.log2(space))
    bound = min(most, largest_mean(min(spent, most)) + audited.delta * most)
    return {"epsilon_bound": bound} | ({"epsilon": spent} if np.isfinite(spent) else {})


def _mean(rows: Sequence[Row]) -> Row:
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def _slices(hunt: Hunt, found: Sequence[Exposed]) -> Iterator[Row]:
    """Yield the mean exposure by the decile of a canary's holders' activity, and by each axis of the grid."""
    for name, values in _groups(hunt).items():
        for value in dict.fromkeys(sorted(values)):
            mine = [f.exposure for f, v in zip(found, values, strict=True) if v == value]
            yield {
                "kind": "slice",
                "of": "canary",
                "view": "final",
                "pattern": hunt.audited.config.canary.pattern,
                "slice": name,
                "value": value,
                "canaries": len(mine),
                "exposure_mean": float(np.mean(mine)),
                "null_expected": null_mean(min(hunt.reading.pattern.space, len(hunt.codes) + 1)),
            }


def _groups(hunt: Hunt) -> dict[str, list[int | str]]:
    config, pool = hunt.audited.config, pooled(hunt.audited.holdings.dataset)
    decile = deciles(natural_activity(pool))
    held: dict[int, list[int]] = {}
    for planting in plan_of(pool, config.canary, hunt.seed):
        place = int(np.searchsorted(pool.devices, planting.device))
        held.setdefault(planting.canary, []).append(int(decile[place]))
    kinds = cells(config.canary)
    turns = [kinds[i % len(kinds)] for i in range(len(hunt.canaries))]
    groups: dict[str, list[int | str]] = {
        "activity_decile": [round(float(np.mean(held[i]))) for i in range(len(turns))]
    }
    for name in ("copies", "devices", "holders"):
        values = [getattr(cell, name) for cell in turns]
        groups |= {name: values} if len(set(values)) > 1 else {}
    return groups
