"""The privacy statement of a run: its promise, its reasons, and what would break it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.app.budget.delta import delta_of
from fedsim.app.budget.spending import Spending, privacy_figures
from fedsim.app.rundir.files import write_json, write_text
from fedsim.app.rundir.metrics import spent_by_round
from fedsim.config import Config
from fedsim.data.activity import tenths
from fedsim.data.federation import FederatedDataset
from fedsim.privacy.accounting import Event, epsilon
from fedsim.privacy.claims import amplification, relation
from fedsim.privacy.ledger import row_events
from fedsim.privacy.mechanism import device_mechanism, most_participations
from fedsim.privacy.planning import guaranteed

RELATIONS = {
    "add_or_remove": "with the unit's data or without them",
    "zero_out": "with the unit's data, or with a contribution of zeros; who takes part stays the "
    "same",
}
GENERATORS = {
    "seeded": "AES-256 in counter mode under a key made of the seed, for simulation: who has the "
    "seed can take the noise off, so that epsilon describes the mechanism and not this folder. ",
    "os": "AES-256 in counter mode under 256 bits of the operating system's entropy, never stored; "
    "selection coins come from it, too. ",
}


def write_statement(spending: Spending, federation: FederatedDataset) -> Mapping[str, Any]:
    """Write `privacy.md` and `privacy.json`; return the summary's figures, {} without DP."""
    config = spending.config
    if config.dp.unit == "none":
        return {}
    guarantee, rests_on = guaranteed(config, spending.delta, spending.activity, spending.repeats)
    found = privacy_figures(spending, guarantee, relation(config))
    parts = _parts(spending, federation) | {"p": found, "rests_on": rests_on}
    write_json(spending.run.path / "privacy.json", json.loads(json.dumps(parts)))
    write_text(spending.run.path / "privacy.md", render_text("privacy_statement.md", **parts))
    return found


def _parts(spending: Spending, federation: FederatedDataset) -> dict[str, Any]:
    config = spending.config
    delta = delta_of(config, federation)
    return {
        "name": config.name,
        "seed": config.seed,
        "relation_meaning": RELATIONS[relation(config)],
        "trust_meaning": trust_meaning(config),
        "mechanism": mechanism_sentence(config),
        "delta_rule": delta.rule,
        "sampler": sampler_sentence(config),
        "claim": amplification(config).reason,
        "generator": GENERATORS[spending.noise_kind] + "Floating-point Gaussians are not hardened.",
        "warnings": [delta.rule] if delta.warning else [],
        "others": _other_deltas(spending),
        "deciles": _deciles(spending),
        "rounds": at_ten_rounds(spent_by_round(spending.run.rows())),
        "outside": outside(config),
        "voids": voids(config, spending.delta, spending.noise_kind),
    }


def trust_meaning(config: Config) -> str:
    """Return a text about who sees what."""
    dp = config.dp
    if dp.unit == "example" and dp.trust != "secure_sum":
        seen = (
            "the server and the trusted party see" if dp.trust == "central" else "the server sees"
        )
        return (
            f"each device adds all of the noise to each of its local steps; {seen} noised updates"
        )
    if dp.trust == "secure_sum":
        return (
            "devices add noise shares, and the server sees only the sum; the secure sum is "
            "SIMULATED here (its arithmetic, no cryptography)"
        )
    return (
        "the server is trusted with clipped updates and adds the noise; whoever gets the models is "
        "not"
    )


def mechanism_sentence(config: Config) -> str:
    """Return a text about the mechanism and its numbers."""
    dp = config.dp
    noise = f"noise multiplier {dp.noise_multiplier:g}"
    if dp.unit == "example":
        what = "DP-SGD with per-example clipping"
        if dp.method == "edp":
            what = f"micro-batches after eDP-SGD ({dp.micro_batches} slots, sensitivity 2C)"
        decay = f", times {dp.noise_decay:g} after each epoch" if dp.method == "edp" else ""
        return (
            f"{what}, C = {dp.clip_norm:g}, {noise}{decay}; Poisson batches, constant divisor, "
            "local steps"
        )
    m = device_mechanism(config)
    text = (
        f"DP-FedAvg: each device's change clipped to C = {dp.clip_norm:g}, {noise}, largest weight "
    )
    text += f"{m.max_weight:g}, constant divisor {m.divisor:g}"
    if m.adaptive:
        text += (
            f"; C follows the {m.quantile:g} quantile, noise {m.count_noise:g} on the centred count"
        )
    if m.correlated:
        text += (
            f"; banded matrix factorisation with {m.bands} bands for at most {m.participations} "
            "participations that far apart"
        )
    return text


