"""Membership attacks on a run's model: the game, the references, the ladder, the rows."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from fedsim.app.audits import Audited, check_names
from fedsim.app.rundir import Row
from fedsim.app.shadows import train_shadows
from fedsim.audit.blind import blind_auc
from fedsim.audit.centralised import CentralisedProxy
from fedsim.audit.membership import ATTACKS, choose
from fedsim.audit.predict import by_group, predict
from fedsim.audit.quantile import QUANTILE, quantile_regression
from fedsim.audit.region import excess, largest_auc
from fedsim.audit.result import Trial, figures, sliced
from fedsim.audit.scores import Bools, Floats, Predictions, Target, side_by_side
from fedsim.audit.shadows import score_shadows
from fedsim.audit.statistics import auc
from fedsim.config import Config
from fedsim.data.activity import public_activity
from fedsim.data.coins import Coins
from fedsim.data.holdings import Holdings
from fedsim.data.pool import Pool, pooled, repeated
from fedsim.data.stream import period_of_round
from fedsim.errors import WrongInput
from fedsim.models import build_model
from fedsim.models.tasks import Classification
from fedsim.privacy.accounting import power
from fedsim.seeds import generator
from fedsim.types import PAD, Examples, concatenate, same_width

QUANTILE_FPR = 0.05
MANY_LABELS = 100
"""The blind baseline knows the labels one by one up to here."""


@dataclass(frozen=True)
class Game:
    """Who is asked about, and who of them was in training."""

    name: str
    unit: str
    records: Examples
    """Natural records [N] that occur once."""
    rows: NDArray[np.int64]
    """[N]: their places in the pool; -1 for records of the test split."""
    owner: NDArray[np.int64]
    """[N]: the place of each record's device, -1 for none."""
    member: Bools
    """[N]"""


def final_rows(audited: Audited) -> list[Row]:
    """Return a row for each attack on the current model, and slices of the strongest one."""
    game = play(audited)
    targets = targets_of(audited, game)
    names = attacks_of(audited.config, targets[0].references)
    fits = fits_dp(audited.config, game)
    rng = generator(audited.config.seed, "audit", "membership", audited.round)
    rows = []
    for name in names:
        trials = trials_of(name, audited, game, targets)
        rows.append(
            {"kind": "membership", "attack": name}
            | threat(audited, game, targets[0].references)
            | figures(trials, rng)
            | {"auc_run": _area(trials[0])}
            | (region(audited, trials[0], rng) if fits else {})
        )
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


def play(audited: Audited) -> Game:
    """Return the game that the run's coins allow; without coins, fresh records from the test split."""
    config, holdings = audited.config, audited.holdings
    pool = pooled(holdings.dataset)
    if config.audit.coins == "none":
        return _fresh(audited, pool, natural(audited, pool))
    rows = np.flatnonzero(natural(audited, pool) & ~holdings.held_out_flags)
    member = holdings.coins[rows]
    unit = "example" if config.audit.coins == "record" else "device"
    of = {"record": "records", "device": "devices"}[config.audit.coins]
    return Game(f"fair coins over {of}", unit, pool.records[_index(rows)], rows, pool.owner[rows], member)


def natural(audited: Audited, pool: Pool) -> Bools:
    """Return which records a game may ask about: no canary, none that occurs twice or never lived."""
    return (pool.canary == -1) & ~repeated(pool.records) & alive(audited.holdings, len(pool.records))


def alive(holdings: Holdings, records: int) -> Bools:
    """Return which records devices can ever hold: not those deleted in the period of their arrival."""
    if holdings.arrivals is None:
        return np.ones(records, dtype=bool)
    found: Bools = holdings.arrivals.deleted > holdings.arrivals.period
    return found


def _fresh(audited: Audited, pool: Pool, chosen: Bools) -> Game:
    """Training records against as many test records of each label; no coins were tossed."""
    test = pool.test
    if test is None:
        raise WrongInput(
            "a run without audit.coins is attacked with fresh records of a test split, and there is none; "
            'set audit.coins = "record" before training, or data.test_share'
        )
    inside = np.flatnonzero(chosen & ~audited.holdings.held_out_flags)
    outside = np.flatnonzero(~repeated(test) & ~_known(pool.records, test))
    rng = generator(audited.config.seed, "audit", "fresh")
    if "label" in test.fields:
        inside, outside = matched(_labels(pool.records, inside), _labels(test, outside), inside, outside, rng)
    records = concatenate([pool.records[_index(inside)], test[_index(outside)]])
    member = np.arange(len(inside) + len(outside)) < len(inside)
    rows = np.concatenate([inside, np.full(len(outside), -1)])
    owner = np.concatenate([pool.owner[inside], np.full(len(outside), -1)])
    return Game("fresh records of the test split, labels matched", "example", records, rows, owner, member)


