"""What audits found, as tables for people."""

from collections.abc import Iterator, Sequence

from rich.table import Table

from fedsim.app.rundir import Row

COLUMNS = {
    "membership": {
        "attack": "attack", "game": "game", "view": "view", "unit": "unit", "references": "references",
        "auc": "AUC", "auc_low": "from", "auc_high": "to", "targets": "targets",
        "tpr_at_1pct": "TPR at 1 %", "blind_auc": "blind AUC","allowed_auc": "AUC allowed",
    },
    "canary": {
        "pattern": "pattern", "copies": "copies", "devices": "devices", "view": "view", "unit": "unit",
        "exposure_mean": "exposure", "exposure_max": "largest", "null_mean": "null", "p_value": "p",
        "digit_accuracy": "digits right", "chance": "chance", "canaries": "canaries",
    },
    "leak": {
        "attack": "leak", "view": "view", "unit": "unit", "precision": "precision", "recall": "recall",
        "updates": "updates",
    },
    "audit": {
        "method": "method", "unit": "unit", "epsilon_low": "epsilon at least", "ceiling": "ceiling",
        "epsilon_ledger": "epsilon (ledger)", "delta": "delta", "confidence": "confidence",
    },
}  # fmt: skip
SHARED = (
    "game",
    "view",
    "unit",
    "references",
    "delta",
    "confidence",
    "targets",
    "devices",
    "pattern",
    "copies",
)
TITLES = {
    "membership": "Membership",
    "canary": "Canaries",
    "leak": "Words and labels that updates name",
    "audit": "Lower bounds on epsilon",
}


def findings(rows: Sequence[Row]) -> Iterator[Table]:
    """Yield a table for each kind of finding that there is.

    What all its rows have in common, as the game and the view, stands in the title and takes no column.
    """
    for kind, columns in COLUMNS.items():
        mine = [row for row in rows if row["kind"] == kind]
        if not mine:
            continue
        shown = [name for name in columns if any(name in row for row in mine)]
        common = [name for name in shown if name in SHARED and len({str(row.get(name)) for row in mine}) == 1]
        title = ", ".join([TITLES[kind], *(f"{columns[name]}: {_text(mine[0][name])}" for name in common)])
        table = Table(title=title, title_justify="left")
        for name in (name for name in shown if name not in common):
            table.add_column(columns[name], no_wrap=name in ("attack", "method"))
        for row in mine:
            table.add_row(*(_text(row.get(name, "")) for name in shown if name not in common))
        yield table


def _text(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
