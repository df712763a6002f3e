"""The last model of each period, in a run's folder."""

from typing import TYPE_CHECKING

import numpy as np
import torch

from fedsim.app.rundir.files import replaced
from fedsim.app.rundir.run_dir import RunDir
from fedsim.types import Params

if TYPE_CHECKING:
    pass


def write_release(run: RunDir, period: int, params: Params, keep: str) -> None:
    """Keep a period's last model beside the checkpoints.

    With `keep = "last"`, only this model and the one before remain.
    """
    folder = run.path / "checkpoints"
    folder.mkdir(exist_ok=True)
    with replaced(folder / _name(period)) as path, path.open("wb") as stream:
        np.savez(stream, **{name: p.cpu().numpy() for name, p in params.items()})  # type: ignore[arg-type]
    if keep == "last":
        (folder / _name(period - 2)).unlink(missing_ok=True)


def read_release(run: RunDir, period: int) -> Params | None:
    """Return the last model of a period, or None if it was not kept."""
    path = run.path / "checkpoints" / _name(period)
    if not path.is_file():
        return None
    with np.load(path, allow_pickle=False) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def _name(period: int) -> str:
    return f"release-{period:04d}.npz"
