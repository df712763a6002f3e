"""Lanes in processes give the bits that threads give, tell what went wrong, and leave with their
trainer.

Seen to fail: the number of the attempt left at 0 (equal noise twice), sums handed back without a
copy (the next chunk overwrites them), parameters not written again for the next cohort, a process
that stays when its pipe closes, errors sent without a note, nodes kept after their run, a process
that takes code from where it stands, its last words not read, its place not taken by another, a
script's own classes sent to it.
"""

import gc
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from test_dp_sgd import assignments as public
from test_dp_sgd import private
from test_rounds import config, final
from test_training import SIZES, TEXT, assignments, build, double, examples
from torch import nn

from clients.chunk import Lane
from clients.device_clip import DeviceClip
from clients.processes import RemoteLane, can_travel
from clients.training import Assignment, Trainer
from fedsim.app.engines.local import run_local
from fedsim.app.place import FEWEST_IN_PROCESSES, lanes
from fedsim.config import Config, Train, from_flat
from fedsim.errors import RunFailed
from fedsim.models import parameters_of
from fedsim.models.tasks import make_task
from fedsim.privacy.noise import Os, Seeded
from fedsim.privacy.secure_sum import SecureSum
from fedsim.types import Params

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow
TRAIN = Train(batch_size=5, lr=0.5)


def trainer(processes: bool, name: str = "bag", workers: int = 2, **more: Any) -> Trainer:
    module = build(name, dropout=0.3)
    return Trainer(module, make_task(TEXT), TRAIN, workers=workers, processes=processes, **more)


def start(name: str = "bag") -> Params:
    return double(parameters_of(build(name)))


def pids(trainer: Trainer) -> list[int]:
    return [lane._process.pid for lane in trainer.lanes if isinstance(lane, RemoteLane)]


def same(one: Params, two: Params) -> bool:
    return all(torch.equal(one[name], two[name]) for name in one)


def test_processes_give_the_bits_of_threads_in_every_round() -> None:
    apart = trainer(True, "bilstm")
    beside = trainer(False, "bilstm")
    params = [start("bilstm"), {n: p + 0.1 for n, p in start("bilstm").items()}]
    for round, given in enumerate(params, start=1):
        found, wanted = (t.train(given, assignments(), 1, round) for t in (apart, beside))
        assert same(found.delta, wanted.delta)
        assert (found.weight, found.devices, found.metrics) == (
            wanted.weight,
            wanted.devices,
            wanted.metrics,
        )
    assert len(set(pids(apart))) == 2, "two processes did the work"


@pytest.mark.parametrize("layout", ["dense", "summed"])
def test_noise_clips_and_shares_are_those_of_threads(layout: str) -> None:
    dp = private(noise_layout=layout, trust="central")
    clip = DeviceClip(0.5, SecureSum(40, 1e-6, 0.1, 2), Seeded(9))
    found, wanted = (
        trainer(processes, dp=dp, noise=Seeded(3)).train(start(), public(), 1, 1, clip)
        for processes in (True, False)
    )
    assert same(found.delta, wanted.delta)
    assert found.metrics == wanted.metrics


def test_no_noise_is_drawn_twice_when_the_same_round_is_trained_again_in_processes() -> None:
    """Guarantee of `Os`: another attempt is another release, with other noise."""
    t = trainer(True, dp=private(), noise=Os())
    one, two = (t.train(start(), public(), 1, 1).delta for _ in range(2))
    for name in one:
        assert not torch.equal(one[name], two[name])
    again = trainer(True, dp=private(), noise=Seeded(3))
    assert same(*(again.train(start(), public(), 1, 1).delta for _ in range(2)))


def test_what_goes_wrong_in_a_process_is_raised_as_it_is_with_a_note_of_where() -> None:
    strange = assignments()
    strange[1].examples.fields["tokens"].fill_(99)
    t = trainer(True)
    with pytest.raises(IndexError, match="out of range") as found:
        t.train(start(), strange, 1, 1)
    assert "processes.py" in "".join(found.value.__notes__)
    assert t.train(start(), assignments(), 1, 1).devices == len(SIZES), "and it can go on"


def test_a_process_that_is_killed_ends_the_run_in_one_sentence() -> None:
    t = trainer(True)
    t.train(start(), assignments(), 1, 1)
    os.kill(pids(t)[0], signal.SIGKILL)
    with pytest.raises(RunFailed, match=r"ended with exit code -9; .* lower place\.threads"):
        t.train(start(), assignments(), 1, 2)
    assert t.train(start(), assignments(), 1, 2).devices == len(SIZES), "another takes its place"


