"""The worked examples of own code: data set, model, selector, server rule, attack and evaluator."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fedsim.app.audits.audited import Audited
from fedsim.app.engines.local import run_local
from fedsim.app.rundir.audit_file import findings_of
from fedsim.app.rundir.manifest import check_resume
from fedsim.app.rundir.run_dir import RunDir
from fedsim.audit.findings import Finding, LowerBound, Membership
from fedsim.audit.scores import Floats, Target
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


AUDITED = (
    "data.source=requests",  # colours say the same words too often: a game asks about records that occur once
    "data.examples=400",
    "train.rounds=3",
    "audit.coins=record",
    "audit.references=2",
    "audit.evaluators=membership,experiments.own.evaluator:since_the_start",
    "audit.attacks=loss,experiments.own.attack:surprise",
)


def test_an_own_attack_and_an_own_evaluator_stand_beside_the_built_in_ones(tmp_path: Path) -> None:
    """Seen to fail: a fingerprint that knows nothing of own code in [audit]."""
    run = run_local(own(tmp_path, *AUDITED))
    found = [each for each in findings_of(run) if isinstance(each, Membership)]
    attack = "experiments.own.attack:surprise"
    assert [each.attack for each in found] == ["loss", attack, "since_the_start"]
    assert [each.threat.references for each in found] == [2, 2, 0]
    assert all(each.round == 3 for each in found)
    assert run.summary is not None
    assert [row["attack"] for row in run.summary["attacks"]["membership"]] == [each.attack for each in found]
    keys = {f"audit.attacks={attack}", "audit.evaluators=experiments.own.evaluator:since_the_start"}
    assert keys <= run.manifest["fingerprint"].keys()


def two(one: object, other: object) -> None:
    """Neither attack nor evaluator: it takes two arguments."""


def short(target: Target) -> Floats:
    return target.own.phi[1:]


def endless(target: Target) -> Floats:
    return target.own.phi / 0.0 if target.references else target.own.phi


def texts(target: Target) -> list[str]:
    return ["in"] * len(target.member)


def fails(target: Target) -> Floats:
    raise KeyError("phi")


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("audit.attacks={}:two", "has to be a function of a Target"),
        ("audit.attacks={}:short", "a score for each record; it returned float64 of the shape (99,)"),
        ("audit.attacks={}:endless", "100 of them are not finite"),
        ("audit.attacks={}:texts", "it returned a list"),
        ("audit.attacks={}:fails", "fails on 100 made-up records with 2 references: KeyError"),
        ("audit.attacks={}:nothing", "has no function 'nothing'"),
        ("audit.attacks=lyra", 'name your own code as "package.module:function"; did you mean'),
        ("audit.evaluators={}:two", "has to be a function of an Audited"),
        ("audit.evaluators={}:nothing", "has no function 'nothing'"),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning")
def test_an_own_attack_or_evaluator_that_does_not_fit_is_refused_before_training(
    tmp_path: Path, setting: str, sentence: str
) -> None:
    """Seen to fail: attacks looked up when the audit is due, after a whole run of training."""
    with pytest.raises(WrongInput) as caught:
        run_local(own(tmp_path, *AUDITED, setting.format(__name__)))
    assert sentence in str(caught.value)
    assert not (tmp_path / "own").exists()


def a_row(audited: Audited) -> list[dict[str, str]]:
    return [{"kind": "membership"}]


def nan(audited: Audited) -> list[Finding]:
    return [LowerBound("by hand", float("nan"))]


def yielding(audited: Audited) -> Iterator[Finding]:
    yield LowerBound("by hand", 1.0)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("a_row", "one of them is a dict"),
        ("nan", "cannot be written"),
        ("yielding", "it returned a generator"),
    ],
)
def test_what_an_own_evaluator_returns_has_to_be_findings(tmp_path: Path, name: str, sentence: str) -> None:
    """Seen to fail: rows and NaN written as they came."""
    settings = ("train.rounds=1", f"audit.evaluators={__name__}:{name}")
    with pytest.raises(WrongInput) as caught:
        run_local(own(tmp_path, *settings))
    assert "has to return a list of findings" in str(caught.value)
    assert sentence in str(caught.value)


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
