"""What was released, about whom, in which round: written before the release, never taken back.

`privacy.jsonl` holds a row a release; who is in which group of equal events stands beside it, in
`privacy/<hash>.npy`, once for all the rounds that share it.
"""

import hashlib
import io
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array, csr_array

from fedsim.privacy.accounting import Event, merged
from fedsim.privacy.table import Table

NOBODY = -1
Members = NDArray[np.int16]


@dataclass(frozen=True)
class Entry:
    """The events that one release means, by groups of devices."""

    round: int
    period: int
    release: str
    """What kind of release, as "model"; part of the key."""
    attempt: str
    """"seeded" where a repeated round is the same release, else a name of this process."""
    groups: tuple[tuple[Event, ...], ...]
    members: Members
    """[devices]: each device's group, or NOBODY."""

    def __post_init__(self) -> None:
        assert self.members.max(initial=NOBODY) < len(self.groups), "a member's group has events"

    @property
    def key(self) -> tuple[int, str, str]:
        return (self.round, self.release, self.attempt)


@dataclass
class Ledger:
    """All releases of a run.

    Guarantee: what `counts` composes holds every entry that `write` returned for, whenever the process ended;
    a seeded round that is repeated counts once, one with other noise or other events again.
    """

    folder: Path
    devices: int
    entries: list[Entry] = field(default_factory=list)

    @staticmethod
    def open(folder: Path, devices: int) -> "Ledger":
        """Return the ledger of a run's folder as the files have it."""
        ledger = Ledger(folder, devices)
        for line in ledger._lines():
            ledger.entries.append(ledger._entry(json.loads(line)))
        return ledger

    def write(self, entry: Entry) -> None:
        """Put a release on disk, before it happens; once it returns, the release may go out."""
        if any(_same(entry, known) for known in self.entries):
            return
        name = self._write_members(entry.members)
        row = {
            "round": entry.round,
            "period": entry.period,
            "release": entry.release,
            "attempt": entry.attempt,
            "groups": [[[e.noise_multiplier, e.sampling_rate, e.count] for e in g] for g in entry.groups],
            "members": name,
        }
        torn = self._path.exists() and self._path.stat().st_size and not self._text().endswith("\n")
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(("\n" if torn else "") + json.dumps(row, allow_nan=False) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        _sync_folder(self.folder)
        self.entries.append(entry)

    def counts(
        self, counted: Callable[[Entry], bool] = lambda entry: True, more: Iterable[Entry] = ()
    ) -> tuple[Table, csr_array]:
        """Return the distinct events, and how often each befell each device [devices, events].

        Only entries that are `counted`, and `more` entries that are about to be written.
        """
        times: dict[tuple[tuple[tuple[Event, ...], ...], bytes], tuple[Entry, int]] = {}
        for entry in [*filter(counted, self.entries), *more]:
            key = (entry.groups, hashlib.sha1(entry.members.tobytes()).digest())
            times[key] = (entry, times.get(key, (entry, 0))[1] + 1)
        columns: dict[tuple[float, float], int] = {}
        rows, places, values = [], [], []
        for entry, often in times.values():
            order = np.argsort(entry.members, kind="stable")
            edges = np.searchsorted(entry.members[order], np.arange(len(entry.groups) + 1))
            for number, group in enumerate(entry.groups):
                who = order[edges[number] : edges[number + 1]]
                for e in merged(group):
                    place = columns.setdefault((e.noise_multiplier, e.sampling_rate), len(columns))
                    rows.append(who)
                    places.append(np.full(len(who), place))
                    values.append(np.full(len(who), e.count * often))
        shape = (self.devices, len(columns))
        if not rows:
            return Table(()), csr_array((self.devices, 0), dtype=np.int64)
        found = coo_array(
            (np.concatenate(values), (np.concatenate(rows), np.concatenate(places))), shape=shape
        )
        return Table(tuple(Event(z, q) for z, q in columns)), csr_array(found)

    @property
    def _path(self) -> Path:
        return self.folder / "privacy.jsonl"

    def _text(self) -> str:
        return self._path.read_text(encoding="utf-8")

    def _lines(self) -> list[str]:
        """Return whole rows; a torn one was never followed by its release."""
        text = self._text() if self._path.exists() else ""
        return [line for line in text.splitlines(keepends=True) if line.endswith("}\n") and _is_row(line)]

    def _entry(self, row: dict[str, Any]) -> Entry:
        members = np.load(self.folder / "privacy" / f"{row['members']}.npy", allow_pickle=False)
        groups = tuple(tuple(Event(float(z), float(q), int(n)) for z, q, n in g) for g in row["groups"])
        return Entry(row["round"], row["period"], row["release"], row["attempt"], groups, members)

    def _write_members(self, members: Members) -> str:
        stream = io.BytesIO()
        np.save(stream, members)
        content = stream.getvalue()
        name = hashlib.sha256(content).hexdigest()[:16]
        path = self.folder / "privacy" / f"{name}.npy"
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            aside = path.with_suffix(".part")
            with aside.open("wb") as out:
                out.write(content)
                out.flush()
                os.fsync(out.fileno())
            os.replace(aside, path)
            _sync_folder(path.parent)
        return name


def row_events(table: Table, counts: csr_array, device: int) -> tuple[Event, ...]:
    """Return what befell one device, from `Ledger.counts`."""
    row = counts[[device]].toarray()[0]
    found = zip(table.events, row.tolist(), strict=True)
    return merged(Event(e.noise_multiplier, e.sampling_rate, int(n)) for e, n in found)


def _same(a: Entry, b: Entry) -> bool:
    return a.key == b.key and a.groups == b.groups and bool(np.array_equal(a.members, b.members))


def _is_row(line: str) -> bool:
    try:
        return "members" in json.loads(line)
    except ValueError:
        return False


def _sync_folder(path: Path) -> None:
    """Make a new name in a folder survive a loss of power."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
