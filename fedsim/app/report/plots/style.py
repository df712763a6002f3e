"""The style of all figures, and their export as SVG, PNG and PDF."""

import html
import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text

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
"""Width and height in inches; the text is still legible on a page 360 px wide."""


COLUMN = 3.5
"""The width of a paper's column, in inches."""


def inline_svg(figure: Figure, name: str = "figure", words: str = "") -> str:
    """Return the figure as an SVG element whose ink is the page's `currentColor`.

    `name` stands before every id, so that the ids of two figures on a page differ. `words` describe
    the figure.
    """
    text = _svg(figure)
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", text[text.index("<svg") :])
    label = f'<svg role="img" aria-label="{html.escape(words)}"'
    text = text.replace("<svg", label, 1).replace(INK, "currentColor")
    for i, colour in enumerate(SERIES):  # pages use lighter ones in dark mode
        text = text.replace(colour, f"var(--series-{i}, {colour})")
    return text


def save(figure: Figure, folder: Path, name: str) -> None:
    """Write the figure as SVG and PNG on white, and as PDF of a column's width for a paper."""
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.svg").write_text(_svg(figure), encoding="utf-8")
    figure.savefig(folder / f"{name}.png", dpi=150, facecolor="white")
    width, height = figure.get_size_inches()
    factor = COLUMN / width
    _scale(figure, factor)
    figure.set_size_inches(COLUMN, height * factor)
    figure.savefig(folder / f"{name}.pdf", facecolor="white", metadata={"CreationDate": None})
    figure.set_size_inches(width, height)
    _scale(figure, 1 / factor)


def _scale(figure: Figure, factor: float) -> None:
    """Scale everything measured in points: text, lines, markers."""
    for text in figure.findobj(Text):
        text.set_fontsize(float(text.get_fontsize()) * factor)
    for line in figure.findobj(Line2D):
        line.set_linewidth(line.get_linewidth() * factor)
        line.set_markersize(line.get_markersize() * factor)


def draw_figure(draw: Callable[[Axes], None]) -> Figure:
    """Return a figure with one plot in the page's style."""
    return draw_panels([draw], SIZE[1])


def draw_panels(draws: Sequence[Callable[[Axes], None]], height: float) -> Figure:
    """Return a figure of stacked plots that share their x axis; `height` is in inches."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(SIZE[0], height), layout="constrained")
        figure.patch.set_alpha(0)
        for axes, draw in zip(
            figure.subplots(len(draws), sharex=True, squeeze=False)[:, 0], draws, strict=True
        ):
            axes.patch.set_alpha(0)
            axes.grid(axis="y", alpha=0.25)
            draw(axes)
    return figure


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    with mpl.rc_context(STYLE):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
