"""Attacks on what a server sees in a run: planted truth is found, noise and sums hide it, games are
told.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_replay import audited_of
from test_rounds import config

from fedsim.app.audits.membership.by_device import OTHERS, SAME, asked_about, gradient_norms, window
from fedsim.app.audits.membership.game import membership_game
from fedsim.app.audits.membership.update_contents import Leaks
from fedsim.app.audits.membership.updates import items_of, update_rows
from fedsim.app.audits.membership.views import views_of
from fedsim.app.audits.replay import Replay
from fedsim.app.audits.settings import check_audits
from fedsim.app.engines.local import run_local
from fedsim.app.experiment.loading import load_holdings
from fedsim.app.rundir.files import Row
from fedsim.app.rundir.run_dir import RunDir
from fedsim.app.server.finished_audit import audit_finished
from fedsim.audit.blind_baseline import histogram_scores
from fedsim.audit.findings import Membership, MembershipSlice
from fedsim.audit.roc import auc, null_standard_error
from fedsim.audit.update_scores import directional, norm_of, record_losses
from fedsim.config import Config, from_flat, to_flat
from fedsim.errors import WrongInput
from fedsim.seeds import generator

HARD: dict[str, object] = {
    "data__task": "classification",
    "data__activity": "equal",
    "data__devices": 12,
    "data__examples": 240,
    "audit__evaluators": "membership",
    "audit__coins": "record",
    "audit__references": 0,
    "audit__window": 2,
    "place__keep": "all",
    "train__rounds": 2,
    "train__local_epochs": 10,
}


def found(run: RunDir, **what: object) -> list[Row]:
    rows = run.rows("audit.jsonl")
    return [row for row in rows if all(row.get(name) == value for name, value in what.items())]


def one(run: RunDir, **what: object) -> Row:
    rows = found(run, kind="membership", **what)
    assert len(rows) == 1, what
    return rows[0]


@pytest.fixture(scope="module")
def hard(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A run whose devices train hard on few records."""
    out = tmp_path_factory.mktemp("hard")
    return run_local(config(out, **HARD, audit__view="updates,sums,rounds,final"))


def test_devices_that_train_hard_give_their_records_away(hard: RunDir) -> None:
    for attack in ("cosine", "loss_drop", "device_loss", "fedmia_loss", "fedmia_cosine"):
        row = one(hard, attack=attack, game=SAME, view="updates")
        assert row["auc_low"] > 0.6, attack
        assert row["blind_auc"] < 0.6
        assert row["targets"] >= 5
        assert row["window"] == 2
        assert row["visible"] == "each device's update as it is"
        assert "targets" in row["interval"]
        assert one(hard, attack=attack, game=OTHERS, view="updates")["auc"] > 0.8


def test_there_is_a_curve_by_round(hard: RunDir) -> None:
    for view, attack in (
        ("updates", "fedmia_cosine"),
        ("sums", "cosine"),
        ("rounds", "loss_series"),
    ):
        rounds = [
            row["value"]
            for row in found(hard, kind="slice", slice="round", view=view, attack=attack)
        ]
        assert sorted(set(rounds)) == [1, 2]


def test_a_sum_tells_less_than_single_updates(hard: RunDir) -> None:
    single = one(hard, attack="cosine", game=SAME, view="updates")
    for attack in ("cosine", "loss_drop"):
        assert one(hard, attack=attack, view="sums")["auc"] < single["auc"] - 0.1
    assert not found(hard, view="sums", attack="fedmia_loss")


def test_an_active_server_is_told_apart(hard: RunDir) -> None:
    row = one(hard, attack="active_ascent")
    assert row["active"] is True
    assert row["auc_low"] > 0.55
    assert row["targets"] <= 8


def test_the_cosine_in_a_row_equals_a_direct_computation(hard: RunDir) -> None:
    audited = audited_of(hard)
    replay = Replay(audited)
    rounds = window(audited, replay)
    game = asked_about(audited, rounds, generator(0, "x"))
    losses = record_losses(audited.module, audited.task, game.records)
    total = {}
    for seen in rounds:
        before = {name: p.double() for name, p in seen.before.items()}
        norms = gradient_norms(audited, seen.before, game.records)
        for device, change in replay.updates(seen):
            cosine = -directional(losses, before, change) / norms / norm_of(change)
            total.setdefault(device, []).append(cosine)
    areas = []
    for device, scores in total.items():
        mine = game.owner == np.searchsorted(audited.holdings.dataset.devices, device)
        if 2 <= game.member[mine].sum() <= mine.sum() - 2:
            areas.append(auc(np.mean(scores, 0)[mine], game.member[mine]))
    assert one(hard, attack="cosine", game=SAME, view="updates")["auc"] == pytest.approx(
        np.mean(areas), abs=1e-6
    )


