"""The worked examples of own code, from data set to evaluator; and what does not fit."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_update_scores import examples_of
from torch import Tensor, nn

from experiments.own.dataset import Colours
from experiments.own.model import TorchAverage
from fedsim.app.audits.audited import Audited
from fedsim.app.engines.local import run_local
from fedsim.app.experiment.own_code import check_model
from fedsim.app.rundir.audit_file import findings_of
from fedsim.app.rundir.manifest import check_resume
from fedsim.app.rundir.run_dir import RunDir
from fedsim.audit.findings import Finding, LowerBound, Membership
from fedsim.audit.scores import Floats, Target
from fedsim.config import Config, Data, Model, Selection, load
from fedsim.data.federation import load_federation
from fedsim.errors import WrongInput
from fedsim.models import MODELS, build_model, parameters_of
from fedsim.models.evaluation import evaluate
from fedsim.models.example_metrics import metrics_of
from fedsim.models.tasks import Fields, make_task
from fedsim.types import Cohort, Examples, Spec, View
from strategies.aggregation.averages import FedAvg

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _stand_in_the_project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)


def own(out: Path, *settings: str) -> Config:
    return load(ROOT / "experiments" / "own.toml", [f"place.out={out}", *settings])


def test_all_five_together_learn(tmp_path: Path) -> None:
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


def test_a_metric_is_the_mean_of_what_it_gives_each_example(tmp_path: Path) -> None:
    """In every evaluated row, beside the task's own, and of the centralised model, too."""
    metrics = "experiments.own.metric:true_probability, brier, top5_accuracy"
    settings = (
        f"evaluation.metrics={metrics}",
        "train.centralised=true",
        "train.centralised_epochs=1",
    )
    run = run_local(own(tmp_path, *settings, "train.rounds=2"))
    config = run.config
    summary = run.summary
    assert summary is not None
    test = load_federation(config.data, None).test
    assert test is not None
    chances = run.model()(test.fields["tokens"])["label"].detach().double().softmax(-1)
    label = test.fields["label"]
    truth = torch.nn.functional.one_hot(label, 3)
    found = summary["metrics"]
    assert found["true_probability"] == pytest.approx(
        float((chances * truth).sum(-1).mean()), rel=1e-5
    )
    assert found["brier"] == pytest.approx(
        float((chances - truth).square().sum(-1).mean()), rel=1e-5
    )
    assert found["top5_accuracy"] == 1.0  # of three labels
    assert all({"true_probability", "brier", "accuracy"} <= row.keys() for row in run.rows())
    assert {"true_probability", "brier", "accuracy"} <= summary["reference"]["centralised"].keys()
    assert (
        "evaluation.metrics=experiments.own.metric:true_probability" in run.manifest["fingerprint"]
    )


def test_a_metric_does_not_depend_on_batches_and_a_label_never_seen_is_a_miss() -> None:
    """Seen to fail: means of batches averaged."""
    spec = Spec("classification", 20, labels=("a", "b"), labels_unseen=("c",))
    module = build_model(spec, Model(embedding=4), 1)
    task = make_task(spec)
    tokens = torch.arange(14).view(7, 2) + 2
    examples = Examples({"tokens": tokens, "label": torch.tensor([0, 1, 0, 1, 2, 1, 0])})
    params = parameters_of(module)
    each = [
        evaluate(module, task, params, examples, batch, metrics_of("brier")) for batch in (1, 3, 7)
    ]
    assert [found["brier"] for found in each] == pytest.approx([each[0]["brier"]] * 3)
    unseen = evaluate(module, task, params, examples[4:5], metrics=metrics_of("brier"))
    assert 1.5 <= unseen["brier"] <= 2.0


def test_metrics_are_of_the_server_s_test_examples_alone(tmp_path: Path) -> None:
    with pytest.raises(
        WrongInput, match=r"evaluation\.metrics are measured on the server's test examples"
    ):
        run_local(own(tmp_path, "evaluation.on=devices", "evaluation.holdout=0.2"))


