"""A run folder of version 0.1.0, from before the rooms, is read as on the day that it was made.

Seen to fail: `Round.of` that wants every key in a row; a page that reads `epsilon_spent`.
"""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from fedsim.app.engines.local import run_local
from fedsim.app.report.readings import epsilon_by_round
from fedsim.app.report.write import write_report
from fedsim.app.rundir.audit_file import findings_of
from fedsim.app.rundir.export import export_model
from fedsim.app.rundir.run_dir import RunDir
from fedsim.app.rundir.runs_table import load_runs
from fedsim.app.server.finished_audit import audit_finished
from fedsim.audit.findings import LowerBound, Membership
from fedsim.config import from_flat, to_flat

OLDER = Path(__file__).parent / "older_run"


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """The older run in a folder of its own, where a run with its settings is kept."""
    config = RunDir(OLDER).config
    here = config.model_copy(
        update={"place": config.place.model_copy(update={"out": str(tmp_path)})}
    )
    shutil.copytree(OLDER, RunDir.of(here).path)
    return RunDir.of(here)


def test_its_settings_have_the_same_hash(run: RunDir) -> None:
    assert run.summary is not None
    assert run.config.hash == run.summary["config_hash"]


def test_it_is_finished_and_is_not_trained_again(run: RunDir) -> None:
    settings = to_flat(run.config) | {"place.out": str(run.path.parents[2])}
    before = run.summary
    assert run_local(from_flat(settings)).summary == before


def test_its_rounds_findings_and_table_are_read(run: RunDir) -> None:
    rounds = run.rounds()
    assert [done.round for done in rounds] == [1, 2]
    assert rounds[0].dp_epsilon_spent_rdp is None
    kinds = [type(found) for found in findings_of(run)]
    assert {Membership, LowerBound} <= set(kinds)
    (row,) = load_runs(run.path).to_dict("records")
    assert row["status"] == "completed"
    assert row["metrics.intent_accuracy"] == rounds[-1].metrics["intent_accuracy"]


def test_its_page_tells_the_epsilon_that_it_has(run: RunDir) -> None:
    assert run.summary is not None
    text = write_report(run).read_text()
    assert f"epsilon at most {run.summary['privacy']['epsilon_guarantee']:.3f}" in text
    assert [round for round, _ in epsilon_by_round(run)] == [1.0, 2.0]


def test_its_model_is_exported(run: RunDir, tmp_path: Path) -> None:
    folder = export_model(run, tmp_path / "model")
    checkpoint = run.last_checkpoint()
    assert checkpoint is not None
    with np.load(folder / "model.npz", allow_pickle=False) as arrays:
        for name in arrays.files:
            assert torch.equal(torch.from_numpy(arrays[name]), checkpoint.params[name])


def test_it_is_audited_again(run: RunDir) -> None:
    found = audit_finished(run.path, {"audit.evaluators": "membership"}, run_local)
    before = {row["attack"]: row["auc"] for row in RunDir(OLDER).summary["attacks"]["membership"]}  # type: ignore[index]
    after = {each.attack: each.figures.area.auc for each in found if isinstance(each, Membership)}
    assert after == before
