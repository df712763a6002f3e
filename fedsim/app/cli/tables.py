"""Tables for the terminal: what a run gave, and what audits found."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table

from fedsim.app.rundir.files import Row
from fedsim.errors import WrongInput

if TYPE_CHECKING:  # torch is imported only by the commands that need it
    from fedsim.app.rundir.run_dir import RunDir

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


def state_of_run(found: "RunDir") -> tuple[str, str, str]:
    """Return a run's state, its rounds and its metrics; a config of another version is no reason to stop."""
    try:
        rounds = str(found.config.train.rounds)
    except WrongInput as error:
        return f"its config cannot be read: {error}", "", ""
    summary = found.summary
    state = summary["status"] if summary else "unfinished: run it again to go on"
    metrics = {k: v for k, v in (summary["metrics"] if summary else {}).items() if "_decile_" not in k}
    shown = ", ".join(f"{name} {value:.3f}" for name, value in metrics.items())
    return state, f"{len(found.rows())}/{rounds}", shown


def summary_table(summary: dict[str, Any]) -> Table:
    """The summary for people."""
    table = Table(
        title=f"{summary['name']}, seed {summary['seed']}: {summary['status']}", title_justify="left"
    )
    table.add_column("")
    table.add_column("federated", justify="right")
    reference = summary["reference"].get("centralised", {})
    if reference:
        table.add_column("centralised", justify="right")
    shown = {name: value for name, value in summary["metrics"].items() if "_decile_" not in name}
    for name, value in shown.items():
        table.add_row(name, f"{value:.4f}", *([f"{reference[name]:.4f}"] if name in reference else []))
    table.add_row("rounds", str(summary["rounds"]))
    table.add_row("devices with examples", f"{summary['devices']} of {summary['devices_all']}")
    privacy = summary["privacy"]
    if privacy:
        about = f"one {privacy['unit']}, delta {privacy['delta']:g}"
        table.add_row(f"epsilon promised, {about}", f"{privacy['epsilon_guarantee']:.3f}")
        table.add_row("epsilon spent, largest", f"{privacy['epsilon_max']:.3f}")
    table.add_row("training time", f"{summary['time']['train_s']:.1f} s")
    table.add_row("devices a second", f"{summary['time']['devices_per_s']:.0f}")
    if summary["test_labels_unseen"]:
        table.add_row("test labels unseen in training", str(summary["test_labels_unseen"]))
    notes = [summary[name] for name in ("stopped_early", "privacy_warning") if name in summary]
    table.caption = "; ".join(notes) or None
    return table
