"""Trackers mirror a run while it goes on: TensorBoard, or your own.

`place.trackers` names them, separated by commas. Your own is "package.module:function"; it gets the
run's folder and its config and returns a `Tracker`. An error in a tracker is reported once and
never stops the run. The run's files remain the truth.
"""

import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from fedsim.app.rundir.files import Row, Watch
from fedsim.config import Config
from fedsim.names import listed, lookup


class Tracker(Protocol):
    """Receives the figures of a run."""

    def log(self, round: int, values: Mapping[str, float]) -> None:
        """Receive the figures of one round."""

    def close(self) -> None:
        """Finish, because the run is over."""


Make = Callable[[Path, Config], Tracker]


class TensorBoard:
    """Scalars in RUN/tensorboard; needs the package `tensorboard`."""

    def __init__(self, folder: Path, config: Config) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer: Any = SummaryWriter(str(folder / "tensorboard"))

    def log(self, round: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, round)
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


TRACKERS: dict[str, Make] = {"tensorboard": TensorBoard}


def trackers_of(config: Config) -> dict[str, Make]:
    """Return the trackers that a config names. Raises WrongInput for an unknown name."""
    return {
        name: lookup("place.trackers", name, TRACKERS) for name in listed(config.place.trackers)
    }


class Mirrors:
    """All trackers of a run; each is dropped at its first failure."""

    def __init__(self, config: Config) -> None:
        """Look the trackers up. Raises WrongInput for unknown names."""
        self.config = config
        self.makers = trackers_of(config)
        self.trackers: dict[str, Tracker] = {}

    def begin(self, folder: Path) -> None:
        """Start all trackers on a run's folder."""
        for name, make in self.makers.items():
            self._try(name, partial(self._start, name, make, folder))

    def watching(self, watch: Watch) -> Watch:
        """Return a function that passes a row to `watch` and to every tracker."""

        def both(row: Row) -> None:
            watch(row)
            values = {name: float(value) for name, value in row.items() if name != "round"}
            for name, tracker in list(self.trackers.items()):
                self._try(name, partial(tracker.log, row["round"], values))

        return both

    def close(self) -> None:
        """Close all trackers."""
        for name, tracker in list(self.trackers.items()):
            self._try(name, tracker.close)

    def _start(self, name: str, make: Make, folder: Path) -> None:
        self.trackers[name] = make(folder, self.config)

    def _try(self, name: str, act: Callable[[], object]) -> None:
        try:
            act()
        except Exception as error:  # a mirror never stops what it mirrors
            self.trackers.pop(name, None)
            told = (
                f"the tracker {name!r} failed and is left out from here on: "
                f"{type(error).__name__}: {error}"
            )
            print(told, file=sys.stderr)
