"""Scores of records by device and round, and the figures over devices."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clients.clipping import Clip, clipped_gradients
from clients.tape import without_rule
from fedsim.app.audits.audited import Audited
from fedsim.app.audits.membership.game import Game, membership_game, only
from fedsim.app.audits.replay import Replay, Round
from fedsim.audit.findings import AttackFigures, MembershipSlice, Threat
from fedsim.audit.intervals import FEWEST_TARGETS
from fedsim.audit.result import Trial, area, attack_figures
from fedsim.audit.scores import Bools, Floats
from fedsim.audit.update_scores import Observed, observe, record_losses
from fedsim.errors import WrongInput
from fedsim.types import Examples, Params, trim

SAME = "fair coins over records of the same device"
OTHERS = "other devices' records"


BATCH = 256


Versus = Callable[[Game, int], Bools]
"""A game and the place of a target device -> which records are its non-members [N]."""


@dataclass(frozen=True)
class Scored:
    """The attacks' scores of N records, from the updates of one round."""

    round: int
    devices: NDArray[np.int64]
    """[K]: the places of the devices, sorted."""
    asked: Bools
    """[N]: whether the record's device could have trained on it in this round."""
    scores: dict[str, Floats]
    """[K, N] by attack."""


def window(audited: Audited, replay: Replay) -> list[Round]:
    """Return those of the first `audit.window` rounds in which any device answered.

    Raises WrongInput if no device answered in any of them.
    """
    last = min(audited.config.audit.window, audited.round)
    rounds = [replay.round(number) for number in range(1, last + 1)]
    rounds = [round for round in rounds if len(round.cohort)]
    if not rounds:
        raise WrongInput(f"no device answered in the rounds 1 to {last}; raise audit.window")
    return rounds


def games_of(audited: Audited) -> dict[str, Versus]:
    """Return the games that the coins allow, each with its non-members."""
    coins = audited.config.audit.coins
    other: dict[str, Versus] = {OTHERS: lambda game, device: game.member & ~held_by(game, device)}
    if coins == "record":
        return {SAME: lambda game, device: ~game.member & held_by(game, device)} | other
    if coins == "none":
        return {membership_game(audited).name: lambda game, device: game.owner < 0} | other
    return other


def asked_about(audited: Audited, rounds: Sequence[Round], rng: np.random.Generator) -> Game:
    """Return the game of these rounds' devices, with at most `audit.records` records on each."""
    game = membership_game(audited)
    most = audited.config.audit.records
    seen = np.unique(np.concatenate([places_of(audited, round) for round in rounds]))
    chosen = np.isin(game.owner, seen) | (game.owner < 0)
    if most:
        order = rng.permutation(len(chosen))
        rank = np.empty(len(order), dtype=np.int64)
        for owner in np.unique(game.owner):
            mine = order[game.owner[order] == owner]
            rank[mine] = np.arange(len(mine))
        chosen &= rank < np.where(game.owner < 0, most * len(seen), most)
    return only(game, chosen)


def gradient_norms(audited: Audited, params: Params, examples: Examples) -> Floats:
    """Return the norm of each record's gradient [N], in float64 and without dropout."""
    module = audited.module
    task = audited.task
    place = next(module.parameters()).device
    start = {name: p.double().to(place) for name, p in params.items()}
    names = sorted(examples.fields)
    method: Literal["exact", "loop"] = "exact" if without_rule(module) is None else "loop"

    def losses(outputs: Params, *targets: Tensor) -> Tensor:
        return task.losses(outputs, dict(zip(names, targets, strict=True)))

    found = []
    module.eval()
    for first in range(0, len(examples), BATCH):
        fields = trim(examples[first : first + BATCH].to(place).fields)
        fields = {n: t.double() if t.is_floating_point() else t for n, t in fields.items()}
        inputs = [fields[n] for n in task.inputs]
        targets = [fields[n] for n in names]
        norms = clipped_gradients(
            module, losses, inputs, targets, Clip(1.0), start, method=method
        ).norms
        found.append(norms.cpu())
    module.train()
    each: Floats = torch.cat(found).numpy()
    return each


