"""One experiment on every backend gives one result: in this process, on Ray, through a SuperLink.

Seen to fail: one node's weights doubled, noise seeded by the node, devices in the order of arrival.
"""

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.deployment.processes import LONG_S, ROOT, Federation, descendants, send, until
from fedsim.app.engines.flower import Backend
from fedsim.app.engines.local import run_local
from fedsim.app.rundir.run_dir import RunDir
from fedsim.config import Config, from_flat, to_flat, to_toml
from fedsim.errors import WrongInput

TINY = {
    "data.devices": 30,
    "data.examples": 300,
    "model.embedding": 8,
    "model.hidden": 8,
    "train.rounds": 3,
    "train.lr": 0.5,
    "selection.rule": "uniform",
    "selection.cohort": 12,
    "aggregation.rule": "fedavg",
    "aggregation.lr": 1.0,
    "place.threads": 1,
}
NOISED = {"dp.unit": "device", "dp.clip_norm": 0.5, "dp.noise_multiplier": 0.5}
EXPERIMENTS = {"plain": {}, "noised": NOISED}


def settings(name: str, out: Path) -> Config:
    return from_flat(TINY | EXPERIMENTS[name] | {"name": name, "place.out": str(out)})


def arguments(config: Config, folder: Path) -> list[str]:
    """The command line of an experiment; its file is named by its content alone."""
    changed = {k: v for k, v in to_flat(config).items() if v != to_flat(Config())[k]}
    pairs = [word for k, v in changed.items() for word in ("--set", f"{k}={json.dumps(v)}")]
    empty = folder / "empty.toml"
    empty.touch()
    return ["run", str(empty), "--json", *pairs]


def last(run: RunDir) -> dict[str, Any]:
    found = run.last_checkpoint()
    assert found is not None
    assert found.round == 3
    return {name: p.numpy() for name, p in found.params.items()}


def difference(a: RunDir, b: RunDir) -> float:
    one = last(a)
    two = last(b)
    assert one.keys() == two.keys()
    return max(float(np.abs(one[name] - two[name]).max()) for name in one)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunDir]:
    """Each experiment on one in-process node."""
    out = tmp_path_factory.mktemp("local")
    return {name: run_local(settings(name, out)) for name in EXPERIMENTS}


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """A SuperLink and two nodes that share the federation's devices, without TLS."""
    with Federation(tmp_path_factory.mktemp("superlink")) as found:
        found.superlink()
        for i in range(2):
            found.node(f"node{i}", {"partition-id": i, "num-partitions": 2})
        yield found


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_three_nodes_in_this_process_give_the_same_model_as_one(
    name: str, reference: dict[str, RunDir], tmp_path: Path
) -> None:
    assert difference(reference[name], run_local(settings(name, tmp_path), nodes=3)) < 1e-6


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_ray_gives_the_same_model(name: str, reference: dict[str, RunDir], tmp_path: Path) -> None:
    config = settings(name, tmp_path / "runs")
    with Federation(tmp_path) as processes:
        done = processes.fedsim(*arguments(config, tmp_path), "--backend", "ray", "--nodes", "2")
    assert done.returncode == 0, done.stderr
    run = RunDir.of(config)
    assert difference(reference[name], run) < 1e-6
    assert run.manifest["plan"]["nodes"] == 2
    assert json.loads(done.stdout) == run.summary


@pytest.mark.slow
@pytest.mark.superlink
def test_a_superlink_with_two_nodes_gives_the_same_model_under_noise(
    reference: dict[str, RunDir], federation: Federation
) -> None:
    config = settings("noised", federation.home / "runs")
    where = ("--backend", "superlink", "--address", federation.address, "--insecure")
    done = federation.fedsim(*arguments(config, federation.home), *where, "--set", "place.nodes=2")
    assert done.returncode == 0, done.stderr
    run = RunDir.of(config)
    assert difference(reference["noised"], run) < 1e-6
    assert run.manifest["plan"]["nodes"] == 2
    rows = run.rows()
    wanted = reference["noised"].rows()
    assert [row["cohort"] for row in rows] == [row["cohort"] for row in wanted]
    assert run.summary is not None
    assert run.summary["privacy"] == reference["noised"].summary["privacy"]  # type: ignore[index]
    again = federation.fedsim(*arguments(config, federation.home), *where)
    assert json.loads(again.stdout) == run.summary  # it was done already: nothing is handed in


