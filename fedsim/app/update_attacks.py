"""Membership attacks on what a server sees in training: single updates, or sums of them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import functional_call

from clients.clipping import Clip, clipped_gradients
from fedsim.app.audits import Audited
from fedsim.app.leaks import Leaks
from fedsim.app.membership import Game, blind, play, threat
from fedsim.app.replay import Replay, Round, check_single, visible
from fedsim.app.rundir import Row
from fedsim.audit.blind import histogram_scores
from fedsim.audit.intervals import FEWEST_TARGETS
from fedsim.audit.result import Trial, area, figures
from fedsim.audit.scores import Bools, Floats
from fedsim.audit.updates import (
    FEWEST_DEVICES,
    SUM_ATTACKS,
    UPDATE_ATTACKS,
    Observed,
    moved,
    norm_of,
    observe,
    record_losses,
)
from fedsim.errors import WrongInput
from fedsim.seeds import generator
from fedsim.types import Examples, Params, trim

SAME, OTHERS = "fair coins over records of the same device", "other devices' records"
BATCH = 256
ACTIVE_DEVICES = 8
"""Devices that the active server tries: each trains twice more."""

Versus = Callable[[Game, int], Bools]
"""A game's non-members [N], where a device is the target."""


@dataclass(frozen=True)
class Scored:
    """What attacks say of N records by the updates of one round."""

    round: int
    devices: NDArray[np.int64]
    """[K]: the places of the devices, sorted."""
    asked: Bools
    """[N]: records that those who hold them could have trained on in this round."""
    scores: dict[str, Floats]
    """[K, N] by attack."""


def update_rows(audited: Audited) -> list[Row]:
    """Return the rows of a passive server, and of an active one, that sees every device's update."""
    check_single(audited.config)
    replay, rng = Replay(audited), generator(audited.config.seed, "audit", "updates", audited.round)
    rounds = window(audited, replay)
    game = asked_about(audited, rounds, rng)
    leaks = Leaks(audited.module, audited.holdings)
    found = [_scored(audited, replay, round, game, leaks) for round in rounds]
    seen = {"window": len(rounds), "visible": visible(audited.config)}
    rows = [
        row | (seen if row["kind"] == "membership" else {})
        for name, versus in games_of(audited).items()
        for row in _game_rows(audited, replace(game, name=name), found, versus, rng)
    ]
    if audited.config.audit.coins == "record":
        rows += _active_rows(audited, replay, rounds, game, rng)
    return rows + [row | {"visible": seen["visible"]} for row in leaks.rows()]


def sum_rows(audited: Audited) -> list[Row]:
    """Return the rows of who sees only models of consecutive rounds, whose difference is a sum's step.

    It knows who took part in a round, as the server of a secure sum does.
    """
    replay, rng = Replay(audited), generator(audited.config.seed, "audit", "sums", audited.round)
    rounds = window(audited, replay)
    game = asked_about(audited, rounds, rng)
    found = [_scored_sum(audited, round, game) for round in rounds]
    head = threat(audited, game, 0, "sums")
    seen = {"window": len(rounds), "visible": "differences of consecutive models, and who took part"}
    unseen, rows = blind(audited, game, rng), []
    for attack in SUM_ATTACKS:
        trial = _pooled(_trials(found, attack, game, _outside))
        rows.append(
            {"kind": "membership", "attack": attack} | head | over_devices([trial], rng) | unseen | seen
        )
        rows += list(_by_round(found, attack, game, _outside, head, rng))
    return rows


def window(audited: Audited, replay: Replay) -> list[Round]:
    """Return the first rounds, as many as `audit.window` fixes in advance, in which any device answered."""
    last = min(audited.config.audit.window, audited.round)
    rounds = [replay.round(number) for number in range(1, last + 1)]
    rounds = [round for round in rounds if len(round.cohort)]
    if not rounds:
        raise WrongInput(f"no device answered in the rounds 1 to {last}; raise audit.window")
    return rounds


