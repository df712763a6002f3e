"""Audit findings in a run's `audit.jsonl` and in its summary."""

from collections.abc import Sequence

from fedsim.app.rundir.files import Row, write_json
from fedsim.app.rundir.run_dir import RunDir
from fedsim.audit.findings import SUMMED, Finding, from_row, identity, to_row, unsummed

FILE = "audit.jsonl"


def findings_of(run: RunDir) -> list[Finding]:
    """Return the findings of a run in the order of its file; unknown kinds are left out."""
    return [found for row in run.rows(FILE) if (found := from_row(row)) is not None]


def replace_findings(run: RunDir, findings: Sequence[Finding]) -> None:
    """Replace the findings of the same threat model, in the audit file and in the summary.

    All other rows stay unchanged, with all their keys.
    """
    named = {identity(found) for found in findings}
    kept = [row for row in run.rows(FILE) if _identity(row) not in named]
    run.rewrite_rows([*kept, *map(to_row, findings)], FILE)
    summary = run.summary
    if summary is not None:
        write_json(run.path / "summary.json", summary | {"attacks": attacks(run)})


def attacks(run: RunDir) -> dict[str, list[Row]]:
    """Return the summary's `attacks`: the figures of the last audited round."""
    rows = run.rows(FILE)
    last = max((row["round"] for row in rows), default=0)
    lists: dict[str, list[Row]] = {"membership": [], "canary": [], "audit": []}
    left_out = {kind.kind: unsummed(kind) for kind in SUMMED}
    for row in rows:
        kind = row["kind"]
        if kind in left_out and row["round"] == last:
            flat = {name: value for name, value in row.items() if name not in left_out[kind]}
            lists.setdefault(kind, []).append(flat)
    return lists


def _identity(row: Row) -> tuple[object, ...] | None:
    found = from_row(row)
    return None if found is None else identity(found)
