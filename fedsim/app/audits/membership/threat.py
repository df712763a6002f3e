"""The threat model of a membership attack, its limit under DP, and the blind baseline."""

from collections.abc import Sequence

import numpy as np

from fedsim.app.audits.audited import Audited
from fedsim.app.audits.membership.game import Game, in_units
from fedsim.audit.blind_baseline import blind_auc
from fedsim.audit.findings import Region, Threat
from fedsim.audit.region import excess, largest_auc
from fedsim.audit.result import Trial
from fedsim.audit.scores import Floats
from fedsim.config import Config
from fedsim.privacy.accounting import power
from fedsim.privacy.claims import relation
from fedsim.types import PAD

MANY_LABELS = 100
"""Largest number of labels that the blind baseline has as features."""


def threat(audited: Audited, game: Game, references: int, view: str = "final") -> Threat:
    """Return the threat model of an attack in a game."""
    shadows = audited.config.audit.shadows if references else None
    return Threat(game.name, view, game.unit, references, shadows)


def fits_dp(config: Config, game: Game) -> bool:
    """Return whether the run's DP bounds an attack in this game."""
    return not unlike(config, game.unit)


def unlike(config: Config, unit: str) -> str:
    """Return why the run's epsilon does not bound a game over these units, or "".

    Coins add or remove a unit, so the run's relation must be add_or_remove.
    """
    if config.dp.unit == "none":
        return "no differential privacy, no bound"
    if config.dp.unit != unit:
        return f"the run protects the unit {config.dp.unit!r}, and the game is over another"
    if config.audit.coins == "none":
        return "no coins were tossed, so that members and others differ by themselves"
    if relation(config) != "add_or_remove":
        return (
            "a coin takes a unit out of the roster, which zero-out does not cover; set "
            "selection.total_score (device) or another dp.trust than secure_sum to compare"
        )
    return ""


def region(
    audited: Audited, trial: Trial, fpr: Sequence[float], rng: np.random.Generator
) -> Region:
    """Return the limits by the run's whole privacy profile, and how far the attack exceeds them.

    The excess is a confident lower bound, and at least 0.
    """
    over = excess(trial.scores, trial.member, lambda f: power(audited.events, f), rng)
    return Region(
        allowed_tpr=tuple(power(audited.events, np.array(fpr)).tolist()),
        allowed_auc=largest_auc(lambda f: power(audited.events, f), points=401),
        over_region=max(0.0, over),
    )


def blind(audited: Audited, game: Game, rng: np.random.Generator) -> float:
    """Return the AUC of the blind baseline, which never sees the model.

    It predicts from label, length and device of records, or from the activity of devices.
    """
    if game.unit == "device":
        activity = audited.holdings.dataset.activity[np.unique(game.owner)]
        features = np.log1p(activity)[:, None].astype(np.float64)
    else:
        features = _features(game)
    return blind_auc(features, in_units(game.member, game), rng)


def _features(game: Game) -> Floats:
    fields = game.records.fields
    # test records have no device, and that alone would reveal them
    parts = [game.owner[:, None].astype(np.float64)] if (game.owner >= 0).all() else []
    if "tokens" in fields:
        parts.append((fields["tokens"] != PAD).sum(1, keepdim=True).double().numpy())
    if "label" in fields:
        labels = fields["label"].numpy()
        known = np.unique(labels)[:MANY_LABELS]
        parts.append((labels[:, None] == known).astype(np.float64))
    return np.concatenate(parts, axis=1)