def games_of(audited: Audited) -> dict[str, Versus]:
    """Return the games that the coins allow, each with its non-members."""
    coins = audited.config.audit.coins
    other: dict[str, Versus] = {OTHERS: lambda game, device: game.member & ~_of(game, device)}
    if coins == "record":
        return {SAME: lambda game, device: ~game.member & _of(game, device)} | other
    if coins == "none":
        return {play(audited).name: lambda game, device: game.owner < 0} | other
    return other


def asked_about(audited: Audited, rounds: Sequence[Round], rng: np.random.Generator) -> Game:
    """Return the game restricted to the devices of these rounds, and to `audit.records` on each."""
    game, most = play(audited), audited.config.audit.records
    seen = np.unique(np.concatenate([_places(audited, round) for round in rounds]))
    chosen = np.isin(game.owner, seen) | (game.owner < 0)
    if most:
        order = rng.permutation(len(chosen))
        rank = np.empty(len(order), dtype=np.int64)
        for owner in np.unique(game.owner):
            mine = order[game.owner[order] == owner]
            rank[mine] = np.arange(len(mine))
        chosen &= rank < np.where(game.owner < 0, most * len(seen), most)
    return only(game, chosen)


def only(game: Game, which: Bools) -> Game:
    """Return the game about some of its records; its unit is the record."""
    index = np.flatnonzero(which)
    return Game(
        game.name,
        "example",
        game.records[torch.from_numpy(index)],
        game.rows[index],
        game.owner[index],
        game.member[index],
    )


def gradient_norms(audited: Audited, params: Params, examples: Examples) -> Floats:
    """Return the norm of each record's gradient [N], in float64 and without dropout."""
    module, task = audited.module, audited.task
    place = next(module.parameters()).device
    start = {name: p.double().to(place) for name, p in params.items()}
    names = sorted(examples.fields)

    def losses(outputs: Params, *targets: Tensor) -> Tensor:
        return task.losses(outputs, dict(zip(names, targets, strict=True)))

    found = []
    module.eval()
    for first in range(0, len(examples), BATCH):
        fields = trim(examples[first : first + BATCH].to(place).fields)
        fields = {n: t.double() if t.is_floating_point() else t for n, t in fields.items()}
        inputs, targets = [fields[n] for n in task.inputs], [fields[n] for n in names]
        found.append(clipped_gradients(module, losses, inputs, targets, Clip(1.0), start).norms.cpu())
    module.train()
    norms: Floats = torch.cat(found).numpy()
    return norms


def _scored(audited: Audited, replay: Replay, round: Round, game: Game, leaks: Leaks) -> Scored:
    devices: list[str] = []

    def changes() -> Iterator[Params]:
        for device, change in replay.updates(round):
            devices.append(device)
            leaks.see(round, device, change)
            yield change

    seen = _observed(audited, round, game, changes())
    attacks = {
        name: attack(seen)
        for name, attack in UPDATE_ATTACKS.items()
        if len(devices) >= FEWEST_DEVICES or not name.startswith("fedmia")
    }
    places = np.searchsorted(audited.holdings.dataset.devices, np.array(devices, dtype=np.str_))
    return Scored(round.round, places, _could_train(audited, round, game), attacks)


def _scored_sum(audited: Audited, round: Round, game: Game) -> Scored:
    """Return the scores by the one sum of a round, of the records of its devices."""
    step = {name: p - round.before[name] for name, p in round.after.items()}
    seen = _observed(audited, round, game, [step])
    there = np.isin(game.owner, _places(audited, round)) | (game.owner < 0)
    attacks = {name: attack(seen) for name, attack in SUM_ATTACKS.items()}
    return Scored(
        round.round, np.zeros(1, dtype=np.int64), there & _could_train(audited, round, game), attacks
    )