@pytest.mark.parametrize(
    ("name", "task"), [(n, t) for n, kind in MODELS.items() for t in kind.tasks]
)
def test_every_model_fits_every_task_that_its_entry_names(name: str, task: str) -> None:
    """Seen to fail: "language" among the tasks of the bag."""
    spec, examples = examples_of(task)
    assert (
        check_model(build_model(spec, Model(name=name, embedding=8), 1), make_task(spec), examples)
        is None
    )


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
    # colours repeat the same words too often: a game asks about records that occur once
    "data.source=requests",
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
    assert [row["attack"] for row in run.summary["attacks"]["membership"]] == [
        each.attack for each in found
    ]
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
        ("audit.attacks={}:two", "must take (target"),
        (
            "audit.attacks={}:short",
            "a score for each record; it returned float64 of the shape (99,)",
        ),
        ("audit.attacks={}:endless", "100 of them are not finite"),
        ("audit.attacks={}:texts", "it returned a list"),
        ("audit.attacks={}:fails", "fails on 100 made-up records with 2 references: KeyError"),
        ("audit.attacks={}:nothing", "has no function 'nothing'"),
        ("audit.attacks=lyra", 'name your own code as "package.module:function"; did you mean'),
        ("audit.evaluators={}:two", "must take (audited"),
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
def test_what_an_own_evaluator_returns_has_to_be_findings(
    tmp_path: Path, name: str, sentence: str
) -> None:
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
    spec = Spec("classification")
    dev = None
    test = None
    fingerprint = {}
    notes = ()
    train = None


def bare(data: Data, data_dir: Path | None) -> Bare:
    return Bare()


def disordered(data: Data, data_dir: Path | None) -> Bare:
    return Disordered()


def strangers(view: View, settings: Selection, rng: np.random.Generator) -> Cohort:
    return Cohort(view.round, np.array(["nobody"]), None)


def everyone(view: View, settings: Selection, rng: np.random.Generator) -> Cohort:
    return Cohort(view.round, view.devices, None)


def test_an_own_selector_may_not_choose_who_is_away(tmp_path: Path) -> None:
    away = (
        "availability.rule=day_cycle",
        "availability.hours=1",
        f"selection.rule={__name__}:everyone",
    )
    with pytest.raises(WrongInput, match="in round 1, which is out of reach or has no example"):
        run_local(own(tmp_path, *away))
    assert not (tmp_path / "own").exists()


def bare_of_folder(data: Data) -> Bare:
    return Bare()


class Unlabelled(Colours):
    def train(self, device: str) -> Examples:
        return Examples({"tokens": super().train(device).fields["tokens"]})


class Untrained(Colours):
    def train(self, device: str) -> Examples:
        return dict(super().train(device).fields)  # type: ignore[return-value]


class ListedDevices(Colours):
    def __init__(self, data: Data) -> None:
        super().__init__(data)
        self.devices = self.devices.tolist()  # type: ignore[assignment]


def without_labels(data: Data, data_dir: Path | None) -> Unlabelled:
    return Unlabelled(data)


def untrained(data: Data, data_dir: Path | None) -> Untrained:
    return Untrained(data)


def listed_devices(data: Data, data_dir: Path | None) -> ListedDevices:
    return ListedDevices(data)


def forgetful(view: object) -> str:
    return "nothing"


def names(view: View, settings: Selection, rng: np.random.Generator) -> list[str]:
    return ["d000"]


class Stateless(FedAvg):
    def step(self, params, total):  # type: ignore[no-untyped-def, override]
        return params


class Forgetful(FedAvg):
    def step(self, params, total, state):  # type: ignore[no-untyped-def, override]
        return params


class Dropping(FedAvg):
    def step(self, params, total, state):  # type: ignore[no-untyped-def, override]
        return dict(list(params.items())[1:]), state


def no_model(spec: Spec, model: Model) -> str:
    return "a model"


class Misnamed(TorchAverage):
    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        return {"labels": super().forward(tokens)["label"]}


