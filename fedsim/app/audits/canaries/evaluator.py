"""The canaries of a run sought in its models: rows of exposures and of codes extracted.

A code that was extracted is held against one that was never planted, too: the control.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from fedsim.app.audits.audited import Audited
from fedsim.app.audits.canaries.canary_search import (
    CanarySearch,
    Exposed,
    canary_threat,
    exposure_figures,
    exposures,
    make_search,
)
from fedsim.app.audits.canaries.code_extraction import extracted
from fedsim.app.audits.canaries.watched import watched_rows
from fedsim.app.audits.findings import FILE
from fedsim.app.experiment.planting import Cell, cells, natural_activity, plan_of
from fedsim.app.rundir.files import Row
from fedsim.audit.exposure import joint_p_value, largest_mean, null_mean
from fedsim.data.activity import deciles
from fedsim.data.pool import pooled
from fedsim.names import listed
from fedsim.privacy.accounting import epsilon, group_epsilon


def canary_rows(audited: Audited) -> list[Row]:
    """Return a row for each way of planting, and slices over holders' activity."""
    search = make_search(audited)
    everyone = range(len(search.canaries))
    found = exposures(search, lambda number, codes: search.losses(audited.params, number, codes), everyone)
    right = extracted(search, found) if audited.ended else {}
    kinds, rows = cells(audited.config.canary), []
    for turn, cell in enumerate(kinds):
        mine = range(turn, len(found), len(kinds))
        row = canary_threat(search, cell, "final") | exposure_figures(search, [found[i] for i in mine])
        row |= _mean([right[i] for i in mine]) if right else {}
        rows.append(row | _bound(audited, cell, search.reading.pattern.space))
    if audited.ended and "rounds" in listed(audited.config.audit.view):
        rows += [best for row in rows if (best := over_rounds(audited, row))]
    if audited.ended:
        rows += watched_rows(search)
    return rows + list(_slices(search, found))


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


def _slices(search: CanarySearch, found: Sequence[Exposed]) -> Iterator[Row]:
    """Yield the mean exposure by the decile of a canary's holders' activity, and by each axis of the grid."""
    for name, values in _groups(search).items():
        for value in dict.fromkeys(sorted(values)):
            mine = [f.exposure for f, v in zip(found, values, strict=True) if v == value]
            yield {
                "kind": "slice",
                "of": "canary",
                "view": "final",
                "pattern": search.audited.config.canary.pattern,
                "slice": name,
                "value": value,
                "canaries": len(mine),
                "exposure_mean": float(np.mean(mine)),
                "null_expected": null_mean(min(search.reading.pattern.space, len(search.codes) + 1)),
            }


def _groups(search: CanarySearch) -> dict[str, list[int | str]]:
    config, pool = search.audited.config, pooled(search.audited.holdings.dataset)
    decile = deciles(natural_activity(pool))
    held: dict[int, list[int]] = {}
    for planting in plan_of(pool, config.canary, search.seed):
        place = int(np.searchsorted(pool.devices, planting.device))
        held.setdefault(planting.canary, []).append(int(decile[place]))
    kinds = cells(config.canary)
    turns = [kinds[i % len(kinds)] for i in range(len(search.canaries))]
    groups: dict[str, list[int | str]] = {
        "activity_decile": [round(float(np.mean(held[i]))) for i in range(len(turns))]
    }
    for name in ("copies", "devices", "holders"):
        values = [getattr(cell, name) for cell in turns]
        groups |= {name: values} if len(set(values)) > 1 else {}
    return groups
