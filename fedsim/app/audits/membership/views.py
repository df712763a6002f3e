"""The table of views: each is what a membership attack can see of a run."""

from fedsim.app.audits.audited import Audited, Auditor
from fedsim.app.audits.membership.final import final_rows
from fedsim.app.audits.membership.ladder import check_attacks
from fedsim.app.audits.membership.several_models import (
    check_releases,
    check_rounds,
    release_rows,
    round_rows,
)
from fedsim.app.audits.membership.sums import check_sums, sum_rows
from fedsim.app.audits.membership.updates import check_updates, update_rows
from fedsim.app.audits.membership.user_inference import device_rows
from fedsim.audit.findings import Finding
from fedsim.config import Config
from fedsim.names import check_names


def _final(audited: Audited) -> list[Finding]:
    return [*final_rows(audited), *device_rows(audited)]


VIEWS: dict[str, Auditor] = {
    "final": Auditor(_final),
    "rounds": Auditor(round_rows, check_rounds),
    "updates": Auditor(update_rows, check_updates),
    "sums": Auditor(sum_rows, check_sums),
    "releases": Auditor(release_rows, check_releases),
}


def views_of(config: Config) -> list[str]:
    """Return the views by name. Raises WrongInput."""
    return check_names("audit.view", config.audit.view, VIEWS)


def membership_rows(audited: Audited) -> list[Finding]:
    """Return the findings of every view that the config names, in the order of the table."""
    names = views_of(audited.config)
    return [found for name in VIEWS if name in names for found in VIEWS[name].find(audited)]


def check_membership(config: Config) -> None:
    """Refuse views that this run cannot give, and unknown attacks. Raises WrongInput."""
    for name in views_of(config):
        VIEWS[name].check(config)
    check_attacks(config)
