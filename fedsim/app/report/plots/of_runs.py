"""Figures of a run, from its files. Lines and text take the colour of the surrounding page."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from fedsim.app.report.plots.style import SERIES, draw_figure
from fedsim.app.rundir.files import Row


def learning_curve(rows: list[Row], names: list[str], reference: dict[str, float]) -> Figure:
    """Test metrics by round. A dashed line of the same colour is the centralised reference."""

    def draw(axes: Axes) -> None:
        for name, colour in zip(names, SERIES, strict=False):
            points = [(row["round"], row[name]) for row in rows if name in row]
            axes.plot(
                *zip(*points, strict=True), color=colour, label=name.replace("_", " "), marker="."
            )
            if name in reference:
                axes.axhline(reference[name], color=colour, linestyle="--", linewidth=1)
        axes.set_xlabel("round" + ("  (dashed: trained centrally)" if reference else ""))
        axes.set_ylim(0, 1.02)
        axes.legend(loc="best")

    return draw_figure(draw)


def activity_histogram(activity: NDArray[np.int64], of: str = "public activity") -> Figure:
    """The number of devices by number of examples, in powers of two."""

    def draw(axes: Axes) -> None:
        held = activity[activity > 0]
        top = int(np.ceil(np.log2(held.max() + 1)))
        axes.hist(held, bins=[2.0**i for i in range(top + 1)], color=SERIES[0], edgecolor="white")
        _activity_axis(axes, of)
        axes.set_ylabel("devices")

    return draw_figure(draw)


def participation_by_activity(
    activity: NDArray[np.int64], participation: NDArray[np.int64], rounds: int
) -> Figure:
    """The share of rounds that selected a device, by activity: mean and range per power of two."""

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

    return draw_figure(draw)


def by_decile(values: list[float], metric: str) -> Figure:
    """The mean metric of each tenth of the devices; the least active come first."""

    def draw(axes: Axes) -> None:
        axes.bar(range(1, len(values) + 1), values, color=SERIES[0])
        axes.set_ylim(0, 1.02)
        axes.set_xticks(range(1, len(values) + 1))
        axes.set_xlabel("decile of activity")
        axes.set_ylabel(metric.replace("_", " "))

    return draw_figure(draw)


def lorenz_curve(activity: NDArray[np.int64]) -> Figure:
    """The share of examples that the least active devices hold together."""

    def draw(axes: Axes) -> None:
        held = np.sort(activity[activity > 0])
        share = np.concatenate([[0.0], np.cumsum(held) / held.sum()])
        axes.plot(np.linspace(0, 1, len(share)), share, color=SERIES[0])
        axes.plot([0, 1], [0, 1], linestyle="--", linewidth=1, color=SERIES[1], label="all alike")
        axes.set_xlabel("share of devices, least active first")
        axes.set_ylabel("share of examples")
        axes.legend(loc="upper left")

    return draw_figure(draw)


def heat_map(values: NDArray[np.float64], x: str, y: str) -> Figure:
    """A matrix as colours from 0 (light) to its largest value (dark)."""

    def draw(axes: Axes) -> None:
        axes.grid(visible=False)
        image = axes.imshow(values, cmap="Blues", aspect="auto", vmin=0, interpolation="nearest")
        assert axes.figure is not None
        axes.figure.colorbar(image, ax=axes)
        axes.set_xlabel(x)
        axes.set_ylabel(y)

    return draw_figure(draw)


def arrivals(sizes: list[NDArray[np.int64]], names: list[str]) -> Figure:
    """The number of examples that arrive in each period, and that devices hold during it."""

    def draw(axes: Axes) -> None:
        for counts, name, colour in zip(sizes, names, SERIES, strict=False):
            axes.plot(np.arange(1, len(counts) + 1), counts, marker="o", color=colour, label=name)
        axes.set_xticks(range(1, len(sizes[0]) + 1))
        axes.set_ylim(bottom=0)
        axes.set_xlabel("period")
        axes.set_ylabel("examples")
        axes.legend(loc="best")

    return draw_figure(draw)


def reachable_by_hour(share: NDArray[np.float64]) -> Figure:
    """The share of devices that can be reached, by hour of the virtual day."""

    def draw(axes: Axes) -> None:
        axes.step(range(len(share)), share, where="post", color=SERIES[0])
        axes.set_ylim(0, 1.02)
        axes.set_xlabel("hour of the day")
        axes.set_ylabel("share of devices in reach")

    return draw_figure(draw)


def forgetting_matrix(matrix: NDArray[np.float64], metric: str) -> Figure:
    """The metric after each period (rows, from untrained) on each period's test (columns)."""

    def draw(axes: Axes) -> None:
        axes.grid(visible=False)
        axes.imshow(matrix, vmin=0, vmax=1, cmap="Blues", aspect="auto")
        for (i, j), value in np.ndenumerate(matrix):
            ink = "white" if value > 0.6 else "black"
            axes.text(j, i, f"{value:.2f}", ha="center", va="center", color=ink)
        axes.set_xticks(range(matrix.shape[1]), [str(p + 1) for p in range(matrix.shape[1])])
        axes.set_yticks(
            range(matrix.shape[0]), ["none", *(str(p) for p in range(1, matrix.shape[0]))]
        )
        axes.set_xlabel(f"tested on period ({metric.replace('_', ' ')})")
        axes.set_ylabel("trained up to period")

    return draw_figure(draw)


def prequential_curve(matrix: NDArray[np.float64], metric: str) -> Figure:
    """The metric on each period's test: before training on it, right after, and at the end."""

    def draw(axes: Axes) -> None:
        periods = np.arange(1, matrix.shape[1] + 1)
        curves = {
            "before training on it": [matrix[q, q] for q in range(len(periods))],
            "right after": [matrix[q + 1, q] for q in range(len(periods))],
            "at the end": list(matrix[-1]),
        }
        for (name, values), colour in zip(curves.items(), SERIES, strict=False):
            axes.plot(periods, values, marker="o", label=name, color=colour)
        axes.set_xticks(periods)
        axes.set_ylim(0, 1.02)
        axes.set_xlabel("period")
        axes.set_ylabel(metric.replace("_", " "))
        axes.legend(loc="best")

    return draw_figure(draw)


def _activity_axis(axes: Axes, of: str = "public activity") -> None:
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel(f"examples per device ({of})")
