"""Figures of attacks and audits."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedsim.app.report.plots.style import SERIES, draw_figure, draw_panels
from fedsim.audit.findings import LowerBound, Membership

LOWEST = 1e-3
"""The false positive rate where a log-log ROC begins."""
NULL_EXPOSURE = 1.44
"""Expected exposure of a secret that was never seen, in bits: 1 / ln 2."""


@dataclass(frozen=True)
class Point:
    """A named value with its interval. Without an interval, both ends equal the value."""

    name: str
    value: float
    low: float
    high: float


def roc_curves(attacks: Sequence[Membership]) -> Figure:
    """ROC curves, log-log, one for each attack; the area that the guarantee forbids is shaded."""

    def draw(axes: Axes) -> None:
        grid = np.geomspace(LOWEST, 1, 100)
        axes.plot(grid, grid, "--", color="#8a8f98", linewidth=1, label="coin flips")
        for attack, colour in zip(attacks, SERIES, strict=False):
            curve = attack.figures.curve
            axes.plot(curve.fpr, curve.tpr, color=colour, label=attack_name(attack))
            if curve.tpr_low and curve.tpr_high:
                band = (curve.tpr_low, curve.tpr_high)
                axes.fill_between(curve.fpr, *band, color=colour, alpha=0.2, linewidth=0)
        _draw_region(axes, attacks)
        axes.set(xscale="log", yscale="log", xlim=(LOWEST, 1), ylim=(LOWEST, 1.05))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
            axis.set_minor_formatter(lambda value, _: "")
        axes.set_xlabel("false positive rate")
        axes.set_ylabel("true positive rate")
        axes.legend(loc="lower right", fontsize=13)

    return draw_figure(draw)


def _draw_region(axes: Axes, attacks: Sequence[Membership]) -> None:
    """Shade the area that the guarantee forbids, for the first attack that it bounds."""
    for attack in attacks:
        fpr = attack.figures.curve.fpr
        region = attack.region
        if region is not None and region.allowed_tpr:
            axes.fill_between(fpr, region.allowed_tpr, 1, color=SERIES[4], alpha=0.15, linewidth=0)
            axes.plot(fpr, region.allowed_tpr, ":", color=SERIES[4], label="the guarantee's bound")
            return


def exposure_histogram(exposures: Sequence[float], null: Sequence[float]) -> Figure:
    """Exposure in bits of planted canaries and of secrets never planted, as shares of each."""

    def draw(axes: Axes) -> None:
        bins = np.linspace(0, max([*exposures, *null, 1.0]), 16).tolist()
        for values, name, colour in (
            (null, "never planted", "#8a8f98"),
            (exposures, "planted", SERIES[1]),
        ):
            if len(values):
                weights = np.full(len(values), 1 / len(values))
                axes.hist(values, bins=bins, weights=weights, alpha=0.6, color=colour, label=name)
        axes.axvline(NULL_EXPOSURE, linestyle="--", linewidth=1, color="#8a8f98")
        axes.set_xlabel("exposure in bits (dashed: 1.44, by chance)")
        axes.set_ylabel("share of canaries")
        axes.legend(loc="best")

    return draw_figure(draw)


def by_slice(points: Sequence[Point], axis: str, label: str, chance: float) -> Figure:
    """A value for each part of a whole, with its interval; the dashed line is chance.

    `axis` names the parts.
    """

    def draw(axes: Axes) -> None:
        values = [point.value for point in points]
        places = range(len(points))
        low = [point.value - point.low for point in points]
        high = [point.high - point.value for point in points]
        axes.errorbar(places, values, [low, high], fmt="o", color=SERIES[0], capsize=3)
        axes.axhline(chance, linestyle="--", linewidth=1, color="#8a8f98")
        texts = [point.name for point in points]
        step = max(1, len(texts) // 10)
        turned: dict[str, Any] = {"rotation": 30, "ha": "right"} if max(map(len, texts)) > 5 else {}
        axes.set_xticks(list(places)[::step], texts[::step], **turned)
        axes.set_xlabel(axis)
        axes.set_ylabel(label)

    return draw_figure(draw)


def audit_bounds(bounds: Sequence[LowerBound]) -> Figure:
    """Bounds of each audit: certified (dot), highest possible (bar), by the ledger (line)."""

    def draw(axes: Axes) -> None:
        for place, bound in enumerate(bounds):
            ceiling = bound.epsilon_low if bound.ceiling is None else bound.ceiling
            axes.barh(place, ceiling, height=0.3, color=SERIES[0], alpha=0.35)
            face = "none" if bound.estimate else SERIES[0]
            axes.plot(
                bound.epsilon_low, place, "o", color=SERIES[0], markerfacecolor=face, markersize=9
            )
            if bound.epsilon_ledger is not None:
                ledger = [bound.epsilon_ledger] * 2
                axes.plot(ledger, [place - 0.35, place + 0.35], color=SERIES[1], linewidth=3)
        names = [bound.method.replace("_", " ") for bound in bounds]
        axes.set_yticks(range(len(bounds)), [_folded(name) for name in names])
        axes.set_ylim(len(bounds) - 0.4, -0.6)
        axes.set_xlim(left=0)
        axes.set_xlabel("epsilon")

    return draw_figure(draw)


def panel(parts: Mapping[str, Callable[[Axes], None]]) -> Figure:
    """Plots by round, one below another, each labelled with its name."""

    def named(name: str, draw: Callable[[Axes], None]) -> Callable[[Axes], None]:
        def both(axes: Axes) -> None:
            draw(axes)
            axes.set_ylabel(name)

        return both

    draws = [named(name, draw) for name, draw in parts.items()]

    def last(axes: Axes) -> None:
        draws[-1](axes)
        axes.set_xlabel("round")

    return draw_panels([*draws[:-1], last], 0.7 + 1.7 * len(parts))


def lines(
    series: Mapping[str, Sequence[tuple[float, float]]], floor: float = 0.0
) -> Callable[[Axes], None]:
    """Return a function that draws each series of (round, value); several series get a legend."""
    highest = max((value for points in series.values() for _, value in points), default=1.0)

    def draw(axes: Axes) -> None:
        for (name, points), colour in zip(series.items(), SERIES, strict=False):
            axes.plot(
                *zip(*points, strict=True), marker="o", markersize=4, color=colour, label=name
            )
        axes.set_ylim(floor, max(floor + 0.1, highest + 0.08 * (highest - floor)))
        if len(series) > 1:
            axes.legend(loc="best")

    return draw


def attack_name(attack: Membership) -> str:
    """Return an attack's name with its AUC, for a legend."""
    return f"{attack.attack.replace('_', ' ')} ({attack.figures.area.auc:.2f})"


def _folded(name: str) -> str:
    """Return a long name broken into two lines."""
    words = name.split()
    half = (len(words) + 1) // 2
    return name if len(name) < 14 else "\n".join([" ".join(words[:half]), " ".join(words[half:])])
