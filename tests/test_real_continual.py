"""Continual mode on real nodes: periods that nobody's records decide, and what a node tells of
them.

Seen to fail: activity of the first period kept, or taken for the event of a later one; devices of a
node that is away kept active; a task in another period than its round's; delta and guarantee by the
first period; records after the end in the last period; a node that wants records in each period.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_nodes import Unsteady
from test_real_nodes import DEVICE, EXAMPLE, RealGrid, config

from fedsim.app.engines.local import run_local
from fedsim.app.experiment import loading
from fedsim.app.node.node import make_node, node_of, reply_of
from fedsim.app.node.node_ledger import NodeLedger
from fedsim.app.rundir.run_dir import RunDir
from fedsim.app.server.serve import serve
from fedsim.config import Config
from fedsim.data.federation import load_federation
from fedsim.data.times import instant
from fedsim.errors import WrongInput
from fedsim.privacy.ledger import Ledger
from fedsim.privacy.planning import guaranteed
from fedsim.types import Cohort
from fedsim.wire import pack_params, pack_task

STREAM = {
    "stream.mode": "continual",
    "stream.periods": 3,
    "stream.begin": "2024-01-01",
    "stream.end": "2024-01-31",
    "train.rounds": 6,
    "data.columns": "text=text,label=label,device=user,time=time",
}
DELETED = {"data.columns": "text=text,label=label,device=user,time=time,deleted=gone"}
USERS = {"ann": [2, 3, 14, 15, 25], "bob": [1, 12, 13], "cid": [-40, 5, 26, 45], "dot": [28, 29]}
"""The days, after the begin, on which records come; periods last ten.

