"""The sections of a report about attacks and audits, from `audit.jsonl` and the summary."""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from fedsim.app.report.parts import Drawing, PageSection, Table, Tile
from fedsim.app.report.plots import of_attacks as figures
from fedsim.app.report.plots.of_attacks import NULL_EXPOSURE, Point
from fedsim.app.rundir.audit_file import findings_of
from fedsim.app.rundir.run_dir import RunDir
from fedsim.audit.findings import (
    Area,
    Canary,
    CanarySlice,
    Finding,
    LowerBound,
    Membership,
    MembershipSlice,
    SanityCheck,
    Slice,
    from_row,
)

CURVES = 4
"""The number of attacks whose ROC is drawn: the best ones."""
Points = list[tuple[float, float]]
F = TypeVar("F", bound=Finding)
S = TypeVar("S", bound=Slice)
Columns = Mapping[str, Callable[[F], object]]
"""Title -> the value of a finding in that column. A column without any value is left out."""
MEMBERSHIP: Columns[Membership] = {
    "attack": lambda f: f.attack,
    "game": lambda f: f.threat.game,
    "view": lambda f: f.threat.view,
    "unit": lambda f: f.threat.unit,
    "auc": lambda f: _with_interval(f.figures.area),
    "tpr at 1pct": lambda f: f.figures.tpr_at_1pct,
    "tpr at 01pct": lambda f: f.figures.tpr_at_01pct,
    "ppv 1pct": lambda f: f.figures.ppv_1pct,
    "ppv 10pct": lambda f: f.figures.ppv_10pct,
    "ppv 50pct": lambda f: f.figures.ppv_50pct,
    "blind auc": lambda f: f.blind_auc,
    "records": lambda f: f.figures.records,
    "targets": lambda f: f.figures.targets,
}
CANARY: Columns[Canary] = {
    "pattern": lambda f: f.threat.pattern,
    "view": lambda f: f.threat.view,
    "unit": lambda f: f.threat.unit,
    "copies": lambda f: f.threat.copies,
    "devices": lambda f: f.threat.devices,
    "exposure mean": lambda f: f.figures.exposure_mean,
    "exposure max": lambda f: f.figures.exposure_max,
    "null mean": lambda f: f.figures.null_mean,
    "p value": lambda f: f.figures.p_value,
    "digit accuracy": lambda f: f.extraction and f.extraction.digit_accuracy,
    "exact match": lambda f: f.extraction and f.extraction.exact_match,
    "chance": lambda f: f.figures.chance,
    "canaries": lambda f: f.figures.canaries,
}
BOUND: Columns[LowerBound] = {
    "method": lambda f: f.method,
    "unit": lambda f: f.unit,
    "epsilon low": lambda f: f.epsilon_low,
    "confidence": lambda f: f.confidence,
    "ceiling": lambda f: f.ceiling,
    "epsilon ledger": lambda f: f.epsilon_ledger,
    "delta": lambda f: f.delta,
    "estimate": lambda f: f.estimate,
}
OFF = "It was not measured in this run; the settings [audit] and [canary] turn it on."


def attack_tiles(run: RunDir) -> list[Tile]:
    """Return tiles for the strongest attack, the exposure and the audited bound, where measured."""
    tiles = []
    members = latest(run, Membership)
    canaries = latest(run, Canary)
    if members:
        best = max(members, key=_auc)
        tiles.append(Tile("attack AUC", f"{_auc(best):.3f}", f"{best.attack}; .5 is chance"))
    if canaries:
        most = max(found.figures.exposure_mean for found in canaries)
        tiles.append(Tile("exposure, bits", f"{most:.2f}", "1.44 is chance"))
    certified = [found for found in latest(run, LowerBound) if not found.estimate]
    if certified:
        low = max(certified, key=lambda found: found.epsilon_low)
        tiles.append(Tile("epsilon, audited", f"at least {low.epsilon_low:.2f}", _ceiling(low)))
    return tiles


