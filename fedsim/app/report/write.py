"""Self-contained pages about runs, made from their files alone: one, several side by side, or a
sweep.
"""

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
"""Runs of a comparison up to which each one's own chapter stands on the page, too."""


def write_report(run: RunDir, checks: Sequence[SanityCheck] = ()) -> Path:
    """Write `report.html` and `figures/` into the run's folder; return the page's path.

    `checks` are of a sanity battery. Works on an unfinished run too. Raises WrongInput before its
    first round.
    """
    chapter = run_chapter(run, list(checks))
    return _write([chapter], run.path / "report.html")


def write_comparison(paths: Sequence[Path], target: Path, within: float = 0.05) -> Path:
    """Write `report.html` and `figures/` about runs or sweeps into `target`; return the page's
    path.

    A path is a sweep's folder, a run's, or one with runs below. Raises WrongInput where there is no
    run.
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
    """Write the page that fits: in the run's folder for one run, else in `reports/<time>/`."""
    if len(paths) == 1 and not SweepDir(paths[0]).exists:
        found = found_runs(paths[0])
        if len(found) == 1:
            return write_report(found[0], checks)
    stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H-%M-%SZ")
    return write_comparison(paths, Path("reports") / stamp, within)


def _write(chapters: Sequence[Chapter], path: Path) -> Path:
    """Write a page of chapters, and its figures beside it."""
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
    """Yield the SVG of each figure by the number of its chapter and its name."""
    for i, chapter in enumerate(chapters):
        for section in chapter.sections:
            for drawing in section.drawings:
                svg = inline_svg(drawing.figure, f"c{i}-{drawing.name}", drawing.caption)
                yield (i, drawing.name), svg