def matched(
    labels_in: NDArray[np.int64],
    labels_out: NDArray[np.int64],
    inside: NDArray[np.int64],
    outside: NDArray[np.int64],
    rng: np.random.Generator,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return equally many of both sides for each label, drawn at random."""
    kept_in, kept_out = [], []
    for label in np.intersect1d(labels_in, labels_out):
        one, other = inside[labels_in == label], outside[labels_out == label]
        count = min(len(one), len(other))
        kept_in.append(rng.permutation(one)[:count])
        kept_out.append(rng.permutation(other)[:count])
    if not kept_in:
        raise WrongInput("no label stands in both training and test records, so that nothing can be matched")
    return np.sort(np.concatenate(kept_in)), np.sort(np.concatenate(kept_out))


def targets_of(audited: Audited, game: Game) -> list[Target]:
    """Return the run as a target and, with references, each of its shadows, too: all are of one law.

    A pair more is trained than each target has references, because a shadow is judged neither by itself nor
    by the other half of its pair. Shadows repeat only the last round, so before it there are no references.
    """
    own = of_unit(predict_records(audited, game), game)
    member = in_units(game.member, game)
    count = audited.config.audit.references if audited.ended else 0
    if count == 0 or (game.rows < 0).any():
        return [Target(member, own, np.zeros((0, len(member)), dtype=bool), side_by_side([own])[NOBODY])]
    keep, found = references(audited, game, count + 2)
    first = Target(member, own, keep[:count], found[np.arange(count)])
    return [first, *(_as_target(keep, found, shadow) for shadow in range(count + 2))]


NOBODY = np.zeros(0, dtype=np.int64)


def _as_target(keep: Bools, found: Predictions, shadow: int) -> Target:
    others = np.setdiff1d(np.arange(len(keep)), [shadow, shadow ^ 1])
    return Target(keep[shadow], found[shadow], keep[others], found[others])


def references(audited: Audited, game: Game, count: int) -> tuple[Bools, Predictions]:
    """Return which reference trained on which unit, [R, N], and what they predict."""
    config = audited.config
    if config.audit.shadows == "centralised":
        keep, found = centralised(audited, game, count)
    else:
        coins = _coins(config)
        pool = pooled(audited.holdings.dataset)
        tosses = [
            Coins(coins, config.audit.seed or config.seed, s).toss(pool.owner, len(pool.devices))
            for s in range(1, count + 1)
        ]
        keep = np.stack([toss[game.rows] for toss in tosses])
        found = side_by_side(
            [
                predict(audited.module, audited.task, model, game.records)
                for model in shadow_params(audited, count)
            ]
        )
    return np.stack([in_units(k, game) for k in keep]), of_unit(found, game)


def shadow_params(audited: Audited, count: int) -> Iterator[dict[str, torch.Tensor]]:
    """Yield the last model of each federated shadow."""
    for run in train_shadows(audited.config, audited.run, count):
        checkpoint = run.last_checkpoint()
        assert checkpoint is not None, "a finished run has a checkpoint"
        yield checkpoint.params


def centralised(audited: Audited, game: Game, count: int) -> tuple[Bools, Predictions]:
    """Return references of a weaker attacker, who trains plain models on pooled records."""
    if not isinstance(audited.task, Classification):
        raise WrongInput(
            f'audit.shadows = "centralised" serves one label an example, not data.task = '
            f'{audited.config.data.task!r}; set audit.shadows = "federated"'
        )
    config, spec = audited.config, audited.holdings.dataset.spec
    field = audited.task.inputs[0]
    proxy = CentralisedProxy(
        lambda seed: build_model(spec, config.model, seed),
        game.records.fields[field],
        game.records.fields["label"],
        steps=max(
            1, config.train.centralised_epochs * len(game.member) // (2 * config.train.centralised_batch)
        ),
        batch=config.train.centralised_batch,
        lr=config.train.centralised_lr,
        seed=config.audit.seed or config.seed,
        logits=lambda outputs: outputs["label"],
    )
    coins = [
        Coins(_coins(config), proxy.seed, number).toss(game.owner, len(audited.holdings.dataset.devices))
        for number in range(1, count + 1)
    ]
    scores = score_shadows(np.stack(coins), proxy.labels, proxy)
    return scores.keep, scores.predictions


def predict_records(audited: Audited, game: Game) -> Predictions:
    return predict(audited.module, audited.task, audited.params, game.records)


def of_unit(found: Predictions, game: Game) -> Predictions:
    """Return predictions of the game's units: of records, or the mean of a device's records."""
    return found if game.unit == "example" else by_group(found, game.owner, np.unique(game.owner))


def in_units(flags: Bools, game: Game) -> Bools:
    """Return flags of records as flags of the game's units."""
    return flags if game.unit == "example" else flags[np.unique(game.owner, return_index=True)[1]]


def _coins(config: Config) -> Literal["record", "device"]:
    assert config.audit.coins != "none", "a game without coins has no references"
    return config.audit.coins


def fits_dp(config: Config, game: Game) -> bool:
    """Whether the game's unit is the one that DP protects, so that its region bounds the attack."""
    return config.dp.unit == game.unit and config.audit.coins != "none"


def region(audited: Audited, trial: Trial, rng: np.random.Generator) -> Row:
    """Return what the run's whole privacy profile allows, and by how much the attack is surely over it."""
    grid = figures([trial], rng)["fpr"]
    over = excess(trial.scores, trial.member, lambda f: power(audited.events, f), rng)
    return {
        "allowed_tpr": power(audited.events, np.array(grid)).tolist(),
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
    parts = [game.owner[:, None] * np.float64(game.rows[:, None] >= 0)]
    fields = game.records.fields
    if "tokens" in fields:
        parts.append((fields["tokens"] != PAD).sum(1, keepdim=True).double().numpy())
    if "label" in fields:
        labels = fields["label"].numpy()
        known = np.unique(labels)[:MANY_LABELS]
        parts.append((labels[:, None] == known).astype(np.float64))
    return np.concatenate(parts, axis=1)


def slices_of(
    audited: Audited, game: Game, trials: Sequence[Trial], rng: np.random.Generator
) -> Iterator[dict[str, Any]]:
    """Yield the strongest attack's areas by activity, label, mislabelling, period and deletion."""
    for name, groups in _groups(audited, game):
        for row in sliced(trials, groups, rng):
            yield {"slice": name} | row


def _groups(audited: Audited, game: Game) -> Iterator[tuple[str, list[tuple[Any, Bools]]]]:
    activity = public_activity(audited.holdings.dataset.activity, audited.config.data.activity_public)
    owner = game.owner if game.unit == "example" else np.unique(game.owner)
    inside = owner >= 0
    if not inside.all():
        return
    decile = deciles(activity)[owner]
    yield "activity_decile", [(int(d), decile == d) for d in np.unique(decile)]
    if game.unit == "device":
        return
    fields, pool = game.records.fields, pooled(audited.holdings.dataset)
    if "label" in fields:
        labels, names = fields["label"].numpy(), audited.holdings.dataset.spec.labels
        yield "label", [(names[i], labels == i) for i in np.unique(labels).tolist() if i < len(names)]
    wrong = pool.mislabelled[game.rows]
    if wrong.any():
        yield "mislabelled", [(True, wrong), (False, ~wrong)]
    arrivals = audited.holdings.arrivals
    if arrivals is not None:
        period = arrivals.period[game.rows]
        now = period_of_round(audited.config.stream, audited.config.train.rounds, audited.round)
        gone = arrivals.deleted[game.rows] <= now
        yield "period", [(int(p), period == p) for p in np.unique(period)]
        yield "kept", [(True, ~gone & (period <= now)), (False, gone)]


def deciles(activity: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return each device's tenth by activity, from 1 to 10; equal devices stand in the order of their ids."""
    order = np.argsort(activity, kind="stable")
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    return 1 + 10 * place // len(order)


def _area(trial: Trial) -> float:
    return auc(trial.scores, trial.member)


def _labels(examples: Examples, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    found: NDArray[np.int64] = examples.fields["label"].numpy()[rows]
    return found


def _index(rows: NDArray[np.int64]) -> torch.Tensor:
    return torch.from_numpy(rows)


def _known(records: Examples, test: Examples) -> Bools:
    """Return which test records stand in training, too."""
    one, other = same_width([records, test])
    both = Examples({name: torch.cat([one.fields[name], other.fields[name]]) for name in one.fields})
    return repeated(both)[len(records) :]