def latest(run: RunDir, kind: type[F]) -> list[F]:
    """Return one kind of findings, of the last round that has any; else from the summary."""
    found = [each for each in findings_of(run) if isinstance(each, kind)]
    if found:
        last = max(each.round for each in found)
        return [each for each in found if each.round == last]
    rows = (run.summary or {}).get("attacks", {}).get(kind.kind, [])
    summed = (from_row(row, kind.kind) for row in rows)
    return [each for each in summed if isinstance(each, kind)]


def by_round(run: RunDir) -> dict[str, dict[str, Points]]:
    """Return plot -> series -> (round, value), for values measured in two rounds or more."""
    found = findings_of(run)
    bounds = [each for each in found if isinstance(each, LowerBound) and not each.estimate]
    members = [each for each in found if isinstance(each, Membership)]
    canaries = [each for each in found if isinstance(each, Canary)]
    plots = {
        "epsilon": {
            "audited": _strongest(bounds, lambda bound: bound.epsilon_low),
            "its ceiling": _strongest(bounds, lambda bound: bound.ceiling),
        },
        "exposure": {"exposure": _strongest(canaries, lambda canary: canary.figures.exposure_mean)},
        "attack AUC": {"attack AUC": _strongest(members, _auc)},
    }
    kept = {
        plot: {name: points for name, points in series.items() if points}
        for plot, series in plots.items()
    }
    return {plot: series for plot, series in kept.items() if series}


def _strongest(findings: Sequence[F], value: Callable[[F], float | None]) -> Points:
    """Return the largest value of each round."""
    best: dict[float, float] = {}
    for found in findings:
        here = value(found)
        if here is not None:
            best[found.round] = max(here, best.get(found.round, here))
    return sorted(best.items())


def _auc(found: Membership) -> float:
    return found.figures.area.auc


def membership(run: RunDir, checks: Sequence[SanityCheck]) -> PageSection:
    found = sorted(latest(run, Membership), key=lambda each: -_auc(each))
    if not found:
        return PageSection("membership", "Membership attacks", [OFF])
    drawings = []
    curves = [each for each in found if each.figures.curve.fpr][:CURVES]
    if curves:
        caption = "ROC of the strongest attacks, log-log, with bands; the number is the AUC. "
        caption += _allowed(curves) + _blind(found)
        drawings.append(Drawing("roc", figures.roc_curves(curves), caption))
    parts = [each for each in latest(run, Slice) if isinstance(each, MembershipSlice)]
    drawings += _drawings(parts, _area_of, "AUC", 0.5)
    words = [
        "The chance to tell a member's record from another; .5 is a coin. The strongest attack "
        "counts."
    ]
    return PageSection(
        "membership", "Membership attacks", words, drawings, [_table(found, MEMBERSHIP)]
    )


def _allowed(findings: Sequence[Membership]) -> str:
    if any(found.region and found.region.allowed_tpr for found in findings):
        return "Shaded: what the run's guarantee does not allow. "
    return "No guarantee in the attack's unit bounds these curves. "


def _blind(findings: Sequence[Membership]) -> str:
    blind = [found.blind_auc for found in findings if found.blind_auc is not None]
    return f"An attack that never sees the model has AUC {max(blind):.2f}." if blind else ""


def canaries(run: RunDir, checks: Sequence[SanityCheck]) -> PageSection:
    found = latest(run, Canary)
    if not found:
        return PageSection("canaries", "Canaries", [OFF])
    exposures = [value for each in found for value in each.figures.exposures]
    null = [value for each in found for value in each.figures.null_exposures]
    drawings = []
    if exposures:
        caption = (
            f"Exposure of {len(exposures)} planted canaries and of {len(null)} that were never "
            "planted."
        )
        drawings.append(Drawing("exposure", figures.exposure_histogram(exposures, null), caption))
    parts = [each for each in latest(run, Slice) if isinstance(each, CanarySlice)]
    drawings += _drawings(parts, _exposure_of, "mean exposure, bits", NULL_EXPOSURE)
    words = [
        "How much sooner than by chance the model ranks a planted secret; 1.44 bits are chance."
    ]
    return PageSection("canaries", "Canaries", words, drawings, [_table(found, CANARY)])


