"""The ledger: nothing that was released is missing, whenever the process ends.

Seen to fail: `Spending.enter` only after the checkpoint of its round (both the spy and the kill),
`write` without the torn-line newline, entries known again by their key alone, `counts` that takes
every entry once, attempts named "seeded" under OS entropy, a target that is compared with twice
itself.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from factory import configured
from flwr.app import Message, MessageType

from fedsim.app.engines.local import run_local
from fedsim.app.engines.local_grid import LocalGrid
from fedsim.app.node.app import app as client_app
from fedsim.app.rundir.run_dir import RunDir
from fedsim.app.server.serve import serve
from fedsim.config import Config, to_flat
from fedsim.errors import RunFailed
from fedsim.privacy.accounting import Event, epsilon, epsilon_rdp
from fedsim.privacy.claims import target_delta
from fedsim.privacy.entries import local_events, scheduled_entry
from fedsim.privacy.ledger import NOBODY, Entry, Ledger, row_events

A = Event(1.0, 0.1)
B = Event(2.0, 1.0)
TINY = {
    "name": "tiny",
    "data.devices": 30,
    "data.examples": 300,
    "model.embedding": 8,
    "model.hidden": 8,
    "train.rounds": 5,
    "train.lr": 1.0,
    "selection.cohort": 10,
    "selection.cap": 0.5,
    "aggregation.rule": "fedavg",
    "aggregation.lr": 1.0,
    "place.threads": 1,
    "dp.unit": "device",
}


def config(out: Path, **changes: object) -> Config:
    return configured(TINY | {"place.out": str(out)}, **changes)


def entry(
    round: int, groups: tuple[tuple[Event, ...], ...], members: list[int], attempt: str = "seeded"
) -> Entry:
    return Entry(round, 1, "model", attempt, groups, np.array(members, dtype=np.int16))


def eps(folder: Path, devices: int = 3, delta: float = 1e-5) -> list[float]:
    table, counts = Ledger.open(folder, devices).counts()
    return [round(float(e), 9) for e in table.epsilons(counts, delta)]


def test_what_was_written_is_there_after_opening_anew(tmp_path: Path) -> None:
    ledger = Ledger.open(tmp_path, 3)
    for r in range(1, 5):
        ledger.write(entry(r, ((A,), (A, B)), [0, 1, NOBODY]))
    ledger.write(entry(5, ((B,),), [NOBODY, 0, NOBODY]))
    expected = [epsilon_rdp([Event(1.0, 0.1, 4)], 1e-5), 0, 0.0]
    expected[1] = epsilon_rdp([Event(1.0, 0.1, 4), Event(2.0, 1.0, 5)], 1e-5)
    assert eps(tmp_path) == [pytest.approx(e, abs=1e-8) for e in expected]
    again = Ledger.open(tmp_path, 3)
    assert row_events(*again.counts(), 1) == (Event(1.0, 0.1, 4), Event(2.0, 1.0, 5))
    assert len(list((tmp_path / "privacy").glob("*.npy"))) == 2


def test_a_repeated_seeded_round_counts_once_and_another_attempt_again(tmp_path: Path) -> None:
    ledger = Ledger.open(tmp_path, 3)
    for attempt in ("seeded", "seeded", "x", "y", "y"):
        ledger.write(entry(1, ((B,),), [0, NOBODY, 0], attempt))
    assert row_events(*ledger.counts(), 0) == (Event(2.0, 1.0, 3),)
    assert Ledger.open(tmp_path, 3).counts()[1].toarray().tolist() == [[3], [0], [3]]


def test_a_repeated_round_with_other_events_counts_again(tmp_path: Path) -> None:
    ledger = Ledger.open(tmp_path, 3)
    ledger.write(entry(1, ((B,),), [0, NOBODY, 0]))
    ledger.write(entry(1, ((B,),), [0, 0, 0]))
    assert ledger.counts()[1].toarray().tolist() == [[2], [1], [2]]


def test_a_torn_line_is_no_row_and_spoils_no_other(tmp_path: Path) -> None:
    Ledger.open(tmp_path, 3).write(entry(1, ((B,),), [0, 0, 0]))
    with (tmp_path / "privacy.jsonl").open("a") as stream:
        stream.write('{"round": 2, "per')
    Ledger.open(tmp_path, 3).write(entry(2, ((B,),), [0, 0, NOBODY]))
    assert Ledger.open(tmp_path, 3).counts()[1].toarray().tolist() == [[2], [2], [1]]


def test_correlated_noise_is_not_drawn_anew_for_a_round_that_was_begun(tmp_path: Path) -> None:
    """Later rounds take back earlier rounds' noise, so a second attempt has no known cost."""
    settings = config(
        tmp_path,
        dp__correlation="banded",
        dp__min_separation=2,
        selection__rule="uniform",
        dp__noise_source="os",
    )

    class Killed(Exception):
        pass

    def stop(row: dict[str, object]) -> None:
        (RunDir.of(settings).path / "checkpoints" / "round-000001.npz").unlink()
        raise Killed

    with pytest.raises(Killed):
        run_local(settings, watch=stop)
    with pytest.raises(RunFailed, match="cannot be done again"):
        run_local(settings)