def test_code_that_a_process_does_not_find_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the request was too large to wait in the pipe."""
    hidden = type(sys)("hidden")
    hidden.Strange = type("Strange", (nn.Module,), {"__module__": "hidden"})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "hidden", hidden)
    module = build("bag")
    module.more, module.keyed = hidden.Strange(), True  # type: ignore[attr-defined, assignment]
    t = Trainer(module, make_task(TEXT), TRAIN, workers=2, processes=True)
    many = [Assignment(f"d{i}", examples(2000, i, width=60), 1.0) for i in range(4)]
    t.memory = 2**20
    with pytest.raises(ModuleNotFoundError, match="hidden"):
        t.train(start(), many, 1, 1)


def test_processes_leave_with_their_trainer() -> None:
    t = trainer(True)
    t.train(start(), assignments(), 1, 1)
    left = pids(t)
    del t
    gc.collect()
    assert not any(Path(f"/proc/{pid}").exists() for pid in left)


SCRIPT = """
import sys, time
sys.path.insert(0, "tests")
from test_processes import assignments, pids, start, trainer
t = trainer(True)
t.train(start(), assignments(), 1, 1)
print(*pids(t), flush=True)
time.sleep(60)
"""


def test_processes_leave_when_whoever_began_them_is_killed() -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", SCRIPT], cwd=ROOT, stdout=subprocess.PIPE, text=True, env=os.environ
    )
    assert parent.stdout is not None
    left = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(left) == 2
    parent.kill()
    parent.wait()
    parent.stdout.close()
    for _ in range(100):
        if not any(alive(pid) for pid in left):
            break
        time.sleep(0.1)
    assert not any(alive(pid) for pid in left)


def alive(pid: int) -> bool:
    """A zombie that nobody waits for is dead."""
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_a_run_takes_processes_to_the_same_model_and_ends_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[int] = []
    launch = RemoteLane._launch

    def noted(lane: RemoteLane, start: Params) -> None:
        launch(lane, start)
        begun.append(lane._process.pid)

    monkeypatch.setattr(RemoteLane, "_launch", noted)
    small = {"place__threads": 2, "place__memory_gib": 1e-4, "train__rounds": 2}
    runs = [
        run_local(config(tmp_path / kind, place__lanes=kind, **small))
        for kind in ("processes", "threads")
    ]
    assert [run.manifest["plan"]["lanes"] for run in runs] == ["processes", "threads"]
    assert same(*(final(run) for run in runs))
    assert len(begun) == 2
    assert not any(alive(pid) for pid in begun)


def test_a_folder_of_the_same_name_where_one_stands_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "clients").mkdir()
    (tmp_path / "clients" / "__init__.py").write_text("raise SystemExit(3)")
    monkeypatch.chdir(tmp_path)
    assert trainer(True).train(start(), assignments(), 1, 1).devices == len(SIZES)


def test_one_chunk_is_trained_without_a_process() -> None:
    t = trainer(True)
    t.train(start(), assignments()[:1], 1, 1)
    assert all(lane._start is None for lane in t.lanes if isinstance(lane, RemoteLane))


def test_what_a_script_defines_is_trained_in_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    module = build("bag")
    assert can_travel(Trainer(module, make_task(TEXT), TRAIN).lane)
    own = type("Own", (nn.Module,), {"__module__": "__main__"})
    monkeypatch.setattr(sys.modules["__main__"], "Own", own, raising=False)
    module.more, module.keyed = own(), True  # type: ignore[assignment]
    t = Trainer(module, make_task(TEXT), TRAIN, workers=2, processes=True)
    assert [type(lane) for lane in t.lanes] == [Lane, Lane]


def test_long_runs_on_one_node_take_processes_and_the_config_may_say_otherwise() -> None:
    def planned(rounds: int, named: str = "auto") -> Config:
        return from_flat({"train.rounds": rounds, "selection.cohort": 100, "place.lanes": named})

    long = FEWEST_IN_PROCESSES // 100
    assert lanes(planned(long), 1) == "processes"
    assert lanes(planned(long - 1), 1) == lanes(planned(long), 2) == "threads"
    assert lanes(planned(long, "threads"), 1) == "threads"
    assert lanes(planned(1, "processes"), 2) == "processes"