def _drawings(
    slices: Sequence[S], point: Callable[[S], Point], label: str, chance: float
) -> list[Drawing]:
    """Return a drawing for each way in which records or canaries were divided; `label` says what is
    drawn.
    """
    drawings = []
    for name in dict.fromkeys(each.slice for each in slices):
        points = [point(each) for each in slices if each.slice == name]
        axis = name.replace("_", " ")
        caption = f"The {label.split(',')[0]} by {axis}; dashed: chance."
        drawings.append(
            Drawing(
                f"{slices[0].of}-{name}", figures.by_slice(points, axis, label, chance), caption
            )
        )
    return drawings


def _area_of(part: MembershipSlice) -> Point:
    area = part.area
    low = area.auc if area.auc_low is None else area.auc_low
    high = area.auc if area.auc_high is None else area.auc_high
    return Point(str(part.value), area.auc, low, high)


def _exposure_of(part: CanarySlice) -> Point:
    return Point(str(part.value), part.exposure_mean, part.exposure_mean, part.exposure_mean)


def audits(run: RunDir, checks: Sequence[SanityCheck]) -> PageSection:
    found = latest(run, LowerBound)
    if not found:
        return PageSection("audits", "Audits of the guarantee", [OFF])
    caption = (
        "Dot: the epsilon that an audit certifies as a lower bound (hollow: a mere estimate). "
        "Bar: the most that it could have certified. Line: the epsilon that the ledger states."
    )
    words = ["A bound above the ledger's epsilon means a fault; one far below it proves nothing."]
    drawing = Drawing("audits", figures.audit_bounds(found), caption)
    marks = [False if _is_broken(bound) else None for bound in found]
    return PageSection(
        "audits", "Audits of the guarantee", words, [drawing], [_table(found, BOUND, marks)]
    )


def sanity(run: RunDir, checks: Sequence[SanityCheck]) -> PageSection:
    found = [*latest(run, SanityCheck), *checks]
    if not found:
        words = [
            "Not run with this run: fedsim report --sanity tries attacks and audits on known cases."
        ]
        return PageSection("sanity", "Sanity battery", words)
    red = sum(not check.ok for check in found)
    words = [
        f"Attacks and audits on cases whose answer is known: {len(found) - red} green, {red} red."
    ]
    texts = [["ok" if c.ok else "RED", c.name, c.expected, c.observed] for c in found]
    marks = [check.ok for check in found]
    table = Table(["", "check", "expected", "observed"], texts, numbers=False, marks=marks)
    return PageSection("sanity", "Sanity battery", words, tables=[table])


def _table(findings: Sequence[F], columns: Columns[F], marks: Sequence[bool | None] = ()) -> Table:
    """Return a table of findings; `marks` are green, red or neither."""
    texts = {title: [_text(value(found)) for found in findings] for title, value in columns.items()}
    shown = {title: values for title, values in texts.items() if any(values)}
    rows = [list(cells) for cells in zip(*shown.values(), strict=True)]
    return Table(list(shown), rows, numbers=False, marks=marks)


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.3g}" if isinstance(value, float) else str(value).replace("_", " ")


def _with_interval(area: Area) -> str:
    if area.auc_low is None or area.auc_high is None:
        return f"{area.auc:.3g}"
    return f"{area.auc:.3g} ({area.auc_low:.3g} to {area.auc_high:.3g})"


def _is_broken(bound: LowerBound) -> bool:
    certified = 0.0 if bound.estimate else bound.epsilon_low
    return bound.epsilon_ledger is not None and certified > bound.epsilon_ledger


def _ceiling(bound: LowerBound) -> str:
    return "" if bound.ceiling is None else f"of {bound.ceiling:.2f} that this audit can show"
