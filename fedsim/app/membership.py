"""Membership attacks on a run's model: the game, the references, the ladder, the rows."""

from collections.abc import Sequence

import numpy as np
import torch

from fedsim.app.audits import Audited, check_names
from fedsim.app.game import Game, in_units, play
from fedsim.app.references import targets_of
from fedsim.app.rundir import Row
from fedsim.app.slices import slices_of
from fedsim.audit.blind import blind_auc
from fedsim.audit.membership import ATTACKS, choose
from fedsim.audit.predict import predict
from fedsim.audit.quantile import QUANTILE, quantile_regression
from fedsim.audit.region import excess, largest_auc
from fedsim.audit.result import Trial, figures
from fedsim.audit.scores import Floats, Target
from fedsim.audit.statistics import auc
from fedsim.config import Config
from fedsim.errors import WrongInput
from fedsim.privacy.accounting import power
from fedsim.privacy.claims import relation
from fedsim.seeds import generator
from fedsim.types import PAD, Examples

QUANTILE_FPR = 0.05


MANY_LABELS = 100
"""The blind baseline knows the labels one by one up to here."""


def final_rows(audited: Audited) -> list[Row]:
    """Return a row for each attack on the current model, and slices of the strongest one."""
    game = play(audited)
    targets = targets_of(audited, game)
    names = attacks_of(audited.config, targets[0].references)
    reason = unlike(audited.config, game.unit)
    rng = generator(audited.config.seed, "audit", "membership", audited.round)
    rows = []
    for name in names:
        trials = trials_of(name, audited, game, targets)
        row: Row = {"kind": "membership", "attack": name}
        row |= threat(audited, game, targets[0].references)
        row |= figures(trials, rng) | {"auc_run": _area(trials[0])}
        bound = region(audited, trials[0], row["fpr"], rng) if not reason else _told(audited.config, reason)
        rows.append(row | bound)
    unseen = blind(audited, game, rng)
    slices = slices_of(audited, game, trials, rng)
    return [row | unseen for row in rows] + [
        {"kind": "slice", "of": "membership", "attack": names[-1]}
        | threat(audited, game, targets[0].references)
        | s
        for s in slices
    ]


def strongest(audited: Audited) -> tuple[str, Game, Trial]:
    """Return the strongest attack by name, its game, and its scores of the run itself."""
    game = play(audited)
    target = targets_of(audited, game)[0]
    name = attacks_of(audited.config, target.references)[-1]
    return name, game, Trial(ATTACKS[name](target), target.member)


def _told(config: Config, reason: str) -> Row:
    return {} if config.dp.unit == "none" else {"note": reason}


def threat(audited: Audited, game: Game, references: int, view: str = "final") -> Row:
    """Return the threat model as a row's fields."""
    audit = audited.config.audit
    row: Row = {"game": game.name, "view": view, "unit": game.unit, "references": references}
    return row | ({"shadows": audit.shadows} if references else {})


def attacks_of(config: Config, references: int) -> list[str]:
    """Return the attacks by name, the strongest last. Raises WrongInput."""
    if config.audit.attacks == "auto":
        best = choose(references)
        return ["loss"] if best == "loss" else ["loss", best]
    return check_names("audit.attacks", config.audit.attacks, (*ATTACKS, QUANTILE))


def trials_of(name: str, audited: Audited, game: Game, targets: Sequence[Target]) -> list[Trial]:
    """Return an attack's scores of each target; quantile regression is tried on the run itself only."""
    if name != QUANTILE:
        return [Trial(ATTACKS[name](t), t.member) for t in targets]
    test = audited.holdings.dataset.test
    if test is None or game.unit == "device" or (game.rows < 0).any():
        raise WrongInput(
            'audit.attacks = "quantile" fits on a test split that the model never saw, and judges records by '
            'coins: it needs audit.coins = "record" and test examples'
        )
    pool = predict(audited.module, audited.task, audited.params, test)
    scores = quantile_regression(
        _described(game.records), targets[0].own.phi, _described(test), pool.phi, QUANTILE_FPR
    )
    return [Trial(scores, targets[0].member)]


def _described(records: Examples) -> Floats:
    """Return label and length of each record: what the quantile is predicted from."""
    fields = records.fields
    label = fields["label"].double() if "label" in fields else torch.zeros(len(records)).double()
    length = (
        (fields["tokens"] != PAD).sum(1).double()
        if "tokens" in fields
        else torch.zeros(len(records)).double()
    )
    return torch.stack([label, length], dim=1).numpy()


def fits_dp(config: Config, game: Game) -> bool:
    """Whether the run's DP bounds an attack in this game."""
    return not unlike(config, game.unit)


def unlike(config: Config, unit: str) -> str:
    """Return why the run's epsilon says nothing of a game over these units, or "".

    Coins add or remove a unit, so the relation has to be that one, too.
    """
    if config.dp.unit == "none":
        return "no differential privacy, no bound"
    if config.dp.unit != unit:
        return f"the run protects the unit {config.dp.unit!r}, and the game is over another"
    if config.audit.coins == "none":
        return "no coins were tossed, so that members and others differ by themselves"
    if relation(config) != "add_or_remove":
        return (
            "a coin takes a unit out of the roster, which zero-out does not cover; set selection.total_score "
            "(device) or another dp.trust than secure_sum to compare"
        )
    return ""


def region(audited: Audited, trial: Trial, fpr: Sequence[float], rng: np.random.Generator) -> Row:
    """Return what the run's whole privacy profile allows, and by how much the attack is surely over it."""
    over = excess(trial.scores, trial.member, lambda f: power(audited.events, f), rng)
    return {
        "allowed_tpr": power(audited.events, np.array(fpr)).tolist(),
        "allowed_auc": largest_auc(lambda f: power(audited.events, f), points=401),
        "over_region": max(0.0, over),
    }


def blind(audited: Audited, game: Game, rng: np.random.Generator) -> Row:
    """Return how well membership is told without the model: from label, length, device and activity."""
    if game.unit == "device":
        activity = audited.holdings.dataset.activity[np.unique(game.owner)]
        features = np.log1p(activity)[:, None].astype(np.float64)
    else:
        features = _features(game)
    return {"blind_auc": blind_auc(features, in_units(game.member, game), rng)}


def _features(game: Game) -> Floats:
    fields = game.records.fields
    # that a test record has no device would tell it by itself
    parts = [game.owner[:, None].astype(np.float64)] if (game.owner >= 0).all() else []
    if "tokens" in fields:
        parts.append((fields["tokens"] != PAD).sum(1, keepdim=True).double().numpy())
    if "label" in fields:
        labels = fields["label"].numpy()
        known = np.unique(labels)[:MANY_LABELS]
        parts.append((labels[:, None] == known).astype(np.float64))
    return np.concatenate(parts, axis=1)


def _area(trial: Trial) -> float:
    return auc(trial.scores, trial.member)
