"""Each period's last model compared with the release before: changes that users would notice."""

from typing import TYPE_CHECKING

from fedsim.app.rundir.files import Row
from fedsim.app.rundir.releases import read_release
from fedsim.models.flips import count_flips
from fedsim.types import Evaluator, Examples, Params, Snapshot
from strategies.device_flips import device_flips, flip_questions

if TYPE_CHECKING:
    from fedsim.app.server.session import Server


def flips_since(server: "Server", before: Params, examples: Examples) -> Evaluator:
    """Return an evaluator that counts a snapshot's flips since an earlier release, on examples."""

    def evaluator(snapshot: Snapshot) -> dict[str, float]:
        return count_flips(server.module, server.task, before, snapshot.params, examples).rates

    return evaluator


def release_row(server: "Server", period: int) -> Row:
    """Return a period's flips since the last model, on all test examples and on devices.

    It is empty without an earlier release. Rates over devices count every device alike.
    """
    before = read_release(server.run, period - 1)
    now = server.strategy.state
    if before is None:
        return {}
    row: Row = {"round": now.round, "release": period}
    if server.federation.test is not None:
        row |= flips_since(server, before, server.federation.test)(Snapshot(now.round, now.params))
    if server.config.evaluation.on != "central":
        messages = flip_questions(server.strategy.roster, before, now.params, period)
        row |= device_flips(server.nodes.exchange(messages, now.round))
    return row
