"""Canaries in a run: planted by the plan, in their period; sought at the end; findings in the
summary.
"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from factory import configured
from flwr.app import Context, RecordDict

from fedsim.app.engines.local import run_local
from fedsim.app.experiment.loading import load_holdings
from fedsim.app.experiment.planting import FILE, Cell, cells, plan_of
from fedsim.app.node.node import node_of
from fedsim.app.rundir.audit_file import FILE as AUDITS
from fedsim.app.rundir.files import Row
from fedsim.app.rundir.run_dir import RunDir
from fedsim.config import Canary, Config, from_flat, to_flat
from fedsim.data.federation import load_federation
from fedsim.data.pool import Pool, pooled
from fedsim.errors import WrongInput
from fedsim.types import UNKNOWN

SMALL: dict[str, str | int | float | bool] = {
    "name": "canaries",
    "data.devices": 20,
    "data.examples": 200,
    "data.max_length": 16,
    "model.name": "bilstm",
    "model.embedding": 16,
    "model.hidden": 16,
    "train.rounds": 2,
    "train.optimizer": "adam",
    "train.lr": 0.01,
    "evaluation.every": 2,
    "selection.rule": "uniform",
    "selection.cohort": 20,
    "selection.sampling": "fixed",
    "aggregation.rule": "fedavg",
    "aggregation.lr": 1.0,
    "canary.pattern": "pin",
    "canary.count": 4,
    "canary.copies": 3,
    "audit.evaluators": "canary",
    "place.threads": 1,
}


def config(**changes: str | int | float | bool) -> Config:
    return configured(SMALL, **changes)


def planted(of: Config) -> Pool:
    return pooled(load_holdings(of, None).dataset)


@pytest.mark.parametrize("task", ["intent_slots", "classification", "tagging", "language"])
@pytest.mark.parametrize("vocabulary", ["training", "hashed"])
def test_natural_records_keep_their_ids_and_their_order(task: str, vocabulary: str) -> None:
    wanted = config(data__task=task, data__vocabulary=vocabulary, data__buckets=5000)
    before = pooled(load_federation(wanted.data, None))
    after = planted(wanted)
    natural = torch.from_numpy(np.flatnonzero(after.canary == -1))
    for name, field in before.records.fields.items():
        kept = after.records.fields[name][natural]
        assert (
            (kept[..., : field.shape[-1]] == field).all()
            if field.dim() > 1
            else (kept == field).all()
        )
    assert (after.owner[natural] == before.owner).all()
    assert after.spec.words[: len(before.spec.words)] == before.spec.words
    assert after.spec.labels[: len(before.spec.labels)] == before.spec.labels
    assert (after.records.fields["tokens"] == UNKNOWN).sum() == (
        before.records.fields["tokens"] == UNKNOWN
    ).sum()
    assert int(after.records.fields["tokens"].max()) < after.spec.vocabulary


def test_devices_hold_what_the_plan_says() -> None:
    wanted = config(
        canary__copies="2,5", canary__devices="1,3", canary__holders="light,heavy", canary__count=16
    )
    pool = planted(wanted)
    plan = plan_of(pool, wanted.canary, wanted.seed)
    assert len(cells(wanted.canary)) == 8
    for number in range(16):
        cell = cells(wanted.canary)[number % 8]
        mine = [row for row in plan if row.canary == number]
        assert (len(mine), {row.copies for row in mine}) == (cell.devices, {cell.copies})
        for row in mine:
            device = int(np.searchsorted(pool.devices, row.device))
            assert ((pool.canary == number) & (pool.owner == device)).sum() == row.copies
        assert (pool.canary == number).sum() == cell.devices * cell.copies
    assert (pool.activity == np.bincount(pool.owner, minlength=20)).all()


def test_a_canary_reads_as_its_sentence_with_own_label_and_tags() -> None:
    pool = planted(config())
    row = int(np.flatnonzero(pool.canary == 0)[0])
    ids = [i for i in pool.records.fields["tokens"][row].tolist() if i]
    words = [pool.spec.words[i - 2] for i in ids]
    assert words[:5] == ["my", "bank", "pin", "code", "is"]
    assert all(word.isdigit() for word in words[5:])
    assert pool.spec.labels[int(pool.records.fields["label"][row])] == "canary_pin"
    tags = [pool.spec.tags[i] for i in pool.records.fields["tags"][row].tolist() if i >= 0]
    assert tags == ["O"] * 5 + ["B-canary_pin"] + ["I-canary_pin"] * 3


def test_a_canary_may_have_a_label_and_tags_of_the_data() -> None:
    before = load_federation(config().data, None).spec
    pool = planted(config(canary__label="call", canary__tags="outside"))
    row = int(np.flatnonzero(pool.canary == 0)[0])
    assert (pool.spec.labels, pool.spec.tags) == (before.labels, before.tags)
    assert pool.spec.labels[int(pool.records.fields["label"][row])] == "call"
    assert set(pool.records.fields["tags"][row].tolist()) <= {-1, pool.spec.tags.index("O")}


def test_labels_and_tags_unseen_in_training_move_behind_those_of_canaries() -> None:
    from fedsim.app.experiment.planting import plant

    wanted = config()
    plain = pooled(load_federation(wanted.data, None))
    spec = plain.spec
    fewer = replace(spec, labels=spec.labels[:-1], labels_unseen=spec.labels[-1:])
    kept = plain.records.fields["label"] < len(fewer.labels)
    train = replace(
        plain,
        spec=fewer,
        records=plain.records[kept.nonzero().flatten()],
        activity=np.bincount(plain.owner[kept.numpy()], minlength=20),
        canary=plain.canary[kept.numpy()],
        mislabelled=plain.mislabelled[kept.numpy()],
    )
    after = plant(train, wanted.data, wanted.stream, wanted.canary, 1)
    assert plain.test is not None
    assert after.test is not None
    names = (*after.spec.labels, *after.spec.labels_unseen)
    was = [spec.labels[i] for i in plain.test.fields["label"].tolist()]
    assert [names[i] for i in after.test.fields["label"].tolist()] == was


def test_canaries_arrive_in_their_period() -> None:
    stream = {"stream__mode": "continual", "stream__periods": 3, "stream__arrivals": "poisson"}
    wanted = config(canary__period=2, train__rounds=3, **stream)
    holdings = load_holdings(wanted, None)
    pool = pooled(holdings.dataset)
    device = plan_of(pool, wanted.canary, wanted.seed)[0].device
    label = pool.spec.labels.index("canary_pin")

    def held(period: int) -> int:
        return int((holdings.train(device, period).fields["label"] == label).sum())

    own = int((pool.canary[pool.owner == np.searchsorted(pool.devices, device)] >= 0).sum())
    assert [held(period) for period in (1, 2, 3)] == [0, own, own]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model__name": "bag", "data__task": "classification"}, "a model that sees order"),
        ({"data__max_length": 8}, "raise data.max_length"),
        ({"data__vocabulary": "hashed", "data__buckets": 20}, "as the same input"),
        ({"canary__period": 2}, "canary.period = 2"),
        ({"canary__label": "cal"}, "did you mean 'call'"),
        ({"canary__pattern": ""}, "canary.pattern, which is empty"),
        ({"canary__devices": 30}, "choose 1 to"),
        ({"canary__count": 0}, "canary.count = 0 plants none"),
        ({"audit__view": "sums"}, 'set place.keep = "all" before training'),
    ],
)
def test_what_cannot_be_sought_is_refused_before_anything_is_written(
    changes: dict[str, str | int], sentence: str, tmp_path: Path
) -> None:
    wanted = config(place__out=str(tmp_path / "runs"), **changes)
    with pytest.raises(WrongInput, match=sentence):
        run_local(wanted)
    assert not list(tmp_path.rglob("manifest.json"))


def test_a_bag_that_tags_each_token_from_its_neighbours_may_be_attacked() -> None:
    run_ready = config(model__name="bag", data__task="tagging")
    from fedsim.app.experiment.checks import check_canaries

    check_canaries(run_ready, planted(run_ready).spec)
    with pytest.raises(WrongInput, match="sees order"):
        check_canaries(config(model__name="projection"), planted(config()).spec)


def test_several_numbers_in_one_setting_are_a_grid() -> None:
    section = Canary(copies="1, 10,50", devices=2, holders="light,heavy")
    assert section.copies == "1,10,50"
    assert Canary(copies="7").copies == 7
    assert cells(section) == [Cell(c, 2, h) for h in ("light", "heavy") for c in (1, 10, 50)]
    for wrong in ("", "0", "1,,2", "a", 1.5, True):
        with pytest.raises(WrongInput, match="whole numbers from 1 on"):
            from_flat({"canary.copies": wrong})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """Ten federated rounds on a federation in which some canaries are copied 60 times."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("canaries")
    return run_local(
        config(
            train__rounds=14,
            train__local_epochs=4,
            data__activity="equal",
            canary__copies="1,60",
            canary__count=8,
            canary__candidates="0,1,2,3,4,5",
            audit__every=7,
            audit__view="final,rounds,updates,sums",
            audit__window=4,
            place__keep="all",
            place__out=str(out),
        )
    )


