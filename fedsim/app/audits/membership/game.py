"""The game of a membership attack: the records it asks about, and which of them are members."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fedsim.app.audits.audited import Audited
from fedsim.audit.predict import by_group
from fedsim.audit.scores import Bools, Predictions
from fedsim.data.holdings import Holdings
from fedsim.data.pool import Pool, pooled, repeated
from fedsim.data.stream import period_of_round
from fedsim.errors import WrongInput
from fedsim.seeds import generator
from fedsim.types import Examples, concatenate, same_width


@dataclass(frozen=True)
class Game:
    """The records that an attack is asked about, and which of them were in training."""

    name: str
    unit: str
    records: Examples
    """Natural records [N]; each occurs once."""
    rows: NDArray[np.int64]
    """[N]: their places in the pool; -1 for records of the test split."""
    owner: NDArray[np.int64]
    """[N]: the place of each record's device, -1 for none."""
    member: Bools
    """[N]: whether each record was in training."""


def membership_game(audited: Audited) -> Game:
    """Return the game that the run's coins allow.

    Without coins, the non-members are fresh records of the test split.
    """
    config = audited.config
    holdings = audited.holdings
    pool = pooled(holdings.dataset)
    if config.audit.coins == "none":
        return _fresh(audited, pool, natural(audited, pool))
    rows = np.flatnonzero(natural(audited, pool) & ~holdings.held_out_flags)
    member = holdings.coins[rows]
    unit = "example" if config.audit.coins == "record" else "device"
    of = {"record": "records", "device": "devices"}[config.audit.coins]
    return Game(
        f"fair coins over {of}", unit, pool.records[_index(rows)], rows, pool.owner[rows], member
    )


def natural(audited: Audited, pool: Pool) -> Bools:
    """Return which records a game may ask about.

    It leaves out canaries, records that occur twice and records that have not arrived yet.
    """
    config = audited.config
    now = period_of_round(config.stream, config.train.rounds, max(1, audited.round))
    return (
        (pool.canary == -1)
        & ~repeated(pool.records)
        & alive(audited.holdings, len(pool.records), now)
    )


def alive(holdings: Holdings, records: int, now: int) -> Bools:
    """Return which records devices can have held by the period `now`.

    A record that was deleted in the period of its arrival was never held.
    """
    arrivals = holdings.arrivals
    if arrivals is None:
        return np.ones(records, dtype=bool)
    found: Bools = (arrivals.deleted > arrivals.period) & (arrivals.period <= now)
    return found


def _fresh(audited: Audited, pool: Pool, chosen: Bools) -> Game:
    """Return the game of training records against as many test records of each label.

    Raises WrongInput if there is no test split.
    """
    test = pool.test
    if test is None:
        raise WrongInput(
            "a run without audit.coins is attacked with fresh records of a test split, and there "
            'is none; set audit.coins = "record" before training, or data.test_share'
        )
    inside = np.flatnonzero(chosen & ~audited.holdings.held_out_flags)
    outside = np.flatnonzero(~repeated(test) & ~_known(pool.records, test))
    rng = generator(audited.config.seed, "audit", "fresh")
    if "label" in test.fields:
        inside, outside = matched(
            _labels(pool.records, inside), _labels(test, outside), inside, outside, rng
        )
    records = concatenate([pool.records[_index(inside)], test[_index(outside)]])
    member = np.arange(len(inside) + len(outside)) < len(inside)
    rows = np.concatenate([inside, np.full(len(outside), -1)])
    owner = np.concatenate([pool.owner[inside], np.full(len(outside), -1)])
    return Game(
        "fresh records of the test split, labels matched", "example", records, rows, owner, member
    )


def matched(
    labels_in: NDArray[np.int64],
    labels_out: NDArray[np.int64],
    inside: NDArray[np.int64],
    outside: NDArray[np.int64],
    rng: np.random.Generator,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return equally many rows of both sides for each label, drawn at random.

    Raises WrongInput if the sides share no label.
    """
    kept_in = []
    kept_out = []
    for label in np.intersect1d(labels_in, labels_out):
        one = inside[labels_in == label]
        other = outside[labels_out == label]
        count = min(len(one), len(other))
        kept_in.append(rng.permutation(one)[:count])
        kept_out.append(rng.permutation(other)[:count])
    if not kept_in:
        raise WrongInput(
            "no label stands in both training and test records, so that nothing can be matched"
        )
    return np.sort(np.concatenate(kept_in)), np.sort(np.concatenate(kept_out))


def of_unit(found: Predictions, game: Game) -> Predictions:
    """Return predictions for the game's units: for records, or means over a device's records."""
    return found if game.unit == "example" else by_group(found, game.owner, np.unique(game.owner))


def in_units(flags: Bools, game: Game) -> Bools:
    """Return flags of records as flags of the game's units."""
    return flags if game.unit == "example" else flags[np.unique(game.owner, return_index=True)[1]]


def _labels(examples: Examples, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    found: NDArray[np.int64] = examples.fields["label"].numpy()[rows]
    return found


def _index(rows: NDArray[np.int64]) -> torch.Tensor:
    return torch.from_numpy(rows)


def _known(records: Examples, test: Examples) -> Bools:
    """Return which test records also occur in training."""
    one, other = same_width([records, test])
    both = Examples(
        {name: torch.cat([one.fields[name], other.fields[name]]) for name in one.fields}
    )
    return repeated(both)[len(records) :]


def only(game: Game, which: Bools) -> Game:
    """Return the game with only the records of `which` [N]; its unit is the example."""
    index = np.flatnonzero(which)
    return Game(
        game.name,
        "example",
        game.records[torch.from_numpy(index)],
        game.rows[index],
        game.owner[index],
        game.member[index],
    )