Dot has none before the last.
"""
NODES = [("ann", "bob"), ("cid", "dot")]


def rows(user: str) -> list[dict[str, Any]]:
    begin = instant("", "2024-01-01")
    return [
        {
            "text": f"light {'on' if day % 2 else 'off'} {day}",
            "label": "on" if day % 2 else "off",
            "user": user,
            "time": begin + 86400 * day,
            "gone": begin + 86400 * 12 if day == 2 else None,
        }
        for day in USERS[user]
    ]


def write(path: Path, *users: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for user in users for row in rows(user)))


def nodes(folder: Path, **terms: Any) -> list[dict[str, Any]]:
    for i, users in enumerate(NODES):
        write(folder / f"data{i}" / "train.jsonl", *users)
    own = {key.replace("_", "-"): value for key, value in terms.items()}
    return [
        {"data-path": str(folder / f"data{i}"), "state-path": str(folder / f"state{i}")} | own
        for i in range(2)
    ]


def real(folder: Path, settings: Config, **terms: Any) -> RunDir:
    return serve(RealGrid(settings, nodes(folder, **terms)), settings, {}, run_local)


def start_again() -> None:
    """Forget what a process keeps between messages; a SuperNode starts a process for each."""
    make_node.cache_clear()
    loading._load.cache_clear()
    load_federation.cache_clear()


def held(
    settings: Config, node_config: dict[str, Any], device: str, period: int
) -> list[list[int]]:
    """What a device holds, on a node that has just been started."""
    start_again()
    holdings = node_of(RealGrid(settings, [node_config]).contexts()[0]).holdings
    return holdings.train(device, period).fields["tokens"].tolist()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"stream.memory": "current"},
        {"stream.memory": "window", "stream.window": 2},
        {"stream.memory": "age", "stream.max_age_days": 12.0},
        DELETED,
        EXAMPLE | {"dp.noise_source": "seeded"},
        DEVICE | {"dp.noise_source": "seeded"},
    ],
    ids=["all", "current", "window", "age", "deleted", "example", "device"],
)
def test_two_real_nodes_give_the_model_of_one_process(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    write(tmp_path / "all" / "train.jsonl", *USERS)
    one = config(
        tmp_path / "one",
        STREAM,
        changes,
        {"place.data_dir": str(tmp_path / "all"), "place.nodes": 1},
    )
    alone = run_local(one)
    both = real(tmp_path, config(tmp_path, STREAM, changes), insecure_noise=True)
    a = alone.last_checkpoint()
    b = both.last_checkpoint()
    assert a is not None
    assert b is not None
    assert max(float((b.params[name] - p).abs().max()) for name, p in a.params.items()) < 1e-6
    cohorts = [row["cohort"] for row in both.rows()]
    assert cohorts == [row["cohort"] for row in alone.rows()]
    assert cohorts[0] <= 3
    if one.dp.unit != "none":
        counts = [Ledger.open(run.path, 4).counts()[1].toarray() for run in (alone, both)]
        assert (counts[0] == counts[1]).all()


def test_a_period_without_records_on_a_node_leaves_its_devices_out(tmp_path: Path) -> None:
    settings = config(tmp_path, STREAM, EXAMPLE, {"stream.memory": "current"})
    grid = Unsteady(settings, nodes(tmp_path))
    found = serve(grid, settings, {}, run_local)
    assert [row["cohort"] for row in found.rows()] == [3, 3, 2, 2, 3, 3]
    own = NodeLedger(tmp_path / "state1", np.array(NODES[1]))
    assert sum(e.count for e in own.events("cid")) == 4
    assert sum(e.count for e in own.events("dot")) == 2


@pytest.mark.parametrize("changes", [{}, EXAMPLE, DEVICE, {"selection.rule": "threshold"}])
def test_a_run_goes_through_periods_in_which_nobody_holds_anything(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    later = {"stream.begin": "2030-01-01", "stream.end": "2031-01-01", "stream.memory": "current"}
    found = real(tmp_path, config(tmp_path, STREAM, later, changes)).rows()
    assert [row["cohort"] > 0 for row in found] == [True, True, False, False, False, False]


def test_a_run_that_comes_before_all_records_is_refused(tmp_path: Path) -> None:
    early = {"stream.begin": "2020-01-01", "stream.end": "2021-01-01"}
    with pytest.raises(
        WrongInput, match=r"no node has a training example.*stream\.begin and stream\.end"
    ):
        real(tmp_path, config(tmp_path, STREAM, early, EXAMPLE | {"dp.delta": 0.0}))


def test_both_ledgers_charge_what_a_device_announced_in_each_period(tmp_path: Path) -> None:
    """Ann holds 2, 4 and 5 records, in public 2, 4 and 4; so the rate of a batch of one is 1/2,
    1/4, 1/4.
    """
    by_size = {"dp.sampling_rate": 0.0, "train.batch_size": 1, "train.local_steps": 1}
    settings = config(tmp_path, STREAM, EXAMPLE, by_size)
    found = real(tmp_path, settings)
    own = NodeLedger(tmp_path / "state0", np.array(NODES[0]))
    told = {(e.sampling_rate, e.count) for e in own.events("ann")}
    assert told == {(0.5, 2), (0.25, 4)}
    table, counts = Ledger.open(found.path, 4).counts()
    mine = {
        (e.sampling_rate, int(n))
        for e, n in zip(table.events, counts.toarray()[0], strict=True)
        if n
    }
    assert mine == told


def test_delta_and_guarantee_count_what_will_ever_arrive(tmp_path: Path) -> None:
    """In period 1 devices announce 2, 1 and 2 examples, in all 4, 2, 2 and 2, so up to 7, 3, 3 and
    3.
    """
    batch = {
        "dp.delta": 0.0,
        "dp.sampling_rate": 0.0,
        "train.batch_size": 1,
        "train.local_steps": 1,
    }
    settings = config(tmp_path, STREAM, EXAMPLE, batch)
    privacy = (real(tmp_path, settings).summary or {})["privacy"]
    assert privacy["delta"] == 1e-3  # 1/(10 x 16); by period 1 it would be 1/(10 x 7), 1e-2
    bound, _ = guaranteed(settings, 1e-3, np.array([1, 2, 4]))
    assert privacy["epsilon_guarantee"] == pytest.approx(bound)
    assert bound > privacy["epsilon_max"] > 0


@pytest.mark.parametrize("memory", ["all", "current", "window", "age", "reservoir"])
def test_a_node_that_is_started_again_holds_the_same_records(memory: str, tmp_path: Path) -> None:
    changes = {"stream.memory": memory, "stream.reservoir": 2, "stream.max_age_days": 18.0}
    settings = config(tmp_path, STREAM, DELETED, changes)
    first = nodes(tmp_path)[0]
    before = [held(settings, first, "ann", period) for period in (1, 2, 3)]
    assert [held(settings, first, "ann", period) for period in (1, 2, 3)] == before
    sizes = {"all": [2, 3, 4], "current": [2, 2, 1], "window": [2, 3, 3], "age": [2, 3, 3]}
    assert [len(each) for each in before] == sizes.get(memory, [2, len(before[1]), len(before[2])])


def test_a_record_is_gone_from_the_period_of_its_deletion_on_whatever_the_server_says(
    tmp_path: Path,
) -> None:
    settings = config(tmp_path, STREAM, DELETED, DEVICE)
    first = nodes(tmp_path)[0]
    gone = held(settings, first, "ann", 1)[0]
    assert gone not in held(settings, first, "ann", 2)
    node = node_of(RealGrid(settings, [first]).contexts()[0])
    for round, period in [(3, 1), (1, 2), (0, 0), (7, 4), (-5, -2)]:
        asked = Cohort(round, np.array(["ann"]), None, np.ones(1), period=period, clip_norm=1.0)
        with pytest.raises(WrongInput, match=f"round {round} of 6 does not lie in period {period}"):
            reply_of(node, pack_task(pack_params({}), asked))


def test_a_node_answers_for_the_periods_of_the_run_and_for_no_other(tmp_path: Path) -> None:
    settings = config(tmp_path, STREAM)
    node = node_of(RealGrid(settings, nodes(tmp_path)).contexts()[1])
    told = {period: node.activity(period).tolist() for period in range(4)}
    assert told == {
        0: [2, 2],
        1: [2, 0],
        2: [2, 0],
        3: [2, 2],
    }  # cid's of day 45 comes after the end
    for period in (-1, 4):
        with pytest.raises(WrongInput, match=f"periods 1 to 3 .0 = all of them., got {period}"):
            node.terms.check_period(settings, period)


def test_a_device_whose_node_is_away_is_inactive_until_the_node_says_what_it_holds(
    tmp_path: Path,
) -> None:
    settings = config(tmp_path, STREAM, EXAMPLE, {"train.rounds": 9, "place.deadline_s": 5.0})
    grid = Unsteady(settings, nodes(tmp_path))
    steps = {3: lambda: grid.here.remove(3), 4: lambda: grid.here.append(3)}
    found = serve(
        grid, settings, {}, run_local, lambda row: steps.get(row["round"], lambda: None)()
    )
    assert [row["cohort"] for row in found.rows()] == [3, 3, 3, 2, 3, 3, 4, 4, 4]


def test_a_run_goes_on_in_the_period_in_which_it_ended(tmp_path: Path) -> None:
    settings = config(tmp_path, STREAM, EXAMPLE | {"dp.noise_source": "seeded"})
    undisturbed = real(tmp_path / "a", config(tmp_path / "a", STREAM, EXAMPLE), insecure_noise=True)

    def stop(row: dict[str, Any]) -> None:
        if row["round"] == 4:
            raise KeyboardInterrupt

    grid = RealGrid(settings, nodes(tmp_path, insecure_noise=True))
    with pytest.raises(KeyboardInterrupt):
        serve(grid, settings, {}, run_local, stop)
    found = real(tmp_path, settings, insecure_noise=True)
    assert [row["cohort"] for row in found.rows()] == [row["cohort"] for row in undisturbed.rows()]
    assert (found.summary or {})["privacy"]["epsilon_max"] == pytest.approx(
        (undisturbed.summary or {})["privacy"]["epsilon_max"]
    )


def test_the_server_measures_each_period_on_test_files_of_its_own(tmp_path: Path) -> None:
    write(tmp_path / "server" / "test.jsonl", *USERS)
    own = {"data.test": "test.jsonl", "place.data_dir": str(tmp_path / "server")}
    found = real(tmp_path, config(tmp_path, STREAM, own))
    assert {row["test_period"] for row in found.rows("periods.jsonl")} == {1, 2, 3}
    assert "prequential_accuracy" in (found.summary or {})["metrics"]


def test_devices_measure_each_period_on_what_they_hold_out(tmp_path: Path) -> None:
    settings = config(tmp_path, STREAM, {"evaluation.on": "devices", "evaluation.holdout": 0.4})
    found = real(tmp_path, settings)
    assert 0 <= (found.summary or {})["metrics"]["device_accuracy_mean"] <= 1


def test_what_comes_during_a_run_counts_from_its_period_on_and_a_new_device_with_the_next_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Bob's later records are filed while the run goes on; then node 1 has a device that it does
    not know.
    """
    settings = config(tmp_path, STREAM, {"stream.memory": "current"})
    files = nodes(tmp_path)
    path = tmp_path / "data0" / "train.jsonl"
    whole = path.read_text()
    early = [
        line for line in whole.splitlines(True) if json.loads(line)["text"][-2:] not in ("12", "13")
    ]
    path.write_text("".join(early))

    def change(row: dict[str, Any]) -> None:
        start_again()
        if row["round"] == 2:
            path.write_text(whole)
        if row["round"] == 4:
            path.write_text(whole + whole.replace('"ann"', '"eve"'))

    found = serve(RealGrid(settings, files), settings, {}, run_local, change)
    assert [row["cohort"] for row in found.rows()] == [3, 3, 2, 2, 2, 2]
    assert "announces 'eve', whom the run did not begin with" in caplog.text


