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
    "audit": {
        "method": "method", "unit": "unit", "epsilon_low": "epsilon at least", "ceiling": "ceiling",
        "epsilon_ledger": "epsilon (ledger)", "delta": "delta", "confidence": "confidence",
    },
}  # fmt: skip
TITLES = {"membership": "Membership", "canary": "Canaries", "audit": "Lower bounds on epsilon"}


def findings(rows: Sequence[Row]) -> Iterator[Table]:
    """Yield a table for each kind of finding that there is; columns without any value are left out."""
    for kind, columns in COLUMNS.items():
        mine = [row for row in rows if row["kind"] == kind]
        shown = [name for name in columns if any(name in row for row in mine)]
        if mine:
            table = Table(*(columns[name] for name in shown), title=TITLES[kind], title_justify="left")
            for row in mine:
                table.add_row(*(_text(row.get(name, "")) for name in shown))
            yield table


def _text(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
