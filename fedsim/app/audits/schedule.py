"""The audits of a run: which, at which rounds, and when they are due."""

from dataclasses import replace

from fedsim.app.audits.audited import Audited, Evaluator
from fedsim.app.audits.bounds.certified import bound_rows
from fedsim.app.audits.canaries.evaluator import canary_rows
from fedsim.app.audits.membership.views import membership_rows
from fedsim.app.rundir.audit_file import FILE
from fedsim.audit.findings import Finding, to_row
from fedsim.config import Config
from fedsim.names import check_names

EVALUATORS: dict[str, Evaluator] = {
    "membership": membership_rows,
    "canary": canary_rows,
    "bounds": bound_rows,
}


def evaluators(config: Config) -> list[str]:
    """Return the names of the evaluators that the config wants. Raises WrongInput."""
    names = check_names("audit.evaluators", config.audit.evaluators, (*EVALUATORS, "flips"))
    return [name for name in names if name != "flips"]  # flips come with every period's release


def is_due(config: Config, round: int, ended: bool) -> bool:
    """Whether the model after this round is audited: every so many rounds, and the last."""
    if not config.audit.evaluators:
        return False
    return ended or bool(config.audit.every and round % config.audit.every == 0)


def audit(audited: Audited) -> None:
    """Write the findings of the audits that are due, all of a round at once; none twice.

    The last audit of a run knows more (references are trained then), so it takes the place of one that an
    early end turned into the last.
    """
    run, round = audited.run, audited.round
    known = run.rows(FILE)
    written = any(row["round"] == round for row in known)
    if is_due(audited.config, round, audited.ended) and (audited.ended or not written):
        others = [row for row in known if row["round"] != round]
        run.rewrite_rows([*others, *map(to_row, findings_after(audited))], FILE)


def findings_after(audited: Audited) -> list[Finding]:
    """Return what all evaluators that the config wants find after a round."""
    names = evaluators(audited.config)
    found = (each for name in names for each in EVALUATORS[name](audited))
    return [replace(each, round=audited.round) for each in found]