def _observed(
    audited: Audited, round: Round, game: Game, changes: Iterator[Params] | Sequence[Params]
) -> Observed:
    losses = record_losses(audited.module, audited.task, game.records)
    norms = gradient_norms(audited, round.before, game.records)
    return observe(losses, norms, round.before, changes)


def _could_train(audited: Audited, round: Round, game: Game) -> Bools:
    """Return which records their devices hold in the round's period, or would without the coins."""
    arrivals = audited.holdings.arrivals
    if arrivals is None:
        return np.ones(len(game.rows), dtype=bool)
    held: Bools = arrivals.held(round.period)[game.rows] | (game.rows < 0)
    return held


def _game_rows(
    audited: Audited, game: Game, found: Sequence[Scored], versus: Versus, rng: np.random.Generator
) -> Iterator[Row]:
    """Yield a row an attack over the window, and its area round by round."""
    head = threat(audited, game, 0, "updates")
    unseen = _blind_to_updates(game, found, rng) if game.name == OTHERS else blind(audited, game, rng)
    for attack in UPDATE_ATTACKS:
        trials = _trials(found, attack, game, versus)
        if trials:
            row = {"kind": "membership", "attack": attack} | head | over_devices(trials, rng)
            yield row | unseen
            yield from _by_round(found, attack, game, versus, head, rng)


def _by_round(
    found: Sequence[Scored], attack: str, game: Game, versus: Versus, head: Row, rng: np.random.Generator
) -> Iterator[Row]:
    for one in found:
        trials = _trials([one], attack, game, versus)
        if trials and _pooled(trials).judged:
            row = {"kind": "slice", "of": "membership", "attack": attack} | head
            inner = over_devices(trials, rng)
            names = ("records", "targets", "auc", "auc_low", "auc_high", "interval")
            yield row | {"slice": "round", "value": one.round} | {name: inner[name] for name in names}


def over_devices(trials: Sequence[Trial], rng: np.random.Generator) -> Row:
    """Return the figures of all devices' records together; AUC and its interval are over devices.

    Only devices with two members and two others are targets. Below five of them the area is that of all
    records together. Raises WrongInput where there is nothing to compare.
    """
    together = _pooled(trials)
    if not together.judged:
        raise WrongInput(
            "attacks on updates want two members and two others at least on the devices that answered; raise "
            "audit.window or audit.records, or devices with more records"
        )
    row, judged = figures([together], rng), [trial for trial in trials if trial.judged]
    row |= {"auc_pooled": row["auc"], "targets": len(judged)}
    return row | area(judged, rng) if len(judged) >= FEWEST_TARGETS else row


def _trials(found: Sequence[Scored], attack: str, game: Game, versus: Versus) -> list[Trial]:
    """Return a trial for each device: the mean of a record's scores over the rounds in which it took part."""
    total: dict[int, tuple[Floats, Floats]] = {}
    for one in found:
        for device, scores in zip(one.devices.tolist(), one.scores.get(attack, ()), strict=False):
            before = total.get(device, (np.zeros(len(scores)), np.zeros(len(scores))))
            total[device] = before[0] + np.where(one.asked, scores, 0.0), before[1] + one.asked
    trials = []
    for device, (scores, rounds) in sorted(total.items()):
        inside = _inside(game, device, versus)
        which = (inside | versus(game, device)) & (rounds > 0)
        trials.append(Trial(scores[which] / rounds[which], inside[which]))
    return trials


def _inside(game: Game, device: int, versus: Versus) -> Bools:
    return game.member if versus is _outside else game.member & _of(game, device)


def _outside(game: Game, device: int) -> Bools:
    """Return the non-members of a sum: nobody's in particular."""
    return ~game.member


def _of(game: Game, device: int) -> Bools:
    found: Bools = game.owner == device
    return found


def _pooled(trials: Sequence[Trial]) -> Trial:
    return Trial(np.concatenate([t.scores for t in trials]), np.concatenate([t.member for t in trials]))


