"""Membership attacks on several models of a run: one for each round, or one for each period."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from fedsim.app.audits.audited import Audited
from fedsim.app.audits.membership.game import Game, in_units, membership_game, of_unit, only
from fedsim.app.audits.membership.subgroups import slices_of
from fedsim.app.audits.membership.threat import blind, threat
from fedsim.app.audits.replay import check_kept
from fedsim.app.rundir.releases import read_release
from fedsim.audit.findings import Finding, Membership, MembershipSlice
from fedsim.audit.predict import predict
from fedsim.audit.result import Trial, area, attack_figures
from fedsim.audit.scores import Floats
from fedsim.config import Config
from fedsim.data.stream import period_of_round
from fedsim.errors import WrongInput
from fedsim.models import build_model, parameters_of
from fedsim.seeds import generator
from fedsim.types import Params

SLICES = ("period", "kept", "activity_decile")


def check_rounds(config: Config) -> None:
    """Refuse runs that keep only their last model. Raises WrongInput."""
    check_kept(config, "rounds")


def check_releases(config: Config) -> None:
    """Refuse runs of one period, because they have one release. Raises WrongInput."""
    if config.stream.mode != "continual":
        raise WrongInput(
            'audit.view names "releases", the last model of each period; set stream.mode = '
            '"continual", or audit.view = "rounds"'
        )


def round_rows(audited: Audited) -> list[Finding]:
    """Return the attack by the mean log-likelihood over rounds, and a slice for each round."""
    game = membership_game(audited)
    rng = generator(audited.config.seed, "audit", "rounds", audited.round)
    member = in_units(game.member, game)
    rounds = [round for round in audited.run.kept_rounds() if round <= audited.round]
    series = [_logp(audited, _kept(audited, round), game) for round in rounds]
    attack = "loss_series"
    seen = threat(audited, game, 0, "rounds")
    figures = attack_figures([Trial(np.mean(series, 0), member)], rng)
    slices = [
        MembershipSlice(
            "round", round, attack, seen, area([Trial(one, member)], rng), records=len(member)
        )
        for round, one in zip(rounds, series, strict=True)
    ]
    unseen = blind(audited, game, rng)
    return [Membership(attack, seen, figures, blind_auc=unseen, models=len(rounds)), *slices]


def release_rows(audited: Audited) -> list[Finding]:
    """Return attacks with and without the releases of earlier periods, and their slices.

    The slices are by period, deletion and activity.
    """
    rng = generator(audited.config.seed, "audit", "releases", audited.round)
    now = period_of_round(audited.config.stream, audited.config.train.rounds, audited.round)
    game = membership_game(audited)
    arrivals = audited.holdings.arrivals
    assert arrivals is not None, "check_releases wants a stream for releases"
    # fresh records and whole devices have no period of their own
    arrived = arrivals.period[game.rows] if audited.config.audit.coins == "record" else None
    models = _models(audited, now)
    series = {period: _logp(audited, params, game) for period, params in models.items()}
    unseen = blind(audited, game, rng)
    found: list[Finding] = []
    for attack, scores, known in _attacks(series, arrived, now):
        part = game if known.all() else only(game, known)
        trial = Trial(scores[known], in_units(part.member, part))
        if not trial.judged:
            continue
        whole = Membership(
            attack,
            threat(audited, part, 0, "releases"),
            attack_figures([trial], rng),
            blind_auc=unseen,
            releases=tuple(sorted(series)),
        )
        slices = slices_of(audited, part, whole, [trial], rng)
        found += [whole, *(each for each in slices if each.slice in SLICES)]
    return found


def _attacks(
    series: dict[int, Floats], arrived: NDArray[np.int64] | None, now: int
) -> Iterator[tuple[str, Floats, NDArray[np.bool_]]]:
    """Yield (attack, scores [N], which records have a score [N]).

    series: log-likelihoods [N] by period; 0 stands for the first parameters, `now` for the current
    model. arrived: [N] the period of each record's arrival; None if the units have no arrival.
    """
    everyone = np.ones(len(series[now]), dtype=bool)
    yield "loss_last", series[now], everyone
    later = {p: values for p, values in series.items() if p > 0}
    if arrived is None:
        yield "loss_best", np.max(list(later.values()), 0), everyone
        return
    since = [np.where(arrived <= p, values, -np.inf) for p, values in later.items()]
    yield "loss_best", np.max(since, 0), everyone
    own = np.full(len(arrived), np.nan)
    before = np.full(len(arrived), np.nan)
    for period, values in series.items():
        own[arrived == period] = values[arrived == period]
        before[arrived == period + 1] = values[arrived == period + 1]
    yield "loss_own_period", own, ~np.isnan(own)
    yield "difference", own - before, ~np.isnan(own - before)


def _models(audited: Audited, now: int) -> dict[int, Params]:
    """Return models by period: first parameters as 0, kept releases, the current one as `now`."""
    spec = audited.holdings.dataset.spec
    config = audited.config
    models: dict[int, Params] = {0: parameters_of(build_model(spec, config.model, config.seed))}
    for period in range(1, now):
        found = read_release(audited.run, period)
        if found is not None:
            models[period] = found
    return models | {now: audited.params}


def _kept(audited: Audited, round: int) -> Params:
    found = audited.run.checkpoint(round)
    if found is None:
        raise WrongInput(f"the checkpoint of round {round} has gone meanwhile; audit the run alone")
    return found.params


def _logp(audited: Audited, params: Params, game: Game) -> Floats:
    return of_unit(predict(audited.module, audited.task, params, game.records), game).logp
