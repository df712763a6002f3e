"""A page of figures about an experiment's federation, before anything trains."""

import shlex
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from fedsim.app.experiment.checks import check_evaluation
from fedsim.app.experiment.loading import load_holdings
from fedsim.app.report.page import render
from fedsim.app.report.plots import of_runs as figures
from fedsim.app.report.plots.style import inline_svg, save
from fedsim.app.rundir.files import make_folder, write_text
from fedsim.config import Config
from fedsim.data.activity import gini
from fedsim.data.availability import Clock
from fedsim.data.holdings import Holdings
from fedsim.data.statistics import activity_statistics, divergence_matrix, label_counts, label_skew
from fedsim.data.stream import rounds_per_period

SHOWN_DEVICES = 60
Drawn = dict[str, tuple[Figure, str]]


def write_data_page(config: Config, data_dir: Path | None, experiment: Path, target: Path) -> Path:
    """Write `data.html` and `figures/` into `target`; return the page.

    Raises WrongInput for bad data.
    """
    holdings = load_holdings(config, data_dir)
    rounds_per_period(config.stream, config.train.rounds)  # refuses what a run would
    check_evaluation(config, holdings)
    dataset = holdings.dataset
    drawn = (
        _activity(holdings)
        | _labels(config, holdings)
        | _stream(holdings)
        | _availability(config, holdings)
    )
    make_folder(target)
    for name, (figure, _) in drawn.items():
        save(figure, target / "figures", name)
    facts = [
        (name, f"{value:.3f}" if isinstance(value, float) else f"{value:,}")
        for name, value in activity_statistics(dataset.activity).items()
    ]
    skew = label_skew(dataset, config.data.seed)
    if skew is not None:
        facts.append(("label skew (Jensen-Shannon, bits)", f"{skew.measured:.3f}"))
        facts.append(("label skew by chance alone", f"{skew.by_chance:.3f}"))
    page = render(
        "data.html.jinja",
        name=config.name,
        facts=facts,
        notes=dataset.notes,
        figures=[
            (inline_svg(figure, name, caption), caption)
            for name, (figure, caption) in drawn.items()
        ],
        command=f"fedsim data {shlex.quote(str(experiment))}",
    )
    write_text(target / "data.html", page)
    return target / "data.html"


def _activity(holdings: Holdings) -> Drawn:
    activity = holdings.dataset.activity
    return {
        "activity": (
            figures.activity_histogram(activity, "exact"),
            "Activity: training examples per device.",
        ),
        "lorenz": (
            figures.lorenz_curve(activity),
            f"Lorenz curve of activity; Gini {gini(activity[activity > 0]):.2f}.",
        ),
    }


def _labels(config: Config, holdings: Holdings) -> Drawn:
    """Return the labels of some devices, and how these differ; most frequent labels first."""
    found = label_counts(holdings.dataset, config.data.seed, SHOWN_DEVICES)
    if found is None:
        return {}
    order = np.argsort(-found.counts.sum(0), kind="stable")
    shares = found.counts[:, order] / found.counts.sum(1, keepdims=True)
    which = f"{len(found.devices)} devices" + (" (a seeded sample)" if found.sampled else "")
    between = divergence_matrix(found.counts)
    return {
        "labels": (
            figures.heat_map(shares.T, "device", "label, most frequent first"),
            f"Share of each label on each device: {which}.",
        ),
        "divergence": (
            figures.heat_map(between, "device", "device"),
            f"Jensen-Shannon divergence between devices' labels (bits): {which}.",
        ),
    }


def _stream(holdings: Holdings) -> Drawn:
    if holdings.arrivals is None:
        return {}
    periods = range(1, holdings.stream.periods + 1)
    held = np.array([holdings.activity(period).sum() for period in periods])
    active = np.array([(holdings.activity(period) > 0).sum() for period in periods])
    return {
        "arrivals": (
            figures.arrivals([holdings.arrivals.sizes, held], ["arrive", "held for training"]),
            f"Arrivals by period, and what memory = {holdings.stream.memory!r} keeps; "
            f"devices with examples by period: {', '.join(map(str, active))}.",
        )
    }


def _availability(config: Config, holdings: Holdings) -> Drawn:
    settings = config.availability
    if settings.rule == "always":
        return {}
    hours = holdings.active_hours() if settings.rule == "clock" else None
    hourly = settings.model_copy(update={"round_minutes": 60.0})
    clock = Clock(hourly, config.seed, len(holdings.dataset.devices), hours)
    share = np.array([clock.reachable(round).mean() for round in range(1, 26)])
    return {
        "availability": (figures.reachable_by_hour(share), "Devices in reach over the virtual day.")
    }
