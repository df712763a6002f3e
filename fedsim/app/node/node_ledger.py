"""A node's own ledger: what it has released of its devices, in all runs that it took part in.

It lies on the node's disk (node-config `state-path`). Each run has a folder with a ledger in the
server's format.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from fedsim.app.node.terms import Terms
from fedsim.app.rundir.files import write_text
from fedsim.config import Config
from fedsim.errors import RunFailed
from fedsim.privacy.accounting import Event, epsilon
from fedsim.privacy.entries import local_entry, visible_entry
from fedsim.privacy.ledger import Entry, Ledger, row_events
from fedsim.types import Cohort

WAIT_S = 60.0


@dataclass(frozen=True)
class NodeLedger:
    """The ledger of a node's devices, sorted by id.

    Guarantee: once `enter` returns, the release that follows is on disk, whatever happens to the
    process. A device's loss is composed over all runs, without amplification by device selection.
    If runs have different units, the composed epsilon holds for an example.
    """

    state: Path
    devices: NDArray[np.str_]

    def enter(self, config: Config, entry: Entry, terms: Terms) -> None:
        """Write a release down before it happens.

        Raises WrongInput if it is beyond the terms, and RunFailed if it cannot be written. After an
        error nothing may be released.
        """
        with self._locked():
            ledger = self._ledger(config)
            delta = min(config.dp.delta or terms.max_delta, terms.max_delta)
            for i in np.flatnonzero(entry.members >= 0).tolist() if terms.max_epsilon else []:
                after = epsilon(self._events(str(self.devices[i]), ledger, entry), delta)
                terms.check_epsilon(after, str(self.devices[i]))
            ledger.write(entry)

    def events(self, device: str) -> tuple[Event, ...]:
        """Return the events of a device's releases in all runs."""
        return self._events(device)

    def _events(
        self, device: str, current: Ledger | None = None, entry: Entry | None = None
    ) -> tuple[Event, ...]:
        found: list[Event] = []
        for path in sorted(self.state.glob("*/devices.json")):
            names = json.loads(path.read_text(encoding="utf-8"))
            if device not in names:
                continue
            ledger = Ledger.open(path.parent, len(names))
            mine = current is not None and path.parent == current.folder and entry is not None
            more = [entry] if mine and entry is not None and not ledger.holds(entry) else []
            found += row_events(*ledger.counts(more=more), names.index(device))
        return tuple(found)

    def _ledger(self, config: Config) -> Ledger:
        """Return the ledger of a run; its folder is named by settings, seed and hosted devices."""
        names = json.dumps(self.devices.tolist())
        hosted = hashlib.sha256(names.encode()).hexdigest()[:8]
        folder = self.state / f"{config.hash}-{config.seed}-{hosted}"
        if not (folder / "devices.json").exists():
            folder.mkdir(parents=True, exist_ok=True)
            write_text(folder / "devices.json", names)
        return Ledger.open(folder, len(self.devices))

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Lock the state for this process. Raises RunFailed if it cannot be locked or written."""
        try:
            self.state.mkdir(parents=True, exist_ok=True)
            with FileLock(self.state / "lock", timeout=WAIT_S):
                yield
        except Timeout:
            raise RunFailed(
                f"another process holds the node's ledger in {self.state}; end it"
            ) from None
        except OSError as error:
            raise RunFailed(
                f"the node cannot write its ledger in {self.state} ({error.strerror or error}); "
                "nothing was released: make room and permissions there"
            ) from error


def entry_of(
    config: Config,
    cohort: Cohort,
    devices: NDArray[np.str_],
    activity: NDArray[np.int64],
    attempt: str,
) -> Entry:
    """Return the ledger entry of a task for the node's devices.

    Every named device counts as surely in the round. `activity` [devices] is public.
    """
    chosen = np.searchsorted(devices, cohort.devices)
    told = (config, cohort.round, cohort.period, attempt, chosen)
    if config.dp.unit == "device":
        return visible_entry(*told, cohort.weights, len(devices))
    return local_entry(*told, activity[chosen], len(devices))
