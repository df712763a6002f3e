"""The audits of a run: which ones it has, and in which rounds they are due."""

import json
from dataclasses import replace

from fedsim.app.audits.audited import Audited, Auditor
from fedsim.app.audits.bounds.certified import bound_rows, check_bounds
from fedsim.app.audits.canaries.evaluator import canary_rows, check_canary
from fedsim.app.audits.membership.views import check_membership, membership_rows
from fedsim.app.rundir.audit_file import FILE
from fedsim.audit.findings import TYPES, Finding, to_row
from fedsim.config import Config
from fedsim.errors import WrongInput
from fedsim.names import check_names, import_object, is_own_code

KEY = "audit.evaluators"
EVALUATORS: dict[str, Auditor] = {
    "membership": Auditor(membership_rows, check_membership),
    "canary": Auditor(canary_rows, check_canary),
    "bounds": Auditor(bound_rows, check_bounds),
}


def evaluators(config: Config) -> list[str]:
    """Return the names of the evaluators in the config. Raises WrongInput."""
    names = check_names(KEY, config.audit.evaluators, (*EVALUATORS, "flips"), own=True)
    return [name for name in names if name != "flips"]  # each period's release brings flips


def audit_named(name: str) -> Auditor:
    """Return an audit by name; findings of own code are checked. Raises WrongInput."""
    if not is_own_code(name):
        return EVALUATORS[name]
    own = import_object(KEY, name, "audited: fedsim.app.audits.audited.Audited")
    return Auditor(lambda audited: _checked(name, own(audited)))


def is_due(config: Config, round: int, ended: bool) -> bool:
    """Return whether a round's model is audited: every `audit.every` rounds and at the end."""
    if not config.audit.evaluators:
        return False
    return ended or bool(config.audit.every and round % config.audit.every == 0)


def audit(audited: Audited) -> None:
    """Write the findings of the audits that are due after a round.

    All findings of a round are written at once, and no round is written twice. The last audit
    knows more, because references are trained for it. It therefore replaces earlier findings of
    its round, which exist where the run ended early.
    """
    run = audited.run
    round = audited.round
    known = run.rows(FILE)
    written = any(row["round"] == round for row in known)
    if is_due(audited.config, round, audited.ended) and (audited.ended or not written):
        others = [row for row in known if row["round"] != round]
        run.rewrite_rows([*others, *map(to_row, findings_after(audited))], FILE)


def findings_after(audited: Audited) -> list[Finding]:
    """Return the findings after a round of all evaluators that the config names."""
    names = evaluators(audited.config)
    found = (each for name in names for each in audit_named(name).find(audited))
    return [replace(each, round=audited.round) for each in found]


def _checked(name: str, found: object) -> list[Finding]:
    """Return what own code gave, if it is a list of findings. Raises WrongInput otherwise."""
    wanted = f"{KEY} = {name!r} has to return a list of findings (fedsim.audit.findings)"
    if not isinstance(found, list):
        raise WrongInput(f"{wanted}; it returned a {type(found).__name__}")
    for each in found:
        if not isinstance(each, TYPES):
            raise WrongInput(f"{wanted}; one of them is a {type(each).__name__}")
        try:
            json.dumps(to_row(each), allow_nan=False)
        except (TypeError, ValueError) as error:
            raise WrongInput(
                f"{wanted} of finite numbers and texts; one cannot be written: {error}"
            ) from error
    return found
