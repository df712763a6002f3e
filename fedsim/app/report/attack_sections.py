"""The sections of a report about attacks and audits, from `audit.jsonl` and the summary."""

from collections.abc import Sequence
from typing import Any

from fedsim.app.report.parts import Drawing, PageSection, Table, Tile
from fedsim.app.report.plots import of_attacks as figures
from fedsim.app.rundir.files import Row
from fedsim.app.rundir.run_dir import RunDir

CURVES = 4
"""Attacks whose ROC is drawn: the best ones."""
Points = list[tuple[float, float]]
MEMBERSHIP = ("attack", "game", "view", "unit", "auc", "tpr_at_1pct", "tpr_at_01pct", "ppv_1pct", "ppv_10pct",
              "ppv_50pct", "blind_auc", "records", "targets")  # fmt: skip
CANARY = ("pattern", "view", "unit", "copies", "devices", "exposure_mean", "exposure_max", "null_mean",
          "p_value", "digit_accuracy", "exact_match", "chance", "canaries")  # fmt: skip
AUDIT = ("method", "unit", "epsilon_low", "confidence", "ceiling", "epsilon_ledger", "delta", "estimate")
OFF = "It was not measured in this run; the settings [audit] and [canary] turn it on."


def attack_tiles(run: RunDir) -> list[Tile]:
    """Return the strongest attack, exposure and audited bound, as far as there are any."""
    members, canaries, audits = (latest(run, kind) for kind in ("membership", "canary", "audit"))
    tiles = []
    if members:
        best = max(members, key=lambda row: row["auc"])
        tiles.append(Tile("attack AUC", f"{best['auc']:.3f}", f"{best['attack']}; .5 is chance"))
    if canaries:
        most = max(row["exposure_mean"] for row in canaries)
        tiles.append(Tile("exposure, bits", f"{most:.2f}", "1.44 is chance"))
    certified = [row for row in audits if not row.get("estimate")]
    if certified:
        low = max(certified, key=lambda row: row["epsilon_low"])
        tiles.append(Tile("epsilon, audited", f"at least {low['epsilon_low']:.2f}", _ceiling(low)))
    return tiles


def latest(run: RunDir, kind: str) -> list[Row]:
    """Return the rows of a kind of the last round that has any; else those of the summary."""
    rows = [row for row in run.rows("audit.jsonl") if row["kind"] == kind]
    if rows:
        last = max(row.get("round", 0) for row in rows)
        return [row for row in rows if row.get("round", 0) == last]
    found: list[Row] = (run.summary or {}).get("attacks", {}).get(kind, [])
    return found


def by_round(run: RunDir) -> dict[str, dict[str, Points]]:
    """Return what was measured in two rounds or more: plot -> series -> (round, value)."""
    rows = run.rows("audit.jsonl")
    found = {
        "epsilon": {
            "audited": _strongest(rows, "audit", "epsilon_low"),
            "its ceiling": _strongest(rows, "audit", "ceiling"),
        },
        "exposure": {"exposure": _strongest(rows, "canary", "exposure_mean")},
        "attack AUC": {"attack AUC": _strongest(rows, "membership", "auc")},
    }
    kept = {
        plot: {name: points for name, points in series.items() if points} for plot, series in found.items()
    }
    return {plot: series for plot, series in kept.items() if series}


def _strongest(rows: Sequence[Row], kind: str, key: str) -> Points:
    """Return the largest value by round; audits that certify nothing are left out."""
    mine = [row for row in rows if row["kind"] == kind and key in row and not row.get("estimate")]
    rounds = sorted({row["round"] for row in mine})
    return [(r, max(row[key] for row in mine if row["round"] == r)) for r in rounds]


def membership(run: RunDir, checks: Sequence[Row]) -> PageSection:
    rows = sorted(latest(run, "membership"), key=lambda row: -row["auc"])
    if not rows:
        return PageSection("membership", "Membership attacks", [OFF])
    drawings, curves = [], [row for row in rows if "fpr" in row][:CURVES]
    if curves:
        caption = "ROC of the strongest attacks, log-log, with bands; the number is the AUC. "
        caption += _allowed(curves) + _blind(rows)
        drawings.append(Drawing("roc", figures.roc_curves(curves), caption))
    drawings += _slices(run, "membership", "AUC")
    words = ["The chance to tell a member's record from another; .5 is a coin. The strongest attack counts."]
    return PageSection("membership", "Membership attacks", words, drawings, [_table(rows, MEMBERSHIP)])