def _places(audited: Audited, round: Round) -> NDArray[np.int64]:
    found: NDArray[np.int64] = np.searchsorted(audited.holdings.dataset.devices, round.cohort.devices)
    return found


def _blind_to_updates(game: Game, found: Sequence[Scored], rng: np.random.Generator) -> Row:
    """Return how well a device's records are told from others' by its label histogram alone."""
    devices = np.unique(np.concatenate([one.devices for one in found]))
    tossed, trials = bool((~game.member & (game.owner >= 0)).any()), []
    for device in devices.tolist():
        inside = game.member & _of(game, device)
        which = inside | (game.member & ~_of(game, device))
        known = _of(game, device) & (~game.member if tossed else game.member)
        scores = histogram_scores(items_of(game.records), known)
        trials.append(Trial(scores[which], inside[which]))
    row = over_devices(trials, rng)
    return {"blind_auc": row["auc"]}


def items_of(records: Examples) -> Floats:
    """Return what a record is about, as counts [N, items]: its label, else its tokens in 256 buckets."""
    fields = records.fields
    if "label" in fields:
        labels = fields["label"]
        return torch.nn.functional.one_hot(labels).double().numpy()
    tokens = fields["tokens"] % 256
    return torch.zeros(len(tokens), 256).scatter_add_(1, tokens, torch.ones(tokens.shape)).double().numpy()


def _active_rows(
    audited: Audited, replay: Replay, rounds: Sequence[Round], game: Game, rng: np.random.Generator
) -> list[Row]:
    """Return the row of a server that sends a device a model made worse on the records it asks about.

    Gradient ascent, as long as the device's own update is; members are what the device then mends most
    (Nasr et al., 2019). The device trains as ever on the round's names of randomness.
    """
    round = rounds[-1]
    asked = _could_train(audited, round, game)
    trials: list[Trial] = []
    for place in rng.permutation(_places(audited, round)).tolist():
        mine = only(game, asked & _of(game, place))
        enough = min(int(mine.member.sum()), int((~mine.member).sum())) >= 2
        if enough and len(trials) < ACTIVE_DEVICES:
            device = str(audited.holdings.dataset.devices[place])
            scores = _mended(audited, replay, round, device, mine.records)
            trials += [Trial(scores, mine.member)] if scores is not None else []
    if not trials:
        return []
    row = {"kind": "membership", "attack": "active_ascent", "active": True}
    row |= threat(audited, replace(game, name=SAME), 0, "updates") | over_devices(trials, rng)
    told = "each device's update of a round in which the server sends it a model of its making"
    return [row | blind(audited, game, rng) | {"window": 1, "visible": told}]


def _mended(audited: Audited, replay: Replay, round: Round, device: str, records: Examples) -> Floats | None:
    """Return by how much a device's training lowers the losses of records that ascent has raised, [N]."""
    plain = replay.update(round, device)
    if plain is None:
        return None
    up = _ascent(audited, round.before, records)
    length = norm_of(up)
    step = norm_of(plain) / length if length else 0.0
    start = {name: p.float() for name, p in moved(round.before, up, step).items()}
    change = replay.update(round, device, start)
    if change is None:
        return None
    losses = record_losses(audited.module, audited.task, records)
    return losses({n: p.double() for n, p in start.items()}) - losses(moved(start, change, 1.0))


def _ascent(audited: Audited, params: Params, records: Examples) -> Params:
    """Return the gradient of the records' summed losses."""
    module, task = audited.module, audited.task
    place = next(module.parameters()).device
    leaves = {name: p.detach().clone().to(place).requires_grad_() for name, p in params.items()}
    fields = records.to(place).fields
    module.eval()
    outputs = functional_call(module, leaves, tuple(fields[name] for name in task.inputs))
    task.losses(outputs, fields).sum().backward()
    module.train()
    return {n: torch.zeros_like(p) if p.grad is None else p.grad.cpu() for n, p in leaves.items()}
