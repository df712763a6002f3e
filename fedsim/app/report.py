"""One self-contained page about a run, made from its files alone."""

import shlex
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from fedsim.app import figures
from fedsim.app.continual import period_matrix
from fedsim.app.page import render
from fedsim.app.rundir import Row, RunDir, write_text
from fedsim.app.summary import last_metrics
from fedsim.config import Config, to_flat
from fedsim.data.activity import gini
from fedsim.errors import WrongInput

SHOWN = ("intent_accuracy", "slot_f1", "frame_accuracy", "accuracy", "span_f1", "word_accuracy")
"""Metrics in [0, 1] that the learning curve shows, as far as the run has them."""


def write_report(run: RunDir) -> Path:
    """Write `report.html` and `figures/` into the run's folder; return the page's path.

    Works on an unfinished run too. Raises WrongInput before its first round.
    """
    rows, checkpoint = run.rows(), run.last_checkpoint()
    if not rows or checkpoint is None:
        raise WrongInput(f"{run.path} has no finished round yet; run the experiment first")
    drawn = _figures(run)
    for name, (figure, _) in drawn.items():
        figures.save(figure, run.path / "figures", name)
    page = render(
        "report.html.jinja",
        config=run.config,
        summary=run.summary or {},
        manifest=run.manifest,
        metrics=_metric_table(run),
        figures=[(figures.inline_svg(figure), caption) for figure, caption in drawn.values()],
        facts=_facts(run),
        changed=_changed(run.config),
        command=_command(run),
    )
    write_text(run.path / "report.html", page)
    return run.path / "report.html"


def _figures(run: RunDir) -> dict[str, tuple[Figure, str]]:
    rows, checkpoint = run.rows(), run.last_checkpoint()
    assert checkpoint is not None
    with np.load(run.path / "devices.npz", allow_pickle=False) as arrays:
        activity = arrays["activity"]
    drawn = {
        "activity": (
            figures.activity_histogram(activity),
            f"Activity: examples per device, as the server sees it. Gini {gini(activity[activity > 0]):.2f}.",
        ),
        "participation": (
            figures.participation_by_activity(activity, checkpoint.participation, checkpoint.round),
            "Participation: share of rounds in which a device was selected, by activity (mean and range).",
        ),
    }
    drawn |= _decile_figure(rows) | _period_figures(run)
    names = [name for name in SHOWN if name in last_metrics(rows)]
    if names:
        curve = figures.learning_curve(rows, names, _reference(run))
        drawn = {"learning": (curve, "Utility on the server's test examples, by round.")} | drawn
    return drawn


def _decile_figure(rows: list[Row]) -> dict[str, tuple[Figure, str]]:
    """Return the metric on devices by decile of their activity."""
    found = {name: value for name, value in last_metrics(rows).items() if "_decile_" in name}
    if not found:
        return {}
    metric = next(iter(found)).removeprefix("device_").rpartition("_decile_")[0]
    figure = figures.by_decile([found[name] for name in sorted(found)], metric)
    return {"deciles": (figure, "On devices' held-out examples, by decile of activity (least active first).")}


def _period_figures(run: RunDir) -> dict[str, tuple[Figure, str]]:
    """Return the forgetting matrix and the prequential curve of a continual run."""
    rows = run.rows("periods.jsonl")
    metric = next((name for name in SHOWN if rows and name in rows[-1]), None)
    if metric is None:
        return {}
    matrix = period_matrix(rows, metric)
    done = matrix[~np.isnan(matrix).any(axis=1)]
    drawn = {
        "forgetting": (
            figures.forgetting_matrix(done, metric),
            "Forgetting: after each period of training (rows), tested on each period (columns).",
        )
    }
    if len(done) == len(matrix):
        drawn["prequential"] = (
            figures.prequential_curve(matrix, metric),
            "Each period as a test before it is trained on (prequential), right after, and at the end.",
        )
    return drawn


def _metric_table(run: RunDir) -> list[tuple[str, str, str, str]]:
    """Return rows of (metric, federated, centralised, gap)."""
    reference, table = _reference(run), []
    shown = {name: v for name, v in last_metrics(run.rows()).items() if "_decile_" not in name}
    for name, value in shown.items():
        central = reference.get(name)
        gap = "" if central is None else f"{value - central:+.4f}"
        table.append((name.replace("_", " "), f"{value:.4f}", _number(central), gap))
    return table


def _reference(run: RunDir) -> dict[str, float]:
    found: dict[str, float] = (run.summary or {}).get("reference", {}).get("centralised", {})
    return found


def _facts(run: RunDir) -> list[tuple[str, str]]:
    rows, manifest, summary = run.rows(), run.manifest, run.summary
    state = "unfinished" if summary is None else summary["status"]
    facts = [
        ("state", f"{state}, {len(rows)} of {run.config.train.rounds} rounds"),
        ("seed", str(run.config.seed)),
        ("training time", f"{sum(row['time_train_s'] for row in rows):.1f} s"),
        ("device type", manifest["device_type"]),
        ("plan", ", ".join(f"{key} {value}" for key, value in manifest["plan"].items())),
        ("versions", ", ".join(f"{key} {value}" for key, value in manifest["versions"].items())),
        ("commit", manifest["commit"] or "not under version control"),
        ("data", ", ".join(f"{name} ({sha[:12]})" for name, sha in manifest["fingerprint"].items())),
    ]
    if summary is not None:
        facts += [
            ("devices with training examples", f"{summary['devices']} of {summary['devices_all']}"),
            ("training examples", str(summary["examples"])),
            ("test examples with a label unseen in training", str(summary["test_labels_unseen"])),
        ]
        facts += [("early stop", summary["stopped_early"])] if "stopped_early" in summary else []
    return facts + [("note", note) for note in manifest["notes"]]


def _changed(config: Config) -> list[tuple[str, Any]]:
    default = to_flat(Config())
    return [(key, value) for key, value in to_flat(config).items() if value != default[key]]


def _command(run: RunDir) -> str:
    """Return the command that repeats the run from its own config."""
    nodes = run.manifest["plan"]["nodes"]
    several = f" --nodes {nodes}" if nodes > 1 else ""
    return f"fedsim run {shlex.quote(str(run.path / 'config.toml'))}{several} --fresh"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