def sampler_sentence(config: Config) -> str:
    """Return a text about how devices and examples are drawn."""
    selection = config.selection
    text = (
        f"devices by {selection.rule}, {selection.sampling}, expected cohort {selection.cohort}, "
        "cap "
    )
    text += f"{selection.cap:g}"
    if config.dp.unit == "example":
        rate = config.dp.sampling_rate
        text += (
            f"; examples by Poisson coins at rate {rate:g}"
            if rate
            else (
                f"; examples by Poisson coins at rate {config.train.batch_size} / public activity"
            )
        )
    return text


def outside(config: Config) -> list[str]:
    """Return sentences on what no epsilon of the statement covers."""
    lines = ["The configuration, and every setting that was chosen by looking at the data."]
    if config.data.vocabulary == "training" and config.data.task != "image":
        lines.append(
            'The vocabulary and the names of labels (data.vocabulary = "training" takes words as '
            "they are)."
        )
    elif config.data.task != "language":
        lines.append("The names of labels and tags: those that the training examples hold.")
    lines.append("The test and dev examples, and what is measured on them.")
    if config.evaluation.holdout or config.data.test_share:
        lines.append(
            "Which examples a device holds out: one more example can move others in or out."
        )
    if config.stream.mode == "continual":
        lines.append("The edges of periods, and when examples arrive: they count as public.")
    lines.append(
        f'Public activity (data.activity_public = "{config.data.activity_public}"): sizes count '
        "as public, and so are the roster and when devices are in reach."
    )
    if config.evaluation.on != "central":
        lines.append("Metrics on devices' held-out examples: unnoised, for the trusted party only.")
    if config.train.centralised:
        lines.append("The centralised reference in summary.json: trained without any protection.")
    if config.train.patience:
        lines.append("Early stopping: it looked at the dev part.")
    if config.stream.deletions:
        lines.append("Deletion stops future cost; it undoes nothing that was released before.")
    if config.dp.unit == "example":
        lines.append(
            "More than one copy of an example: for R copies the group epsilon holds, which is "
            "larger."
        )
    return lines


def voids(config: Config, delta: float, noise_kind: str = "seeded") -> list[str]:
    """Return sentences on what breaks a claim if released, and the epsilon that is then left."""
    lines = []
    if config.dp.unit == "device" and amplification(config).claimed:
        m = device_mechanism(config)
        most = most_participations(config)
        coins = (
            "the secret of the coins"
            if noise_kind == "os"
            else "the selection seed (also in config.toml)"
        )
        left = epsilon([m.event(1.0, m.max_weight, most)], delta)
        lines.append(
            f"Cohort sizes, participants, or {coins}: no amplification is "
            f"left, and epsilon is up to {left:.3g} for a device that was in all {most} rounds."
        )
    if config.dp.unit == "example":
        lines.append(
            "The coins of the batches (the seed in simulation): no amplification by batches is "
            "left."
        )
    lines.append(
        "Exact losses, exact numbers of examples, realised batch sizes, unnoised norms or counts: "
        "no epsilon holds for them at all."
    )
    if config.dp.trust == "central" and config.dp.unit == "device":
        lines.append(
            "Updates of single devices or their sum before the noise: no epsilon holds for them."
        )
    return lines


def at_ten_rounds(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """Return at most ten of the points, with the first and the last."""
    if not points:
        return []
    return [
        points[i] for i in sorted(set(np.linspace(0, len(points) - 1, 10).astype(int).tolist()))
    ]


def _other_deltas(spending: Spending) -> list[str]:
    """Return the largest epsilon at ten times and at a tenth of delta, as texts."""
    table, counts = spending.ledger.counts()
    if not table.events:
        return ["nothing was released"]
    worst = int(np.argmax(table.epsilons(counts, spending.delta)))
    events: tuple[Event, ...] = row_events(table, counts, worst)
    near = [spending.delta * 10, spending.delta / 10]
    return [f"{epsilon(events, d):.3f} at {d:.0e}" for d in near if d < 1]


def _deciles(spending: Spending) -> list[dict[str, Any]]:
    found, _ = spending.epsilons()
    activity = spending.largest
    return [
        {
            "number": number,
            "activity": int(activity[part].max()),
            "median": float(np.median(found[part])),
            "largest": float(found[part].max()),
        }
        for number, part in enumerate(tenths(activity), start=1)
    ]


def render_text(template: str, **values: Any) -> str:
    """Return the plain text or Markdown of a template of this package, filled with the values."""
    import jinja2  # it is slow to import, and only runs with DP need it

    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(
        loader=loader, autoescape=False, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    return environment.get_template(template).render(**values)
