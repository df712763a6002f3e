"""What happens to a run when a node stalls, has a wrong clock, or shows another node's key.

Real processes on loopback with TLS and known keys, each ended by its process id.
"""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_deployment import charged, node_terms, settings

from experiments.deployment.processes import LONG_S, ROOT, Federation, commands, send_all, until
from fedsim.app.rundir.run_dir import RunDir

pytestmark = [pytest.mark.slow, pytest.mark.superlink]
SLEEP = """
import select, time
time.sleep = lambda seconds: select.select([], [], [], seconds) and None
"""
"""libfaketime 0.9.10 fails at sleeps until a point of the monotonic clock, as Python's are."""


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """A SuperLink with TLS that knows the keys of node-1 and node-2, and the first of them."""
    with Federation(tmp_path_factory.mktemp("faults")) as found:
        found.secured(nodes=3)
        for i in (1, 2):
            assert "registered successfully" in found.register(f"node-{i}")
        found.secured_node("node-1", node_terms(found.home, 0))
        yield found


@pytest.fixture
def both(secured: Federation) -> Iterator[Federation]:
    """The federation with its second node, for one test."""
    terms = node_terms(secured.home, 1)
    until(lambda: secured.revive("node-2", terms), LONG_S, "node 2")
    yield secured
    secured.end("node-2")


@pytest.fixture(scope="module")
def preload() -> str:
    """The library that fakes a process's clock; where CI is set, its absence is a failure."""
    command = shutil.which("faketime")
    if command is None:
        if os.environ.get("CI"):
            pytest.fail("faketime is missing: apt-get install faketime")
        pytest.skip("faketime is not here")
    told = subprocess.run(
        [command, "-f", "+0", "printenv", "LD_PRELOAD"], capture_output=True, text=True
    )
    return told.stdout.strip()


@pytest.mark.parametrize("which", ["the app in training", "the whole node"])
def test_a_round_goes_on_without_a_node_that_stalls(which: str, both: Federation) -> None:
    """Stopped when it is asked to train, it is left out at the deadline, or when its heart-beats
    are missed.

    The server charges it for the round; what it answers later is used in no other. Of an app alone
    Flower may miss the heart-beats first and start another one on the node, which answers in its
    place.
    """
    name = which.replace(" ", "-")
    found = settings(both.home, name, train__rounds=4, place__nodes=2, place__deadline_s=150.0)
    run = RunDir.of(found)
    node = both.running["node-2"].pid
    ours = both.fedsim_in_background(name, "run", f"{name}.toml", *both.secured_address())
    asked: set[int] = set()  # the apps that say what the node hosts, before the run begins

    def begun() -> bool:
        asked.update(apps(node))
        return run.exists

    until(begun, LONG_S, "the run")
    stalled = (
        node
        if "node" in which
        else until(lambda: max(apps(node) - asked, default=0), LONG_S, "the app")
    )
    send_all(stalled, signal.SIGSTOP)
    try:
        until(lambda: run.rows(), LONG_S, "round 1 without node 2")
    finally:
        send_all(stalled, signal.SIGCONT)
    assert ours.wait(LONG_S) == 0, both.log(name)
    devices = [row["devices"] for row in run.rows()]
    assert devices[0] == 2 or "app" in which
    assert set(devices) <= {2, 4}
    assert devices[-1] == 4
    assert set(charged(run).values()) == {4}
    assert all(row["rejected"] == 0 for row in run.rows())


def apps(node: int) -> set[int]:
    """Return the processes in which a node answers messages."""
    return {pid for pid, line in commands(node).items() if "flwr-clientapp" in line}


@pytest.mark.parametrize("offset", ["+3600", "-3600"])
def test_a_node_whose_clock_is_an_hour_off_is_refused(
    offset: str, secured: Federation, preload: str, tmp_path: Path
) -> None:
    """Flower takes a node's time from 5 s ahead to 305 s behind; a refused node ends itself."""
    name = f"clock{offset}"
    start_with_clock(secured, name, offset, preload, tmp_path)
    until(
        lambda: secured.running[name].poll() is not None,
        LONG_S,
        "the end of a node with a wrong clock",
    )
    assert "SuperNode ID" not in secured.log(name)
    assert secured.running[name].returncode == 0
    assert '/v1/fleet/activate-node HTTP/1.1" 401' in secured.log("superlink")
    secured.end(name)