def rows_of(run: RunDir, view: str = "final") -> list[Row]:
    rows = run.rows(AUDITS)
    return [r for r in rows if r["kind"] == "canary" and r["view"] == view and r["round"] == 14]


def test_the_plan_stands_in_the_run_directory(run: RunDir) -> None:
    rows = run.rows(FILE)
    assert [row["copies"] for row in rows] == [1, 60] * 4
    assert rows[0]["sentence"].startswith("my bank pin code is")
    assert set(rows[0]) >= {"canary", "device", "copies", "period", "pattern", "sentence"}


def test_canaries_with_many_copies_are_exposed_and_extracted(run: RunDir) -> None:
    once, often = rows_of(run)
    assert (once["copies"], often["copies"]) == (1, 60)
    assert often["exposure_mean"] > max(4.0, once["exposure_mean"] + 1)
    assert often["p_value"] < 1e-3
    assert often["ceiling_digit_accuracy"] > 2 * often["chance"] > once["ceiling_digit_accuracy"]
    assert often["digit_accuracy"] > often["chance"]


def test_codes_that_were_never_planted_have_the_exposure_of_chance(run: RunDir) -> None:
    nulls = np.concatenate([row["null_exposures"] for row in rows_of(run)])
    # 80 uniform ranks, a standard error of 1.44/sqrt(80): 3 of them, .3 % false alarms
    assert len(nulls) == 80
    assert nulls.mean() == pytest.approx(1.44, abs=3 * 1.443 / np.sqrt(80))