@pytest.mark.slow
@pytest.mark.superlink
def test_flwr_run_by_itself_gives_the_same_model_under_the_name_in_the_file(
    reference: dict[str, RunDir], federation: Federation
) -> None:
    config = settings("plain", Path("runs"))  # where the SuperLink was started
    there = federation.connection()
    (federation.home / "experiment.toml").write_text(to_toml(config))
    run_id = there.submit(str(ROOT), federation.home / "experiment.toml")
    until(lambda: there.state(run_id).finished, LONG_S, "the end of the run")
    assert there.state(run_id).status == "finished:completed", federation.log("superlink")
    (path,) = (federation.home / "runs" / "plain").glob("*/*")
    run = RunDir(path)
    assert difference(reference["plain"], run) < 1e-6
    assert run.summary is not None
    assert run.summary["name"] == "plain"
    words = run.manifest["command"]
    assert words[words.index("--token") + 1] == "***"


@pytest.mark.slow
@pytest.mark.superlink
def test_wrong_input_ends_with_two_and_a_failure_with_one_each_in_a_sentence(
    federation: Federation,
) -> None:
    where = ("--backend", "superlink", "--address", federation.address, "--insecure")
    config = settings("plain", federation.home / "wrong")
    wrong = federation.fedsim(
        *arguments(config, federation.home),
        *where,
        "--set",
        "data.source=files",
        "--set",
        "data.train=x",
    )
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("error: ")
    assert "FEDSIM_DATA" in wrong.stderr
    nobody = ("--backend", "superlink", "--address", "127.0.0.1:1", "--insecure")
    failed = federation.fedsim(*arguments(config, federation.home), *nobody)
    assert failed.returncode == 1
    assert failed.stderr.startswith("failed: the SuperLink at 127.0.0.1:1 did not do")
    assert "Traceback" not in failed.stderr + wrong.stderr


@pytest.mark.slow
@pytest.mark.ray
def test_sigterm_ends_a_ray_run_with_all_that_it_started(tmp_path: Path) -> None:
    config = settings("plain", tmp_path / "runs")
    with Federation(tmp_path) as processes:
        ours = processes.fedsim_in_background(
            "ray", *arguments(config, tmp_path), "--backend", "ray"
        )
        started = until(lambda: descendants(ours.pid), LONG_S, "the SuperLink")
        until(lambda: (tmp_path / "runs").exists(), LONG_S, "the ServerApp")
        started = descendants(ours.pid)
        send(ours.pid, signal.SIGTERM)
        assert ours.wait(LONG_S) == 1
        assert "was stopped; run it again to go on" in processes.log("ray")
        until(
            lambda: not [pid for pid in started if is_running(pid)],
            LONG_S,
            "the end of what it started",
        )


def is_running(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"name": "cloud"}, "choose local, ray or superlink"),
        ({"name": "superlink"}, "wants --address"),
        ({"name": "ray", "address": "a:1"}, "wants --backend superlink"),
        ({"name": "superlink", "address": "a:1", "nodes": 2}, "place.nodes=N"),
    ],
)
def test_a_backend_that_cannot_be_is_told(wrong: dict[str, Any], why: str) -> None:
    with pytest.raises(WrongInput, match=why):
        Backend(**wrong)


def test_every_experiment_bears_its_own_name() -> None:
    files = [p for p in (ROOT / "experiments").glob("*.toml") if ".sweep" not in p.name]
    found = {p.stem: p.read_text() for p in files}
    assert [stem for stem, text in found.items() if f'\nname = "{stem}"\n' not in text] == []
