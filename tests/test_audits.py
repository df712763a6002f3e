"""Audits in a run: coins, random labels, shadows, rows and summary; audits of a finished run.

Seen to fail: shadows of a pair on the same half.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from factory import configured

from fedsim.app.audits.membership.shadows import shadow_config
from fedsim.app.engines.local import run_local
from fedsim.app.experiment.loading import load_holdings
from fedsim.app.rundir.audit_file import FILE
from fedsim.app.rundir.run_dir import RunDir
from fedsim.app.server.finished_audit import audit_finished
from fedsim.config import Config
from fedsim.data.canary_devices import canary_names, with_canary_devices
from fedsim.data.coins import Coins
from fedsim.data.pool import pooled, repeated
from fedsim.errors import WrongInput
from fedsim.types import Examples

TINY = {
    "name": "tiny",
    "data.devices": 20,
    "data.examples": 600,
    "data.activity": "lognormal",
    "model.embedding": 16,
    "train.rounds": 6,
    "train.lr": 3.0,
    "evaluation.every": 6,
    "selection.rule": "uniform",
    "selection.cohort": 10,
    "aggregation.lr": 0.05,
    "place.threads": 1,
}
AUDIT = {"audit.evaluators": "membership", "audit.coins": "record", "audit.references": 0}


def config(out: Path, **changes: object) -> Config:
    return configured(TINY | {"place.out": str(out)}, **changes)


def rows(run: RunDir, kind: str) -> list[dict[str, object]]:
    return [row for row in run.rows(FILE) if row["kind"] == kind]


def test_the_shadows_of_a_pair_train_on_complementary_halves_and_the_run_on_one_of_its_own() -> (
    None
):
    owner = np.repeat(np.arange(50), 20)
    tosses = [Coins("record", 3, shadow).toss(owner, 50) for shadow in range(5)]
    assert (tosses[1] ^ tosses[2]).all()
    assert (tosses[3] ^ tosses[4]).all()
    for a, b in ((0, 1), (0, 3), (1, 3)):
        assert abs((tosses[a] == tosses[b]).mean() - 0.5) < 4 * 0.5 / np.sqrt(1000)
    assert abs(tosses[0].mean() - 0.5) < 4 * 0.5 / np.sqrt(1000)


def test_coins_over_devices_keep_all_records_of_a_device_or_none() -> None:
    owner = np.repeat(np.arange(50), 20)
    kept = Coins("device", 3).toss(owner, 50).reshape(50, 20)
    assert (kept.all(1) | ~kept.any(1)).all()
    assert 10 < kept.all(1).sum() < 40


def test_devices_hold_no_record_whose_coin_is_tails(tmp_path: Path) -> None:
    settings = config(tmp_path, **{"audit.coins": "record"})
    holdings = load_holdings(settings, None)
    pool = pooled(holdings.dataset)
    for i, device in enumerate(pool.devices.tolist()):
        first = pool.start[i]
        mine = pool.activity[i]
        kept = np.flatnonzero(holdings.coins[first : first + mine]) + first
        assert torch.equal(
            holdings.train(device).fields["label"], pool.records.fields["label"][kept]
        )
    assert holdings.activity().sum() == holdings.coins.sum() == holdings.sizes.sum()
    assert 200 < holdings.coins.sum() < 400


def test_coins_do_not_depend_on_anything_but_the_audit_seed(tmp_path: Path) -> None:
    one = load_holdings(config(tmp_path, audit__coins="record", audit__seed=5, seed=1), None).coins
    other = load_holdings(
        config(tmp_path, audit__coins="record", audit__seed=5, seed=2, train__lr=1.0), None
    )
    third = load_holdings(
        config(tmp_path, audit__coins="record", audit__seed=6, seed=1), None
    ).coins
    assert (one == other.coins).all()
    assert (one != third).any()


def test_a_random_label_is_a_record_s_own_and_the_same_in_shadows(tmp_path: Path) -> None:
    plain = pooled(load_holdings(config(tmp_path, audit__coins="record"), None).dataset)
    settings = config(tmp_path, audit__coins="record", audit__mislabelled=0.2)
    changed = pooled(load_holdings(settings, None).dataset)
    other = plain.records.fields["label"] != changed.records.fields["label"]
    assert not other[torch.from_numpy(~changed.mislabelled)].any()
    assert 0.1 < changed.mislabelled.mean() < 0.3
    shadow = shadow_config(settings, 1, RunDir(tmp_path / "run"))
    again = pooled(load_holdings(shadow, None).dataset)
    assert torch.equal(again.records.fields["label"], changed.records.fields["label"])


def test_a_record_with_a_twin_is_found() -> None:
    tokens = torch.tensor([[2, 3], [2, 3], [2, 4], [2, 3]])
    records = Examples({"tokens": tokens, "label": torch.tensor([0, 0, 0, 1])})
    assert repeated(records).tolist() == [True, True, False, False]


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    out = tmp_path_factory.mktemp("attacked")
    settings = config(
        out,
        **AUDIT,
        train__rounds=20,
        evaluation__every=20,
        train__local_epochs=4,
        audit__mislabelled=0.1,
    )
    changed = settings.model_copy(
        update={"audit": settings.audit.model_copy(update={"references": 4})}
    )
    return run_local(changed)


def test_a_run_that_learns_by_heart_is_attacked_and_told_so(attacked: RunDir) -> None:
    assert attacked.summary is not None
    found = {row["attack"]: row for row in attacked.summary["attacks"]["membership"]}
    assert set(found) == {"loss", "ratio"}
    row = found["ratio"]
    assert row["auc"] > row["blind_auc"] + 0.1
    assert row["targets"] == 7
    assert row["references"] == 4
    assert row["interval"] == "t over 7 targets"
    assert row["auc_low"] <= row["auc"] <= row["auc_high"]
    assert row["game"] == "fair coins over records"
    assert row["unit"] == "example"
    assert row["view"] == "final"
    slices = {(r["slice"], r["value"]): r["auc"] for r in rows(attacked, "slice")}
    assert slices["mislabelled", True] > 0.8
    assert slices["mislabelled", True] > slices["mislabelled", False]


def test_the_shadows_are_trained_once_and_used_again(attacked: RunDir) -> None:
    before = {p: p.stat().st_mtime_ns for p in (attacked.path / "shadows").rglob("summary.json")}
    assert len(before) == 6
    audit_finished(attacked.path, {"audit.attacks": "lira_offline"}, run_local)
    assert {
        p: p.stat().st_mtime_ns for p in (attacked.path / "shadows").rglob("summary.json")
    } == before
    assert attacked.summary is not None
    names = [row["attack"] for row in attacked.summary["attacks"]["membership"]]
    assert sorted(names) == ["lira_offline", "loss", "ratio"]


def test_a_finished_run_is_audited_twice_without_doubling_rows(attacked: RunDir) -> None:
    audit_finished(attacked.path, {"audit.attacks": "loss"}, run_local)
    once = attacked.rows(FILE)
    audit_finished(attacked.path, {"audit.attacks": "loss"}, run_local)
    assert attacked.rows(FILE) == once


def test_what_was_trained_cannot_be_changed_by_an_audit(attacked: RunDir) -> None:
    with pytest.raises(WrongInput, match=r"audit\.coins was settled"):
        audit_finished(attacked.path, {"audit.coins": "device"}, run_local)
    with pytest.raises(WrongInput, match=r"train\.lr was settled"):
        audit_finished(attacked.path, {}, run_local, ["train.lr=1.0"])


def test_a_run_without_coins_is_attacked_with_fresh_records_of_the_same_labels(
    tmp_path: Path,
) -> None:
    run = run_local(config(tmp_path, audit__evaluators="membership"))
    assert run.summary is not None
    (row,) = run.summary["attacks"]["membership"]
    assert row["game"] == "fresh records of the test split, labels matched"
    assert row["members"] * 2 == row["records"]
    assert row["references"] == 0
    assert row["targets"] == 1


def test_audits_come_every_so_many_rounds_and_an_interrupted_run_has_each_once(
    tmp_path: Path,
) -> None:
    settings = config(tmp_path, **AUDIT, audit__every=2)

    class Killed(Exception):
        pass

    def stop(row: dict[str, object]) -> None:
        if row["round"] == 4:
            raise Killed

    with pytest.raises(Killed):
        run_local(settings, watch=stop)
    run = run_local(settings)
    assert [row["round"] for row in rows(run, "membership")] == [2, 4, 6]
    assert run.summary is not None
    assert len(run.summary["attacks"]["membership"]) == 1
    undisturbed = run_local(config(tmp_path / "other", **AUDIT, audit__every=2))
    assert rows(run, "membership") == rows(undisturbed, "membership")


@pytest.mark.slow
def test_under_dp_of_the_same_unit_a_row_says_what_the_profile_allows(tmp_path: Path) -> None:
    run = run_local(
        config(
            tmp_path,
            **AUDIT | {"audit.references": 2},
            dp__unit="example",
            dp__trust="local",
            dp__noise_multiplier=2.0,
        )
    )
    assert run.summary is not None
    _, row = run.summary["attacks"]["membership"]
    assert row["over_region"] == 0.0
    assert 0.5 < row["allowed_auc"] < 1.0
    _, whole = rows(run, "membership")
    assert len(whole["allowed_tpr"]) == len(whole["fpr"])  # type: ignore[arg-type]
    assert (np.array(whole["allowed_tpr"]) >= np.array(whole["fpr"]) - 1e-6).all()


@pytest.mark.slow
def test_of_unlike_units_no_region_and_no_epsilon_of_the_ledger_are_told(tmp_path: Path) -> None:
    settings = config(
        tmp_path, **AUDIT | {"audit.evaluators": "membership,bounds"}, dp__unit="device"
    )
    run = run_local(settings)
    assert run.summary is not None
    (row,) = run.summary["attacks"]["membership"]
    assert "allowed_auc" not in row
    assert "over_region" not in row
    by_method = {row["method"]: row for row in run.summary["attacks"]["audit"]}
    assert "epsilon_ledger" not in by_method["one run"]
    assert "protects the unit 'device'" in by_method["one run"]["note"]
    assert "protects the unit 'device'" in row["note"]
    assert by_method["crafted canary, two worlds"]["unit"] == "device"


def test_a_shadow_has_other_seeds_and_noise_and_no_audit_of_its_own(tmp_path: Path) -> None:
    settings = config(tmp_path, **AUDIT, dp__unit="example", dp__trust="local")
    run = RunDir.of(settings)
    shadows = [shadow_config(settings, number, run) for number in (1, 2)]
    assert len({c.seed for c in shadows} | {settings.seed}) == 3
    assert len({c.hash for c in shadows} | {settings.hash}) == 3
    assert all(c.audit.evaluators == "" and c.dp == settings.dp for c in shadows)
    later = settings.model_copy(
        update={"audit": settings.audit.model_copy(update={"attacks": "loss"})}
    )
    assert shadow_config(later, 1, run) == shadows[0]


def test_an_audit_that_cannot_be_done_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    for changes, sentence in (
        ({"audit.evaluators": "membrship"}, "did you mean 'membership'"),
        ({"audit.evaluators": "membership", "audit.references": 3}, "even number"),
        ({"audit.evaluators": "bounds"}, "needs audit.coins"),
        ({"audit.evaluators": "bounds", "audit.canary_devices": 10}, 'dp.unit = "device"'),
        ({"audit.evaluators": "membership", "audit.attacks": "lyra"}, "did you mean 'lira'"),
    ):
        with pytest.raises(WrongInput, match=sentence):
            run_local(config(tmp_path, **changes))
    assert not list(tmp_path.rglob("manifest.json"))


def test_canary_devices_stand_beside_the_others_and_teach_nothing(tmp_path: Path) -> None:
    plain = pooled(load_holdings(config(tmp_path), None).dataset)
    more = with_canary_devices(plain, 12)
    assert set(canary_names(12)) <= set(more.devices.tolist())
    assert (more.devices[1:] > more.devices[:-1]).all()
    for device in plain.devices.tolist():
        assert torch.equal(
            more.train(device).fields["tokens"], plain.train(device).fields["tokens"]
        )
    assert (more.canary == -2).sum() == 12 * int(np.median(plain.activity[plain.activity > 0]))


@pytest.mark.slow
def test_one_shot_sees_the_directions_of_canary_devices_that_little_noise_hides(
    tmp_path: Path,
) -> None:
    changes = {
        "audit.evaluators": "bounds",
        "audit.canary_devices": 20,
        "dp.unit": "device",
        "dp.noise_multiplier": 0.1,
        "selection.cohort": 40,
        "selection.sampling": "fixed",
        "aggregation.rule": "fedavg",
        "aggregation.lr": 1.0,
    }
    run = run_local(config(tmp_path, **changes))
    assert run.summary is not None
    found = {row["method"]: row for row in run.summary["attacks"]["audit"]}
    assert found["one shot"]["estimate"] is True
    assert found["one shot"]["epsilon_estimate"] > 5
    assert found["crafted canary, two worlds"]["epsilon_low"] > 4
    hidden = run_local(config(tmp_path, **changes | {"dp.noise_multiplier": 50.0}))
    assert hidden.summary is not None
    quiet = {row["method"]: row for row in hidden.summary["attacks"]["audit"]}
    assert quiet["one shot"]["epsilon_low"] < 1


def test_the_command_attacks_a_finished_run_and_says_what_was_found(
    attacked: RunDir, fedsim
) -> None:  # type: ignore[no-untyped-def]
    done = fedsim("audit", str(attacked.path), "--attack", "gap", "--json")
    found = json.loads(done.stdout)
    assert [row["attack"] for row in found if row["kind"] == "membership"] == ["gap"]
    shown = fedsim("audit", str(attacked.path), "--attack", "gap")
    assert "blind AUC" in shown.stdout
    for arguments in (
        [],
        [str(attacked.path), "--sanity"],
        [str(attacked.path.parent / "nothing")],
    ):
        refused = fedsim("audit", *arguments, check=False)
        assert refused.returncode == 2
        assert "error:" in refused.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("total_score", "compared"), [(0.0, False), (25.0, True)])
def test_a_coin_removes_a_device_so_a_relation_of_zero_out_is_not_compared(
    total_score: float, compared: bool, tmp_path: Path
) -> None:
    settings = config(
        tmp_path,
        **AUDIT | {"audit.coins": "device"},
        dp__unit="device",
        selection__total_score=total_score,
    )
    run = run_local(settings)
    assert run.summary is not None
    (row,) = run.summary["attacks"]["membership"]
    assert ("allowed_auc" in row) == compared
    assert ("zero-out does not cover" in row.get("note", "")) != compared
