"""What was released, about whom, in which round: written before the release, never taken back.

`privacy.jsonl` holds one row for each release. `privacy/<hash>.npy` holds each device's group of
equal events, once for all the rounds that share it.
"""

import hashlib
import io
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedsim.privacy.accounting import Event, merged
from fedsim.privacy.renyi_table import RenyiTable

if TYPE_CHECKING:
    from scipy.sparse import csr_array

NOBODY = -1
Members = NDArray[np.int32]


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
        assert self.members.min(initial=NOBODY) >= NOBODY, "a member has a group, or none"
        assert self.members.max(initial=NOBODY) < len(self.groups), "a member's group has events"

    @property
    def key(self) -> tuple[int, str, str]:
        return (self.round, self.release, self.attempt)


@dataclass(frozen=True)
class Kept:
    """An entry on disk; `name` stands for the file of its members."""

    round: int
    period: int
    release: str
    attempt: str
    groups: tuple[tuple[Event, ...], ...]
    name: str

    @property
    def key(self) -> tuple[int, str, str]:
        return (self.round, self.release, self.attempt)


@dataclass
class Ledger:
    """All releases of a run.

    Guarantee: `counts` composes every entry for which `write` returned, whenever the process ended.
    A repeated seeded round counts once; a round that is repeated with other noise or other events
    counts again.

    Two of three devices take part in one round:

    >>> import tempfile
    >>> from pathlib import Path
    >>> import numpy as np
    >>> from fedsim import Event, Ledger
    >>> from fedsim.privacy.ledger import NOBODY, Entry
    >>> ledger = Ledger.open(Path(tempfile.mkdtemp()), devices=3)
    >>> members = np.array([0, 0, NOBODY], dtype=np.int32)
    >>> ledger.write(Entry(1, 1, "model", "seeded", ((Event(1.0),),), members))
    >>> events, counts = ledger.counts()
    >>> events.epsilons(counts, 1e-5).round(1).tolist()
    [4.7, 4.7, 0.0]
    """

    folder: Path
    devices: int
    entries: list[Kept] = field(default_factory=list)

    @staticmethod
    def open(folder: Path, devices: int) -> "Ledger":
        """Return the ledger of a run's folder as the files have it."""
        ledger = Ledger(folder, devices)
        ledger.entries.extend(_kept(json.loads(line)) for line in ledger._lines())
        return ledger

    def write(self, entry: Entry) -> None:
        """Put a release on disk before it happens; it may go out once this returns."""
        name, content = _named(entry.members)
        kept = Kept(entry.round, entry.period, entry.release, entry.attempt, entry.groups, name)
        if kept in self.entries:
            return
        self._write_members(name, content)
        row = asdict(kept) | {
            "groups": [
                [[e.noise_multiplier, e.sampling_rate, e.count] for e in g] for g in entry.groups
            ]
        }
        start = "\n" if self._is_torn() else ""
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(start + json.dumps(row, allow_nan=False) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        _sync_folder(self.folder)
        self.entries.append(kept)

    def holds(self, entry: Entry) -> bool:
        """Whether this very release is written down; repeating it then costs nothing."""
        name, _ = _named(entry.members)
        kept = Kept(entry.round, entry.period, entry.release, entry.attempt, entry.groups, name)
        return kept in self.entries

    def absorb(self, node: "Ledger", positions: NDArray[np.int64]) -> None:
        """Take in a node's ledger; `positions` [devices of the node] are its devices' places here.

        Guarantee: a device is charged for every release that either side knows. A release that both
        have with the same events is charged once. Where they disagree on the events, both are
        charged.
        """
        for kept in node.entries:
            members = np.full(self.devices, NOBODY, dtype=np.int32)
            members[positions] = node._members(kept.name)
            for known in [entry for entry in self.entries if entry.key == kept.key]:
                members[self._agrees(known, kept.groups, members)] = NOBODY
            if (members != NOBODY).any():
                self.write(
                    Entry(kept.round, kept.period, kept.release, kept.attempt, kept.groups, members)
                )

    def _agrees(
        self, known: Kept, groups: tuple[tuple[Event, ...], ...], members: Members
    ) -> NDArray[np.bool_]:
        """Return the devices for which a known entry has the events of their group."""
        mine = self._members(known.name)
        same = np.array([[one == other for other in groups] for one in known.groups], dtype=bool)
        both = (mine != NOBODY) & (members != NOBODY)
        return both & same[np.where(both, mine, 0), np.where(both, members, 0)]

    def counts(
        self, counted: Callable[[Kept], bool] = lambda entry: True, more: Iterable[Entry] = ()
    ) -> tuple[RenyiTable, "csr_array"]:
        """Return the distinct events, and how often each concerned each device [devices, events].

        It counts the entries that are `counted`, and `more` entries that are about to be written.
        """
        from scipy.sparse import coo_array, csr_array  # only runs with DP wait for it

        times = Counter((entry.groups, entry.name) for entry in self.entries if counted(entry))
        columns: dict[tuple[float, float], int] = {}
        parts = [
            _cells(groups, self._members(name), often, columns)
            for (groups, name), often in times.items()
        ]
        parts += [_cells(entry.groups, entry.members, 1, columns) for entry in more]
        if not columns:
            return RenyiTable(()), csr_array((self.devices, 0), dtype=np.int64)
        who, event, often = (np.concatenate(each) for each in zip(*parts, strict=True))
        found = coo_array((often, (who, event)), shape=(self.devices, len(columns)))
        return RenyiTable(tuple(Event(z, q) for z, q in columns)), csr_array(found)

    def _members(self, name: str) -> Members:
        found: Members = np.load(self.folder / "privacy" / f"{name}.npy", allow_pickle=False)
        return found

    @property
    def _path(self) -> Path:
        return self.folder / "privacy.jsonl"

    def _is_torn(self) -> bool:
        """Whether the last row was cut off by the end of its process."""
        if not self._path.exists() or not self._path.stat().st_size:
            return False
        with self._path.open("rb") as stream:
            stream.seek(-1, os.SEEK_END)
            return stream.read() != b"\n"

    def _lines(self) -> list[str]:
        """Return whole rows; no release ever followed a torn one."""
        text = self._path.read_text(encoding="utf-8") if self._path.exists() else ""
        return [
            line
            for line in text.splitlines(keepends=True)
            if line.endswith("}\n") and _is_row(line)
        ]

    def _write_members(self, name: str, content: bytes) -> None:
        path = self.folder / "privacy" / f"{name}.npy"
        if path.exists():
            return
        path.parent.mkdir(exist_ok=True)
        aside = path.with_suffix(".part")
        with aside.open("wb") as out:
            out.write(content)
            out.flush()
            os.fsync(out.fileno())
        os.replace(aside, path)
        _sync_folder(path.parent)


def row_events(table: RenyiTable, counts: "csr_array", device: int) -> tuple[Event, ...]:
    """Return the events of one device, from `Ledger.counts`."""
    row = counts[[device]].toarray()[0]
    found = zip(table.events, row.tolist(), strict=True)
    return merged(Event(e.noise_multiplier, e.sampling_rate, int(n)) for e, n in found)


def _cells(
    groups: tuple[tuple[Event, ...], ...],
    members: Members,
    often: int,
    columns: dict[tuple[float, float], int],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return (device, column, count) of an entry that happened `often` times.

    New events get new columns.
    """
    who = [np.zeros(0, np.int64)]
    event = [np.zeros(0, np.int64)]
    count = [np.zeros(0, np.int64)]
    part = np.flatnonzero(members != NOBODY)
    part = part[np.argsort(members[part], kind="stable")]
    edges = np.searchsorted(members[part], np.arange(len(groups) + 1))
    for number, group in enumerate(groups):
        mine = part[edges[number] : edges[number + 1]]
        for e in merged(group):
            who.append(mine)
            event.append(
                np.full(
                    len(mine),
                    columns.setdefault((e.noise_multiplier, e.sampling_rate), len(columns)),
                )
            )
            count.append(np.full(len(mine), e.count * often))
    return np.concatenate(who), np.concatenate(event), np.concatenate(count)


def _named(members: Members) -> tuple[str, bytes]:
    """Return the name and the bytes of the members' file; the bytes give the name."""
    stream = io.BytesIO()
    np.save(stream, members)
    content = stream.getvalue()
    return hashlib.sha256(content).hexdigest()[:16], content


def _kept(row: dict[str, Any]) -> Kept:
    groups = tuple(tuple(Event(float(z), float(q), int(n)) for z, q, n in g) for g in row["groups"])
    return Kept(row["round"], row["period"], row["release"], row["attempt"], groups, row["name"])


def _is_row(line: str) -> bool:
    try:
        return "name" in json.loads(line)
    except ValueError:
        return False


def _sync_folder(path: Path) -> None:
    """Make a new name in a folder survive a loss of power."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
