"""What audits found, in `audit.jsonl` and in the summary."""

from collections.abc import Mapping
from typing import Any

from fedsim.app.rundir.files import Row, write_json
from fedsim.app.rundir.run_dir import RunDir

FILE = "audit.jsonl"


SUMMED = {"membership": "membership", "canary": "canary", "audit": "audit", "leak": "leak"}
"""Kinds of rows that stand in the summary, too, under `attacks`."""


LISTS = (
    "kind", "round", "fpr", "tpr", "tpr_low", "tpr_high", "allowed_tpr", "exposures",
    "null_exposures", "time_s",
)  # fmt: skip
"""What the summary leaves out of a row."""


def replace_rows(run: RunDir, rows: list[Row]) -> None:
    """Put rows into the audit file in place of those with the same threat model, and into the summary."""
    named = {identity(row) for row in rows}
    kept = [row for row in run.rows(FILE) if identity(row) not in named]
    run.rewrite_rows([*kept, *rows], FILE)
    summary = run.summary
    if summary is not None:
        write_json(run.path / "summary.json", summary | {"attacks": attacks(run)})


def attacks(run: RunDir) -> dict[str, list[Row]]:
    """Return the summary's `attacks`: the figures of the last audited round."""
    rows = run.rows(FILE)
    last = max((row["round"] for row in rows), default=0)
    lists: dict[str, list[Row]] = {"membership": [], "canary": [], "audit": []}
    for row in rows:
        if row["kind"] in SUMMED and row["round"] == last:
            flat = {name: value for name, value in row.items() if name not in LISTS}
            lists.setdefault(SUMMED[row["kind"]], []).append(flat)
    return lists


IDENTITY = (
    "kind",
    "attack",
    "game",
    "view",
    "unit",
    "pattern",
    "copies",
    "devices",
    "holders",
    "period",
    "method",
    "of",
    "slice",
    "value",
    "name",
    "references",
)


def identity(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what tells a row's threat model from another's; its round comes last."""
    return (*(row.get(name) for name in IDENTITY), row["round"])
