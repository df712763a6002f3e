"""Whole runs: the same result whatever the nodes, the interruption, or who drives the strategy."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from factory import configured
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedsim.app.engines.local import run_local
from fedsim.app.engines.local_grid import LocalGrid
from fedsim.app.engines.server_app import app as server_app
from fedsim.app.node.app import app as client_app
from fedsim.app.rundir.files import Watch
from fedsim.app.rundir.manifest import with_plan
from fedsim.app.rundir.run_dir import RunDir
from fedsim.app.server.nodes import Nodes
from fedsim.app.server.rounds import stopped_early
from fedsim.config import Config, Place, from_flat, to_flat
from fedsim.data.federation import load_federation
from fedsim.errors import RunFailed, WrongInput
from fedsim.models import build_model, parameters_of
from fedsim.models.tasks import make_task
from fedsim.types import Params
from fedsim.wire import pack_params, unpack_params
from strategies.federated import Federated

TINY = {
    "name": "tiny",
    "data.devices": 30,
    "data.examples": 300,
    "model.embedding": 8,
    "model.hidden": 8,
    "train.rounds": 5,
    "train.lr": 1.0,
    "selection.cohort": 10,
    "aggregation.rule": "fedavg",
    "aggregation.lr": 1.0,
    "place.threads": 1,
}


def config(out: Path, **changes: object) -> Config:
    return configured(TINY | {"place.out": str(out)}, **changes)


def final(run: RunDir) -> Params:
    checkpoint = run.last_checkpoint()
    assert checkpoint is not None
    return checkpoint.params


def plain_rows(run: RunDir) -> list[dict[str, object]]:
    """Rows without what depends on clock and machine."""
    return [{k: v for k, v in row.items() if not k.startswith("time")} for row in run.rows()]


@pytest.mark.parametrize("rule", ["fedavg", "fedadam"])
def test_the_same_seed_gives_the_same_bits(tmp_path: Path, rule: str) -> None:
    runs = [
        run_local(config(tmp_path / x, aggregation__rule=rule, model__dropout=0.3)) for x in "ab"
    ]
    one, two = map(final, runs)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert plain_rows(runs[0]) == plain_rows(runs[1])


def test_another_seed_gives_another_model(tmp_path: Path) -> None:
    one, two = (final(run_local(config(tmp_path, seed=seed))) for seed in (1, 2))
    assert not torch.equal(one["embedding.weight"], two["embedding.weight"])


@pytest.mark.parametrize("model", ["bag", "bilstm"])
def test_three_nodes_equal_one(tmp_path: Path, model: str) -> None:
    one = run_local(config(tmp_path / "1", model__name=model, model__dropout=0.3), nodes=1)
    three = run_local(config(tmp_path / "3", model__name=model, model__dropout=0.3), nodes=3)
    assert three.manifest["plan"]["nodes"] == 3
    for name, p in final(one).items():
        torch.testing.assert_close(final(three)[name], p, rtol=1e-5, atol=1e-5)
    assert [row["cohort"] for row in one.rows()] == [row["cohort"] for row in three.rows()]


def test_training_learns(tmp_path: Path) -> None:
    settings = {"train__rounds": 20, "aggregation__rule": "fedadam", "aggregation__lr": 0.03}
    data = {"data__examples": 2000, "model__embedding": 32}
    rows = run_local(config(tmp_path, train__lr=3.0, **settings, **data)).rows()
    assert rows[-1]["intent_accuracy"] > rows[0]["intent_accuracy"] + 0.3
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]


class Killed(Exception):
    """Stands for the end of the process in the middle of a run."""


def stop_after(round: int) -> Watch:
    def watch(row: dict[str, object]) -> None:
        if row["round"] == round:
            raise Killed

    return watch


def test_a_run_that_ended_anywhere_resumes_to_the_same_bits(tmp_path: Path) -> None:
    undisturbed = run_local(config(tmp_path / "a", aggregation__rule="fedadam"))
    broken = config(tmp_path / "b", aggregation__rule="fedadam")
    for stop in (1, 3, 4):
        with pytest.raises(Killed):
            run_local(broken, watch=stop_after(stop))
        with (RunDir.of(broken).path / "rounds.jsonl").open("a") as rows:
            rows.write(
                '{"round": ' if stop == 3 else json.dumps({"round": stop + 1}) + "\n"
            )  # torn, ahead
    resumed = run_local(broken)
    assert plain_rows(resumed) == plain_rows(undisturbed)
    assert all(torch.equal(final(resumed)[n], p) for n, p in final(undisturbed).items())


@pytest.mark.slow
@pytest.mark.process
def test_kill_minus_nine_in_the_middle_changes_nothing(tmp_path: Path) -> None:
    settings = [f"--set={k}={v}" for k, v in TINY.items() if k != "train.rounds"]
    command = [
        sys.executable,
        "-m",
        "fedsim",
        "run",
        "x.toml",
        "--set=train.rounds=60",
        *settings,
    ]
    (tmp_path / "x.toml").touch()
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*command, "--out=killed"], cwd=tmp_path, env=env, stderr=subprocess.DEVNULL
    )
    rows: list[Path] = []
    limit = time.monotonic() + 120
    while not (rows and rows[0].read_text().count("\n") >= 5):
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < limit
        time.sleep(0.02)
        rows = list(tmp_path.glob("killed/**/rounds.jsonl"))
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    killed = RunDir(rows[0].parent)
    assert killed.summary is None
    assert 5 <= len(killed.rows()) < 60
    for out in ("killed", "whole"):
        subprocess.run(
            [*command, f"--out={out}"], cwd=tmp_path, env=env, check=True, capture_output=True
        )
    whole = RunDir(next(tmp_path.glob("whole/**/rounds.jsonl")).parent)
    assert plain_rows(killed) == plain_rows(whole)
    assert all(torch.equal(final(killed)[n], p) for n, p in final(whole).items())


def test_a_finished_run_is_left_alone(tmp_path: Path) -> None:
    first = run_local(config(tmp_path))
    before = {
        p: p.stat().st_mtime_ns for p in first.path.rglob("*") if p.is_file() and p.name != "lock"
    }
    run_local(config(tmp_path))
    after = {
        p: p.stat().st_mtime_ns for p in first.path.rglob("*") if p.is_file() and p.name != "lock"
    }
    assert before == after


def test_fresh_keeps_the_old_run_aside(tmp_path: Path) -> None:
    first = run_local(config(tmp_path))
    run_local(config(tmp_path), fresh=True)
    (aside,) = first.path.parent.glob("seed=1.before-*")
    assert (aside / "summary.json").is_file()
    assert first.summary is not None


def test_other_data_are_refused_on_resume(tmp_path: Path) -> None:
    run = run_local(config(tmp_path))
    (run.path / "summary.json").unlink()
    manifest = run.manifest
    run.write_manifest(manifest | {"fingerprint": {"requests": "other"}})
    with pytest.raises(WrongInput, match=r"begun with another requests; .* --fresh"):
        run_local(config(tmp_path))
    run.write_manifest(manifest | {"device_type": "cuda"})
    with pytest.raises(WrongInput, match="begun on cuda and cannot go on on cpu"):
        run_local(config(tmp_path))


def test_a_resume_keeps_the_plan(tmp_path: Path) -> None:
    """Nodes, threads and chunks: the parameters are those of the undisturbed run to the bit."""
    small = {"place__memory_gib": 1e-4}
    undisturbed = run_local(config(tmp_path / "a", **small), nodes=3)
    with pytest.raises(Killed):
        run_local(config(tmp_path / "b", **small), nodes=3, watch=stop_after(2))
    run = run_local(config(tmp_path / "b", place__threads=2), nodes=1)
    assert run.manifest["plan"] == {
        "nodes": 3,
        "threads": 1,
        "lanes": "threads",
        "chunk_bytes": int(1e-4 * 2**30),
    }
    assert torch.get_num_threads() == 1
    assert all(torch.equal(final(run)[n], p) for n, p in final(undisturbed).items())


def test_a_plan_from_before_there_were_lanes_is_one_of_threads(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        run_local(config(tmp_path), watch=stop_after(2))
    begun = RunDir.of(config(tmp_path))
    manifest = begun.manifest
    del manifest["plan"]["lanes"]
    begun.write_manifest(manifest)
    assert run_local(config(tmp_path, place__lanes="processes")).summary is not None
    assert with_plan(Place(lanes="processes"), manifest["plan"]).lanes == "threads"


def test_two_processes_do_not_share_a_run_and_the_first_one_s_folder_stays(tmp_path: Path) -> None:
    run = RunDir.of(config(tmp_path))
    with run.locked():
        with pytest.raises(WrongInput, match="another process is working on"):
            run_local(config(tmp_path))
        assert (run.path / "lock").is_file()
        with pytest.raises(WrongInput, match="another process is working on"):
            run_local(config(tmp_path))
    assert run_local(config(tmp_path)).summary is not None


def test_the_server_app_is_a_flower_app(tmp_path: Path) -> None:
    settings = config(tmp_path)
    grid = LocalGrid(client_app, to_flat(settings), nodes=2)
    context = Context(1, 1, {}, RecordDict(), to_flat(settings))
    server_app(grid=grid, context=context)
    summary = RunDir.of(settings).summary
    assert summary is not None
    assert summary["status"] == "completed"


def test_the_strategy_is_a_genuine_flower_strategy(tmp_path: Path) -> None:
    settings = config(tmp_path)
    grid = LocalGrid(client_app, to_flat(settings), nodes=2)
    federation = load_federation(settings.data, None)
    params = parameters_of(build_model(federation.spec, settings.model, settings.seed))
    strategy = Federated(settings, Nodes(grid, settings.place).roster(), params)
    result = strategy.start(grid, pack_params(params), num_rounds=settings.train.rounds)
    by_loop = final(run_local(settings, nodes=2))
    assert all(torch.equal(unpack_params(result.arrays)[n], p) for n, p in by_loop.items())


def test_an_empty_cohort_passes_quietly(tmp_path: Path) -> None:
    rows = run_local(
        config(tmp_path, selection__cohort=1, selection__rule="uniform", train__rounds=12)
    ).rows()
    empty = [row for row in rows if row["cohort"] == 0]
    assert empty, "the seed should give an empty cohort"
    assert all(row["devices"] == 0 and "train_loss" not in row for row in empty)


def test_divergence_is_told_in_a_sentence_and_keeps_the_last_good_round(tmp_path: Path) -> None:
    settings = config(tmp_path, train__lr=1e9, aggregation__lr=1e9, train__local_epochs=20)
    with pytest.raises(RunFailed, match="training diverged in round"):
        run_local(settings)
    assert RunDir.of(settings).summary is None


def test_a_loss_that_is_no_number_is_told_in_a_sentence_too(tmp_path: Path) -> None:
    """The parameters stay finite here; only what is computed from them does not."""
    settings = config(tmp_path, train__lr=1e8, aggregation__lr=1e8, train__rounds=3)
    with pytest.raises(RunFailed, match="training diverged in round"):
        run_local(settings)


def test_a_reference_that_diverges_does_not_spoil_the_run(tmp_path: Path) -> None:
    deep = {"model.name": "mlp", "model.layers": 6, "data.source": "digits", "data.task": "image"}
    shared = {"partition.name": "iid", "data.test_share": 0.2, "train.lr": 0.01}
    reference = {"train.centralised": True, "train.centralised_lr": 1e9}
    settings = from_flat(TINY | deep | shared | reference | {"place.out": str(tmp_path)})
    summary = run_local(settings).summary
    assert summary is not None
    assert "loss" not in summary["reference"].get("centralised", {})


def test_wrong_input_leaves_the_old_run_in_place_even_when_fresh(tmp_path: Path) -> None:
    run = run_local(config(tmp_path))
    with pytest.raises(WrongInput, match="torch sees no GPU"):
        run_local(config(tmp_path, place__device="cuda"), fresh=True)
    assert run.summary is not None
    assert [p.name for p in run.path.parent.iterdir()] == ["seed=1"]


def test_wrong_input_leaves_the_user_s_own_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    for out in (tmp_path / "mine", tmp_path / "new"):
        with pytest.raises(WrongInput):
            run_local(config(out, place__device="cuda"))
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]
    assert not any((tmp_path / "mine").iterdir())


def test_a_comparison_without_test_examples_is_refused(tmp_path: Path) -> None:
    shared = {
        "data.source": "digits",
        "data.task": "image",
        "model.name": "mlp",
        "partition.name": "iid",
    }
    flat = TINY | shared | {"place.out": str(tmp_path)}
    with pytest.raises(WrongInput, match=r"train\.centralised needs test examples"):
        run_local(from_flat(flat | {"train.centralised": True}))
    with pytest.raises(WrongInput, match=r"data\.test_share = 0\.01 is too small"):
        run_local(from_flat(flat | {"data.test_share": 0.01}))


def test_leftovers_without_a_manifest_are_never_resumed(tmp_path: Path) -> None:
    run = run_local(config(tmp_path))
    (run.path / "manifest.json").unlink()
    (run.path / "summary.json").unlink()
    again = run_local(config(tmp_path))
    assert len(again.rows()) == 5
    assert len(list(run.path.parent.glob("seed=1.before-*"))) == 1


def test_early_stopping_is_a_function_of_the_rows(tmp_path: Path) -> None:
    settings = config(tmp_path, train__patience=2, train__rounds=40, train__lr=3.0)
    task = make_task(load_federation(settings.data, None).spec)
    rows = [{"round": i, "dev_intent_accuracy": v} for i, v in enumerate([0.1, 0.5, 0.4, 0.5], 1)]
    assert [stopped_early(settings, task, rows[:n]) for n in range(5)] == [False] * 4 + [True]
    summary = run_local(settings).summary
    assert summary is not None
    assert summary["rounds"] < 40
    assert "outside any epsilon" in summary["stopped_early"]


def test_patience_needs_a_metric_that_exists(tmp_path: Path) -> None:
    with pytest.raises(WrongInput, match=r"patience_metric = 'acuracy' is not measured"):
        run_local(config(tmp_path, train__patience=2, train__patience_metric="acuracy"))
    assert not (tmp_path / "tiny").exists()


def test_the_summary_has_the_contract_s_fields(tmp_path: Path) -> None:
    summary = run_local(config(tmp_path, train__centralised=True)).summary
    assert summary is not None
    expected = (
        "schema name status config_hash seed rounds devices devices_all devices_empty examples "
        "test_labels_unseen metrics reference time privacy attacks"
    )
    assert summary.keys() == set(expected.split())
    assert summary["metrics"].keys() == {"loss", "intent_accuracy", "slot_f1", "frame_accuracy"}
    assert summary["reference"]["centralised"].keys() == summary["metrics"].keys()
    assert summary["privacy"] == {}
    assert (summary["devices"], summary["examples"], summary["rounds"]) == (30, 300, 5)


def test_checkpoints_are_kept_as_asked(tmp_path: Path) -> None:
    last = run_local(config(tmp_path / "last"))
    every = run_local(config(tmp_path / "all", place__keep="all"))
    assert [p.name for p in (last.path / "checkpoints").iterdir()] == ["round-000005.npz"]
    assert len(list((every.path / "checkpoints").iterdir())) == 5


def test_participation_is_counted(tmp_path: Path) -> None:
    run = run_local(config(tmp_path))
    checkpoint = run.last_checkpoint()
    assert checkpoint is not None
    assert checkpoint.participation.sum() == sum(row["cohort"] for row in run.rows())
    with np.load(run.path / "devices.npz", allow_pickle=False) as devices:
        assert len(devices["devices"]) == len(checkpoint.participation)


def test_a_node_that_fails_is_left_out_and_the_round_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A grid whose second node answers training with an error, as a real grid's would."""
    from flwr.app import Error

    failing = ClientApp()

    @failing.query()
    def announce(message: Message, context: Context) -> Message:
        return client_app(message, context)

    @failing.train()
    def train(message: Message, context: Context) -> Message:
        if context.node_config["partition-id"] == 1:
            return Message(Error(code=1, reason="out of disk"), reply_to=message)
        return client_app(message, context)

    settings = config(tmp_path)
    grid = LocalGrid(failing, to_flat(settings), nodes=2)
    server_app(grid=grid, context=Context(1, 1, {}, RecordDict(), to_flat(settings)))
    rows = RunDir.of(settings).rows()
    assert all(row["devices"] < row["cohort"] for row in rows)
    assert "out of disk" in caplog.text