class BareLogits(TorchAverage):
    def forward(self, tokens: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(tokens)["label"]


def misnamed(spec: Spec, model: Model) -> nn.Module:
    return Misnamed(spec, model)


def misshapen(spec: Spec, model: Model) -> nn.Module:
    return TorchAverage(replace(spec, labels=("a", "b", "c", "d")), model)


def bare_logits(spec: Spec, model: Model) -> nn.Module:
    return BareLogits(spec, model)


def broken_model(spec: Spec, model: Model) -> nn.Module:
    made = TorchAverage(spec, model)
    made.label = nn.Linear(model.hidden + 1, len(spec.labels))
    return made


def mean(outputs: Fields, fields: Fields) -> Tensor:
    return outputs["label"].mean()


def number(outputs: Fields, fields: Fields) -> float:
    return 1.0


def nowhere(outputs: Fields, fields: Fields) -> Tensor:
    return torch.full((len(fields["label"]),), torch.nan)


def accuracy(outputs: Fields, fields: Fields) -> Tensor:
    return torch.ones(len(fields["label"]))


def misread(outputs: Fields, fields: Fields) -> Tensor:
    return outputs["tags"]


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("data.source={}:bare", "gave a Bare without spec, dev, test, fingerprint, notes, train"),
        ("data.source={}:disordered", "devices must be sorted"),
        ("selection.rule={}:strangers", "unknown: nobody"),
        ("aggregation.rule={}:nothing", "has no function 'nothing'"),
        ("data.source={}:bare_of_folder", "must take (data, data_dir), but takes (data)"),
        ("data.source={}:without_labels", "need the tensors tokens, label, got tokens [2, 3]"),
        ("data.source={}:untrained", "must return fedsim.types.Examples, got a dict"),
        ("data.source={}:listed_devices", "devices must be a ndarray, got a list"),
        ("selection.rule={}:forgetful", "must take (view, settings, rng), but takes (view)"),
        ("selection.rule={}:names", "must return a fedsim.types.Cohort whose devices are an array"),
        ("aggregation.rule={}:forgetful", "got a str without init"),
        (
            "aggregation.rule={}:Stateless",
            "step must take (params, total, state), but takes (params, total)",
        ),
        ("aggregation.rule={}:Forgetful", "step must return (params, state), got a dict"),
        ("aggregation.rule={}:Dropping", "step must return words.weight [11, 8]"),
        ("model.name={}:forgetful", "must take (spec, model), but takes (view)"),
        (
            "model.name={}:no_model",
            "must return a torch module that can be trained, got a str instead",
        ),
        (
            "model.name={}:misnamed",
            "return the logits label [2, 3] by name on 2 examples, got labels [2, 3]",
        ),
        (
            "model.name={}:misshapen",
            "return the logits label [2, 3] by name on 2 examples, got label [2, 4]",
        ),
        ("model.name={}:bare_logits", "by name on 2 examples, got a Tensor"),
        ("model.name={}:broken_model", "failed on tokens [2, 3]: RuntimeError: mat1 and mat2"),
        ("evaluation.metrics={}:forgetful", "must take (outputs, fields), but takes (view)"),
        (
            "evaluation.metrics={}:mean",
            "one finite number an example, a tensor [2] here, got the value []",
        ),
        ("evaluation.metrics={}:number", "a tensor [2] here, got the value float"),
        (
            "evaluation.metrics={}:nowhere",
            "must return one finite number an example, a tensor [2] here, got [nan",
        ),
        ("evaluation.metrics={}:accuracy", "'accuracy' names another figure; rename the function"),
        (
            "evaluation.metrics={}:misread",
            "'misread' failed on outputs label [2, 3]: KeyError: 'tags'",
        ),
        ("evaluation.metrics={0}:mean, {0}:mean", "names 'mean' twice"),
        (
            "evaluation.metrics=brie",
            "evaluation.metrics = 'brie' is not known; choose one of brier",
        ),
    ],
)
def test_own_code_that_does_not_fit_is_refused_in_a_sentence(
    tmp_path: Path, setting: str, sentence: str
) -> None:
    """Seen to fail: check_experiment without check_own_code; names of functions without `takes`."""
    with pytest.raises(WrongInput) as caught:
        run_local(own(tmp_path, setting.format(__name__)))
    assert sentence in str(caught.value)
    assert not (tmp_path / "own").exists()
