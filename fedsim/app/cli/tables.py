"""Tables for the terminal: the results of a run, and the findings of audits."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from rich.table import Table

from fedsim.audit.findings import Canary, Finding, Leak, LowerBound, Membership
from fedsim.errors import WrongInput

if TYPE_CHECKING:  # torch is imported only by the commands that need it
    from fedsim.app.rundir.run_dir import RunDir

F = TypeVar("F", bound=Finding)


@dataclass(frozen=True)
class Column(Generic[F]):
    """A column of a table of findings. The table omits it where no finding has a value."""

    title: str
    value: Callable[[F], object]
    shared: bool = False
    """Whether a value that all findings share moves to the table's title."""
    whole: bool = False
    """Whether its texts are never broken over lines."""


MEMBERSHIP: list[Column[Membership]] = [
    Column("attack", lambda f: f.attack, whole=True),
    Column("game", lambda f: f.threat.game, shared=True),
    Column("view", lambda f: f.threat.view, shared=True),
    Column("unit", lambda f: f.threat.unit, shared=True),
    Column("references", lambda f: f.threat.references, shared=True),
    Column("AUC", lambda f: f.figures.area.auc),
    Column("from", lambda f: f.figures.area.auc_low),
    Column("to", lambda f: f.figures.area.auc_high),
    Column("targets", lambda f: f.figures.targets, shared=True),
    Column("TPR at 1 %", lambda f: f.figures.tpr_at_1pct),
    Column("blind AUC", lambda f: f.blind_auc),
    Column("AUC allowed", lambda f: f.region and f.region.allowed_auc),
]
CANARY: list[Column[Canary]] = [
    Column("pattern", lambda f: f.threat.pattern, shared=True),
    Column("copies", lambda f: f.threat.copies, shared=True),
    Column("devices", lambda f: f.threat.devices, shared=True),
    Column("view", lambda f: f.threat.view, shared=True),
    Column("unit", lambda f: f.threat.unit, shared=True),
    Column("exposure", lambda f: f.figures.exposure_mean),
    Column("largest", lambda f: f.figures.exposure_max),
    Column("null", lambda f: f.figures.null_mean),
    Column("p", lambda f: f.figures.p_value),
    Column("digits right", lambda f: f.extraction and f.extraction.digit_accuracy),
    Column("chance", lambda f: f.figures.chance),
    Column("canaries", lambda f: f.figures.canaries),
]
LEAK: list[Column[Leak]] = [
    Column("leak", lambda f: f.attack, whole=True),
    Column("view", lambda f: f.view, shared=True),
    Column("unit", lambda f: f.unit, shared=True),
    Column("precision", lambda f: f.precision),
    Column("recall", lambda f: f.recall),
    Column("updates", lambda f: f.updates),
]
BOUND: list[Column[LowerBound]] = [
    Column("method", lambda f: f.method, whole=True),
    Column("unit", lambda f: f.unit, shared=True),
    Column("epsilon at least", lambda f: f.epsilon_low),
    Column("ceiling", lambda f: f.ceiling),
    Column("epsilon (ledger)", lambda f: f.epsilon_ledger),
    Column("delta", lambda f: f.delta, shared=True),
    Column("confidence", lambda f: f.confidence, shared=True),
]


def tables_of(findings: Sequence[Finding]) -> Iterator[Table]:
    """Yield a table for each kind of finding that occurs; slices have none."""
    yield from _table("Membership", MEMBERSHIP, [f for f in findings if isinstance(f, Membership)])
    yield from _table("Canaries", CANARY, [f for f in findings if isinstance(f, Canary)])
    yield from _table(
        "Words and labels that updates name", LEAK, [f for f in findings if isinstance(f, Leak)]
    )
    yield from _table(
        "Lower bounds on epsilon", BOUND, [f for f in findings if isinstance(f, LowerBound)]
    )


def _table(title: str, columns: Sequence[Column[F]], findings: Sequence[F]) -> Iterator[Table]:
    """Yield the table of findings of one kind, or nothing if there are no findings.

    Values that all findings share, such as the game and the view, move to the title.
    """
    if not findings:
        return
    texts = {column: [_text(column.value(found)) for found in findings] for column in columns}
    texts = {column: values for column, values in texts.items() if any(values)}
    common = [c for c, values in texts.items() if c.shared and len(set(values)) == 1]
    words = [title, *(f"{column.title}: {texts[column][0]}" for column in common)]
    table = Table(title=", ".join(words), title_justify="left")
    shown = [column for column in texts if column not in common]
    for column in shown:
        table.add_column(column.title, no_wrap=column.whole)
    for cells in zip(*(texts[column] for column in shown), strict=True):
        table.add_row(*cells)
    yield table


def _text(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def state_of_run(found: "RunDir") -> tuple[str, str, str]:
    """Return a run's state, rounds and metrics, also when its config is of another version."""
    try:
        rounds = str(found.config.train.rounds)
    except WrongInput as error:
        return f"its config cannot be read: {error}", "", ""
    summary = found.summary
    state = summary["status"] if summary else "unfinished: run it again to go on"
    metrics = {
        k: v for k, v in (summary["metrics"] if summary else {}).items() if "_decile_" not in k
    }
    shown = ", ".join(f"{name} {value:.3f}" for name, value in metrics.items())
    return state, f"{len(found.rows())}/{rounds}", shown


def summary_table(summary: dict[str, Any]) -> Table:
    """The table of a summary, for people."""
    table = Table(
        title=f"{summary['name']}, seed {summary['seed']}: {summary['status']}",
        title_justify="left",
    )
    table.add_column("")
    table.add_column("federated", justify="right")
    reference = summary["reference"].get("centralised", {})
    if reference:
        table.add_column("centralised", justify="right")
    shown = {name: value for name, value in summary["metrics"].items() if "_decile_" not in name}
    for name, value in shown.items():
        table.add_row(
            name, f"{value:.4f}", *([f"{reference[name]:.4f}"] if name in reference else [])
        )
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