def _allowed(rows: Sequence[Row]) -> str:
    if any("allowed_tpr" in row for row in rows):
        return "Shaded: what the run's guarantee does not allow. "
    return "No guarantee in the attack's unit bounds these curves. "


def _blind(rows: Sequence[Row]) -> str:
    blind = [row["blind_auc"] for row in rows if "blind_auc" in row]
    return f"An attack that never sees the model has AUC {max(blind):.2f}." if blind else ""


def canaries(run: RunDir, checks: Sequence[Row]) -> PageSection:
    rows = latest(run, "canary")
    if not rows:
        return PageSection("canaries", "Canaries", [OFF])
    exposures = [value for row in rows for value in row.get("exposures", [])]
    null = [value for row in rows for value in row.get("null_exposures", [])]
    drawings = []
    if exposures:
        caption = f"Exposure of {len(exposures)} planted canaries and of {len(null)} that were never planted."
        drawings.append(Drawing("exposure", figures.exposure_histogram(exposures, null), caption))
    drawings += _slices(run, "canary", "exposure")
    words = ["How much sooner than by chance the model ranks a planted secret; 1.44 bits are chance."]
    return PageSection("canaries", "Canaries", words, drawings, [_table(rows, CANARY)])


def _slices(run: RunDir, of: str, what: str) -> list[Drawing]:
    rows = [row for row in latest(run, "slice") if row.get("of") == of]
    drawings = []
    for name in dict.fromkeys(row["slice"] for row in rows):
        mine = [row for row in rows if row["slice"] == name]
        caption = f"The {what} by {name.replace('_', ' ')}; dashed: chance."
        drawings.append(Drawing(f"{of}-{name}", figures.by_slice(mine, of), caption))
    return drawings


def audits(run: RunDir, checks: Sequence[Row]) -> PageSection:
    rows = latest(run, "audit")
    if not rows:
        return PageSection("audits", "Audits of the guarantee", [OFF])
    caption = (
        "Dot: the epsilon that an audit certifies as a lower bound (hollow: a mere estimate). "
        "Bar: the most that it could have certified. Line: the epsilon that the ledger states."
    )
    words = ["A bound above the ledger's epsilon means a fault; one far below it proves nothing."]
    drawing = Drawing("audits", figures.audit_bounds(rows), caption)
    return PageSection(
        "audits", "Audits of the guarantee", words, [drawing], [_table(rows, AUDIT, broken=True)]
    )


def sanity(run: RunDir, checks: Sequence[Row]) -> PageSection:
    rows = [*latest(run, "sanity"), *checks]
    if not rows:
        words = ["Not run with this run: fedsim report --sanity tries attacks and audits on known cases."]
        return PageSection("sanity", "Sanity battery", words)
    red = sum(not row["ok"] for row in rows)
    words = [f"Attacks and audits on cases whose answer is known: {len(rows) - red} green, {red} red."]
    texts = [["ok" if r["ok"] else "RED", r["name"], r["expected"], r["observed"]] for r in rows]
    marks = [bool(row["ok"]) for row in rows]
    table = Table(["", "check", "expected", "observed"], texts, numbers=False, marks=marks)
    return PageSection("sanity", "Sanity battery", words, tables=[table])


def _table(rows: Sequence[Row], keys: Sequence[str], broken: bool = False) -> Table:
    """Return the fields that rows have; with `broken`, audits above their ledger are red."""
    shown = [key for key in keys if any(key in row for row in rows)]
    texts = [[_cell(row, key) for key in shown] for row in rows]
    marks = [False if broken and _is_broken(row) else None for row in rows]
    return Table([key.replace("_", " ") for key in shown], texts, numbers=False, marks=marks)


def _cell(row: Row, key: str) -> str:
    value: Any = row.get(key, "")
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = f"{value:.3g}" if isinstance(value, float) else str(value).replace("_", " ")
    if f"{key}_low" in row and f"{key}_high" in row:
        text += f" ({row[f'{key}_low']:.3g} to {row[f'{key}_high']:.3g})"
    return text


def _is_broken(row: Row) -> bool:
    certified = row["epsilon_low"] if not row.get("estimate") else 0.0
    return "epsilon_ledger" in row and certified > row["epsilon_ledger"]


def _ceiling(row: Row) -> str:
    return f"of {row['ceiling']:.2f} that this audit can show" if "ceiling" in row else ""
