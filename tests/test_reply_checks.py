"""What is rejected by name, and what a round makes of the rest."""

import logging
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from test_rounds import config, final, plain_rows

from experiments.adversary import adversarial, flipped, is_bad, poisoned
from fedsim.app.engines.local import run_local
from fedsim.app.engines.local_grid import LocalGrid
from fedsim.app.node.app import app as client_app
from fedsim.app.rundir.run_dir import RunDir
from fedsim.app.server.serve import serve
from fedsim.config import Aggregation, from_flat, to_flat
from fedsim.errors import RunFailed
from fedsim.types import Asked, Cohort, Reply, Update
from fedsim.wire import pack_reply, unpack_reply
from strategies.reply_checks import Guard, skips_rounds

SUMS = Asked()
PARAMS = {"w": torch.zeros(2)}
ASKED = {
    7: Cohort(4, np.array(["a", "b"]), None, np.array([1.0, 3.0])),
    8: Cohort(4, np.array(["c"]), None, np.array([2.0])),
}


def answer(node: int, **changes: object) -> Reply:
    """A good answer of a node to ASKED, but for the changes."""
    part = ASKED[node]
    weight = float(part.weights.sum())
    count = len(part)
    update = Update({"w": torch.full((2,), weight).double()}, weight, count, {"loss_sum": 1.0})
    inner = {k: v for k, v in changes.items() if k in ("delta", "weight", "metrics")}
    outer = {k: v for k, v in changes.items() if k not in inner}
    return replace(Reply(4, part.devices, replace(update, **inner)), **outer)


def message(node: int, content: RecordDict) -> Message:
    sent = Message(content, dst_node_id=1, message_type="train")
    sent.metadata.__dict__["_src_node_id"] = node
    return sent


@pytest.fixture(autouse=True)
def _a_server(tmp_path: Path) -> None:
    LocalGrid(client_app, {}, 1)  # messages need a task, which a grid sets


def accepted(
    *messages: Message, form: Asked = SUMS, **settings: object
) -> tuple[list[list[str]], dict[str, str]]:
    guard = Guard(4, ASKED, PARAMS, form, Aggregation.model_validate(settings))
    return [reply.devices.tolist() for reply in guard.accepted(messages)], guard.rejected


GOOD = {"w": torch.ones(2).double()}


def test_good_answers_pass() -> None:
    found = accepted(message(7, pack_reply(answer(7))), message(8, pack_reply(answer(8))))
    assert found == ([["a", "b"], ["c"]], {})


