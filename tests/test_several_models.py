"""Attacks over time and by fresh records: kept releases, forgetting, whether a device trained at
all.
"""

from pathlib import Path

import numpy as np
import pytest
from test_replay import audited_of
from test_rounds import config
from test_update_attacks import found, one

from fedsim.app.audits.membership.game import membership_game
from fedsim.app.audits.membership.several_models import _attacks, release_rows
from fedsim.app.audits.membership.user_inference import NAME, device_rows, device_trial, fresh_game
from fedsim.app.engines.local import run_local
from fedsim.app.rundir.releases import read_release
from fedsim.app.rundir.run_dir import RunDir
from fedsim.audit.findings import Membership
from fedsim.audit.predict import predict
from fedsim.audit.roc import auc
from fedsim.audit.scores import Predictions, Target

MOVING: dict[str, object] = {
    "data__task": "classification",
    "data__devices": 20,
    "data__examples": 600,
    "stream__mode": "continual",
    "stream__periods": 3,
    "stream__arrivals": "poisson",
    "stream__memory": "current",
    "stream__deletions": 0.5,
    "train__rounds": 6,
    "train__local_epochs": 20,
    "selection__cohort": 1000,
    "audit__evaluators": "membership",
    "audit__coins": "record",
    "audit__references": 0,
    "audit__view": "final,releases",
    "place__keep": "all",
}


@pytest.fixture(scope="module")
def moving(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A run that forgets: each period has its own records, half of which are deleted later."""
    return run_local(config(tmp_path_factory.mktemp("moving"), **MOVING))


def sliced(run: RunDir, name: str, attack: str, view: str) -> dict[object, float]:
    rows = found(run, kind="slice", slice=name, attack=attack, view=view)
    return {row["value"]: row["auc"] for row in rows}


def test_who_kept_the_releases_finds_what_the_last_model_forgot(moving: RunDir) -> None:
    last, own = (sliced(moving, "period", f"loss_{x}", "releases") for x in ("last", "own_period"))
    assert set(last) == set(own) == {1, 2, 3}
    assert own[1] > last[1] + 0.05
    assert own[3] == last[3]
    assert one(moving, attack="loss_own_period")["releases"] == [0, 1, 2, 3]
    assert one(moving, attack="difference")["auc_low"] > 0.5


def test_the_final_model_is_judged_on_kept_and_deleted_records_and_by_period(
    moving: RunDir,
) -> None:
    arrivals = audited_of(moving).holdings.arrivals
    assert arrivals is not None
    game = membership_game(audited_of(moving))
    gone = arrivals.deleted[game.rows] <= 3
    rows = {row["value"]: row for row in found(moving, kind="slice", slice="kept", view="final")}
    assert rows[False]["records"] == gone.sum()
    assert rows[True]["records"] == (~gone).sum()
    assert set(sliced(moving, "period", "loss", "final")) == {1, 2, 3}
    assert sliced(moving, "kept", "loss_last", "releases") == sliced(
        moving, "kept", "loss", "final"
    )
    assert found(moving, kind="slice", slice="activity_decile", attack="difference")


def test_the_difference_equals_a_direct_computation(moving: RunDir) -> None:
    audited = audited_of(moving)
    game = membership_game(audited)
    arrivals = audited.holdings.arrivals
    assert arrivals is not None
    which = arrivals.period[game.rows] == 2
    params = [read_release(moving, period) for period in (1, 2)]
    before, after = (
        predict(audited.module, audited.task, p, game.records).logp for p in params if p is not None
    )
    expected = auc((after - before)[which], game.member[which])
    assert sliced(moving, "period", "difference", "releases")[2] == pytest.approx(
        expected, abs=1e-6
    )


def test_an_audit_within_a_run_asks_only_about_what_has_arrived(moving: RunDir) -> None:
    audited = audited_of(moving)
    early = type(audited)(**{**vars(audited), "round": 2, "ended": False})
    game = membership_game(early)
    arrivals = audited.holdings.arrivals
    assert arrivals is not None
    assert set(arrivals.period[game.rows]) == {1}
    assert {each.attack for each in release_rows(early) if isinstance(each, Membership)} == {
        "loss_last",
        "loss_best",
        "loss_own_period",
        "difference",
    }


def test_records_whose_release_was_not_kept_are_left_out() -> None:
    series = {0: np.zeros(3), 3: np.ones(3)}
    found = {
        name: (scores, known) for name, scores, known in _attacks(series, np.array([1, 2, 3]), 3)
    }
    assert found["loss_own_period"][1].tolist() == [False, False, True]
    assert found["difference"][1].tolist() == [False, False, False]
    assert found["loss_best"][0].tolist() == [1.0, 1.0, 1.0]


def test_without_coins_kept_releases_still_judge_fresh_records(tmp_path: Path) -> None:
    run = run_local(config(tmp_path, **MOVING | {"audit__coins": "none", "train__local_epochs": 1}))
    assert {row["attack"] for row in found(run, kind="membership", view="releases")} == {
        "loss_last",
        "loss_best",
    }


ASKED: dict[str, object] = {
    "data__task": "classification",
    "data__devices": 40,
    "data__examples": 800,
    "data__activity": "equal",
    "evaluation__holdout": 0.4,
    "train__rounds": 6,
    "train__local_epochs": 10,
    "selection__cohort": 1000,
    "audit__evaluators": "membership",
    "audit__coins": "device",
}


@pytest.mark.slow
def test_fresh_records_of_devices_are_asked_and_a_device_is_one_unit(tmp_path: Path) -> None:
    run = run_local(config(tmp_path, **ASKED, audit__references=4, train__lr=2.0))
    row = one(run, game=NAME)
    assert row["auc_low"] > 0.5
    assert (row["attack"], row["unit"], row["view"]) == ("ratio", "device", "final")
    audited = audited_of(run)
    game = fresh_game(audited)
    assert audited.holdings.held_out_flags[game.rows].all()
    assert row["records"] == len(np.unique(game.owner))
    assert row["targets"] == 7  # the run, and its references, each judged by the others
    assert {row["slice"] for row in found(run, kind="slice", game=NAME)} <= {"activity_decile"}


def test_fresh_records_need_a_held_out_part(tmp_path: Path) -> None:
    run = run_local(config(tmp_path, **ASKED | {"evaluation__holdout": 0.0}, audit__references=0))
    assert device_rows(audited_of(run)) == []


def test_a_devices_score_is_the_mean_of_the_ratio_over_its_records(tmp_path: Path) -> None:
    run = run_local(config(tmp_path, **ASKED, audit__references=0))
    game = fresh_game(audited_of(run))
    rng = np.random.default_rng(1)
    records = len(game.rows)
    own = -rng.exponential(size=records)
    others = -rng.exponential(size=(4, records))

    def said(logp: np.ndarray) -> Predictions:  # type: ignore[type-arg]
        return Predictions(logp, logp, logp, logp > -1)

    target = Target(game.member, said(own), others > -1, said(others))
    ratio = own - np.log(np.exp(others).mean(0))
    trial = device_trial(target, game, "ratio")
    devices = np.unique(game.owner)
    np.testing.assert_allclose(
        trial.scores, [ratio[game.owner == d].mean() for d in devices], atol=1e-6
    )
    assert trial.member.tolist() == [bool(game.member[game.owner == d].all()) for d in devices]
