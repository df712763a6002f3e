"""The attack of an active server: it sends a device a model made worse on one record."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch.func import functional_call

from fedsim.app.audits.audited import Audited
from fedsim.app.audits.membership.by_device import (
    SAME,
    could_train,
    held_by,
    over_devices,
    places_of,
)
from fedsim.app.audits.membership.game import Game, only
from fedsim.app.audits.membership.threat import blind, threat
from fedsim.app.audits.replay import Replay, Round
from fedsim.audit.findings import Membership
from fedsim.audit.result import Trial
from fedsim.audit.scores import Floats
from fedsim.audit.update_scores import moved_along, norm_of, record_losses
from fedsim.types import Examples, Params

ACTIVE_DEVICES = 8
"""Number of devices that the active server tries."""
ACTIVE_RECORDS = 16
"""Number of records that it tries on each device; the device trains once more for each."""


ASCENT = 3.0
"""Length of the ascent step, as a multiple of the norm of the device's own update.

Values from 0.03 to 30 were tried, and 3 was close to the best.
"""


def active_rows(
    audited: Audited, replay: Replay, rounds: Sequence[Round], game: Game, rng: np.random.Generator
) -> list[Membership]:
    """Return the findings of a server that sends devices a model made worse on one record.

    A record whose loss the device then lowers most is taken for a member (gradient ascent; Nasr et
    al., 2019). The server tries one record at a time, because training repairs a model made worse
    on many records equally for all of them. The list is empty if no device has enough records.
    """
    round = rounds[-1]
    asked = could_train(audited, round, game)
    trials: list[Trial] = []
    for place in rng.permutation(places_of(audited, round)).tolist():
        drawn = rng.permutation(np.flatnonzero(asked & held_by(game, place)))[:ACTIVE_RECORDS]
        mine = only(game, np.isin(np.arange(len(asked)), drawn))
        enough = min(int(mine.member.sum()), int((~mine.member).sum())) >= 2
        if enough and len(trials) < ACTIVE_DEVICES:
            device = str(audited.holdings.dataset.devices[place])
            scores = _mended(audited, replay, round, device, mine.records)
            trials += [Trial(scores, mine.member)] if scores is not None else []
    if not trials:
        return []
    return [
        Membership(
            "active_ascent",
            threat(audited, replace(game, name=SAME), 0, "updates"),
            over_devices(trials, rng),
            blind_auc=blind(audited, game, rng),
            active=True,
            window=1,
            visible="each device's update of a round in which the server sends it a model of its "
            "making",
        )
    ]


def _mended(
    audited: Audited, replay: Replay, round: Round, device: str, records: Examples
) -> Floats | None:
    """Return by how much training lowers each record's loss after ascent on it alone, [N].

    None if the node leaves the device out.
    """
    plain = replay.update(round, device)
    if plain is None:
        return None
    found = []
    for row in range(len(records)):
        one = records[row : row + 1]
        start = _raised(audited, round.before, one, ASCENT * norm_of(plain))
        change = replay.update(round, device, start)
        if change is None:
            return None
        losses = record_losses(audited.module, audited.task, one)
        found.append(
            losses(moved_along(start, change, 0.0)) - losses(moved_along(start, change, 1.0))
        )
    return np.concatenate(found)


def _raised(audited: Audited, params: Params, records: Examples, distance: float) -> Params:
    """Return the model moved by `distance` up the gradient of the records' losses, float32."""
    up = _ascent(audited, params, records)
    length = norm_of(up)
    return {
        n: p.float()
        for n, p in moved_along(params, up, distance / length if length else 0.0).items()
    }


def _ascent(audited: Audited, params: Params, records: Examples) -> Params:
    """Return the gradient of the records' summed losses."""
    module = audited.module
    task = audited.task
    place = next(module.parameters()).device
    leaves = {name: p.detach().clone().to(place).requires_grad_() for name, p in params.items()}
    fields = records.to(place).fields
    module.eval()
    outputs = functional_call(module, leaves, tuple(fields[name] for name in task.inputs))
    task.losses(outputs, fields).sum().backward()
    module.train()
    return {n: torch.zeros_like(p) if p.grad is None else p.grad.cpu() for n, p in leaves.items()}
