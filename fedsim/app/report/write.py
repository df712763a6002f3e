"""Self-contained pages about one run, several runs or a sweep, made only from their files."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from fedsim.app.report.comparison import labels, runs_chapter, sweep_chapter
from fedsim.app.report.page import render
from fedsim.app.report.parts import Chapter
from fedsim.app.report.plots.style import inline_svg, save
from fedsim.app.report.run_chapter import run_chapter
from fedsim.app.rundir.files import make_folder, write_text
from fedsim.app.rundir.run_dir import RunDir, found_runs
from fedsim.app.sweeps.sweep_dir import SweepDir
from fedsim.audit.findings import SanityCheck
from fedsim.errors import WrongInput

DETAILED = 4
"""The largest number of compared runs that still get a chapter each on the page."""


def write_report(run: RunDir, checks: Sequence[SanityCheck] = ()) -> Path:
    """Write `report.html` and `figures/` into the run's folder; return the page's path.

    `checks` come from a sanity battery. It works on an unfinished run too. Raises WrongInput before
    the run's first round.
    """
    chapter = run_chapter(run, list(checks))
    return _write([chapter], run.path / "report.html")


def write_comparison(paths: Sequence[Path], target: Path, within: float = 0.05) -> Path:
    """Write `report.html` and `figures/` about runs or sweeps into `target`; return the page.

    A path is the folder of a sweep, of a run, or above runs. Raises WrongInput if it holds no run.
    """
    chapters = []
    runs = []
    for path in paths:
        if SweepDir(path).exists:
            chapters.append(sweep_chapter(SweepDir(path), within))
        else:
            runs += [run for run in found_runs(path) if run.rows()]
    if len(runs) > 1:
        chapters.append(runs_chapter(runs))
    if len(runs) <= DETAILED:
        own = [run_chapter(run, []) for run in runs]
        names = labels(runs) if runs else []
        chapters += [
            Chapter(f"{c.title}: {n}", c.words, c.tiles, c.sections)
            for c, n in zip(own, names, strict=True)
        ]
    if not chapters:
        raise WrongInput(f"{', '.join(map(str, paths))}: no run there has finished a round yet")
    make_folder(target)
    return _write(chapters, target / "report.html")


def report_on(paths: Sequence[Path], within: float, checks: Sequence[SanityCheck] = ()) -> Path:
    """Write the page, in the folder of a single run or in `reports/<time>/`; return its path."""
    if len(paths) == 1 and not SweepDir(paths[0]).exists:
        found = found_runs(paths[0])
        if len(found) == 1:
            return write_report(found[0], checks)
    stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H-%M-%SZ")
    return write_comparison(paths, Path("reports") / stamp, within)


def _write(chapters: Sequence[Chapter], path: Path) -> Path:
    """Write a page of chapters with its figures; return the page's path."""
    drawn = dict(_drawn(chapters))
    text = render(
        "report.html.jinja",
        title=chapters[0].title,
        chapters=list(enumerate(chapters)),
        drawn=drawn,
    )
    for i, chapter in enumerate(chapters):
        for section in chapter.sections:
            for drawing in section.drawings:
                name = drawing.name if i == 0 else f"{i}-{drawing.name}"
                save(drawing.figure, path.parent / "figures", name)
    write_text(path, text)
    return path


def _drawn(chapters: Sequence[Chapter]) -> Iterator[tuple[tuple[int, str], str]]:
    """Yield the SVG of each figure, with the number of its chapter and its name."""
    for i, chapter in enumerate(chapters):
        for section in chapter.sections:
            for drawing in section.drawings:
                svg = inline_svg(drawing.figure, f"c{i}-{drawing.name}", drawing.caption)
                yield (i, drawing.name), svg
