"""Device-level inference: the attack finds out whether a device trained at all.

It uses fresh records of the device. They were held out for evaluation, so no model has seen them.
A model that trained on the device's other records does better on these, too ("user inference").
"""

from dataclasses import replace

import numpy as np
import torch

from fedsim.app.audits.audited import Audited
from fedsim.app.audits.membership.game import Game, natural
from fedsim.app.audits.membership.references import targets_of
from fedsim.app.audits.membership.subgroups import slices_of
from fedsim.app.audits.membership.threat import blind, fits_dp, region, threat
from fedsim.audit.attacks import ATTACKS
from fedsim.audit.findings import Finding, Membership
from fedsim.audit.result import Trial, attack_figures
from fedsim.audit.scores import Floats, Target
from fedsim.data.pool import pooled
from fedsim.seeds import generator

NAME = "fresh records of the device"


def device_rows(audited: Audited) -> list[Finding]:
    """Return device-level inference, and its slices by activity.

    The list is empty without coins over devices, and without `evaluation.holdout`: fresh records
    come from there.
    """
    if audited.config.audit.coins != "device" or not audited.holdings.holds_out:
        return []
    game = fresh_game(audited)
    targets = targets_of(audited, replace(game, unit="example"))
    references = targets[0].references
    name = "ratio" if references else "loss"
    rng = generator(audited.config.seed, "audit", "fresh records", audited.round)
    trials = [device_trial(target, game, name) for target in targets]
    found = Membership(
        name,
        threat(audited, game, references),
        attack_figures(trials, rng),
        blind_auc=blind(audited, game, rng),
        records_each=len(game.rows) / len(np.unique(game.owner)),
    )
    if fits_dp(audited.config, game):
        found = replace(found, region=region(audited, trials[0], found.figures.curve.fpr, rng))
    return [found, *slices_of(audited, game, found, trials, rng)]


def fresh_game(audited: Audited) -> Game:
    """Return the game of the records that devices hold out.

    A device is a member if its coin let it train.
    """
    holdings = audited.holdings
    pool = pooled(audited.holdings.dataset)
    rows = np.flatnonzero(natural(audited, pool) & holdings.held_out_flags)
    records = pool.records[torch.from_numpy(rows)]
    return Game(NAME, "device", records, rows, pool.owner[rows], holdings.coins[rows])


def device_trial(target: Target, game: Game, attack: str) -> Trial:
    """Return each device's mean score over its fresh records; devices are sorted."""
    devices, first, each = np.unique(game.owner, return_index=True, return_inverse=True)
    scores: Floats = np.bincount(each, ATTACKS[attack](target), len(devices)) / np.bincount(each)
    return Trial(scores, target.member[first])
