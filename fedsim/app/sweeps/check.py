"""Checks all runs of a sweep before any of them begins."""

from collections.abc import Sequence

from fedsim.app.server.check_experiment import checked
from fedsim.app.sweeps.grid import Member
from fedsim.errors import WrongInput


def refused(runs: Sequence[Member]) -> dict[str, str]:
    """Return hash of the settings -> refusal, for settings that a run would refuse.

    All seeds of a setting get the same answer, so only one of them is checked.
    """
    found: dict[str, str] = {}
    asked = {member.config.hash: member.config for member in reversed(runs)}
    for key, config in reversed(asked.items()):
        try:
            checked(config)
        except WrongInput as error:
            found[key] = str(error)
    return found


def check_runs(runs: Sequence[Member]) -> None:
    """Refuse a sweep if a run of it would be refused. Raises WrongInput."""
    found = refused(runs)
    if found:
        sentence = next(iter(found.values()))
        raise WrongInput(
            f"{len(found)} of {len({m.config.hash for m in runs})} settings would be refused; the "
            f"first: {sentence}"
        )
