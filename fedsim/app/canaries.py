"""The canaries of a run sought in its models: rows of exposures and of codes extracted.

A code that was extracted is held against one that was never planted, too: the control.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.app.audits import FILE, Audited
from fedsim.app.canary_views import watched_rows
from fedsim.app.hunt import Exposed, Hunt, exposures, figures, make_hunt, threat
from fedsim.app.planting import Cell, cells, natural_activity, plan_of
from fedsim.app.rundir import Row
from fedsim.app.slices import deciles
from fedsim.app.views import views_of
from fedsim.audit.exposure import joint_p_value, largest_mean, null_mean
from fedsim.audit.extraction import Guess, beam, success
from fedsim.audit.modiva import Search, modiva_each
from fedsim.audit.openbox import next_log_probs, relaxed_loss
from fedsim.data.pool import pooled
from fedsim.privacy.accounting import epsilon, group_epsilon
from fedsim.seeds import torch_generator
from fedsim.types import Params

BEAM = 10


def canary_rows(audited: Audited) -> list[Row]:
    """Return a row for each way of planting, and slices over holders' activity."""
    hunt = make_hunt(audited)
    everyone = range(len(hunt.canaries))
    found = exposures(hunt, lambda number, codes: hunt.losses(audited.params, number, codes), everyone)
    right = extracted(hunt, found) if audited.ended else {}
    kinds, rows = cells(audited.config.canary), []
    for turn, cell in enumerate(kinds):
        mine = range(turn, len(found), len(kinds))
        row = threat(hunt, cell, "final") | figures(hunt, [found[i] for i in mine])
        row |= _mean([right[i] for i in mine]) if right else {}
        rows.append(row | _bound(audited, cell, hunt.reading.pattern.space))
    if audited.ended and "rounds" in views_of(audited.config):
        rows += [best for row in rows if (best := over_rounds(audited, row))]
    if audited.ended:
        rows += watched_rows(hunt)
    return rows + list(_slices(hunt, found))


def extracted(hunt: Hunt, found: Sequence[Exposed]) -> dict[int, Row]:
    """Return how right the code is that is extracted for each canary, beside ceiling and control.

    Searches: greedy and beam in language models; ModIvA in models with one embedding table; the ceiling is
    the likeliest of all codes. Empty where there is no search for the model.
    """
    audited, joined = hunt.audited, hunt.reading.pattern.joined
    if audited.config.data.task == "language" and not joined:
        return {i: _row(hunt, i, _beamed(hunt, i), found[i]) for i in range(len(found))}
    module, _ = _one_table(audited)
    mixed = list(getattr(module, "tables", {}).values()) == ["tokens"]
    if joined or not mixed or audited.config.data.ngrams:
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
    module, params = _one_table(audited)

    def losses(outputs: Mapping[str, Tensor], ids: Tensor) -> Tensor:
        # label and tags are those of all canaries
        batch = {name: t[:1].expand(len(ids), *t.shape[1:]) for name, t in fields.items()}
        return audited.task.losses(outputs, {**batch, "tokens": ids})

    module.eval()
    loss = relaxed_loss(module, params, losses, fields["tokens"], pattern.gap, candidates)
    rng, targets = torch_generator(hunt.seed, "canary", "modiva"), len(hunt.canaries)
    guesses = modiva_each(loss, pattern.length, len(candidates), Search(), rng, targets)
    module.train()
    return guesses


def _one_table(audited: Audited) -> tuple[nn.Module, Params]:
    """Return the model with all that it knows of a word in one row, which mixtures of words then mix."""
    params = {name: p.cpu() for name, p in audited.params.items()}
    fold = getattr(audited.module, "as_one_table", None)
    return fold(params) if fold else (audited.module, params)


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
