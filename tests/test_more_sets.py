"""Every real set loads and trains: intents, next actions, entities, next words and images."""

import math
import resource
from pathlib import Path

import numpy as np
import pytest

from clients.training import Assignment, Trainer
from fedsim.app.engines.local import run_local
from fedsim.app.rundir.metrics import period_matrix
from fedsim.config import Data, Model, Partition, Train, from_flat, load, to_flat
from fedsim.data.federation import load_federation
from fedsim.errors import WrongInput
from fedsim.models import build_model, parameters_of
from fedsim.models.tasks import make_task
from fedsim.types import UNKNOWN

ROOT = Path(__file__).parents[1]
SETTINGS = (
    "train.rounds=1",
    "train.local_steps=1",
    "train.centralised=false",
    "selection.cohort=5",
    "data.vocabulary_size=300",
    "model.hidden=16",
    "place.threads=1",
)


@pytest.mark.parametrize(
    ("experiment", "metric"),
    [
        pytest.param("language_irc", "perplexity", marks=pytest.mark.slow),
        ("language_shakespeare", "word_accuracy"),
        ("tagging_btc", "span_f1"),
        ("classification_star", "accuracy"),
        ("image_omniglot", "accuracy"),
        ("snips_dirichlet", "slot_f1"),
    ],
)
def test_an_experiment_on_real_data_trains_for_a_round(
    data_dir: Path, tmp_path: Path, experiment: str, metric: str
):
    config = load(ROOT / "experiments" / f"{experiment}.toml", SETTINGS)
    place = {"place.data_dir": str(data_dir), "place.out": str(tmp_path)}
    summary = run_local(from_flat(to_flat(config) | place)).summary
    assert summary["status"] == "completed"
    assert math.isfinite(summary["metrics"][metric])
    assert math.isfinite(summary["metrics"]["loss"])


def test_star_is_learned_over_its_real_periods(data_dir: Path, tmp_path: Path):
    config = load(ROOT / "experiments" / "continual_star.toml", [*SETTINGS, "train.rounds=5"])
    place = {
        "place.data_dir": str(data_dir),
        "place.out": str(tmp_path),
        "availability.rule": "clock",
    }
    run = run_local(from_flat(to_flat(config) | place))
    matrix = period_matrix(run.rows("periods.jsonl"), "accuracy")
    assert matrix.shape == (6, 5)
    assert np.isfinite(matrix).all()
    assert all(0 < row["reachable"] < 108 for row in run.rows())


def test_the_digits_are_learned_without_any_file(tmp_path: Path):
    config = from_flat(
        {
            "data.source": "digits",
            "partition.name": "dirichlet",
            "partition.min_size": 5,
            "data.task": "image",
            "data.devices": 20,
            "data.test_share": 0.2,
            "model.name": "cnn",
            "model.hidden": 32,
            "train.rounds": 15,
            "selection.rule": "uniform",
            "selection.cohort": 10,
            "place.out": str(tmp_path),
            "place.threads": 1,
        }
    )
    assert run_local(config).summary["metrics"]["accuracy"] > 0.7  # chance is 0.1


@pytest.mark.parametrize(
    ("name", "task", "partition", "labels", "tags"),
    [
        ("clinc150", "classification", {"name": "fednlp_label"}, 151, 0),
        ("banking77", "classification", {"name": "cluster"}, 77, 0),
        ("wnut17", "tagging", {"name": "fednlp_label", "by": "tags"}, 0, 13),
    ],
)
@pytest.mark.parametrize("model", ["bag", "bilstm", "transformer"])
def test_a_set_without_devices_trains_once_it_is_partitioned(
    data_dir: Path,
    name: str,
    task: str,
    partition: dict[str, str],
    labels: int,
    tags: int,
    model: str,
):
    data = Data(source="files", task=task, path=name, train="train*", test="test*", devices=100)
    federation = load_federation(data, data_dir, Partition.model_validate(partition))
    assert (len(federation.spec.labels), len(federation.spec.tags)) == (labels, tags)
    module = build_model(federation.spec, Model(name=model, embedding=16, hidden=16), seed=1)
    trainer = Trainer(module, make_task(federation.spec), Train(local_steps=2))
    work = [Assignment(d, federation.train(d), 1.0) for d in federation.devices[:3].tolist()]
    total = trainer.train(parameters_of(module), work, seed=1, round=1)
    assert total.devices == 3
    assert all(bool(d.isfinite().all()) and bool(d.any()) for d in total.delta.values())


def test_a_set_without_devices_says_so(data_dir: Path):
    data = Data(source="files", task="tagging", path="wnut17", train="train.jsonl.gz")
    with pytest.raises(WrongInput, match="no column for 'device'"):
        load_federation(data, data_dir)


@pytest.mark.slow
def test_all_messages_of_irc_fit_into_memory_as_shared_tensors(data_dir: Path):
    data = load(ROOT / "experiments" / "language_irc.toml").data
    federation = load_federation(data, data_dir)
    assert len(federation.devices) > 16_000
    assert federation.spec.vocabulary == data.vocabulary_size + UNKNOWN + 1
    one, other = (
        federation.train(str(d)).fields for d in federation.devices[federation.activity > 1][:2]
    )
    storage = one["tokens"].untyped_storage().data_ptr()
    assert {f.untyped_storage().data_ptr() for f in (*one.values(), *other.values())} == {storage}
    assert (
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 3 * 2**20
    )  # KiB, of this whole process


def test_characters_of_every_drawer_are_held_out(data_dir: Path):
    federation = load_federation(load(ROOT / "experiments" / "image_omniglot.toml").data, data_dir)
    assert len(federation.devices) == 160
    assert federation.activity.sum() + len(federation.test) == 4840
    assert len(np.unique(federation.test.fields["label"])) > 200
