"""The worked examples of own code: data set, model, selector and server rule."""

from pathlib import Path

import numpy as np
import pytest

from fedsim.app.engines.local import run_local
from fedsim.app.rundir.manifest import check_resume
from fedsim.app.rundir.run_dir import RunDir
from fedsim.config import Config, Data, Selection, load
from fedsim.data.federation import load_federation
from fedsim.errors import WrongInput
from fedsim.types import Cohort, View

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _stand_in_the_project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)


def own(out: Path, *settings: str) -> Config:
    return load(ROOT / "experiments" / "own.toml", [f"place.out={out}", *settings])


def test_all_four_together_learn(tmp_path: Path) -> None:
    summary = run_local(own(tmp_path)).summary
    assert summary is not None
    assert summary["metrics"]["accuracy"] > 0.9


@pytest.mark.parametrize(
    "default",
    [
        "model.name=bag",
        "selection.rule=uniform",
        "aggregation.rule=fedadam",
        "model.name=experiments.own.model:torch_average",
    ],
)
def test_each_works_beside_what_is_built_in(tmp_path: Path, default: str) -> None:
    summary = run_local(own(tmp_path, default)).summary
    assert summary is not None
    assert summary["metrics"]["accuracy"] > 0.8


def test_a_model_of_torch_s_layers_gives_what_the_stacked_one_gives(tmp_path: Path) -> None:
    names = ("average", "torch_average")
    runs = [run_local(own(tmp_path, f"model.name=experiments.own.model:{name}")) for name in names]
    a, b = ([row["train_loss"] for row in run.rows()] for run in runs)
    assert a == pytest.approx(b, rel=1e-4)


def test_the_selector_prefers_the_rested(tmp_path: Path) -> None:
    checkpoint = run_local(own(tmp_path)).last_checkpoint()
    assert checkpoint is not None
    # 15 rounds of about 10 of 40: coins alone would spread the counts with a variance of 2.8
    assert checkpoint.participation.var() < 1.6


def test_a_resume_with_changed_own_code_is_refused(tmp_path: Path) -> None:
    config = own(tmp_path)
    run = run_local(config)
    manifest = run.manifest
    key = "selection.rule=experiments.own.selector:rested"
    assert key in manifest["fingerprint"]
    changed = RunDir(run.path)
    changed.write_manifest(manifest | {"fingerprint": manifest["fingerprint"] | {key: "0"}})
    with pytest.raises(WrongInput, match=r"begun with another selection\.rule"):
        check_resume(changed, config, load_federation(config.data, None))


class Bare:
    """A data set that forgets most of what it should have."""

    devices = np.array(["b", "a"])
    activity = np.array([1, 1])


class Disordered(Bare):
    spec, dev, test, fingerprint, notes, train = None, None, None, {}, (), None


def bare(data: Data, data_dir: Path | None) -> Bare:
    return Bare()


def disordered(data: Data, data_dir: Path | None) -> Bare:
    return Disordered()


def strangers(view: View, settings: Selection, rng: np.random.Generator) -> Cohort:
    return Cohort(view.round, np.array(["nobody"]), None)


def everyone(view: View, settings: Selection, rng: np.random.Generator) -> Cohort:
    return Cohort(view.round, view.devices, None)


def test_an_own_selector_may_not_choose_who_is_away(tmp_path: Path) -> None:
    away = ("availability.rule=day_cycle", "availability.hours=1", f"selection.rule={__name__}:everyone")
    with pytest.raises(WrongInput, match="in round 1, which is out of reach or has no example"):
        run_local(own(tmp_path, *away))
    assert not (tmp_path / "own").exists()


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("data.source={}:bare", "gave a Bare without spec, dev, test, fingerprint, notes, train"),
        ("data.source={}:disordered", "devices must be sorted"),
        ("selection.rule={}:strangers", "unknown: nobody"),
        ("aggregation.rule={}:nothing", "has no function 'nothing'"),
    ],
)
def test_own_code_that_does_not_fit_is_refused_in_a_sentence(
    tmp_path: Path, setting: str, sentence: str
) -> None:
    with pytest.raises(WrongInput) as caught:
        run_local(own(tmp_path, setting.format(__name__)))
    assert sentence in str(caught.value)
    assert not (tmp_path / "own").exists()
