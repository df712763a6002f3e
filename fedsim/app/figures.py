"""Figures of a run, from its files. Lines and text take the colour of the page they stand on."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from fedsim.app.rundir import Row

INK = "#010203"  # stands for the page's text colour; replaced in the inline SVG
SERIES = ("#1f77b4", "#d9730d", "#2a9d5c", "#9657c2", "#c23b5a")
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "fedsim",
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "font.size": 13,
    "legend.frameon": False,
}
SIZE = (6.4, 3.8)
"""Inches; at 360 px of page width the text is still legible."""


def learning_curve(rows: list[Row], names: list[str], reference: dict[str, float]) -> Figure:
    """Test metrics by round; a dashed line is the centralised reference of the same colour."""

    def draw(axes: Axes) -> None:
        for name, colour in zip(names, SERIES, strict=False):
            points = [(row["round"], row[name]) for row in rows if name in row]
            axes.plot(*zip(*points, strict=True), color=colour, label=name.replace("_", " "), marker=".")
            if name in reference:
                axes.axhline(reference[name], color=colour, linestyle="--", linewidth=1)
        axes.set_xlabel("round" + ("  (dashed: trained centrally)" if reference else ""))
        axes.set_ylim(0, 1.02)
        axes.legend(loc="lower right")

    return _figure(draw)


def activity_histogram(activity: NDArray[np.int64]) -> Figure:
    """How many devices have how many examples, in powers of two."""

    def draw(axes: Axes) -> None:
        held = activity[activity > 0]
        top = int(np.ceil(np.log2(held.max() + 1)))
        axes.hist(held, bins=[2.0**i for i in range(top + 1)], color=SERIES[0], edgecolor="white")
        _activity_axis(axes)
        axes.set_ylabel("devices")

    return _figure(draw)


def participation_by_activity(
    activity: NDArray[np.int64], participation: NDArray[np.int64], rounds: int
) -> Figure:
    """The share of rounds in which devices trained, by activity: mean and range in powers of two."""

    def draw(axes: Axes) -> None:
        held = activity > 0
        bucket = np.floor(np.log2(activity[held])).astype(int)
        share = participation[held] / max(rounds, 1)
        levels = np.unique(bucket)
        mean = np.array([share[bucket == b].mean() for b in levels])
        low = mean - [share[bucket == b].min() for b in levels]
        high = np.array([share[bucket == b].max() for b in levels]) - mean
        axes.errorbar(2.0**levels, mean, [low, high], fmt="o-", color=SERIES[0], capsize=3)
        _activity_axis(axes)
        axes.set_ylim(0, 1.02)
        axes.set_ylabel("share of rounds")

    return _figure(draw)


def inline_svg(figure: Figure) -> str:
    """Return the figure as an SVG element whose ink is the page's `currentColor`."""
    text = _svg(figure)
    return text[text.index("<svg") :].replace(INK, "currentColor")


def save(figure: Figure, folder: Path, name: str) -> None:
    """Write the figure as SVG and PNG on white."""
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.svg").write_text(_svg(figure), encoding="utf-8")
    figure.savefig(folder / f"{name}.png", dpi=150, facecolor="white")


def _activity_axis(axes: Axes) -> None:
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel("examples per device (public activity)")


def _figure(draw: Callable[[Axes], None]) -> Figure:
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=SIZE, layout="constrained")
        figure.patch.set_alpha(0)
        axes = figure.add_subplot()
        axes.patch.set_alpha(0)
        axes.grid(axis="y", alpha=0.25)
        draw(axes)
    return figure


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    with mpl.rc_context(STYLE):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
