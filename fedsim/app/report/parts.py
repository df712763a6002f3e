"""The parts of a report page: sections with words, figures and tables."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from matplotlib.figure import Figure


@dataclass(frozen=True)
class Drawing:
    """A figure with its file name and its caption."""

    name: str
    figure: Figure
    caption: str


@dataclass(frozen=True)
class Table:
    """Texts in rows. `marks` has one entry a row: green (True), red (False) or none (None)."""

    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: bool = True
    """Whether all columns except the first hold numbers."""
    marks: Sequence[bool | None] = ()

    def mark(self, number: int) -> str:
        """Return the CSS class of a row."""
        mark = self.marks[number] if self.marks else None
        return "" if mark is None else "good" if mark else "bad"


@dataclass(frozen=True)
class PageSection:
    """A part of a page under one heading. Its words say what a run lacks."""

    key: str
    title: str
    words: Sequence[str] = ()
    drawings: Sequence[Drawing] = ()
    tables: Sequence[Table] = ()
    code: str = ""
    notice: str = ""
    """A sentence that readers must not miss."""


@dataclass(frozen=True)
class Tile:
    """One of the figures that are read first."""

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Chapter:
    """A run, or a comparison, as part of a page."""

    title: str
    words: str
    tiles: Sequence[Tile] = ()
    sections: Sequence[PageSection] = field(default_factory=tuple)