def test_plain_updates_name_all_words_of_their_devices(hard: RunDir) -> None:
    (tokens,) = found(hard, kind="leak", attack="token_set")
    assert (tokens["precision"], tokens["recall"]) == (1.0, 1.0)
    assert hard.summary is not None
    assert {row["attack"] for row in hard.summary["attacks"]["leak"]} == {"token_set", "label_set"}


def test_dense_noise_leaves_neither_members_nor_words(tmp_path: Path) -> None:
    noised = {"dp__unit": "example", "dp__noise_multiplier": 50.0, "dp__noise_source": "seeded"}
    run = run_local(config(tmp_path, **HARD | noised, audit__view="updates"))
    for attack in ("cosine", "loss_drop", "device_loss", "fedmia_loss", "fedmia_cosine"):
        row = one(run, attack=attack, game=SAME)
        error = null_standard_error(row["members"], row["records"] - row["members"])
        assert abs(row["auc_pooled"] - 0.5) < 3 * error, attack
        assert "noise that it added" in row["visible"]
    (tokens,) = found(run, kind="leak", attack="token_set")
    assert tokens["precision"] < 0.5


def test_coins_that_were_not_those_of_training_are_not_found(hard: RunDir) -> None:
    """Swapped coins: the devices are the same and trained as hard, and who is a member is another
    draw.
    """
    audited = audited_of(hard)
    other = from_flat(to_flat(hard.config) | {"audit.seed": 99})
    findings = update_rows(replace(audited, holdings=load_holdings(other, None)))
    judged = [
        each for each in findings if isinstance(each, Membership) and each.threat.game == SAME
    ]
    assert len(judged) == 7
    for each in judged:
        # the passive attacks judge every record, the active one at most 128 of them
        records = each.figures.records
        members = each.figures.members
        pooled = each.figures.auc_pooled
        assert records is not None
        assert members is not None
        assert pooled is not None
        assert abs(pooled - 0.5) < 3 * null_standard_error(members, records - members), each.attack


def test_without_coins_fresh_records_and_other_devices_records_are_two_games(
    tmp_path: Path,
) -> None:
    changed = HARD | {"audit__coins": "none", "audit__records": 6, "train__local_epochs": 3}
    run = run_local(config(tmp_path, **changed, audit__view="updates"))
    games = {row["game"] for row in found(run, kind="membership")}
    assert games == {"fresh records of the test split, labels matched", OTHERS}
    assert one(run, attack="cosine", game=OTHERS)["members"] <= 6 * 12
    assert not found(run, attack="active_ascent")


def test_a_finished_run_is_attacked_by_its_updates(tmp_path: Path) -> None:
    run = run_local(config(tmp_path, **HARD | {"audit__evaluators": ""}))
    found = audit_finished(
        run.path, {"audit.view": "sums", "audit.evaluators": "membership"}, run_local
    )
    assert {
        each.threat.view for each in found if isinstance(each, Membership | MembershipSlice)
    } == {"sums"}


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"audit__view": "update"}, "did you mean 'updates'"),
        (
            {"audit__view": "updates", "place__keep": "last"},
            'set place.keep = "all" before training',
        ),
        (
            {"audit__view": "updates", "dp__unit": "device", "dp__trust": "secure_sum"},
            'audit.view = "sums"',
        ),
        (
            {"audit__view": "sums", "dp__unit": "device", "dp__noise_source": "os"},
            "replayed from a seed",
        ),
        ({"audit__view": "sums", "audit__coins": "device"}, 'audit.coins = "record"'),
        ({"audit__view": "releases"}, 'set stream.mode = "continual"'),
    ],
)
def test_views_that_a_run_cannot_give_are_refused_before_it_trains(
    tmp_path: Path, settings: dict[str, object], sentence: str
) -> None:
    wanted: Config = config(tmp_path, **HARD | settings)
    with pytest.raises(WrongInput, match=sentence):
        check_audits(wanted, real=False)


def test_views_are_named_in_a_list(tmp_path: Path) -> None:
    assert views_of(config(tmp_path, audit__view="sums, final")) == ["sums", "final"]


def test_a_histogram_tells_whose_record_it_is_and_leaves_the_record_out() -> None:
    items = np.eye(3)[[0, 0, 1, 1, 2]]
    known = np.array([True, True, False, False, False])
    scores = histogram_scores(items, known)
    everyone = np.log(np.array([3, 3, 2]) / 8)
    assert scores[0] == pytest.approx(
        np.log(2 / 4) - everyone[0]
    )  # one other of its label, three smoothed
    assert scores[2] == pytest.approx(np.log(1 / 5) - everyone[1])


def test_records_without_labels_are_told_by_their_words(tmp_path: Path) -> None:
    run = run_local(
        config(tmp_path, data__task="tagging", place__keep="all", audit__coins="record")
    )
    records = membership_game(audited_of(run)).records
    counts = items_of(records)
    assert (counts.sum(1) == records.fields["tokens"].shape[1]).all()
    leaks = Leaks(audited_of(run).module, audited_of(run).holdings)
    assert leaks.found("updates") == []