@pytest.mark.parametrize(
    ("changes", "settings", "reason"),
    [
        ({"round": 3}, {}, "answers round 3, this is round 4"),
        ({"devices": np.array(["a", "c"])}, {}, "covers 'c', whom nobody asked"),
        ({"devices": np.array(["a", "nobody"])}, {}, "covers 'nobody', whom nobody asked"),
        ({"devices": np.array(["a", "a"])}, {}, "names a device twice"),
        ({"devices": np.array(["a"])}, {}, "not of the form"),
        ({"single": True}, {}, "not of the form"),
        ({"weight": 40.0}, {}, "weight is 40, that of its devices 4"),
        ({"delta": {"w": torch.ones(3).double()}}, {}, r"torch.float64 of shape \[3\], not \[2\]"),
        ({"delta": {"w": torch.ones(2).long()}}, {}, "torch.int64"),
        ({"delta": GOOD | {"x": torch.ones(1)}}, {}, "other names"),
        ({"delta": {"w": torch.tensor([1.0, torch.nan])}}, {}, "NaN or infinity"),
        ({"delta": {"w": torch.tensor([1.0, torch.inf])}}, {}, "NaN or infinity"),
        ({"metrics": {"loss_sum": float("nan")}}, {}, "NaN or infinity"),
        (
            {"delta": {"w": torch.tensor([40.1, 0.0])}},
            {"max_norm": 10.0},
            "norm is 40.1, at most 40",
        ),
        (
            {"delta": {"w": torch.ones(500)}},
            {"max_bytes": 300},
            r"sent \d+ bytes, .*max_bytes is 300",
        ),
    ],
)
def test_a_wrong_answer_is_rejected_by_name_and_the_others_pass(
    changes: dict[str, object],
    settings: dict[str, object],
    reason: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    first = message(7, pack_reply(answer(7, **changes)))
    second = message(8, pack_reply(answer(8)))
    passed, rejected = accepted(first, second, **settings)
    assert passed == [["c"]]
    assert rejected.keys() == {"a", "b"}
    caplog.set_level(logging.WARNING)
    assert re.search(reason, rejected["a"]), rejected
    assert "round 4: the update of node 7 (a, b) is rejected" in caplog.text


def test_a_message_that_cannot_be_read_is_rejected() -> None:
    broken = pack_reply(answer(7))
    del broken.config_records["update"]
    other = pack_reply(answer(8))
    other.config_records["update"]["wire_version"] = 99
    passed, rejected = accepted(message(7, broken), message(8, other))
    assert passed == []
    assert "cannot be read: KeyError" in rejected["a"]
    assert "wire version 99" in rejected["c"]
    assert accepted(message(8, RecordDict({"x": ConfigRecord({})})))[0] == []


def test_a_replay_costs_the_node_s_own_answer_nothing() -> None:
    good = message(7, pack_reply(answer(7)))
    old = message(7, pack_reply(answer(7, round=3)))
    for order in ((good, old), (old, good), (good, good)):
        passed, rejected = accepted(*order)
        assert passed == [["a", "b"]]
        assert list(rejected) == ["node 7"]


def test_a_node_that_was_not_asked_is_rejected() -> None:
    assert accepted(message(9, pack_reply(answer(8)))) == ([], {"node 9": "it was not asked"})


def test_of_single_updates_only_the_bad_device_falls() -> None:
    rows = {"w": torch.tensor([[1.0, 0.0], [torch.nan, 0.0]])}
    figures = {"loss_sum": np.array([0.25, 0.75])}
    guard = Guard(4, ASKED, PARAMS, Asked(single=True), Aggregation())
    sent = pack_reply(answer(7, single=True, delta=rows, figures=figures))
    (found,) = guard.accepted([message(7, sent)])
    assert found.devices.tolist() == ["a"]
    assert found.update.delta["w"].tolist() == [[1.0, 0.0]]
    assert (found.update.devices, found.update.metrics) == (1, {"loss_sum": 0.25})
    assert list(guard.rejected) == ["b"]


def test_single_updates_without_their_figures_are_rejected() -> None:
    rows = {"w": torch.ones(2, 2)}
    sent = message(7, pack_reply(answer(7, single=True, delta=rows)))
    assert "no figures" in accepted(sent, form=Asked(single=True))[1]["a"]


def test_only_a_minimum_of_updates_skips_rounds() -> None:
    assert skips_rounds(Aggregation(min_updates=1))
    assert not skips_rounds(Aggregation(max_norm=1.0))


# whole runs


def run(settings: object, app: ClientApp, nodes: int = 2) -> RunDir:
    return serve(LocalGrid(app, to_flat(settings), nodes), settings, {}, run_local)  # type: ignore[arg-type]


def app_that(change: Callable[[Reply, Context], Reply]) -> ClientApp:
    """The ClientApp with `change` applied to every answer."""
    app = ClientApp()

    @app.query()
    def announce(message: Message, context: Context) -> Message:
        return client_app(message, context)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        reply = unpack_reply(client_app(message, context).content)
        return Message(pack_reply(change(reply, context)), reply_to=message)

    return app


def without_node_1(reply: Reply, context: Context) -> Reply:
    """Node 1 answers for none of its devices: what a run without its updates would see."""
    if context.node_config["partition-id"] != 1:
        return reply
    zero = {name: torch.zeros_like(d) for name, d in reply.update.delta.items()}
    return replace(reply, devices=reply.devices[:0], update=Update(zero, 0.0, 0, {}))


def poisoned_node_1(reply: Reply, context: Context) -> Reply:
    if context.node_config["partition-id"] != 1:
        return reply
    bad = {name: d * torch.nan for name, d in reply.update.delta.items()}
    return replace(reply, update=replace(reply.update, delta=bad))


def test_nothing_of_a_rejected_update_reaches_model_or_metrics(tmp_path: Path) -> None:
    poisoned = run(config(tmp_path / "a"), app_that(poisoned_node_1))
    absent = run(config(tmp_path / "b"), app_that(without_node_1))
    assert all(torch.equal(final(poisoned)[n], p) for n, p in final(absent).items())
    assert all(row["rejected"] > 0 for row in poisoned.rows())
    assert all(row["rejected"] + row["devices"] == row["cohort"] for row in poisoned.rows())
    same = [{k: v for k, v in row.items() if k != "rejected"} for row in plain_rows(absent)]
    assert [
        {k: v for k, v in row.items() if k != "rejected"} for row in plain_rows(poisoned)
    ] == same


def test_too_few_valid_updates_leave_the_model_and_say_so(tmp_path: Path) -> None:
    kept = run(config(tmp_path / "a", aggregation__min_updates=31), client_app)  # of 30 devices
    assert all(row["skipped"] == 1 for row in kept.rows())
    moved = run(config(tmp_path / "b", aggregation__min_updates=1), client_app)
    assert all("skipped" not in row for row in moved.rows())
    assert len({row["loss"] for row in kept.rows()}) == 1
    assert len({row["loss"] for row in moved.rows()}) == 5


def test_a_device_whose_own_update_is_not_finite_falls_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node finds the device that spoils its sum; the others' sum is as without that device."""
    from clients.chunk import Assignment, Lane

    whole = Lane._work
    bad = "d00"

    def spoiled(self: Lane, a: Assignment, *how: object) -> object:
        work = whole(self, a, *how)  # type: ignore[arg-type]
        return replace(work, weight=float("nan")) if a.device.endswith(bad) else work

    settings = config(tmp_path, selection__rule="uniform", selection__cohort=30, train__rounds=2)
    monkeypatch.setattr(Lane, "_work", spoiled)
    rows = run_local(settings).rows()
    devices = np.load(RunDir.of(settings).path / "devices.npz")["devices"]
    wanted = sum(str(d).endswith(bad) for d in devices)
    assert wanted >= 1
    assert [row["rejected"] for row in rows] == [wanted] * 2
    assert [row["devices"] for row in rows] == [30 - wanted] * 2


def test_a_model_that_diverges_is_not_taken_for_bad_devices(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match="no device's update is finite any more"):
        run_local(config(tmp_path, train__lr=1e9, train__local_epochs=20))


@pytest.mark.parametrize("over", ["reject", "clip"])
def test_norms_are_bounded_on_the_node_device_by_device(tmp_path: Path, over: str) -> None:
    shared = {"aggregation__max_norm": 0.5, "aggregation__over_norm": over, "train__rounds": 1}
    bounded = run_local(config(tmp_path / over, **shared)).rows()[0]
    free = run_local(config(tmp_path / "free", train__rounds=1)).rows()[0]
    if over == "clip":
        assert (bounded["rejected"], bounded["devices"]) == (0, free["devices"])
    else:
        assert bounded["rejected"] + bounded["devices"] == free["devices"]
        assert bounded["rejected"] > 0


@pytest.mark.parametrize("rule", ["median", "trimmed_mean", "multi_krum"])
def test_robust_rules_run_on_any_number_of_nodes(tmp_path: Path, rule: str) -> None:
    one = run_local(config(tmp_path / "1", aggregation__rule=rule), nodes=1)
    three = run_local(config(tmp_path / "3", aggregation__rule=rule), nodes=3)
    for name, p in final(one).items():
        torch.testing.assert_close(final(three)[name], p, rtol=1e-5, atol=1e-5)


# a fifth of the devices lie

DIGITS = {
    "name": "digits",
    "data.source": "digits",
    "data.task": "image",
    "data.devices": 25,
    "data.test_share": 0.2,
    "partition.name": "iid",
    "model.name": "mlp",
    "model.hidden": 32,
    "train.rounds": 8,
    "train.lr": 0.5,
    "train.local_epochs": 2,
    "evaluation.every": 8,
    "selection.rule": "uniform",
    "selection.cohort": 25,
    "selection.sampling": "fixed",
    "aggregation.rule": "fedavg",
    "aggregation.lr": 1.0,
    "aggregation.trim": 0.3,
    "place.threads": 1,
}


def accuracy(out: Path, share: float, **settings: object) -> float:
    """The test accuracy when a share of the devices sends five times the opposite of what it
    learned.
    """
    named = {key.replace("__", "."): value for key, value in settings.items()}
    chosen = from_flat(DIGITS | {"place.out": str(out / str(share))} | named)
    summary = run(chosen, adversarial(share, flipped(5.0)), nodes=1).summary
    assert summary is not None
    return float(summary["metrics"]["accuracy"])


def test_fedavg_falls_when_a_fifth_of_the_devices_flips_signs(tmp_path: Path) -> None:
    assert accuracy(tmp_path, 0.2) < accuracy(tmp_path, 0.0) - 0.3


@pytest.mark.parametrize("rule", ["median", "trimmed_mean", "multi_krum"])
def test_robust_rules_hold_within_five_points(tmp_path: Path, rule: str) -> None:
    assert accuracy(tmp_path, 0.2, aggregation__rule=rule) > accuracy(tmp_path, 0.0) - 0.05


def test_bounded_norms_keep_learning_but_lose_more(tmp_path: Path) -> None:
    """Bad devices still push as hard as the bound lets them, and good ones often push less."""
    bounded = {"aggregation__max_norm": 0.3, "aggregation__over_norm": "clip", "train__rounds": 12}
    assert (
        accuracy(tmp_path, 0.2, **bounded)
        > accuracy(tmp_path / "free", 0.2, train__rounds=12) + 0.4
    )


def test_poisoned_devices_are_counted_and_cost_only_themselves(tmp_path: Path) -> None:
    chosen = from_flat(DIGITS | {"place.out": str(tmp_path)})
    done = run(chosen, adversarial(0.2, poisoned), nodes=1)
    devices = np.load(done.path / "devices.npz")["devices"]
    bad = sum(is_bad(str(device), 0.2) for device in devices)
    assert 2 <= bad <= 8
    assert [row["rejected"] for row in done.rows()] == [bad] * 8
    assert done.summary is not None
    assert done.summary["metrics"]["accuracy"] > 0.8
