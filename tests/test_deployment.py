"""Real nodes behind TLS and known keys: who is refused, and what a run does when processes fail.

Every test is one federation of real processes on loopback, in a folder of its own, ended by process
id.
"""

import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_real_nodes import EXAMPLE, USERS, config, write

from experiments.deployment.processes import LONG_S, Federation, commands, send, until
from experiments.deployment.relay import Relay
from fedsim.app.engines.deployment import write_deployment
from fedsim.app.node.node_ledger import NodeLedger
from fedsim.app.rundir.run_dir import RunDir
from fedsim.config import Config, to_toml
from fedsim.privacy.ledger import Ledger

pytestmark = [pytest.mark.slow, pytest.mark.superlink]
CONTINUAL = {
    "stream__mode": "continual",
    "stream__periods": 2,
    "stream__memory": "current",
    "stream__begin": "2024-01-01",
    "stream__end": "2024-01-21",
    "data__path": "timed",
    "data__columns": "text=text,label=label,device=user,time=time",
    "train__rounds": 6,
    "train__batch_size": 1,
    "dp__sampling_rate": 0.0,
    "dp__noise_multiplier": 5.0,
    "place__nodes": 2,
}


def node_terms(home: Path, i: int) -> dict[str, Any]:
    write(home / f"data{i}" / "train.jsonl", USERS[i])
    return {
        "data-path": str(home / f"data{i}"),
        "state-path": str(home / f"state{i}"),
        "max-epsilon": 200.0,
    }


def settings(home: Path, name: str, **changes: Any) -> Config:
    place = {"place.wait_s": 300.0, "place.deadline_s": 300.0, "place.metrics": True}
    named = {key.replace("__", "."): value for key, value in changes.items()}
    found = config(home, EXAMPLE | {"dp.noise_multiplier": 4.0}, place | named | {"name": name})
    (home / f"{name}.toml").write_text(to_toml(found))
    return found


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """A SuperLink with TLS that knows the keys of node-1 and node-2, and these two nodes."""
    with Federation(tmp_path_factory.mktemp("deployment")) as found:
        found.secured(nodes=3)
        for i in (1, 2):
            assert "registered successfully" in found.register(f"node-{i}")
            found.secured_node(f"node-{i}", node_terms(found.home, i - 1))
        yield found


def events(home: Path, i: int) -> int:
    """How many steps node i has written down for its first device."""
    own = NodeLedger(home / f"state{i}", np.array(USERS[i]))
    return sum(e.count for e in own.events(USERS[i][0]))


def rates(home: Path, i: int, noise: float) -> dict[float, int]:
    """How many steps node i has written down for its first device at a noise multiplier, by
    sampling rate.
    """
    own = NodeLedger(home / f"state{i}", np.array(USERS[i]))
    return {
        e.sampling_rate: e.count for e in own.events(USERS[i][0]) if e.noise_multiplier == noise
    }


