"""Sections of a report about training: privacy, utility, devices, forgetting, time, repeating.

Like all sections of a run, each takes the run and the checks of a fresh sanity battery.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from fedsim.app.report.attack_sections import by_round
from fedsim.app.report.parts import Drawing, PageSection, Table
from fedsim.app.report.plots import of_runs as figures
from fedsim.app.report.plots.of_attacks import lines, panel
from fedsim.app.report.readings import epsilon_by_round, reference_of, repeating, utility_of
from fedsim.app.rundir.files import Row
from fedsim.app.rundir.metrics import SHOWN, last_metrics, period_matrix
from fedsim.app.rundir.run_dir import RunDir
from fedsim.audit.findings import SanityCheck
from fedsim.config import Config, to_flat
from fedsim.data.activity import gini


def privacy(run: RunDir, checks: Sequence[SanityCheck]) -> PageSection:
    found = (run.summary or {}).get("privacy")
    if not found:
        sentence = "None. Nothing bounds what this model reveals of its training data."
        if run.config.dp.unit != "none":
            sentence = "Told when the run is finished; the ledger is written in each round."
        return PageSection("privacy", "Privacy statement", notice=sentence)
    relation = found["relation"].replace("_", " ")
    trust = found["trust"].replace("_", " ")
    amplified = "claimed" if found["amplification"] else "not claimed"
    words = [
        f"Epsilon spent by devices: largest {found['epsilon_max']:.3f}, median "
        f"{found['epsilon_median']:.3f}, 95th percentile {found['epsilon_p95']:.3f}. "
        f"Amplification by sampling is {amplified}; accountant: {found['accountant']}; noise: "
        f"{found['noise_source']}.",
        "privacy.md beside the run is the whole statement. It covers the released models; this "
        "page shows cohorts and losses and is for the trusted party.",
    ]
    notice = (
        f"Promised: epsilon at most {found['epsilon_guarantee']:.3f} for one {found['unit']} "
        f"({relation}), delta {found['delta']:g}, trust: {trust}."
    )
    drawings = []
    points = epsilon_by_round(run)
    if points:
        figure = panel({"epsilon spent (RDP)": lines({"": points})})
        caption = "Ledger: largest epsilon spent so far, by RDP (an upper bound)."
        drawings.append(Drawing("ledger", figure, caption))
    return PageSection("privacy", "Privacy statement", words, drawings, notice=notice)


def utility(run: RunDir, checks: Sequence[SanityCheck]) -> PageSection:
    rows = run.rows()
    reference = reference_of(run)
    config = run.config
    names = [name for name in SHOWN if name in last_metrics(rows)]
    drawings = []
    if names:
        curve = figures.learning_curve(rows, names, reference)
        drawings.append(
            Drawing("learning", curve, "Utility on the server's test examples, by round.")
        )
    words = [
        "After the last evaluated round. The centralised model has the same first parameters and "
        f"sees all devices' examples pooled ({config.train.centralised_epochs} epochs of Adam)"
        + ("." if reference else "; it was not trained in this run.")
    ]
    heads = ["metric", "federated", "centralised", "gap"] if reference else ["metric", "federated"]
    return PageSection("utility", "Utility", words, drawings, [Table(heads, _metrics(run))])


def _metrics(run: RunDir) -> list[list[str]]:
    reference = reference_of(run)
    table = []
    shown = {name: v for name, v in last_metrics(run.rows()).items() if "_decile_" not in name}
    for name, value in shown.items():
        central = reference.get(name)
        row = [name.replace("_", " "), f"{value:.4f}"]
        if reference:
            row += ["", ""] if central is None else [f"{central:.4f}", f"{value - central:+.4f}"]
        table.append(row)
    return table


def devices(run: RunDir, checks: Sequence[SanityCheck]) -> PageSection:
    checkpoint = run.last_checkpoint()
    assert checkpoint is not None
    with np.load(run.path / "devices.npz", allow_pickle=False) as arrays:
        activity = arrays["activity"]
    drawings = [
        Drawing(
            "activity",
            figures.activity_histogram(activity),
            "Activity: examples per device, as the server sees it. Gini "
            f"{gini(activity[activity > 0]):.2f}.",
        ),
        Drawing(
            "participation",
            figures.participation_by_activity(activity, checkpoint.participation, checkpoint.round),
            "Participation: share of rounds in which a device was selected, by activity (mean and "
            "range).",
        ),
    ]
    return PageSection(
        "devices", "Activity and participation", drawings=drawings + _deciles(run.rows())
    )


def _deciles(rows: list[Row]) -> list[Drawing]:
    """Return drawings of the metric on devices, by decile of their activity."""
    found = {name: value for name, value in last_metrics(rows).items() if "_decile_" in name}
    if not found:
        return []
    metric = next(iter(found)).removeprefix("device_").rpartition("_decile_")[0]
    figure = figures.by_decile([found[name] for name in sorted(found)], metric)
    caption = "On devices' held-out examples, by decile of activity (least active first)."
    return [Drawing("deciles", figure, caption)]


def forgetting(run: RunDir, checks: Sequence[SanityCheck]) -> PageSection:
    """Return the section with the forgetting matrix and prequential curve of a continual run."""
    rows = run.rows("periods.jsonl")
    metric = next((name for name in SHOWN if rows and name in rows[-1]), None)
    if metric is None:
        words = [
            "All examples are there from the first round on (stream.mode = static): nothing to "
            "forget."
        ]
        return PageSection("forgetting", "Forgetting", words)
    matrix = period_matrix(rows, metric)
    done = matrix[~np.isnan(matrix).any(axis=1)]
    caption = "Forgetting: after each period of training (rows), tested on each period (columns)."
    drawings = [Drawing("forgetting", figures.forgetting_matrix(done, metric), caption)]
    if len(done) == len(matrix):
        caption = (
            "Each period as a test before it is trained on (prequential), right after, and at the "
            "end."
        )
        drawings.append(Drawing("prequential", figures.prequential_curve(matrix, metric), caption))
    return PageSection("forgetting", "Forgetting", drawings=drawings)


def rounds(run: RunDir, checks: Sequence[SanityCheck]) -> PageSection:
    """Return the section of privacy, attacks and utility by round, in stacked plots."""
    best = utility_of(run.rows())
    spent = epsilon_by_round(run)
    audited = by_round(run)
    if spent:
        audited["epsilon"] = {"spent (RDP)": spent} | audited.get("epsilon", {})
    if best is not None:
        points = [(row["round"], row[best[0]]) for row in run.rows() if best[0] in row]
        audited["utility"] = {best[0]: points}
    floors = {"attack AUC": 0.45}
    parts = {
        name: lines(series, floors.get(name, 0.0)) for name, series in audited.items() if series
    }
    if len(parts) < 2:
        words = ["There is nothing to set beside utility: no guarantee and no attack in this run."]
        return PageSection("rounds", "All by round", words)
    caption = (
        "By round: epsilon spent (RDP, an upper bound), certified epsilon, exposure, attack AUC, "
        "utility."
    )
    return PageSection("rounds", "All by round", drawings=[Drawing("panel", panel(parts), caption)])


def time(run: RunDir, checks: Sequence[SanityCheck]) -> PageSection:
    rows = run.rows()
    series = {
        name: [(row["round"], row[key]) for row in rows if key in row]
        for name, key in (("training", "time_train_s"), ("evaluation", "time_evaluate_s"))
    }
    train = sum(row["time_train_s"] for row in rows)
    devices = sum(row["devices"] for row in rows)
    facts = [
        ["training", f"{train:.1f} s"],
        ["evaluation", f"{sum(row['time_evaluate_s'] for row in rows):.1f} s"],
        ["devices a second", f"{devices / train:.0f}" if train else "none"],
    ]
    if run.summary is not None:
        facts.insert(0, ["setting up", f"{run.summary['time']['setup_s']:.1f} s"])
    drawing = Drawing("time", panel({"seconds": lines(series)}), "Seconds of each round.")
    return PageSection(
        "time", "Time", drawings=[drawing], tables=[Table(["", "wall clock"], facts)]
    )


def repeat(run: RunDir, checks: Sequence[SanityCheck]) -> PageSection:
    default = to_flat(Config())
    changed = [[key, str(v)] for key, v in to_flat(run.config).items() if v != default[key]]
    tables = [
        Table(["", ""], _facts(run), numbers=False),
        Table(["setting that differs from its default", "value"], changed, numbers=False),
    ]
    words = ["The exact command that repeats the run:"]
    return PageSection(
        "repeat", "Environment, and how to repeat it", words, (), tables, code=repeating(run)
    )


def _facts(run: RunDir) -> list[list[str]]:
    rows = run.rows()
    manifest = run.manifest
    summary = run.summary
    state = "unfinished" if summary is None else summary["status"]
    facts: list[list[Any]] = [
        ["state", f"{state}, {len(rows)} of {run.config.train.rounds} rounds"],
        ["began, ended", f"{manifest['started']}, {manifest['finished'] or 'not yet'}"],
        ["device type", manifest["device_type"]],
        ["plan", ", ".join(f"{key} {value}" for key, value in manifest["plan"].items())],
        ["versions", ", ".join(f"{key} {value}" for key, value in manifest["versions"].items())],
        ["commit", manifest["commit"] or "not under version control"],
        [
            "data",
            ", ".join(f"{name} ({sha[:12]})" for name, sha in manifest["fingerprint"].items()),
        ],
    ]
    if summary is not None:
        facts += [
            ["devices with training examples", f"{summary['devices']} of {summary['devices_all']}"],
            ["training examples", str(summary["examples"])],
            ["test examples with a label unseen in training", str(summary["test_labels_unseen"])],
        ]
        facts += [["early stop", summary["stopped_early"]]] if "stopped_early" in summary else []
    return facts + [["note", note] for note in manifest["notes"]]
