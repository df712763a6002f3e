"""Figures over many runs: utility against privacy, leakage, and curves side by side."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from fedsim.app.report.plots.style import INK, SERIES, draw_figure

MARKERS = "osD^vPX*"
CURVES = "#8a8f98"
COLOURS = "viridis"


def pareto(table: pd.DataFrame, metric: str) -> Figure:
    """Utility with its interval against epsilon. A line joins the frontier; colour is attack AUC.

    `table` is that of `pareto_table`. Runs without a guarantee stand at the right edge, "no DP".
    """
    place = places(table["epsilon"])
    auc = table["attack_auc"]
    most = max(auc.max(), 0.6)

    def draw(axes: Axes) -> None:
        front = table[table["frontier"]].sort_values("epsilon")
        axes.plot(
            place[front.index], front["utility"], "-", color=CURVES, linewidth=1.5, label="frontier"
        )
        for (name, group), marker, colour in zip(_series(table), MARKERS, _cycled(), strict=False):
            at = place[group.index]
            axes.errorbar(
                at,
                group["utility"],
                _error(group),
                fmt="none",
                ecolor=colour,
                capsize=3,
                linewidth=1,
            )
            shades = {"c": auc[group.index], "vmin": 0.5, "vmax": most, "cmap": COLOURS}
            filled = {"color": colour} if auc.isna().any() else shades
            shape: dict[str, Any] = {
                "marker": marker,
                "s": 70,
                "edgecolors": colour,
                "label": name,
                "zorder": 3,
            }
            axes.scatter(at, group["utility"], **shape, **filled)
        _epsilon_axis(axes, table["epsilon"])
        axes.set_ylabel(metric.replace("_", " "))
        if not auc.isna().any():
            assert axes.figure is not None
            shown = mpl.cm.ScalarMappable(mpl.colors.Normalize(0.5, most), COLOURS)
            axes.figure.colorbar(shown, ax=axes, label="attack AUC")
        axes.legend(loc="best")

    return draw_figure(draw)


def _error(group: pd.DataFrame) -> NDArray[np.float64]:
    """Return how far the interval reaches below and above the utility [2, points]."""
    low = group["utility"] - group["utility_low"]
    high = group["utility_high"] - group["utility"]
    return np.nan_to_num(np.array([low, high]))


def leakage(table: pd.DataFrame) -> Figure:
    """The strongest attack's AUC (left) and the exposure of canaries (right) against epsilon."""
    place = places(table["epsilon"])

    def draw(axes: Axes) -> None:
        order = table.sort_values("epsilon").index
        sides = [("attack_auc", "attack AUC", axes, SERIES[4], "-")]
        if not table["exposure"].isna().all():
            twin = axes.twinx()
            twin.patch.set_alpha(0)
            twin.spines["right"].set_visible(True)
            sides.append(("exposure", "exposure, bits", twin, SERIES[3], "--"))
        for column, name, side, colour, line in sides:
            for (_, group), marker in zip(_series(table.loc[order]), MARKERS, strict=False):
                error = np.nan_to_num(
                    np.array(
                        [
                            group[column] - group[f"{column}_low"],
                            group[f"{column}_high"] - group[column],
                        ]
                    )
                )
                at = place[group.index]
                side.errorbar(
                    at,
                    group[column],
                    error,
                    fmt=marker + line,
                    color=colour,
                    capsize=3,
                    linewidth=1,
                )
            side.set_ylabel(name, color=colour)
            side.tick_params(axis="y", colors=colour)
        for (name, _), marker in zip(_series(table), MARKERS, strict=False):
            axes.plot([], [], marker, color=CURVES, label=name)
        axes.legend(loc="best")
        _epsilon_axis(axes, table["epsilon"])

    return draw_figure(draw)


def curves(runs: Mapping[str, Sequence[tuple[float, float]]], metric: str) -> Figure:
    """A metric by round, with one line for each run."""

    def draw(axes: Axes) -> None:
        for (name, points), colour, marker in zip(
            runs.items(), _cycled(), MARKERS * 9, strict=False
        ):
            axes.plot(
                *zip(*points, strict=True), marker=marker, markersize=5, color=colour, label=name
            )
        axes.set_ylim(0, 1.02)
        axes.set_xlabel("round")
        axes.set_ylabel(metric.replace("_", " "))
        if len(runs) <= len(MARKERS):
            axes.legend(loc="best")

    return draw_figure(draw)


def places(epsilon: pd.Series) -> pd.Series:
    """Return each epsilon's place on a logarithmic axis; runs without DP stand at the right."""
    known = epsilon[np.isfinite(epsilon)]
    right = 2 * known.max() if len(known) else 1.0
    return epsilon.where(np.isfinite(epsilon), right)


def _epsilon_axis(axes: Axes, epsilon: pd.Series) -> None:
    axes.set_xscale("log", base=2)
    known = sorted({float(f"{value:.2g}") for value in epsilon[np.isfinite(epsilon)]})
    ticks = [value for i, value in enumerate(known) if i == 0 or value > 1.3 * known[i - 1]]
    names = [f"{value:g}" for value in ticks]
    if np.isinf(epsilon).any():
        ticks = [*ticks, float(places(epsilon).max())]
        names = [*names, "no DP"]
    axes.set_xticks(ticks, names, color=INK)
    axes.xaxis.set_minor_locator(mpl.ticker.NullLocator())
    axes.set_xlabel("epsilon (guarantee)")


def _series(table: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Return the rows by selection rule and mode; two modes stand in the names."""
    modes = table["mode"].nunique() > 1
    groups = table.groupby(["rule", "mode"], sort=False)
    return [(f"{rule}, {mode}" if modes else str(rule), group) for (rule, mode), group in groups]


def _cycled() -> list[str]:
    return list(SERIES) * 20