def test_scheduled_rounds_count_for_everyone_with_its_own_rate_never_less() -> None:
    p = np.concatenate([[0.0], np.geomspace(1e-4, 0.5, 500)])
    made = scheduled_entry(config(Path()), 1, 1, "seeded", p, np.ones(501))
    assert len(made.groups) <= 65
    rates = np.array([made.groups[m][0].sampling_rate for m in made.members])
    assert (rates >= p).all()
    assert (rates <= p * 1.16).all()
    changing = scheduled_entry(
        config(Path(), selection__rule="schedule"), 1, 1, "seeded", p[:20], np.ones(20)
    )
    rates = np.array([changing.groups[m][0].sampling_rate for m in changing.members])
    assert (rates >= p[:20]).all()
    assert (rates <= p[:20] * 1.0101).all()


def summary_of(run: RunDir) -> dict[str, object]:
    assert run.summary is not None
    return run.summary["privacy"]  # type: ignore[no-any-return]


def test_the_ledger_of_a_run_is_what_a_hand_would_count(tmp_path: Path) -> None:
    run = run_local(config(tmp_path, selection__rule="uniform", selection__cohort=6))
    found = summary_of(run)
    expected = epsilon([Event(1.0, 0.2, 5)], 1e-3)
    for key in ("epsilon_guarantee", "epsilon_max", "epsilon_median", "epsilon_p95"):
        assert found[key] == pytest.approx(expected)
    assert (found["unit"], found["relation"], found["trust"], found["delta"]) == (
        "device",
        "zero_out",
        "central",
        1e-3,
    )
    assert found["amplification"] is True
    assert (run.path / "privacy.md").read_text().startswith("# Privacy statement: tiny, seed 1")
    assert json.loads((run.path / "privacy.json").read_text())["p"] == found


def test_without_amplification_realised_rounds_count(tmp_path: Path) -> None:
    run = run_local(config(tmp_path, selection__rule="round_robin"))
    checkpoint = run.last_checkpoint()
    assert checkpoint is not None
    table, counts = Ledger.open(run.path, 30).counts()
    assert (counts.toarray()[:, 0] == checkpoint.participation).all()
    assert table.events == (Event(1.0, 1.0),)
    assert summary_of(run)["amplification"] is False


def test_example_level_counts_the_local_steps_of_those_that_took_part(tmp_path: Path) -> None:
    settings = config(
        tmp_path, dp__unit="example", selection__rule="round_robin", train__local_epochs=2
    )
    run = run_local(settings)
    checkpoint = run.last_checkpoint()
    assert checkpoint is not None
    with np.load(run.path / "devices.npz") as arrays:
        activity = arrays["activity"]
    table, counts = Ledger.open(run.path, 30).counts()
    for device in (0, 7, 29):
        times = int(checkpoint.participation[device])
        assert row_events(table, counts, device) == local_events(
            settings, int(activity[device]), times
        )
    found = summary_of(run)
    assert found["epsilon_max"] <= found["epsilon_guarantee"]  # type: ignore[operator]


def test_a_record_composes_only_the_periods_from_its_arrival_on(tmp_path: Path) -> None:
    stream = {"stream__mode": "continual", "stream__periods": 2, "stream__arrivals": "poisson"}
    run = {}
    for memory in ("current", "all"):
        settings = config(
            tmp_path,
            dp__unit="example",
            train__rounds=6,
            stream__memory=memory,
            dp__sampling_rate=0.2,
            train__local_steps=3,
            selection__rule="uniform",
            selection__cohort=30,
            selection__cap=1.0,
            **stream,
        )
        run[memory] = summary_of(run_local(settings))["epsilon_max"]
    delta = target_delta(config(tmp_path, dp__unit="example"), 300)[0]
    assert run["all"] > run["current"]  # type: ignore[operator]
    assert run["current"] == pytest.approx(epsilon([Event(1.0, 0.2, 9)], delta), rel=1e-6)
    assert run["all"] == pytest.approx(epsilon([Event(1.0, 0.2, 18)], delta), rel=1e-6)


@pytest.mark.parametrize("rule", ["uniform", "round_robin"])
def test_a_run_stops_before_the_round_that_would_pass_the_target(tmp_path: Path, rule: str) -> None:
    changes = {"selection__rule": rule, "selection__cohort": 10, "train__rounds": 40}
    run = run_local(config(tmp_path, dp__target_epsilon=6.0, **changes))
    assert run.summary is not None
    assert "would pass the target epsilon 6" in run.summary["stopped_early"]
    assert 0 < len(run.rows()) < 40
    table, counts = Ledger.open(run.path, 30).counts()
    spent = table.epsilons(counts, 1e-3).max()
    counts.data += 1
    assert spent <= 6.0 < table.epsilons(counts, 1e-3).max()
    assert summary_of(run)["epsilon_guarantee"] == 6.0


