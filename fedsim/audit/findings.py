"""Findings of audits: one frozen type for each kind, and their only way to rows and back.

A part (`Threat`, `Area`) groups fields that belong together; a row holds all fields flat. A field
that is None or empty has no key. Metadata says which fields distinguish threat models, and which
fields the summary leaves out.
"""

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from typing import Any, ClassVar, TypeVar, get_args, get_type_hints

from fedsim.errors import WrongInput

IDENTITY = {"identity": True}
"""Marks a field in which different threat models differ."""
UNSUMMED = {"unsummed": True}
"""Marks a field that is in `audit.jsonl` but not in the summary."""
SMALLEST = {"smallest": True}
"""Marks a field whose smallest value is an attack's best result; elsewhere it is the largest."""
T = TypeVar("T")


@dataclass(frozen=True)
class Threat:
    """Whose membership is tested, by which game, and what the attacker sees."""

    game: str = field(metadata=IDENTITY)
    view: str = field(metadata=IDENTITY)
    unit: str = field(metadata=IDENTITY)
    references: int | None = field(default=None, metadata=IDENTITY)
    shadows: str | None = None
    """How references were trained; None without any."""


@dataclass(frozen=True)
class Area:
    """The area under a ROC curve with its interval."""

    auc: float
    auc_low: float | None = None
    auc_high: float | None = None
    interval: str | None = None
    """The kind of the interval, and what it is over."""


@dataclass(frozen=True)
class Curve:
    """A ROC curve with a band, at the same points; empty in the summary."""

    fpr: tuple[float, ...] = field(default=(), metadata=UNSUMMED)
    tpr: tuple[float, ...] = field(default=(), metadata=UNSUMMED)
    tpr_low: tuple[float, ...] = field(default=(), metadata=UNSUMMED)
    tpr_high: tuple[float, ...] = field(default=(), metadata=UNSUMMED)


@dataclass(frozen=True)
class AttackFigures:
    """How well an attack tells members from others."""

    area: Area
    curve: Curve = Curve()
    balanced_accuracy: float | None = None
    records: int | None = None
    members: int | None = None
    targets: int | None = None
    tpr_at_1pct: float | None = None
    tpr_at_01pct: float | None = None
    ppv_1pct: float | None = None
    ppv_10pct: float | None = None
    ppv_50pct: float | None = None
    too_few: str | None = None
    """Why there is no rate at 1 %."""
    auc_pooled: float | None = None
    """The area over all devices' records together, where `area` is a mean over devices."""


@dataclass(frozen=True)
class Region:
    """What the privacy profile allows an attack, and by how much the attack surely exceeds it."""

    allowed_tpr: tuple[float, ...] = field(default=(), metadata=UNSUMMED)
    """The largest true positive rates that the guarantee allows on the curve."""
    allowed_auc: float | None = None
    over_region: float | None = None


@dataclass(frozen=True)
class CanaryThreat:
    """Whose secret is sought, how it was planted, and what the attacker sees."""

    pattern: str = field(metadata=IDENTITY)
    view: str = field(metadata=IDENTITY)
    unit: str = field(metadata=IDENTITY)
    copies: int | None = field(default=None, metadata=IDENTITY)
    devices: int | None = field(default=None, metadata=IDENTITY)
    holders: str | None = field(default=None, metadata=IDENTITY)
    period: int | None = field(default=None, metadata=IDENTITY)


@dataclass(frozen=True)
class ExposureFigures:
    """How exposed canaries are, in bits, beside codes that were never planted."""

    exposure_mean: float
    exposure_max: float | None = None
    exposure_se: float | None = None
    null_mean: float | None = None
    null_expected: float | None = None
    p_value: float | None = field(default=None, metadata=SMALLEST)
    space: float | None = None
    canaries: int | None = None
    chance: float | None = None
    """The chance to guess one token of a code."""
    exposures: tuple[float, ...] = field(default=(), metadata=UNSUMMED)
    null_exposures: tuple[float, ...] = field(default=(), metadata=UNSUMMED)
    exposure_fitted_mean: float | None = None


