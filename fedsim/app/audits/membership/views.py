"""What membership attacks look at: the table from a view's name to its rows."""

from fedsim.app.audits.audited import Audited, Evaluator
from fedsim.app.audits.membership.final import final_rows
from fedsim.app.audits.membership.several_models import release_rows, round_rows
from fedsim.app.audits.membership.sums import sum_rows
from fedsim.app.audits.membership.updates import update_rows
from fedsim.app.audits.membership.user_inference import device_rows
from fedsim.audit.findings import Finding
from fedsim.names import listed

VIEWS: dict[str, tuple[Evaluator, ...]] = {
    "final": (final_rows, device_rows),
    "rounds": (round_rows,),
    "updates": (update_rows,),
    "sums": (sum_rows,),
    "releases": (release_rows,),
}


def membership_rows(audited: Audited) -> list[Finding]:
    """Return the findings of every view that the config names, in the order of the table."""
    names = listed(audited.config.audit.view)
    return [row for name in VIEWS if name in names for rows in VIEWS[name] for row in rows(audited)]