def test_retired_devices_never_pass_the_target_and_the_run_goes_on(tmp_path: Path) -> None:
    run = run_local(
        config(tmp_path, dp__target_epsilon=6.0, dp__on_target="retire", train__rounds=10)
    )
    assert len(run.rows()) == 10
    table, counts = Ledger.open(run.path, 30).counts()
    spent = table.epsilons(counts, 1e-3)
    assert spent.max() <= 6.0
    per_device = counts.sum(axis=1)
    assert per_device.min() < 10 == per_device.max()
    checkpoint = run.last_checkpoint()
    assert checkpoint is not None
    assert (checkpoint.participation <= per_device).all()


@pytest.mark.parametrize("unit", ["device", "example"])
def test_a_round_stands_in_the_ledger_before_any_device_is_asked(tmp_path: Path, unit: str) -> None:
    settings = config(tmp_path, dp__unit=unit)
    known: list[int] = []

    class Spy(LocalGrid):
        def push_messages(self, messages: Iterable[Message]) -> list[str]:
            asked = list(messages)
            if asked and asked[0].metadata.message_type == MessageType.TRAIN:
                known.append(len(Ledger.open(RunDir.of(settings).path, 30).entries))
            return super().push_messages(asked)

    serve(Spy(client_app, to_flat(settings), 1), settings, {}, run_local)
    assert known == [1, 2, 3, 4, 5]


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.parametrize("source", ["seeded", "os"])
def test_kill_minus_nine_never_makes_epsilon_smaller(tmp_path: Path, source: str) -> None:
    """A real process, killed at work, ended by a second one; equal if seeded, counted again with OS
    noise.
    """
    (tmp_path / "x.toml").touch()
    settings = [f"--set={k}={v}" for k, v in TINY.items() if k != "train.rounds"]
    settings += ["--set=train.rounds=40", f"--set=dp.noise_source={source}"]
    command = [sys.executable, "-m", "fedsim", "run", "x.toml", *settings]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*command, "--out=killed"], cwd=tmp_path, env=env, stderr=subprocess.DEVNULL
    )
    limit = time.monotonic() + 120
    while not list(tmp_path.glob("killed/**/checkpoints/round-00000[5-9].npz")):
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < limit
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    killed = RunDir(next(tmp_path.glob("killed/**/privacy.jsonl")).parent)
    checkpoint = killed.last_checkpoint()
    begun = Ledger.open(killed.path, 30).entries
    assert len(begun) >= (
        checkpoint.round if checkpoint else 0
    )  # written before the release, never behind it
    for out in ("killed", "whole"):
        subprocess.run(
            [*command, f"--out={out}"], cwd=tmp_path, env=env, check=True, capture_output=True
        )
    whole = RunDir(next(tmp_path.glob("whole/**/privacy.jsonl")).parent)
    after, undisturbed = (Ledger.open(run.path, 30) for run in (killed, whole))
    again = len(begun) - (checkpoint.round if checkpoint else 0)
    assert len(undisturbed.entries) == 40
    assert len(after.entries) == 40 + (again if source == "os" else 0)
    spent = [
        float(table.epsilons(counts, 1e-3).max())
        for table, counts in (after.counts(), undisturbed.counts())
    ]
    assert spent[0] >= spent[1]
    if source == "seeded":
        assert summary_of(killed) == summary_of(whole)
        one = killed.last_checkpoint()
        two = whole.last_checkpoint()
        assert one is not None
        assert two is not None
        assert all((one.params[n] == p).all() for n, p in two.params.items())


def test_a_node_s_ledger_is_taken_in_and_nothing_is_charged_twice_or_left_out(
    tmp_path: Path,
) -> None:
    """Seen to fail with entries of a known key skipped whole, and with all of them added again."""
    first = (Event(1.0, 0.1, 5),)
    second = (Event(2.0, 0.5, 1),)
    for name in ("server", "node"):
        (tmp_path / name).mkdir()
    server = Ledger.open(tmp_path / "server", 4)
    node = Ledger.open(tmp_path / "node", 2)

    def entry(round: int, members: list[int], *groups: tuple[Event, ...]) -> Entry:
        return Entry(round, 1, "model", "seeded", groups, np.array(members, dtype=np.int32))

    server.write(entry(1, [0, 0, NOBODY, NOBODY], first))
    server.write(entry(2, [NOBODY, NOBODY, NOBODY, 0], first))
    node.write(entry(1, [0, 0], first))  # devices 1 and 2: the first is known, the second is not
    node.write(entry(2, [NOBODY, 0], second))
    node.write(entry(3, [1, 0], first, second))
    for _ in range(2):  # taking it in again changes nothing
        server.absorb(node, np.array([1, 2]))
        table, counts = Ledger.open(tmp_path / "server", 4).counts()
        found = {
            (device, e.noise_multiplier): int(n)
            for device in range(4)
            for e, n in zip(table.events, counts[[device]].toarray()[0], strict=True)
            if n
        }
        assert found == {
            (0, 1.0): 5,
            (1, 1.0): 5,
            (1, 2.0): 1,
            (2, 1.0): 10,
            (2, 2.0): 1,
            (3, 1.0): 5,
        }
