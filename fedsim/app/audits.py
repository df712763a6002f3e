"""The audits of a run: which, at which rounds, and where their findings stand."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from fedsim.app.rundir import Row, RunDir, write_json
from fedsim.audit.membership import ATTACKS
from fedsim.audit.quantile import QUANTILE
from fedsim.config import Config
from fedsim.data.holdings import Holdings
from fedsim.errors import WrongInput
from fedsim.models.tasks import Task
from fedsim.names import suggestion
from fedsim.privacy.accounting import Event
from fedsim.types import Params

FILE = "audit.jsonl"
SUMMED = {"membership": "membership", "canary": "canary", "audit": "audit", "leak": "leak"}
"""Kinds of rows that stand in the summary, too, under `attacks`."""
LISTS = (
    "kind", "round", "fpr", "tpr", "tpr_low", "tpr_high", "allowed_tpr", "exposures",
    "null_exposures", "time_s",
)  # fmt: skip
"""What the summary leaves out of a row."""


@dataclass(frozen=True)
class Audited:
    """A run as its auditors see it after a round."""

    config: Config
    holdings: Holdings
    module: nn.Module
    task: Task
    run: RunDir
    round: int
    params: Params
    ended: bool
    """Whether this is the run's last model; only then are references trained."""
    events: tuple[Event, ...] = ()
    """What the most exposed unit has been part of so far; empty without DP."""
    delta: float = 0.0


Evaluator = Callable[[Audited], list[Row]]


def evaluators(config: Config) -> list[str]:
    """Return the names of the evaluators that the config wants. Raises WrongInput."""
    names = check_names("audit.evaluators", config.audit.evaluators, (*_evaluators(), "flips"))
    return [name for name in names if name != "flips"]  # flips come with every period's release


def check_names(key: str, text: str, known: Iterable[str]) -> list[str]:
    """Return the names that a setting lists, with commas between. Raises WrongInput for an unknown one."""
    names, known = [part.strip() for part in text.split(",") if part.strip()], list(known)
    for name in names:
        if name not in known:
            raise WrongInput(
                f"{key} names {name!r}; choose among {', '.join(known)}{suggestion(name, known)}"
            )
    return names


def check_audits(config: Config, real: bool) -> None:
    """Refuse audits that could not be done, before anything is written. Raises WrongInput."""
    names = evaluators(config)
    audit, canary = config.audit, config.canary
    changed = audit.coins != "none" or audit.mislabelled or audit.canary_devices or canary.count
    if real and (names or changed):
        raise WrongInput(
            "audits change training records and look at them, and real nodes keep theirs to themselves; "
            "leave [audit] and [canary] at their defaults here, and audit the same experiment in simulation"
        )
    if names and config.audit.references % 2:
        raise WrongInput(
            f"audit.references = {config.audit.references}: references come in pairs; use an even number"
        )
    if "bounds" in names and not bounds_possible(config):
        raise WrongInput(
            'audit.evaluators = "bounds" needs audit.coins, or a [dp] unit without a secure sum, or '
            "audit.canary_devices"
        )
    if config.audit.canary_devices and (config.dp.unit != "device" or config.dp.trust == "secure_sum"):
        raise WrongInput(
            "audit.canary_devices send directions of the norm that dp.clip_norm allows a device; "
            'set dp.unit = "device" and dp.trust = "central"'
        )
    if "membership" in names:
        from fedsim.app.views import check_views

        check_views(config)
    if "membership" in names and config.audit.attacks != "auto":
        check_names("audit.attacks", config.audit.attacks, (*ATTACKS, QUANTILE))
    if "canary" in names and not config.canary.count:
        raise WrongInput(
            "audit.evaluators names 'canary', and canary.count = 0 plants none; set canary.count and "
            'canary.pattern = "pin", for one'
        )


def bounds_possible(config: Config) -> bool:
    """Whether any lower bound on epsilon could be had."""
    crafted = config.dp.unit != "none" and config.dp.trust != "secure_sum"
    return config.audit.coins != "none" or crafted or bool(config.audit.canary_devices)


def is_due(config: Config, round: int, ended: bool) -> bool:
    """Whether the model after this round is audited: every so many rounds, and the last."""
    if not config.audit.evaluators:
        return False
    return ended or bool(config.audit.every and round % config.audit.every == 0)


def audit(audited: Audited) -> None:
    """Write the rows of the audits that are due, all of a round at once; none twice."""
    run, round = audited.run, audited.round
    written = any(row["round"] == round for row in run.rows(FILE))
    if is_due(audited.config, round, audited.ended) and not written:
        run.rewrite_rows([*run.rows(FILE), *rows_of(audited)], FILE)


def rows_of(audited: Audited) -> list[Row]:
    """Return the rows of all evaluators that the config wants."""
    known = _evaluators()
    return [
        {"round": audited.round} | row for name in evaluators(audited.config) for row in known[name](audited)
    ]


def replace_rows(run: RunDir, rows: list[Row]) -> None:
    """Put rows into the audit file in place of those with the same threat model, and into the summary."""
    named = {identity(row) for row in rows}
    kept = [row for row in run.rows(FILE) if identity(row) not in named]
    run.rewrite_rows([*kept, *rows], FILE)
    summary = run.summary
    if summary is not None:
        write_json(run.path / "summary.json", summary | {"attacks": attacks(run)})


def attacks(run: RunDir) -> dict[str, list[Row]]:
    """Return the summary's `attacks`: for each threat model the figures of the last audited round."""
    found: dict[tuple[Any, ...], Row] = {}
    for row in sorted(run.rows(FILE), key=lambda row: row["round"]):
        if row["kind"] in SUMMED:
            found[identity(row)[:-1]] = row
    lists: dict[str, list[Row]] = {"membership": [], "canary": [], "audit": []}
    for row in found.values():
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


def _evaluators() -> dict[str, Evaluator]:
    # imported where they are used: they need scipy and scikit-learn, which a plain run does not wait for
    from fedsim.app.canaries import canary_rows
    from fedsim.app.lower_bounds import bound_rows
    from fedsim.app.views import membership_rows

    return {"membership": membership_rows, "canary": canary_rows, "bounds": bound_rows}