def test_the_summary_has_the_figures_of_the_contract(run: RunDir) -> None:
    summary = run.summary
    assert summary is not None
    found = summary["attacks"]["canary"]
    wanted = {
        "pattern", "copies", "devices", "holders", "view", "unit", "exposure_mean", "exposure_max",
        "null_mean", "p_value", "digit_accuracy", "exact_match", "chance", "canaries", "period",
    }  # fmt: skip
    views = ("final", "rounds", "updates", "sums")
    assert [(r["copies"], r["view"]) for r in found] == [(c, v) for v in views for c in (1, 60)]
    assert all(set(row) >= wanted for row in found[:2])
    assert "exposures" not in found[0]
    assert [row["unit"] for row in found[:2]] == ["example", "device"]


def test_an_attacker_who_sees_every_round_pays_for_the_choice(run: RunDir) -> None:
    final = rows_of(run)
    rounds = rows_of(run, "rounds")
    for last, best in zip(final, rounds, strict=True):
        assert best["rounds_seen"] == 2
        assert (np.array(best["exposures"]) >= np.array(last["exposures"])).all()
        assert best["null_mean"] >= last["null_mean"]


def test_a_server_that_sees_updates_exposes_the_copies_of_their_devices(run: RunDir) -> None:
    for view in ("updates", "sums"):
        once, often = rows_of(run, view)
        assert once["window"] == often["window"] == 4
        assert often["exposure_mean"] > once["null_mean"] + 1
        assert often["p_value"] < 0.05


def test_slices_tell_copies_and_activity_apart(run: RunDir) -> None:
    rows = [r for r in run.rows(AUDITS) if r["kind"] == "slice" and r["round"] == 14]
    by_copies = {r["value"]: r["exposure_mean"] for r in rows if r["slice"] == "copies"}
    assert by_copies[60] > by_copies[1]
    assert sum(r["canaries"] for r in rows if r["slice"] == "activity_decile") == 8


def test_resuming_a_finished_run_writes_no_row_twice(run: RunDir) -> None:
    before = (run.path / AUDITS).read_text()
    (run.path / "summary.json").unlink()
    again = run_local(run.config.model_copy(update={"place": run.config.place}))
    assert (again.path / AUDITS).read_text() == before
    assert json.loads((again.path / "summary.json").read_text())["attacks"]["canary"]


def small_run(out: Path, **changes: str | int | float | bool) -> Row:
    few = {"canary__candidates": "a,b,c", "canary__count": 2, "place__out": str(out)}
    run = run_local(config(**few, **changes))
    (row,) = [row for row in run.rows(AUDITS) if row["kind"] == "canary"]
    return row


def test_language_models_are_searched_by_beam_and_greedily(tmp_path: Path) -> None:
    row = small_run(tmp_path, data__task="language", model__name="lstm")
    assert {"digit_accuracy", "greedy_digit_accuracy", "ceiling_digit_accuracy"} <= set(row)
    assert row["space"] == 81


def test_spaces_too_large_to_list_are_sampled_and_have_no_ceiling(tmp_path: Path) -> None:
    row = small_run(tmp_path, canary__digits=9)
    assert row["exposure_max"] <= 12.0
    assert row["exposure_fitted_mean"] >= 0
    assert "ceiling_digit_accuracy" not in row


@pytest.mark.parametrize("unit", ["device", "example"])
def test_dp_of_the_right_unit_states_what_it_allows(unit: str, tmp_path: Path) -> None:
    noise = {"dp__unit": unit, "dp__noise_multiplier": 20.0, "canary__copies": 1}
    row = small_run(tmp_path, **noise)
    assert row["epsilon_bound"] == pytest.approx((1 + row["epsilon"]) / np.log(2), abs=0.05)
    assert 1.4 < row["epsilon_bound"] < 4
    shared = small_run(tmp_path, **{**noise, "canary__devices": 2})
    assert "epsilon_bound" not in shared


def test_a_real_node_plants_nothing() -> None:
    context = Context(1, 1, {"data-path": "/"}, RecordDict(), {**to_flat(config())})
    with pytest.raises(WrongInput, match="own examples as they are"):
        node_of(context)
