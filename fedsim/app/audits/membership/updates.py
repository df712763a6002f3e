"""Membership attacks on the single updates that a server sees in training."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch

from fedsim.app.audits.audited import Audited
from fedsim.app.audits.membership.active import active_rows
from fedsim.app.audits.membership.by_device import (
    OTHERS,
    Scored,
    Versus,
    asked_about,
    could_train,
    games_of,
    held_by,
    observed_in,
    over_devices,
    slices_by_round,
    trials_of_devices,
    window,
)
from fedsim.app.audits.membership.game import Game
from fedsim.app.audits.membership.threat import blind, threat
from fedsim.app.audits.membership.update_contents import Leaks
from fedsim.app.audits.replay import Replay, Round, check_replayed, check_single, visible
from fedsim.audit.blind_baseline import histogram_scores
from fedsim.audit.findings import Finding, Membership
from fedsim.audit.result import Trial
from fedsim.audit.scores import Floats
from fedsim.audit.update_scores import FEWEST_DEVICES, UPDATE_ATTACKS
from fedsim.config import Config
from fedsim.seeds import generator
from fedsim.types import Examples, Params


def check_updates(config: Config) -> None:
    """Refuse runs whose updates nobody sees or cannot be replayed. Raises WrongInput."""
    check_replayed(config, "updates")


def update_rows(audited: Audited) -> list[Finding]:
    """Return the attacks of a server that sees every device's update.

    The server is passive and, if the coins are over records, also active.
    """
    check_single(audited.config)
    replay = Replay(audited)
    rng = generator(audited.config.seed, "audit", "updates", audited.round)
    rounds = window(audited, replay)
    game = asked_about(audited, rounds, rng)
    leaks = Leaks(audited.module, audited.holdings)
    found = [_scored(audited, replay, round, game, leaks) for round in rounds]
    findings = [
        finding
        for name, versus in games_of(audited).items()
        for finding in _in_game(audited, replace(game, name=name), found, versus, rng)
    ]
    if audited.config.audit.coins == "record":
        findings += active_rows(audited, replay, rounds, game, rng)
    return [*findings, *leaks.found(visible(audited.config))]


def _scored(audited: Audited, replay: Replay, round: Round, game: Game, leaks: Leaks) -> Scored:
    devices: list[str] = []

    def changes() -> Iterator[Params]:
        for device, change in replay.updates(round):
            devices.append(device)
            leaks.see(round, device, change)
            yield change

    seen = observed_in(audited, round, game, changes())
    attacks = {
        name: attack(seen)
        for name, attack in UPDATE_ATTACKS.items()
        if len(devices) >= FEWEST_DEVICES or not name.startswith("fedmia")
    }
    places = np.searchsorted(audited.holdings.dataset.devices, np.array(devices, dtype=np.str_))
    return Scored(round.round, places, could_train(audited, round, game), attacks)


def _in_game(
    audited: Audited, game: Game, found: Sequence[Scored], versus: Versus, rng: np.random.Generator
) -> Iterator[Finding]:
    """Yield each attack over the window, and its area in each round."""
    seen = threat(audited, game, 0, "updates")
    unseen = (
        _blind_to_updates(game, found, rng) if game.name == OTHERS else blind(audited, game, rng)
    )
    for attack in UPDATE_ATTACKS:
        trials = trials_of_devices(found, attack, game, versus)
        if trials:
            yield Membership(
                attack,
                seen,
                over_devices(trials, rng),
                blind_auc=unseen,
                window=len(found),
                visible=visible(audited.config),
            )
            yield from slices_by_round(found, attack, game, versus, seen, rng)


def _blind_to_updates(game: Game, found: Sequence[Scored], rng: np.random.Generator) -> float:
    """Return the AUC of a device's records against others', by its label histogram alone."""
    devices = np.unique(np.concatenate([one.devices for one in found]))
    tossed = bool((~game.member & (game.owner >= 0)).any())
    trials = []
    for device in devices.tolist():
        inside = game.member & held_by(game, device)
        which = inside | (game.member & ~held_by(game, device))
        known = held_by(game, device) & (~game.member if tossed else game.member)
        scores = histogram_scores(items_of(game.records), known)
        trials.append(Trial(scores[which], inside[which]))
    return over_devices(trials, rng).area.auc


def items_of(records: Examples) -> Floats:
    """Return counts [N, items] for each record: of its label, else of its tokens in 256 buckets."""
    fields = records.fields
    if "label" in fields:
        labels = fields["label"]
        return torch.nn.functional.one_hot(labels).double().numpy()
    tokens = fields["tokens"] % 256
    return (
        torch.zeros(len(tokens), 256)
        .scatter_add_(1, tokens, torch.ones(tokens.shape))
        .double()
        .numpy()
    )