@dataclass(frozen=True)
class Extraction:
    """How right extracted codes are: shares in [0, 1], None where that search was not run."""

    digit_accuracy: float | None = None
    exact_match: float | None = None
    greedy_digit_accuracy: float | None = None
    greedy_exact_match: float | None = None
    ceiling_digit_accuracy: float | None = None
    ceiling_exact_match: float | None = None
    control_digit_accuracy: float | None = None
    """The share of right digits for a code that was never planted."""


@dataclass(frozen=True)
class Finding:
    """What an audit found after a round."""

    kind: ClassVar[str]
    of: ClassVar[str] = ""
    """The kind of finding that a slice is a part of; "" for all other findings."""
    round: int = field(default=0, kw_only=True, metadata=IDENTITY | UNSUMMED)
    """The schedule sets it; evaluators do not."""


@dataclass(frozen=True)
class Membership(Finding):
    """A membership attack."""

    kind = "membership"
    attack: str = field(metadata=IDENTITY)
    threat: Threat
    figures: AttackFigures
    blind_auc: float | None = None
    """The area of an attacker who never sees the model."""
    auc_run: float | None = None
    """The area on the run itself, where the means of `figures` include shadows."""
    region: Region | None = None
    note: str | None = None
    """Why the run's epsilon gives no bound here."""
    active: bool | None = None
    """True for an attacker who changes the messages to devices."""
    window: int | None = None
    visible: str | None = None
    models: int | None = None
    releases: tuple[int, ...] = ()
    records_each: float | None = None


@dataclass(frozen=True)
class Canary(Finding):
    """Canaries planted in one way and searched for in one view."""

    kind = "canary"
    threat: CanaryThreat
    figures: ExposureFigures
    extraction: Extraction | None = None
    epsilon_bound: float | None = None
    """The mean exposure that DP allows."""
    epsilon: float | None = None
    window: int | None = None
    visible: str | None = None
    rounds_seen: int | None = None


@dataclass(frozen=True)
class LowerBound(Finding):
    """An audited lower bound on epsilon, beside the largest that the audit could have shown."""

    kind = "audit"
    method: str = field(metadata=IDENTITY)
    epsilon_low: float
    ceiling: float | None = None
    confidence: float | None = None
    delta: float | None = None
    assumptions: str | None = None
    estimate: bool = False
    """Whether the bound rests on an approximation and certifies nothing."""
    unit: str | None = field(default=None, metadata=IDENTITY)
    view: str | None = field(default=None, metadata=IDENTITY)
    game: str | None = field(default=None, metadata=IDENTITY)
    attack: str | None = field(default=None, metadata=IDENTITY)
    canaries: int | None = None
    runs: int | None = None
    epsilon_estimate: float | None = None
    epsilon_ledger: float | None = None
    note: str | None = None


@dataclass(frozen=True)
class Leak(Finding):
    """What plain updates reveal: precision and recall, means over updates."""

    kind = "leak"
    attack: str = field(metadata=IDENTITY)
    view: str = field(metadata=IDENTITY)
    unit: str = field(metadata=IDENTITY)
    precision: float
    recall: float
    updates: int | None = None
    visible: str | None = None


@dataclass(frozen=True)
class Slice(Finding):
    """A figure on a part of the records or canaries."""

    kind = "slice"
    slice: str = field(metadata=IDENTITY)
    """The property that divides records or canaries into parts."""
    value: int | str | bool = field(metadata=IDENTITY)


@dataclass(frozen=True)
class MembershipSlice(Slice):
    """An attack's area on a part of the records."""

    of = "membership"
    attack: str = field(metadata=IDENTITY)
    threat: Threat
    area: Area
    records: int | None = None
    targets: int | None = None


@dataclass(frozen=True)
class CanarySlice(Slice):
    """The mean exposure of a part of the canaries."""

    of = "canary"
    pattern: str = field(metadata=IDENTITY)
    view: str = field(metadata=IDENTITY)
    exposure_mean: float
    canaries: int | None = None
    null_expected: float | None = None


