"""Runs from Python: the same as from the command line, and they return the model and a table."""

import subprocess
import sys
from pathlib import Path

import pytest

from fedsim.app import RunDir, load_runs, run
from fedsim.app.experiment.loading import load_holdings
from fedsim.app.place import data_dir
from fedsim.config import from_flat
from fedsim.errors import WrongInput
from fedsim.models import parameters_of
from fedsim.models.evaluation import evaluate
from fedsim.models.tasks import make_task

SMALL = {
    "name": "small",
    "data.devices": 20,
    "data.examples": 200,
    "train.rounds": 3,
    "model.embedding": 8,
    "selection.cohort": 5,
}


def test_the_trained_model_gives_the_metrics_of_the_summary(tmp_path: Path) -> None:
    done = run(SMALL | {"place.out": str(tmp_path)})
    module = done.model()
    assert not module.training
    holdings = load_holdings(done.config, data_dir(done.config.place, {}))
    test = holdings.dataset.test
    assert test is not None
    found = evaluate(module, make_task(done.spec), parameters_of(module), test)
    assert done.summary is not None
    assert found["intent_accuracy"] == done.summary["metrics"]["intent_accuracy"]


def test_a_run_is_named_by_a_config_by_keys_or_by_a_file(tmp_path: Path) -> None:
    flat = SMALL | {"place.out": str(tmp_path)}
    path = tmp_path / "small.toml"
    path.write_text("".join(f"{key} = {value!r}\n" for key, value in flat.items()))
    seen: list[int] = []
    first = run(flat, watch=lambda row: seen.append(row["round"]))
    assert seen == [1, 2, 3]
    assert run(from_flat(flat)).path == run(path).path == run(str(path)).path == first.path
    assert run(flat, {"train.rounds": 2}).path != first.path


def test_runs_become_a_flat_table(tmp_path: Path) -> None:
    flat = SMALL | {"place.out": str(tmp_path)}
    for seed in (1, 2):
        run(flat, {"seed": seed, "train.lr": 0.1 * seed})
    found = load_runs(tmp_path)
    assert found["train.lr"].tolist() != found["train.lr"].tolist()[::-1]
    assert set(found["status"]) == {"completed"}
    assert "train.rounds" not in found  # it does not differ
    assert found["metrics.intent_accuracy"].between(0, 1).all()
    assert len(load_runs(found["path"][0])) == 1
    with pytest.raises(WrongInput, match="holds no run"):
        load_runs(tmp_path / "nowhere")


def test_attack_rows_become_their_best_and_their_mean(tmp_path: Path) -> None:
    done = run(SMALL | {"place.out": str(tmp_path)})
    summary = done.summary
    assert summary is not None
    rows = [
        {"attack": "loss", "auc": 0.6, "p_value": 0.2},
        {"attack": "lira", "auc": 0.8, "p_value": 0.1},
    ]
    audits = [{"method": "two_worlds", "epsilon_low": 0.3}, {"epsilon_low": 9.0, "estimate": True}]
    done.write_summary(summary | {"attacks": {"membership": rows, "canary": [], "audit": audits}})
    found = load_runs(tmp_path).iloc[0]
    assert found["attacks.membership.auc.best"] == 0.8
    assert found["attacks.membership.auc.mean"] == pytest.approx(0.7)
    assert found["attacks.membership.p_value.best"] == 0.1
    assert found["attacks.audit.epsilon_low.best"] == 0.3  # what is an estimate certifies nothing


def test_a_run_without_a_checkpoint_has_no_model(tmp_path: Path) -> None:
    with pytest.raises(WrongInput, match="no checkpoint yet"):
        RunDir(tmp_path).model()


def test_the_application_is_imported_without_torch() -> None:
    code = (
        "import sys, fedsim.app; assert 'torch' not in sys.modules and 'pandas' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