def write_days(path: Path, days: dict[str, list[int]]) -> None:
    """Write records that come on days of January 2024."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        {"text": f"light {day}", "label": "on", "user": user, "time": f"2024-01-{day:02d}T12:00"}
        for user, all_days in days.items()
        for day in all_days
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def charged(run: RunDir) -> dict[str, int]:
    """How many steps the server has written down for each device."""
    table, counts = Ledger.open(run.path, 4).counts()
    assert len(table.events) == 1
    return dict(zip(["ann", "bob", "cid", "dot"], counts.toarray()[:, 0].tolist(), strict=True))


def test_strangers_and_plain_text_are_refused_and_secrets_are_in_no_log(
    secured: Federation,
) -> None:
    terms = node_terms(secured.home, 0)
    secured.secured_node("stranger", terms, key="node-3")  # a key that nobody registered
    secured.node(
        "plain", terms, "--insecure", "--max-wait-time", "10"
    )  # plain text to a port with TLS
    with Federation(secured.home / "foreign") as foreign:
        write_deployment(foreign.home / "keys", "127.0.0.1", secured.port, 1)  # with another CA
        foreign.secured_node("node-1", terms, port=secured.port)
        until(
            lambda: "attempt failed" in foreign.log("node-1"), LONG_S, "the refusal of a foreign CA"
        )
        assert "SuperNode ID" not in foreign.log("node-1")
    until(lambda: secured.running["stranger"].poll() is not None, LONG_S, "the end of the stranger")
    until(lambda: secured.running["plain"].poll() is not None, LONG_S, "the end of plain text")
    assert secured.running["stranger"].returncode != 0
    assert secured.running["plain"].returncode != 0
    for name in ("stranger", "plain"):
        assert "SuperNode ID" not in secured.log(name)
        secured.end(name)
    settings(secured.home, "refused")
    where = ("--backend", "superlink", "--address", secured.address, "--insecure")
    plain = secured.fedsim("run", "refused.toml", *where)
    assert plain.returncode == 1
    assert plain.stderr.startswith("failed: the SuperLink at")
    keys = secured.home / "keys"
    inner = [line for path in keys.glob("*.key") for line in path.read_text().splitlines()[1:-1]]
    logs = "".join(path.read_text(errors="replace") for path in secured.home.glob("*.log"))
    assert inner
    assert not [line for line in inner if line in logs]
    assert all(path.stat().st_mode & 0o077 == 0 for path in keys.glob("*.key"))


def test_a_killed_node_costs_its_answers_and_comes_back(secured: Federation) -> None:
    """Killed in mid-round: the round goes on when Flower notes the loss; back again, it takes part
    again.
    """
    found = settings(secured.home, "nodes", train__rounds=5, place__nodes=2)
    run = RunDir.of(found)
    ours = secured.fedsim_in_background("nodes", "run", "nodes.toml", *secured.secured_address())
    before = [events(secured.home, i) for i in (0, 1)]
    until(lambda: events(secured.home, 1) > before[1], LONG_S, "the first event of node 2")
    secured.kill("node-2")  # it has written its event down and not answered
    until(
        lambda: run.rows(), LONG_S, "round 1 without node 2"
    )  # Flower waits 180 s for a reply cut in the middle
    terms = node_terms(secured.home, 1)
    until(
        lambda: secured.revive("node-2", terms), LONG_S, "node 2 back"
    )  # refused while it counts as there
    assert ours.wait(LONG_S) == 0, secured.log("nodes")
    devices = [row["devices"] for row in run.rows()]
    assert len(devices) == 5
    assert min(devices) == 2
    assert devices[-1] == 4
    steps = charged(run)
    assert set(steps.values()) == {
        5
    }  # the server charges who was asked, whether they answered or not
    told = [events(secured.home, i) - before[i] for i in (0, 1)]
    assert told[0] == 5
    assert (
        devices.count(4) + 1 <= told[1] <= 5
    )  # the release that was never sent is written down, too
    log = [
        json.loads(line)["message"] for line in (run.path / "log.jsonl").read_text().splitlines()
    ]
    assert any("did not answer" in line or "failed" in line or "away" in line for line in log)


def test_a_node_killed_in_a_continual_run_holds_the_same_again(secured: Federation) -> None:
    """By batches of one, an event's rate is one over the public activity in the round's period."""
    days = {
        "ann": [1, 2, 11, 12, 13, 14],
        "bob": [3, 4, 15, 16],
        "cid": [2, 12, 13, 14, 15],
        "dot": [14],
    }
    for i, users in enumerate(USERS):
        write_days(secured.home / f"data{i}" / "timed" / "train.jsonl", {u: days[u] for u in users})
    run = RunDir.of(settings(secured.home, "continual", **CONTINUAL))
    ours = secured.fedsim_in_background(
        "continual", "run", "continual.toml", *secured.secured_address()
    )
    until(lambda: run.rows(), LONG_S, "round 1")
    secured.kill("node-1")
    terms = node_terms(secured.home, 0)
    until(lambda: secured.revive("node-1", terms), LONG_S, "node 1 back")
    assert ours.wait(LONG_S) == 0, secured.log("continual")
    rows = run.rows()
    assert [row["cohort"] for row in rows[:3]] == [3, 3, 3]  # dot has no record in period 1
    assert rows[-1]["cohort"] == rows[-1]["devices"] == 4
    told = rates(secured.home, 0, noise=5.0)
    assert told.keys() == {0.5, 0.25}
    assert all(1 <= steps <= 3 for steps in told.values())
    assert rates(secured.home, 1, noise=5.0) == {1.0: 3, 0.25: 3}


def test_a_killed_serverapp_and_a_killed_superlink_lose_nothing(secured: Federation) -> None:
    found = settings(secured.home, "server", train__rounds=4, place__nodes=2)
    run = RunDir.of(found)
    command = ("run", "server.toml", *secured.secured_address())
    ours = secured.fedsim_in_background("server", *command)
    until(lambda: run.rows(), LONG_S, "round 1")
    running = commands(secured.running["superlink"].pid)
    (app,) = [pid for pid, line in running.items() if "flwr-serverapp" in line]
    send(app, signal.SIGKILL)
    assert ours.wait(LONG_S) == 1
    assert re.search(r"^failed: .+", secured.log("server"), flags=re.MULTILINE)
    assert "Traceback" not in secured.log("server")
    done = len(run.rows())
    ours = secured.fedsim_in_background("server", *command)
    until(lambda: len(run.rows()) > done, LONG_S, "the round after the checkpoint")
    secured.kill("superlink")
    assert ours.wait(LONG_S) == 1
    secured.secured_superlink()  # the same database: it knows its nodes' keys
    last = secured.fedsim(*command, "--json")
    assert last.returncode == 0, last.stderr
    rows = run.rows()
    assert [row["round"] for row in rows] == [1, 2, 3, 4]
    assert json.loads(last.stdout)["rounds"] == 4
    assert (
        min(charged(run).values()) >= 4
    )  # rounds that were done again count again: noise was fresh
    assert min(charged(run).values()) <= 6


def test_a_tampered_message_and_a_cut_line_change_no_update(secured: Federation) -> None:
    """A bit flipped under TLS breaks the connection, never a model; a node that hangs at it is
    restarted.
    """
    secured.end("node-2")
    terms = node_terms(secured.home, 1)
    with Relay(("127.0.0.1", secured.port)) as relay:
        port = int(relay.address.split(":")[1])
        secured.secured_node("node-2", terms, port)
        found = settings(secured.home, "tampered", train__rounds=5, place__nodes=2)
        run = RunDir.of(found)
        ours = secured.fedsim_in_background(
            "tampered", "run", "tampered.toml", *secured.secured_address()
        )
        until(lambda: run.exists, LONG_S, "the run")
        relay.flip = 1
        until(lambda: relay.flipped == 1, LONG_S, "a flipped bit")
        until(lambda: (secured.revive("node-2", terms, port), run.rows())[1], LONG_S, "round 1")
        relay.reset()
        until(
            lambda: (secured.revive("node-2", terms, port), ours.poll() is not None)[1],
            LONG_S,
            "the end",
        )
        assert ours.returncode == 0, secured.log("tampered")
        rows = run.rows()
        assert len(rows) == 5
        assert all(row["rejected"] == 0 for row in rows)
        assert {row["devices"] for row in rows} <= {2, 4}
        assert rows[-1]["devices"] == 4
        secured.end("node-2")