@pytest.mark.parametrize(
    ("terms", "changes", "why"),
    [
        (
            {},
            {"stream.begin": ""},
            'want periods that no records decide.*got "time", "duration", ""',
        ),
        ({}, {"stream.end": ""}, "real nodes want periods that no records decide"),
        ({}, {"stream.cut": "examples"}, "real nodes want periods that no records decide"),
        ({}, {"stream.arrivals": "poisson"}, "real nodes want periods that no records decide"),
        ({}, {"stream.deletions": 0.5}, r"stream\.deletions = 0\.5 makes requests up"),
        ({"min_period_days": 11}, {}, "min-period-days = 11, got 10; use fewer stream.periods"),
        ({}, {"stream.begin": "Monday"}, "this node|stream.begin = 'Monday' cannot be read"),
        ({}, {"data.columns": "text=text,label=label,device=user"}, "own log says why"),
        ({}, EXAMPLE | {"stream.memory": "reservoir"}, "moves a sum by twice the clip"),
    ],
)
def test_periods_that_a_node_cannot_go_by_are_refused(
    terms: dict[str, Any], changes: dict[str, Any], why: str, tmp_path: Path
) -> None:
    with pytest.raises(WrongInput, match=why):
        real(tmp_path, config(tmp_path, STREAM, changes), **terms)
    assert not (tmp_path / "runs").exists()
