"""Canaries as an attacker sees them during training, by single updates or by sums only."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedsim.app.audits.audited import Audited
from fedsim.app.audits.canaries.canary_search import (
    CanarySearch,
    canary_threat,
    exposure_figures,
    exposures,
)
from fedsim.app.audits.replay import REPLAYED, Replay, Round, visible
from fedsim.app.experiment.planting import cells, plan_of
from fedsim.audit.findings import Canary
from fedsim.audit.scores import Floats
from fedsim.data.pool import pooled
from fedsim.names import listed
from fedsim.types import Params


@dataclass(frozen=True)
class Step:
    """A model before and after an update or a round that a canary took part in."""

    before: Params
    after: Params


def watched_rows(search: CanarySearch) -> list[Canary]:
    """Return the findings of the views "updates" and "sums", if the config names them.

    Both replay the first `audit.window` rounds and use those in which a holder of the canary took
    part. "updates" scores a code by its mean loss in the holders' own models: the round's model
    plus the update. "sums" scores it by the mean change of the loss from a round's model to the
    next.
    """
    config = search.audited.config
    rows: list[Canary] = []
    for view in (name for name in REPLAYED if name in listed(config.audit.view)):
        replay = Replay(search.audited)
        rounds = [
            replay.round(t) for t in range(1, 1 + min(config.audit.window, search.audited.round))
        ]
        steps = _own(search, replay, rounds) if view == "updates" else _summed(search, rounds)
        rows += _rows(search, view, steps, len(rounds))
    return rows


def _rows(
    search: CanarySearch, view: str, steps: Sequence[Sequence[Step]], window: int
) -> list[Canary]:
    seen = [number for number in range(len(steps)) if steps[number]]

    def losses(number: int, codes: NDArray[np.int64]) -> Floats:
        each = [_loss(search, view, step, number, codes) for step in steps[number]]
        return np.mean(each, axis=0)

    found = dict(zip(seen, exposures(search, losses, seen), strict=True))
    kinds = cells(search.audited.config.canary)
    rows = []
    for turn, cell in enumerate(kinds):
        mine = [found[i] for i in seen if i % len(kinds) == turn]
        if mine:
            told = (
                visible(search.audited.config)
                if view == "updates"
                else "the sum of a round's updates"
            )
            figures = exposure_figures(search, mine)
            rows.append(
                Canary(canary_threat(search, cell, view), figures, window=window, visible=told)
            )
    return rows


def _loss(
    search: CanarySearch, view: str, step: Step, number: int, codes: NDArray[np.int64]
) -> Floats:
    after = search.losses(step.after, number, codes)
    return after if view == "updates" else after - search.losses(step.before, number, codes)


def _own(search: CanarySearch, replay: Replay, rounds: Sequence[Round]) -> list[list[Step]]:
    """Return the steps of each canary: the round's model, and that model plus a holder's update."""
    held = holders(search)
    wanted = sorted(set().union(*held))
    steps: list[list[Step]] = [[] for _ in held]
    for round in rounds:
        for device in (d for d in wanted if d in set(round.cohort.devices.tolist())):
            change = replay.update(round, device)
            if change is not None:
                after = {
                    name: (p.double() + change[name]).float() for name, p in round.before.items()
                }
                for number in (i for i, mine in enumerate(held) if device in mine):
                    steps[number].append(Step(round.before, after))
    return steps


def _summed(search: CanarySearch, rounds: Sequence[Round]) -> list[list[Step]]:
    """Return each canary's steps: the models before and after rounds with one of its holders."""
    return [
        [Step(r.before, r.after) for r in rounds if mine & set(r.cohort.devices.tolist())]
        for mine in holders(search)
    ]


def holders(search: CanarySearch) -> list[set[str]]:
    """Return the devices that hold each canary."""
    audited: Audited = search.audited
    held: list[set[str]] = [set() for _ in search.canaries]
    for planting in plan_of(pooled(audited.holdings.dataset), audited.config.canary, search.seed):
        held[planting.canary].add(planting.device)
    return held
