"""Figures of attacks and audits, from the rows of `audit.jsonl`."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedsim.app.report.plots.style import SERIES, draw_figure, draw_panels
from fedsim.app.rundir.files import Row

LOWEST = 1e-3
"""The false positive rate at which a log-log ROC begins."""
NULL_EXPOSURE = 1.44
"""Expected exposure of a secret that was never seen, in bits: 1 / ln 2."""


def roc_curves(rows: Sequence[Row]) -> Figure:
    """True against false positive rates, log-log, one curve an attack; shaded: what the guarantee forbids."""

    def draw(axes: Axes) -> None:
        grid = np.geomspace(LOWEST, 1, 100)
        axes.plot(grid, grid, "--", color="#8a8f98", linewidth=1, label="coin flips")
        for row, colour in zip(rows, SERIES, strict=False):
            axes.plot(row["fpr"], row["tpr"], color=colour, label=attack_name(row))
            if "tpr_low" in row and "tpr_high" in row:
                axes.fill_between(
                    row["fpr"], row["tpr_low"], row["tpr_high"], color=colour, alpha=0.2, linewidth=0
                )
        allowed = next((row for row in rows if "allowed_tpr" in row), None)
        if allowed is not None:
            axes.fill_between(
                allowed["fpr"], allowed["allowed_tpr"], 1, color=SERIES[4], alpha=0.15, linewidth=0
            )
            axes.plot(
                allowed["fpr"], allowed["allowed_tpr"], ":", color=SERIES[4], label="the guarantee's bound"
            )
        axes.set(xscale="log", yscale="log", xlim=(LOWEST, 1), ylim=(LOWEST, 1.05))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
            axis.set_minor_formatter(lambda value, _: "")
        axes.set_xlabel("false positive rate")
        axes.set_ylabel("true positive rate")
        axes.legend(loc="lower right", fontsize=13)

    return draw_figure(draw)


def exposure_histogram(exposures: Sequence[float], null: Sequence[float]) -> Figure:
    """How exposed canaries are, in bits, beside secrets that were never planted; as shares of each."""

    def draw(axes: Axes) -> None:
        bins = np.linspace(0, max([*exposures, *null, 1.0]), 16).tolist()
        for values, name, colour in ((null, "never planted", "#8a8f98"), (exposures, "planted", SERIES[1])):
            if len(values):
                weights = np.full(len(values), 1 / len(values))
                axes.hist(values, bins=bins, weights=weights, alpha=0.6, color=colour, label=name)
        axes.axvline(NULL_EXPOSURE, linestyle="--", linewidth=1, color="#8a8f98")
        axes.set_xlabel("exposure in bits (dashed: 1.44, by chance)")
        axes.set_ylabel("share of canaries")
        axes.legend(loc="best")

    return draw_figure(draw)


def by_slice(rows: Sequence[Row], of: str) -> Figure:
    """An attack's figure by the values of one slice: AUC with its interval, or mean exposure."""
    key, chance = ("auc", 0.5) if of == "membership" else ("exposure_mean", NULL_EXPOSURE)

    def draw(axes: Axes) -> None:
        values, places = [row[key] for row in rows], range(len(rows))
        low = [row[key] - row.get(f"{key}_low", row[key]) for row in rows]
        high = [row.get(f"{key}_high", row[key]) - row[key] for row in rows]
        axes.errorbar(places, values, [low, high], fmt="o", color=SERIES[0], capsize=3)
        axes.axhline(chance, linestyle="--", linewidth=1, color="#8a8f98")
        texts = [str(row["value"]) for row in rows]
        step = max(1, len(texts) // 10)
        turned: dict[str, Any] = {"rotation": 30, "ha": "right"} if max(map(len, texts)) > 5 else {}
        axes.set_xticks(list(places)[::step], texts[::step], **turned)
        axes.set_xlabel(str(rows[0]["slice"]).replace("_", " "))
        axes.set_ylabel("AUC" if key == "auc" else "mean exposure, bits")

    return draw_figure(draw)


def audit_bounds(rows: Sequence[Row]) -> Figure:
    """What each audit certifies (dot), the most that it could (bar), and what the ledger states (line)."""

    def draw(axes: Axes) -> None:
        for place, row in enumerate(rows):
            ceiling = float(row["ceiling"] if "ceiling" in row else row["epsilon_low"])
            axes.barh(place, ceiling, height=0.3, color=SERIES[0], alpha=0.35)
            face = "none" if row.get("estimate") else SERIES[0]
            axes.plot(row["epsilon_low"], place, "o", color=SERIES[0], markerfacecolor=face, markersize=9)
            if "epsilon_ledger" in row:
                ledger = [row["epsilon_ledger"]] * 2
                axes.plot(ledger, [place - 0.35, place + 0.35], color=SERIES[1], linewidth=3)
        names = [str(row["method"]).replace("_", " ") for row in rows]
        axes.set_yticks(range(len(rows)), [_folded(name) for name in names])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlim(left=0)
        axes.set_xlabel("epsilon")

    return draw_figure(draw)


def panel(parts: Mapping[str, Callable[[Axes], None]]) -> Figure:
    """Plots by round below one another, each with its name as label."""

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


def lines(series: Mapping[str, Sequence[tuple[float, float]]], floor: float = 0.0) -> Callable[[Axes], None]:
    """Return what draws each series of (round, value), with a legend where there are several."""
    highest = max((value for points in series.values() for _, value in points), default=1.0)

    def draw(axes: Axes) -> None:
        for (name, points), colour in zip(series.items(), SERIES, strict=False):
            axes.plot(*zip(*points, strict=True), marker="o", markersize=4, color=colour, label=name)
        axes.set_ylim(floor, max(floor + 0.1, highest + 0.08 * (highest - floor)))
        if len(series) > 1:
            axes.legend(loc="best")

    return draw


def attack_name(row: Mapping[str, Any]) -> str:
    """Return an attack with its AUC, for a legend."""
    return f"{str(row['attack']).replace('_', ' ')} ({row['auc']:.2f})"


def _folded(name: str) -> str:
    """Return a long name in two lines."""
    words = name.split()
    half = (len(words) + 1) // 2
    return name if len(name) < 14 else "\n".join([" ".join(words[:half]), " ".join(words[half:])])
