"""What a report page is made of: sections with words, figures and tables."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from matplotlib.figure import Figure


@dataclass(frozen=True)
class Drawing:
    """A figure with its file's name and the caption under it."""

    name: str
    figure: Figure
    caption: str


@dataclass(frozen=True)
class Table:
    """Texts in rows. `marks` are green (True), red (False) or none, a row each."""

    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: bool = True
    """Whether all columns but the first hold numbers."""
    marks: Sequence[bool | None] = ()

    def mark(self, number: int) -> str:
        """Return the class of a row."""
        mark = self.marks[number] if self.marks else None
        return "" if mark is None else "good" if mark else "bad"


@dataclass(frozen=True)
class PageSection:
    """A part of a page under one heading; what a run lacks is said in its words."""

    key: str
    title: str
    words: Sequence[str] = ()
    drawings: Sequence[Drawing] = ()
    tables: Sequence[Table] = ()
    code: str = ""
    notice: str = ""
    """A sentence that must be seen."""


@dataclass(frozen=True)
class Tile:
    """One figure that is read first."""

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
