"""Membership attacks on sums of updates, seen as differences of consecutive models."""

import numpy as np

from fedsim.app.audits.audited import Audited
from fedsim.app.audits.membership.by_device import (
    Scored,
    all_devices,
    asked_about,
    could_train,
    non_members,
    observed_in,
    over_devices,
    places_of,
    slices_by_round,
    trials_of_devices,
    window,
)
from fedsim.app.audits.membership.game import Game
from fedsim.app.audits.membership.threat import blind, threat
from fedsim.app.audits.replay import Replay, Round, check_replayed
from fedsim.audit.findings import Finding, Membership
from fedsim.audit.update_scores import SUM_ATTACKS
from fedsim.config import Config
from fedsim.errors import WrongInput
from fedsim.seeds import generator


def check_sums(config: Config) -> None:
    """Refuse runs whose rounds cannot be replayed, and games over devices. Raises WrongInput."""
    check_replayed(config, "sums")
    if config.audit.coins == "device":
        raise WrongInput(
            'audit.view names "sums", whose game is about records of the devices that trained; set '
            'audit.coins = "record" or "none"'
        )


def sum_rows(audited: Audited) -> list[Finding]:
    """Return the attacks of an observer who sees only the models of consecutive rounds.

    Their difference is the step of a sum. The observer knows which devices took part in a round, as
    the server of a secure sum does.
    """
    replay = Replay(audited)
    rng = generator(audited.config.seed, "audit", "sums", audited.round)
    rounds = window(audited, replay)
    game = asked_about(audited, rounds, rng)
    found = [_scored_sum(audited, round, game) for round in rounds]
    seen = threat(audited, game, 0, "sums")
    unseen = blind(audited, game, rng)
    findings: list[Finding] = []
    for attack in SUM_ATTACKS:
        trial = all_devices(trials_of_devices(found, attack, game, non_members))
        whole = Membership(
            attack,
            seen,
            over_devices([trial], rng),
            blind_auc=unseen,
            window=len(rounds),
            visible="differences of consecutive models, and who took part",
        )
        findings += [whole, *slices_by_round(found, attack, game, non_members, seen, rng)]
    return findings


def _scored_sum(audited: Audited, round: Round, game: Game) -> Scored:
    """Return the scores of a round's records, from the one sum of the round."""
    step = {name: p - round.before[name] for name, p in round.after.items()}
    seen = observed_in(audited, round, game, [step])
    there = np.isin(game.owner, places_of(audited, round)) | (game.owner < 0)
    attacks = {name: attack(seen) for name, attack in SUM_ATTACKS.items()}
    return Scored(
        round.round, np.zeros(1, dtype=np.int64), there & could_train(audited, round, game), attacks
    )