def test_a_node_whose_clock_is_two_minutes_late_takes_part(
    secured: Federation, preload: str, tmp_path: Path
) -> None:
    start_with_clock(secured, "late", "-120", preload, tmp_path)
    assert until(
        lambda: "SuperNode ID" in secured.log("late"), LONG_S, "a node that is two minutes late"
    )
    secured.end("late")


def start_with_clock(
    federation: Federation, name: str, offset: str, preload: str, folder: Path
) -> None:
    """Start node-2 with a wall clock that is so many seconds off, in it and in what it starts."""
    (folder / "sitecustomize.py").write_text(SLEEP)
    clock = {"LD_PRELOAD": preload, "FAKETIME": offset, "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    path = os.pathsep.join([str(folder), str(ROOT)])
    terms = node_terms(federation.home, 1)
    federation.secured_node(name, terms, key="node-2", PYTHONPATH=path, **clock)


def test_a_registered_node_that_comes_back_with_a_key_that_nobody_registered_is_refused(
    both: Federation,
) -> None:
    both.end("node-2")
    both.secured_node("wrong-key", node_terms(both.home, 1), key="node-3")
    until(lambda: both.running["wrong-key"].poll() is not None, LONG_S, "the end of the wrong key")
    assert "SuperNode ID" not in both.log("wrong-key")
    both.end("wrong-key")
    until(
        lambda: both.revive("node-2", node_terms(both.home, 1)), LONG_S, "node 2 with its own key"
    )


def test_another_node_s_key_gives_another_node_s_id_and_no_second_hold_on_its_devices(
    secured: Federation,
) -> None:
    """A key is a node's id.

    With node-2's key and node-1's data, node-1's devices are announced twice.
    """
    secured.secured_node("impostor", node_terms(secured.home, 0), key="node-2")
    until(lambda: "SuperNode ID" in secured.log("impostor"), LONG_S, "the impostor")
    settings(secured.home, "impostor-run", place__nodes=2)
    done = secured.fedsim("run", "impostor-run.toml", *secured.secured_address())
    assert done.returncode == 2, done.stderr
    assert "device 'ann' is announced by two nodes" in done.stderr
    secured.end("impostor")


def test_a_key_that_is_in_use_lets_no_second_node_in(both: Federation) -> None:
    both.secured_node("second", node_terms(both.home, 1), key="node-2")
    until(lambda: both.running["second"].poll() is not None, LONG_S, "the end of the second node")
    assert "SuperNode ID" not in both.log("second")
    assert both.running["node-2"].poll() is None
    both.end("second")


@pytest.mark.parametrize("found", ["on the path", "before the app"])
def test_another_package_of_our_name_on_a_node_never_answers_for_it(
    found: str, secured: Federation, tmp_path: Path
) -> None:
    """The bundle's own come first on the path; where another one is loaded already, its node is
    left out.
    """
    for name in ("fedsim", "strategies", "clients"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("print('SOMEBODY ELSE')\n")
    early = found == "before the app"
    (tmp_path / "sitecustomize.py").write_text("import fedsim\n" if early else "")
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    shadowed = f"shadowed-{int(early)}"
    secured.secured_node(shadowed, node_terms(secured.home, 1), key="node-2", PYTHONPATH=path)
    until(lambda: "SuperNode ID" in secured.log(shadowed), LONG_S, "the node with other packages")
    run = RunDir.of(
        settings(secured.home, shadowed, train__rounds=1, place__nodes=1 if early else 2)
    )
    done = secured.fedsim("run", f"{shadowed}.toml", *secured.secured_address())
    secured.end(shadowed)
    assert done.returncode == 0, done.stderr
    assert [row["devices"] for row in run.rows()] == [2 if early else 4]
    assert ("SOMEBODY ELSE" in secured.log(shadowed)) == early


def test_answers_over_the_limit_are_left_out_by_name(both: Federation) -> None:
    run = RunDir.of(
        settings(both.home, "large", train__rounds=1, place__nodes=2, aggregation__max_bytes=100)
    )
    done = both.fedsim("run", "large.toml", *both.secured_address())
    assert done.returncode == 0, done.stderr
    assert [(row["devices"], row["rejected"]) for row in run.rows()] == [(0, 4)]
    log = (run.path / "log.jsonl").read_text()
    assert "aggregation.max_bytes is 100" in log
