"""Nodes that come late, go away, come back under another id, answer nonsense, or do not answer.

Seen to fail: messages to nodes that are away, a newcomer taken in with devices of a node that is
there.
"""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, Message
from test_real_nodes import DEVICE, RealGrid, config, nodes, write

from fedsim.app.engines.local import run_local
from fedsim.app.rundir.run_dir import RunDir
from fedsim.app.server.nodes import Nodes
from fedsim.app.server.serve import serve
from fedsim.config import Config
from fedsim.errors import RunFailed, WrongInput
from fedsim.privacy.ledger import Ledger
from fedsim.types import Announcement
from strategies.roster import Roster, moved

ROOT = Path(__file__).parents[1]


class Unsteady(RealGrid):
    """Nodes of which only some are there, and only some answer training; `plan` is called before a
    round.
    """

    def __init__(self, settings: Config, node_configs: list[dict[str, Any]]) -> None:
        super().__init__(settings, node_configs)
        self.here = super().get_node_ids()
        self.mute: set[int] = set()
        self.asked: list[int] = []

    def get_node_ids(self) -> list[int]:
        return list(self.here)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        sent = list(messages)
        assert all(m.metadata.dst_node_id in self.here for m in sent), (
            "nobody asks a node that is away"
        )
        self.asked += [m.metadata.dst_node_id for m in sent]
        heard = [
            m
            for m in sent
            if m.metadata.dst_node_id not in self.mute or m.metadata.message_type != "train"
        ]
        return super().send_and_receive(heard)


@pytest.fixture
def settings(tmp_path: Path) -> Config:
    return config(tmp_path, DEVICE, {"train.rounds": 3, "place.deadline_s": 5.0, "place.nodes": 1})


def run(grid: Unsteady, settings: Config, steps: dict[int, Any]) -> RunDir:
    """Run with changes to the grid after some rounds."""

    def watch(row: dict[str, Any]) -> None:
        steps.get(row["round"], lambda: None)()

    return serve(grid, settings, {}, run_local, watch)


def test_a_node_that_goes_and_comes_back_costs_only_its_own_answers(
    tmp_path: Path, settings: Config
) -> None:
    grid = Unsteady(settings, nodes(tmp_path))
    found = run(grid, settings, {1: lambda: grid.here.remove(3), 2: lambda: grid.here.append(3)})
    assert [row["devices"] for row in found.rows()] == [4, 2, 4]
    _, counts = Ledger.open(found.path, 4).counts()
    assert counts.toarray().sum(axis=1).tolist() == [3, 3, 3, 3]


def test_a_node_that_comes_back_under_another_id_has_its_devices_again(
    tmp_path: Path, settings: Config
) -> None:
    first, second = nodes(tmp_path)
    grid = Unsteady(settings, [first, second, dict(second)])
    grid.here = [2, 3]
    found = run(grid, settings, {1: lambda: setattr(grid, "here", [2, 4])})
    assert [row["devices"] for row in found.rows()] == [4, 4, 4]
    assert grid.asked.count(4) == 3  # its devices, then two rounds


def test_a_newcomer_waits_for_the_next_run(
    tmp_path: Path, settings: Config, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path / "new" / "train.jsonl", ["eve"])
    late = {"data-path": str(tmp_path / "new"), "state-path": str(tmp_path / "new-state")}
    grid = Unsteady(settings, [*nodes(tmp_path), late])
    grid.here = [2, 3]
    with caplog.at_level(logging.WARNING):
        found = run(grid, settings, {1: lambda: grid.here.append(4)})
    assert [row["devices"] for row in found.rows()] == [4, 4, 4]
    assert grid.asked.count(4) == 1
    assert "'eve', whom the run did not begin with; a device joins with the next run" in caplog.text


def test_a_node_that_answers_too_late_is_left_out_of_the_round(
    tmp_path: Path, settings: Config
) -> None:
    grid = Unsteady(settings, nodes(tmp_path))
    grid.mute = {3}
    found = run(grid, settings, {2: grid.mute.clear})
    assert [row["devices"] for row in found.rows()] == [2, 2, 4]


def test_where_nobody_is_left_the_run_ends_in_a_sentence_and_goes_on_later(
    tmp_path: Path, settings: Config
) -> None:
    grid = Unsteady(settings, nodes(tmp_path))
    with pytest.raises(RunFailed, match="no node that hosts a device of round 2 is connected"):
        run(grid, settings, {1: grid.here.clear})
    again = Unsteady(settings, nodes(tmp_path))
    again.mute = {2, 3}
    with pytest.raises(RunFailed, match=r"no node answered round 2 within place.deadline_s = 5"):
        run(again, settings, {})
    assert len(run(Unsteady(settings, nodes(tmp_path)), settings, {}).rows()) == 3


