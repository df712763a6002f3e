"""Real nodes: data, ledger and terms of their own, whatever the server tells them.

Seen to fail: an event written after the training, a ledger that forgets other runs, terms read from
the run's config.
"""

import errno
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message

from fedsim.app.engines.local import run_local
from fedsim.app.engines.local_grid import LocalGrid
from fedsim.app.node.app import app as client_app
from fedsim.app.node.node import node_of, reply_of
from fedsim.app.node.node_ledger import NodeLedger
from fedsim.app.node.terms import least_noise, terms_of
from fedsim.app.rundir.run_dir import RunDir
from fedsim.app.server.serve import serve
from fedsim.config import Config, from_flat, to_flat
from fedsim.errors import RunFailed, WrongInput
from fedsim.privacy.accounting import Event, epsilon
from fedsim.privacy.ledger import Entry, Ledger
from fedsim.types import Cohort
from fedsim.wire import pack_evaluation, pack_params, pack_task

REAL = {
    "name": "real",
    "data.source": "files",
    "data.task": "classification",
    "data.train": "train.jsonl",
    "data.vocabulary": "hashed",
    "data.buckets": 50,
    "data.labels": "on,off",
    "data.columns": "text=text,label=label,device=user",
    "model.embedding": 4,
    "model.hidden": 4,
    "train.rounds": 2,
    "train.local_steps": 1,
    "selection.rule": "uniform",
    "selection.cohort": 4,
    "aggregation.rule": "fedavg",
    "place.threads": 1,
    "place.nodes": 2,
    "place.wait_s": 1.0,
}
EXAMPLE = {"dp.unit": "example", "dp.trust": "local", "dp.sampling_rate": 0.5, "dp.delta": 1e-5}
DEVICE = {"dp.unit": "device", "dp.delta": 1e-5}
USERS = [("ann", "bob"), ("cid", "dot")]


