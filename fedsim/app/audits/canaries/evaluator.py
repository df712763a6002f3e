"""The audit of a run's canaries: their exposures, and the codes that can be extracted.

The control compares an extracted code with a code that was never planted.
"""

from collections.abc import Iterator, Sequence
from dataclasses import fields, replace

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
from fedsim.app.audits.membership.views import views_of
from fedsim.app.audits.replay import REPLAYED, check_replayed
from fedsim.app.experiment.planting import Cell, cells, natural_activity, plan_of
from fedsim.app.rundir.audit_file import findings_of
from fedsim.audit.exposure import joint_p_value, largest_mean, null_mean
from fedsim.audit.findings import Canary, CanarySlice, ExposureFigures, Extraction, Finding
from fedsim.config import Config
from fedsim.data.activity import deciles
from fedsim.data.pool import pooled
from fedsim.errors import WrongInput
from fedsim.names import listed
from fedsim.privacy.accounting import epsilon, group_epsilon


def check_canary(config: Config) -> None:
    """Refuse a search for canaries that were not planted, or in rounds that cannot be replayed.

    Raises WrongInput.
    """
    for view in views_of(config):
        if view in REPLAYED:
            check_replayed(config, view)
    if not config.canary.count:
        raise WrongInput(
            "audit.evaluators names 'canary', and canary.count = 0 plants none; set canary.count "
            'and canary.pattern = "pin", for one'
        )


def canary_rows(audited: Audited) -> list[Finding]:
    """Return a finding for each way of planting, and slices by the activity of holders."""
    search = make_search(audited)
    everyone = range(len(search.canaries))
    found = exposures(
        search, lambda number, codes: search.losses(audited.params, number, codes), everyone
    )
    right = extracted(search, found) if audited.ended else {}
    kinds = cells(audited.config.canary)
    final = []
    for turn, cell in enumerate(kinds):
        mine = range(turn, len(found), len(kinds))
        bound, spent = _bound(audited, cell, search.reading.pattern.space)
        final.append(
            Canary(
                canary_threat(search, cell, "final"),
                exposure_figures(search, [found[i] for i in mine]),
                extraction=_mean([right[i] for i in mine]) if right else None,
                epsilon_bound=bound,
                epsilon=spent,
            )
        )
    watched: list[Canary] = []
    if audited.ended and "rounds" in listed(audited.config.audit.view):
        watched += [best for each in final if (best := over_rounds(audited, each))]
    if audited.ended:
        watched += watched_rows(search)
    return [*final, *watched, *_slices(search, found)]


def over_rounds(audited: Audited, last: Canary) -> Canary | None:
    """Return the finding of an attacker who keeps the model of every audited round.

    The attacker takes the best round of each canary and of each null. The p-value is corrected for
    this choice (Bonferroni). None if fewer than two rounds were audited.
    """
    seen = [
        each for each in findings_of(audited.run) if isinstance(each, Canary) and _alike(each, last)
    ]
    figures = [each.figures for each in seen if each.round != audited.round] + [last.figures]
    if len(figures) < 2:
        return None
    own = np.max([each.exposures for each in figures], axis=0)
    nulls = np.max([each.null_exposures for each in figures], axis=0)
    paid = np.maximum(own - np.log2(len(figures)), 0.0)
    best = ExposureFigures(
        exposure_mean=float(own.mean()),
        exposure_max=float(own.max()),
        null_mean=float(nulls.mean()),
        p_value=joint_p_value(paid),
        space=last.figures.space,
        canaries=last.figures.canaries,
        chance=last.figures.chance,
        exposures=tuple(own.tolist()),
        null_exposures=tuple(nulls.tolist()),
    )
    return Canary(replace(last.threat, view="rounds"), best, rounds_seen=len(figures))


def _alike(one: Canary, other: Canary) -> bool:
    """Return whether two findings are about the same canaries in the same view."""
    here = one.figures
    there = other.figures
    return one.threat == other.threat and (here.space, here.canaries) == (
        there.space,
        there.canaries,
    )


def _bound(audited: Audited, cell: Cell, space: int) -> tuple[float | None, float | None]:
    """Return the largest mean exposure that DP allows, and the epsilon behind it.

    The bound is (1 + eps)/ln 2 plus delta log2 |R|, and at most log2 |R|. Copies on one device are
    one unit of device-level DP, and a group under example-level DP. The events are those of the
    unit with the largest epsilon. The bound is None where the unit does not cover all copies; the
    epsilon is None there, too, and where it is infinite.
    """
    dp = audited.config.dp
    if dp.unit == "none" or cell.devices > 1:
        return None, None
    if dp.unit == "device":
        spent = epsilon(audited.events, audited.delta)
    else:
        spent = group_epsilon(audited.events, cell.copies, audited.delta)
    most = float(np.log2(space))
    bound = min(most, largest_mean(min(spent, most)) + audited.delta * most)
    return bound, spent if np.isfinite(spent) else None


def _mean(each: Sequence[Extraction]) -> Extraction:
    """Return the mean over canaries of each share that was measured."""
    names = [one.name for one in fields(Extraction) if getattr(each[0], one.name) is not None]
    return Extraction(
        **{name: float(np.mean([getattr(one, name) for one in each])) for name in names}
    )


def _slices(search: CanarySearch, found: Sequence[Exposed]) -> Iterator[CanarySlice]:
    """Yield the mean exposure by the activity decile of holders, and by each axis of the grid."""
    for name, values in _groups(search).items():
        for value in dict.fromkeys(sorted(values)):
            mine = [f.exposure for f, v in zip(found, values, strict=True) if v == value]
            yield CanarySlice(
                name,
                value,
                search.audited.config.canary.pattern,
                view="final",
                exposure_mean=float(np.mean(mine)),
                canaries=len(mine),
                null_expected=null_mean(min(search.reading.pattern.space, len(search.codes) + 1)),
            )


def _groups(search: CanarySearch) -> dict[str, list[int | str]]:
    config = search.audited.config
    pool = pooled(search.audited.holdings.dataset)
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