def test_a_run_waits_for_as_many_nodes_as_it_names(tmp_path: Path) -> None:
    wanted = config(tmp_path, {"place.nodes": 3, "place.wait_s": 0.1})
    with pytest.raises(RunFailed, match=r"2 of 3 nodes are connected after 0.1 s"):
        run(Unsteady(wanted, nodes(tmp_path)), wanted, {})
    nobody = Unsteady(wanted, nodes(tmp_path))
    nobody.here = []
    with pytest.raises(RunFailed, match="no node is connected; start nodes first"):
        run(nobody, wanted, {})
    assert not (tmp_path / "runs").exists()


def test_a_device_announced_by_two_nodes_is_refused_by_name(
    tmp_path: Path, settings: Config
) -> None:
    first, second = nodes(tmp_path)
    second["data-path"] = first["data-path"]
    with pytest.raises(WrongInput, match="device 'ann' is announced by two nodes"):
        run(Unsteady(settings, [first, second]), settings, {})
    roster = Roster(np.array(["a", "b"]), np.array([1, 1]), np.array([7, 8], dtype=np.uint64))
    with pytest.raises(WrongInput, match="'b' is announced by two nodes"):
        moved(roster, 9, Announcement(np.array(["b"]), np.array([1])), {7, 8, 9})
    assert moved(
        roster, 9, Announcement(np.array(["b"]), np.array([1])), {7, 9}
    ).nodes.tolist() == [7, 9]


class Corrupt(Unsteady):
    """The second node announces itself in another release's words."""

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        found = super().pull_messages(message_ids)
        for message in found:
            if (
                message.metadata.src_node_id == 3
                and "announcement" in message.content.config_records
            ):
                message.content.config_records["announcement"]["wire_version"] = 99
        return found


def test_a_node_of_another_release_is_left_out_where_enough_others_are(
    tmp_path: Path, settings: Config
) -> None:
    found = run(Corrupt(settings, nodes(tmp_path)), settings, {})
    assert [row["devices"] for row in found.rows()] == [2, 2, 2]
    every = config(tmp_path / "all", DEVICE, {"place.nodes": 0})
    with pytest.raises(RunFailed, match="wire version 99"):
        run(Corrupt(every, nodes(tmp_path)), every, {})


OWN_CHILDREN = ROOT / "clients" / "processes.py"
"""Speaks through a pipe that has no name, with processes that it started itself."""


@pytest.fixture
def sources() -> Iterator[str]:
    folders = ("fedsim", "clients", "strategies")
    files = [p for name in folders for p in (ROOT / name).rglob("*.py") if p != OWN_CHILDREN]
    return iter("\n".join(p.read_text() for p in files).split("\n"))


def test_nothing_is_ever_unpickled_but_what_a_run_tells_its_own_children(
    sources: Iterator[str],
) -> None:
    lines = list(sources)
    loads = [line for line in lines if "np.load(" in line]
    assert len(loads) > 3
    assert [line for line in loads if "allow_pickle=False" not in line] == []
    assert [line for line in lines if "import pickle" in line or "torch.load(" in line] == []
    assert "socket" not in OWN_CHILDREN.read_text()
    with pytest.raises(ValueError, match="allow_pickle=False"):
        Array(np.array([{"a": 1}], dtype=object))


def test_nodes_are_asked_in_one_batch(tmp_path: Path, settings: Config) -> None:
    grid = Unsteady(settings, nodes(tmp_path))
    assert Nodes(grid, settings.place).roster().devices.tolist() == ["ann", "bob", "cid", "dot"]
    assert grid.asked == [2, 3]


@pytest.mark.slow
@pytest.mark.process
def test_a_disk_that_is_really_full_ends_a_run_in_a_sentence_and_more_room_lets_it_go_on(
    tmp_path: Path,
) -> None:
    (tmp_path / "small.toml").write_text(
        'name = "small"\ndata.devices = 20\ndata.examples = 200\n'
        "model.embedding = 64\ntrain.rounds = 2\n"
        'selection.cohort = 5\nselection.rule = "uniform"\n'
        'aggregation.rule = "fedavg"\nplace.threads = 1\n'
        'dp.unit = "device"\n'
    )
    command = f"{sys.executable} -m fedsim run small.toml --json"
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def shell(line: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            ["bash", "-c", line], cwd=tmp_path, env=env, capture_output=True, text=True
        )

    full = shell(
        f"ulimit -f 32; {command}"
    )  # no file larger than 32 KiB: the checkpoint does not fit
    assert full.returncode == 1, full.stderr
    assert full.stderr.strip().startswith("failed: ")
    assert "cannot be written (File too large); make room and run it again" in full.stderr
    assert "Traceback" not in full.stderr
    done = shell(command)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rounds"] == 2
