"""Each period's last model against the release before it: what users would notice."""

from typing import TYPE_CHECKING

import numpy as np
import torch

from fedsim.app.rundir import Row, RunDir, replaced
from fedsim.models.flips import count_flips
from fedsim.types import Evaluator, Examples, Params, Snapshot
from strategies.releases import device_flips, flip_questions

if TYPE_CHECKING:
    from fedsim.app.rounds import Server


def flips_since(server: "Server", before: Params, examples: Examples) -> Evaluator:
    """Return the evaluator of a snapshot's flips against an earlier release, on some examples."""

    def evaluator(snapshot: Snapshot) -> dict[str, float]:
        return count_flips(server.module, server.task, before, snapshot.params, examples).rates

    return evaluator


def release_row(server: "Server", period: int) -> Row:
    """Return the flips of a period's model since the last one: over all test examples, and on devices.

    Empty where there is no earlier release. Rates over devices count every device alike.
    """
    before, now = read_release(server.run, period - 1), server.strategy.state
    if before is None:
        return {}
    row: Row = {"round": now.round, "release": period}
    if server.federation.test is not None:
        row |= flips_since(server, before, server.federation.test)(Snapshot(now.round, now.params))
    if server.config.evaluation.on != "central":
        messages = flip_questions(server.strategy.roster, before, now.params, period)
        row |= device_flips(server.nodes.exchange(messages, now.round))
    return row


def write_release(run: RunDir, period: int, params: Params, keep: str) -> None:
    """Keep a period's last model beside the checkpoints; with `keep = "last"` only it and the one before."""
    folder = run.path / "checkpoints"
    folder.mkdir(exist_ok=True)
    with replaced(folder / _name(period)) as path, path.open("wb") as stream:
        np.savez(stream, **{name: p.cpu().numpy() for name, p in params.items()})  # type: ignore[arg-type]
    if keep == "last":
        (folder / _name(period - 2)).unlink(missing_ok=True)


def read_release(run: RunDir, period: int) -> Params | None:
    """Return the last model of a period, None where it was not kept."""
    path = run.path / "checkpoints" / _name(period)
    if not path.is_file():
        return None
    with np.load(path, allow_pickle=False) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def mean_flips(rows: list[Row]) -> dict[str, float]:
    """Return each rate's mean over the releases that have an earlier one."""
    names = {name: None for row in rows for name in row if name.endswith(("_rate", "_mean", "_decile"))}
    return {name: float(np.mean([row[name] for row in rows if name in row])) for name in names}


def _name(period: int) -> str:
    return f"release-{period:04d}.npz"
