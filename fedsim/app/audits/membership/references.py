"""The models that a membership attack uses: the run's own, and references on other coins."""

from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch

from fedsim.app.audits.audited import Audited
from fedsim.app.audits.membership.game import Game, in_units, of_unit
from fedsim.app.audits.membership.shadows import train_shadows
from fedsim.audit.centralised_proxy import CentralisedProxy
from fedsim.audit.predict import predict
from fedsim.audit.scores import Bools, Predictions, Target, side_by_side
from fedsim.audit.shadow_scores import score_shadows
from fedsim.config import Config
from fedsim.data.coins import Coins
from fedsim.data.pool import pooled
from fedsim.errors import WrongInput
from fedsim.models import build_model
from fedsim.models.tasks import Classification

NOBODY = np.zeros(0, dtype=np.int64)


def targets_of(audited: Audited, game: Game) -> list[Target]:
    """Return the targets: the run first and, with references, each of its shadows.

    The run and its shadows have one distribution. Each target has `audit.references` references,
    and one pair more is trained: a shadow is judged neither by itself nor by the other half of its
    pair. References exist only for the last round, because shadows keep only their last model.
    """
    own = of_unit(predict(audited.module, audited.task, audited.params, game.records), game)
    member = in_units(game.member, game)
    count = audited.config.audit.references if audited.ended else 0
    if count == 0 or (game.rows < 0).any():
        return [
            Target(member, own, np.zeros((0, len(member)), dtype=bool), side_by_side([own])[NOBODY])
        ]
    keep, found = references(audited, game, count + 2)
    first = Target(member, own, keep[:count], found[np.arange(count)])
    return [first, *(_as_target(keep, found, shadow) for shadow in range(count + 2))]


def _as_target(keep: Bools, found: Predictions, shadow: int) -> Target:
    others = np.setdiff1d(np.arange(len(keep)), [shadow, shadow ^ 1])
    return Target(keep[shadow], found[shadow], keep[others], found[others])


def references(audited: Audited, game: Game, count: int) -> tuple[Bools, Predictions]:
    """Return which reference trained on which unit [R, N], and the references' predictions."""
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
    for run in train_shadows(audited.config, audited.run, count, audited.another):
        checkpoint = run.last_checkpoint()
        assert checkpoint is not None, "a finished run has a checkpoint"
        yield checkpoint.params


def centralised(audited: Audited, game: Game, count: int) -> tuple[Bools, Predictions]:
    """Return the references of a weaker attacker, who trains plain models on pooled records.

    Raises WrongInput for a task other than classification.
    """
    if not isinstance(audited.task, Classification):
        raise WrongInput(
            f'audit.shadows = "centralised" serves one label an example, not data.task = '
            f'{audited.config.data.task!r}; set audit.shadows = "federated"'
        )
    config = audited.config
    spec = audited.holdings.dataset.spec
    field = audited.task.inputs[0]
    proxy = CentralisedProxy(
        lambda seed: build_model(spec, config.model, seed),
        game.records.fields[field],
        game.records.fields["label"],
        steps=max(
            1,
            config.train.centralised_epochs
            * len(game.member)
            // (2 * config.train.centralised_batch),
        ),
        batch=config.train.centralised_batch,
        lr=config.train.centralised_lr,
        seed=config.audit.seed or config.seed,
        logits=lambda outputs: outputs["label"],
    )
    coins = [
        Coins(_coins(config), proxy.seed, number).toss(
            game.owner, len(audited.holdings.dataset.devices)
        )
        for number in range(1, count + 1)
    ]
    scores = score_shadows(np.stack(coins), proxy.labels, proxy)
    return scores.keep, scores.predictions


def _coins(config: Config) -> Literal["record", "device"]:
    assert config.audit.coins != "none", "a game without coins has no references"
    return config.audit.coins