@dataclass(frozen=True)
class SanityCheck(Finding):
    """A check of attacks and audits on a known case: expected, seen, and whether they agree."""

    kind = "sanity"
    name: str = field(metadata=IDENTITY)
    expected: str
    observed: str
    ok: bool


TYPES = (Membership, Canary, LowerBound, Leak, MembershipSlice, CanarySlice, SanityCheck)
SUMMED: tuple[type[Finding], ...] = (Membership, Canary, LowerBound, Leak)
"""Kinds that the summary also holds, under `attacks`."""


def to_row(finding: Finding) -> dict[str, Any]:
    """Return a finding as a flat row of JSON values; a field that is None or empty has no key."""
    head: dict[str, Any] = {"kind": finding.kind} | ({"of": finding.of} if finding.of else {})
    values = {
        name: value for name, value, _ in _leaves(finding) if value is not None and value != ()
    }
    return head | {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}


def from_row(row: Mapping[str, Any], kind: str = "") -> Finding | None:
    """Return the finding in a row of this version or an older one; None for an unknown kind.

    `kind` is needed for a summary's row, which does not name it. Unknown keys are ignored. A
    missing text is empty. Raises WrongInput where a needed number is missing.
    """
    named = (row.get("kind", kind), row.get("of", ""))
    found = next((each for each in TYPES if (each.kind, each.of) == named), None)
    return None if found is None else _read(found, row)


def identity(finding: Finding) -> tuple[Any, ...]:
    """Return what distinguishes a finding's threat model and round from another's."""
    own = (value for _, value, metadata in _leaves(finding) if "identity" in metadata)
    return (finding.kind, finding.of, *own)


def unsummed(finding: type[Finding]) -> frozenset[str]:
    """Return the keys of a finding's row that the summary leaves out."""
    return frozenset(
        {"kind"} | {name for name, metadata in keys_of(finding) if "unsummed" in metadata}
    )


def smallest_is_best() -> frozenset[str]:
    """Return the keys whose smallest value is an attack's best result."""
    return frozenset(
        name for kind in TYPES for name, metadata in keys_of(kind) if "smallest" in metadata
    )


def _leaves(of: Any) -> Iterator[tuple[str, Any, Mapping[str, Any]]]:
    """Yield (key, value, metadata) of every field; the fields of a part replace it."""
    for each in fields(of):
        value = getattr(of, each.name)
        if is_dataclass(value):
            yield from _leaves(value)
        else:
            yield each.name, value, each.metadata


def keys_of(kind: type[Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield (key, metadata) of every field of a type; the fields of a part replace it."""
    for each in fields(kind):
        part = _part(kind, each.name)
        if part is None:
            yield each.name, each.metadata
        else:
            yield from keys_of(part)


def _read(kind: type[T], row: Mapping[str, Any]) -> T:
    values: dict[str, Any] = {}
    for each in fields(kind):  # type: ignore[arg-type]
        part = _part(kind, each.name)
        needed = each.default is MISSING
        if part is not None:
            if needed or any(name in row for name, _ in keys_of(part)):
                values[each.name] = _read(part, row)
        elif row.get(each.name) is not None:
            value = row[each.name]
            values[each.name] = tuple(value) if isinstance(value, list) else value
        elif needed:
            values[each.name] = _nothing(each.name, get_type_hints(kind)[each.name], row)
    return kind(**values)


def _nothing(name: str, wanted: Any, row: Mapping[str, Any]) -> str:
    """Return the value of a needed field that has no key: an empty text.

    Raises WrongInput for a number.
    """
    if wanted is str:
        return ""
    told = ", ".join(
        f"{key} {row[key]!r}" for key in ("kind", "attack", "method", "round") if key in row
    )
    raise WrongInput(
        f"a finding ({told}) lacks the number {name!r}; take its row out of audit.jsonl or "
        "summary.json, or audit the run again"
    )


def _part(kind: type[Any], name: str) -> type[Any] | None:
    """Return the type of the part that a field holds, None where it holds a value."""
    hint = get_type_hints(kind)[name]
    parts = (
        each for each in (hint, *get_args(hint)) if isinstance(each, type) and is_dataclass(each)
    )
    return next(parts, None)