def observed_in(
    audited: Audited, round: Round, game: Game, changes: Iterator[Params] | Sequence[Params]
) -> Observed:
    losses = record_losses(audited.module, audited.task, game.records)
    norms = gradient_norms(audited, round.before, game.records)
    return observe(losses, norms, round.before, changes)


def could_train(audited: Audited, round: Round, game: Game) -> Bools:
    """Return which records [N] their devices would hold in the round's period without coins."""
    arrivals = audited.holdings.arrivals
    if arrivals is None:
        return np.ones(len(game.rows), dtype=bool)
    held: Bools = arrivals.held(round.period)[game.rows] | (game.rows < 0)
    return held


def slices_by_round(
    found: Sequence[Scored],
    attack: str,
    game: Game,
    versus: Versus,
    seen: Threat,
    rng: np.random.Generator,
) -> Iterator[MembershipSlice]:
    """Yield the attack's area in each round alone, if the round has records to compare."""
    for one in found:
        trials = trials_of_devices([one], attack, game, versus)
        if trials and all_devices(trials).judged:
            inner = over_devices(trials, rng)
            yield MembershipSlice(
                "round",
                one.round,
                attack,
                seen,
                inner.area,
                records=inner.records,
                targets=inner.targets,
            )


def over_devices(trials: Sequence[Trial], rng: np.random.Generator) -> AttackFigures:
    """Return the figures of all devices' records together; AUC and its interval are over devices.

    A device is a target if it has at least two members and two others. With fewer than five targets
    the area is that of all records together. Raises WrongInput if there is nothing to compare.
    """
    together = all_devices(trials)
    if not together.judged:
        raise WrongInput(
            "attacks on updates want two members and two others at least on the devices that "
            "answered; raise audit.window or audit.records, or devices with more records"
        )
    pooled = attack_figures([together], rng)
    judged = [trial for trial in trials if trial.judged]
    found = replace(pooled, auc_pooled=pooled.area.auc, targets=len(judged))
    return replace(found, area=area(judged, rng)) if len(judged) >= FEWEST_TARGETS else found


def trials_of_devices(
    found: Sequence[Scored], attack: str, game: Game, versus: Versus
) -> list[Trial]:
    """Return a trial for each device.

    A record's score is its mean over the rounds in which the device took part and could train on
    it.
    """
    total: dict[int, tuple[Floats, Floats]] = {}
    for one in found:
        for device, scores in zip(one.devices.tolist(), one.scores.get(attack, ()), strict=False):
            before = total.get(device, (np.zeros(len(scores)), np.zeros(len(scores))))
            total[device] = before[0] + np.where(one.asked, scores, 0.0), before[1] + one.asked
    trials = []
    for device, (scores, rounds) in sorted(total.items()):
        inside = members(game, device, versus)
        which = (inside | versus(game, device)) & (rounds > 0)
        trials.append(Trial(scores[which] / rounds[which], inside[which]))
    return trials


def members(game: Game, device: int, versus: Versus) -> Bools:
    return game.member if versus is non_members else game.member & held_by(game, device)


def non_members(game: Game, device: int) -> Bools:
    """Return the non-members of a sum [N]; they do not depend on the device."""
    return ~game.member


def held_by(game: Game, device: int) -> Bools:
    found: Bools = game.owner == device
    return found


def all_devices(trials: Sequence[Trial]) -> Trial:
    return Trial(
        np.concatenate([t.scores for t in trials]), np.concatenate([t.member for t in trials])
    )


def places_of(audited: Audited, round: Round) -> NDArray[np.int64]:
    found: NDArray[np.int64] = np.searchsorted(
        audited.holdings.dataset.devices, round.cohort.devices
    )
    return found