def write(path: Path, users: Iterable[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        {"text": f"light {word} {i}", "label": word, "user": user}
        for user in users
        for i, word in enumerate(["on", "off"] * 3)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


class RealGrid(LocalGrid):
    """In-process nodes, each with a node-config of its own."""

    def __init__(self, config: Config, node_configs: list[dict[str, Any]]) -> None:
        super().__init__(client_app, to_flat(config), len(node_configs))
        for context, node_config in zip(self._contexts.values(), node_configs, strict=True):
            context.node_config = node_config

    def contexts(self) -> list[Any]:
        return list(self._contexts.values())


def nodes(folder: Path, **terms: Any) -> list[dict[str, Any]]:
    """Two node-configs, each with data and state of its own."""
    for i, users in enumerate(USERS):
        write(folder / f"data{i}" / "train.jsonl", users)
    own = {key.replace("_", "-"): value for key, value in terms.items()}
    return [
        {"data-path": str(folder / f"data{i}"), "state-path": str(folder / f"state{i}")} | own
        for i in range(2)
    ]


def config(out: Path, *changes: dict[str, Any]) -> Config:
    found: dict[str, Any] = REAL | {"place.out": str(out / "runs")}
    for change in changes:
        found |= change
    return from_flat(found)


def run(folder: Path, settings: Config, **terms: Any) -> RunDir:
    return serve(RealGrid(settings, nodes(folder, **terms)), settings, {}, run_local)


def test_the_server_needs_no_example_of_anybody(tmp_path: Path) -> None:
    found = run(tmp_path, config(tmp_path))
    assert found.summary is not None
    assert found.summary["status"] == "completed"
    assert found.summary["devices_all"] == 4
    assert found.summary["examples"] == 4 * 4  # six each, told as the power of two below
    assert found.summary["metrics"] == {}
    assert np.load(found.path / "devices.npz")["devices"].tolist() == ["ann", "bob", "cid", "dot"]


def test_the_server_tests_on_files_of_its_own(tmp_path: Path) -> None:
    write(tmp_path / "server" / "test.jsonl", ["somebody"])
    settings = config(
        tmp_path, {"data.test": "test.jsonl", "place.data_dir": str(tmp_path / "server")}
    )
    found = run(tmp_path, settings)
    assert found.summary is not None
    assert 0 <= found.summary["metrics"]["accuracy"] <= 1
    assert "test.jsonl" in found.manifest["fingerprint"]


def test_noise_of_real_nodes_is_of_the_operating_system(tmp_path: Path) -> None:
    found = run(tmp_path, config(tmp_path, EXAMPLE))
    assert found.manifest["noise_source"] == "os"
    assert found.summary is not None
    assert found.summary["privacy"]["noise_source"] == "os"


def test_a_node_writes_its_own_ledger_that_composes_over_runs(tmp_path: Path) -> None:
    run(tmp_path, config(tmp_path, EXAMPLE))
    own = NodeLedger(tmp_path / "state0", np.array(["ann", "bob"]))
    assert own.events("ann") == (Event(1.0, 0.5, 2),)
    run(tmp_path, config(tmp_path, EXAMPLE, {"seed": 2}))
    assert sum(e.count for e in own.events("ann")) == 4
    assert own.events("cid") == ()
    assert (tmp_path / "state1").is_dir()


def test_an_event_is_on_disk_before_the_node_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("fedsim.app.node.node.answer", crash)
    with pytest.raises(RunFailed, match="this node failed; its own log says why"):
        run(tmp_path, config(tmp_path, DEVICE))
    own = NodeLedger(tmp_path / "state0", np.array(["ann", "bob"]))
    assert own.events("ann") == (Event(1.0, 1.0, 1),)


@pytest.mark.parametrize(("source", "counted"), [("seeded", 1), ("os", 2)])
def test_a_task_sent_again_counts_once_with_a_seed_and_each_time_without(
    source: str, counted: int, tmp_path: Path
) -> None:
    settings = config(tmp_path, EXAMPLE, {"train.rounds": 1, "dp.noise_source": source})
    for _ in range(2):  # the same round from the same model, to nodes that were restarted
        serve(
            RealGrid(settings, nodes(tmp_path, insecure_noise=True)),
            settings,
            {},
            run_local,
            fresh=True,
        )
    own = NodeLedger(tmp_path / "state0", np.array(["ann", "bob"]))
    assert sum(e.count for e in own.events("ann")) == counted


def test_a_node_takes_no_more_part_beyond_its_epsilon(tmp_path: Path) -> None:
    limit = epsilon([Event(1.0, 1.0, 3)], 1e-5) + 0.01
    settings = config(tmp_path, DEVICE, {"train.rounds": 9, "dp.delta": 0.5})
    with pytest.raises(
        WrongInput, match=r"max-epsilon = .*, and this release would bring device 'ann'"
    ):
        run(tmp_path, settings, max_epsilon=limit)
    own = NodeLedger(tmp_path / "state0", np.array(["ann", "bob"]))
    assert own.events("ann") == (
        Event(1.0, 1.0, 3),
    )  # delta = 0.5 of the server's wish does not count


@pytest.mark.parametrize(
    ("terms", "changes", "why"),
    [
        ({"max_epsilon": 1.0}, {}, "answers only under differential privacy"),
        ({"max_clip_norm": 0.5}, DEVICE, "max-clip-norm = 0.5, got 1"),
        ({"max_clip_norm": 0.5}, EXAMPLE, "max-clip-norm = 0.5, got 1"),
        ({"min_noise_multiplier": 2}, DEVICE, "min-noise-multiplier = 2, got 1"),
        ({"min_noise_multiplier": 2}, EXAMPLE, "min-noise-multiplier = 2, got 1"),
        (
            {"min_cohort": 9, "insecure_noise": True},
            DEVICE | {"dp.trust": "secure_sum"},
            "min-cohort = 9",
        ),
        ({"max_epsilon": 9.0}, DEVICE | {"data.activity_public": "exact"}, "tells no exact sizes"),
        ({"max_epsilon": "9"}, DEVICE, "wants a number of at least 0, got '9'"),
        ({}, DEVICE | {"dp.noise_source": "seeded"}, "insecure-noise=true"),
        ({}, DEVICE | {"dp.trust": "secure_sum"}, "nothing is masked"),
        ({"state_path": ""}, DEVICE, "node-config state-path"),
        ({}, {"data.path": "../data1"}, "leads out of the node's data-path"),
        ({}, {"data.train": "../data1/*.jsonl"}, "leads out of the node's data-path"),
        ({}, {"data.vocabulary": "training"}, 'want data.vocabulary = "hashed"'),
        ({}, {"data.labels": ""}, "want data.labels"),
        (
            {},
            {"data.labels": "on,dim"},
            "^((?!'off').)*do not fit the experiment; its own log says why$",
        ),
        ({}, {"audit.coins": "record"}, "trains on its own examples as they are"),
        ({}, {"audit.mislabelled": 0.5}, "trains on its own examples as they are"),
        (
            {},
            {"canary.count": 1, "canary.pattern": "pin"},
            "trains on its own examples as they are",
        ),
        ({}, {"stream.mode": "continual"}, "want periods that no records decide"),
    ],
)
def test_an_instruction_beyond_the_terms_is_refused_in_a_sentence(
    terms: dict[str, Any], changes: dict[str, Any], why: str, tmp_path: Path
) -> None:
    with pytest.raises(WrongInput, match=why):
        run(tmp_path, config(tmp_path, changes), **terms)


def test_a_clip_norm_in_the_message_alone_is_refused_too(tmp_path: Path) -> None:
    settings = config(tmp_path, DEVICE)
    node = node_of(RealGrid(settings, nodes(tmp_path, max_clip_norm=1.0)).contexts()[0])
    cohort = Cohort(1, np.array(["ann"]), None, np.ones(1), clip_norm=7.0)
    with pytest.raises(WrongInput, match="got 7"):
        node.terms.check_instruction(settings, cohort)


@pytest.mark.parametrize(
    ("devices", "why"),
    [(["ann", "ann"], "sorted, each once"), (["ann", "cid"], "'cid' is not on this node")],
)
def test_a_device_asked_twice_or_elsewhere_is_refused(
    devices: list[str], why: str, tmp_path: Path
) -> None:
    settings = config(tmp_path, DEVICE)
    node = node_of(RealGrid(settings, nodes(tmp_path)).contexts()[0])
    cohort = Cohort(1, np.array(devices), None, np.ones(2), clip_norm=1.0)
    with pytest.raises(WrongInput, match=why):
        reply_of(node, pack_task(pack_params({}), cohort))


def test_a_private_node_tells_no_exact_losses_and_measures_nothing(tmp_path: Path) -> None:
    open_rows = run(tmp_path, config(tmp_path, DEVICE)).rows()
    assert "train_loss" in open_rows[0]
    closed = run(tmp_path, config(tmp_path, DEVICE, {"seed": 5}), max_epsilon=1e3)
    assert "train_loss" not in closed.rows()[0]
    settings = config(tmp_path, DEVICE)
    grid = RealGrid(settings, nodes(tmp_path, max_epsilon=1e3))
    task = Message(pack_evaluation(pack_params({}), 1), dst_node_id=2, message_type="evaluate")
    with pytest.raises(WrongInput, match="tells nothing exact"):
        grid.send_and_receive([task])


def test_a_full_disk_at_the_node_stops_the_release(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = Ledger.write

    def full(ledger: Ledger, entry: Entry) -> None:
        if "state0" in str(ledger.folder):
            raise OSError(errno.ENOSPC, "No space left on device")
        written(ledger, entry)

    monkeypatch.setattr(Ledger, "write", full)
    trained: list[object] = []
    monkeypatch.setattr("fedsim.app.node.node.answer", lambda *a: trained.append(a))
    with pytest.raises(
        RunFailed, match=r"cannot write its ledger .*No space left on device.*nothing was"
    ):
        run(tmp_path, config(tmp_path, DEVICE))
    assert trained == []


def test_the_least_noise_is_that_of_the_last_epoch() -> None:
    decaying = {
        "dp.method": "edp",
        "dp.noise_decay": 0.5,
        "train.local_epochs": 3,
        "dp.noise_multiplier": 4.0,
    }
    assert least_noise(from_flat({"dp.unit": "example"} | decaying)) == 1.0
    assert least_noise(from_flat({"dp.unit": "device", "dp.noise_multiplier": 3.0})) == 3.0


def test_a_node_without_terms_is_bound_by_nothing() -> None:
    assert not terms_of({"partition-id": 0}).private
    terms_of({}).check(from_flat({}))


def test_metrics_and_log_tell_how_a_run_does(tmp_path: Path) -> None:
    found = run(tmp_path, config(tmp_path, DEVICE, {"place.metrics": True}))
    metrics = json.loads((found.path / "metrics.json").read_text())
    assert (metrics["status"], metrics["up"], metrics["rounds_done"], metrics["cohort"]) == (
        "completed",
        0,
        2,
        4,
    )
    assert found.summary is not None
    assert metrics["epsilon_spent_rdp"] >= found.summary["privacy"]["epsilon_max"]
    lines = (found.path / "metrics.prom").read_text().splitlines()
    assert 'fedsim_rounds_done{run="real",seed="1"} 2' in lines
    assert sum(line.startswith("# HELP") for line in lines) == sum(
        line.startswith("fedsim_") for line in lines
    )
    log = [json.loads(line) for line in (found.path / "log.jsonl").read_text().splitlines()]
    assert [row["message"] for row in log if "round" in row["message"]][
        -1
    ] == "round 2 of 2 is done"


def test_a_failed_run_says_why_in_its_metrics(tmp_path: Path) -> None:
    limit = epsilon([Event(1.0, 1.0, 1)], 1e-5) + 0.01
    settings = config(tmp_path, DEVICE, {"place.metrics": True})
    with pytest.raises(WrongInput):
        run(tmp_path, settings, max_epsilon=limit)
    metrics = json.loads((RunDir.of(settings).path / "metrics.json").read_text())
    assert "takes no more part" in metrics["status"]
    assert (metrics["up"], metrics["rounds_done"]) == (0, 1)


def test_a_full_disk_at_the_server_is_told_and_the_run_goes_on_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(tmp_path, DEVICE)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(RunDir, "write_checkpoint", full)
        with pytest.raises(
            RunFailed, match=r"cannot be written .No space left on device.; make room"
        ):
            run(tmp_path, settings)
    done = run(tmp_path, settings)
    assert len(done.rows()) == 2
    table, counts = Ledger.open(done.path, 4).counts()
    assert counts.toarray().max() == 3  # round 1 was released twice, under other noise
    assert len(table.events) == 1
