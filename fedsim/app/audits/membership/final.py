"""Membership attacks on a run's current model."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from fedsim.app.audits.audited import Audited
from fedsim.app.audits.membership.game import Game, membership_game
from fedsim.app.audits.membership.ladder import attack_of, attacks_of
from fedsim.app.audits.membership.references import targets_of
from fedsim.app.audits.membership.subgroups import slices_of
from fedsim.app.audits.membership.threat import blind, region, threat, unlike
from fedsim.audit.findings import Finding, Membership
from fedsim.audit.predict import predict
from fedsim.audit.quantile import QUANTILE, quantile_regression
from fedsim.audit.result import Trial, attack_figures
from fedsim.audit.roc import auc
from fedsim.audit.scores import Floats, Target
from fedsim.config import Config
from fedsim.errors import WrongInput
from fedsim.seeds import generator
from fedsim.types import PAD, Examples

QUANTILE_FPR = 0.05


def final_rows(audited: Audited) -> list[Finding]:
    """Return a finding for each attack on the current model, and slices of the strongest one."""
    game = membership_game(audited)
    targets = targets_of(audited, game)
    names = attacks_of(audited.config, targets[0].references)
    reason = unlike(audited.config, game.unit)
    rng = generator(audited.config.seed, "audit", "membership", audited.round)
    found = []
    for name in names:
        trials = trials_of(name, audited, game, targets)
        figures = attack_figures(trials, rng)
        found.append(
            Membership(
                name,
                threat(audited, game, targets[0].references),
                figures,
                auc_run=_area(trials[0]),
                region=None if reason else region(audited, trials[0], figures.curve.fpr, rng),
                note=_told(audited.config, reason),
            )
        )
    unseen = blind(audited, game, rng)
    slices = slices_of(audited, game, found[-1], trials, rng)
    return [*(replace(each, blind_auc=unseen) for each in found), *slices]


def strongest_attack(audited: Audited) -> tuple[str, Game, Trial]:
    """Return the strongest attack by name, its game, and its scores of the run itself."""
    game = membership_game(audited)
    target = targets_of(audited, game)[0]
    name = attacks_of(audited.config, target.references)[-1]
    return name, game, Trial(attack_of(name)(target), target.member)


def _told(config: Config, reason: str) -> str | None:
    return reason if reason and config.dp.unit != "none" else None


def trials_of(name: str, audited: Audited, game: Game, targets: Sequence[Target]) -> list[Trial]:
    """Return an attack's scores of each target; quantile regression attacks only the run itself.

    Raises WrongInput if quantile regression does not fit the game.
    """
    if name != QUANTILE:
        attack = attack_of(name)
        return [Trial(attack(t), t.member) for t in targets]
    test = audited.holdings.dataset.test
    if test is None or game.unit == "device" or (game.rows < 0).any():
        raise WrongInput(
            'audit.attacks = "quantile" fits on a test split that the model never saw, and judges '
            'records by coins: it needs audit.coins = "record" and test examples'
        )
    pool = predict(audited.module, audited.task, audited.params, test)
    scores = quantile_regression(
        _described(game.records), targets[0].own.phi, _described(test), pool.phi, QUANTILE_FPR
    )
    return [Trial(scores, targets[0].member)]


def _described(records: Examples) -> Floats:
    """Return label and length of each record [N, 2]; the quantile is predicted from them."""
    fields = records.fields
    label = fields["label"].double() if "label" in fields else torch.zeros(len(records)).double()
    length = (
        (fields["tokens"] != PAD).sum(1).double()
        if "tokens" in fields
        else torch.zeros(len(records)).double()
    )
    return torch.stack([label, length], dim=1).numpy()


def _area(trial: Trial) -> float:
    return auc(trial.scores, trial.member)
