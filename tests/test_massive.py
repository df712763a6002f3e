"""MASSIVE, for real: all natural devices."""

from pathlib import Path

import pytest

from fedsim.app.engines.local import run_local
from fedsim.config import load
from fedsim.data.activity import gini
from fedsim.data.federation import load_federation
from fedsim.data.statistics import label_skew

EXPERIMENT = Path(__file__).parents[1] / "experiments" / "massive.toml"


def test_the_federation_is_as_its_readme_says(data_dir: Path) -> None:
    federation = load_federation(load(EXPERIMENT).data, data_dir)
    assert len(federation.devices) == 691
    assert (federation.activity > 0).sum() == 682
    assert federation.activity.sum() == 11514
    assert federation.dev is not None
    assert federation.test is not None
    assert (len(federation.dev), len(federation.test)) == (2033, 2974)
    assert (len(federation.spec.labels), len(federation.spec.tags)) == (60, 107)
    assert federation.spec.tags_unseen == ("I-transport_type",)
    assert 0.45 < gini(federation.activity) < 0.55
    skew = label_skew(federation, seed=0)
    assert skew is not None
    assert skew.sampled
    assert skew.measured > skew.by_chance


@pytest.mark.slow
def test_the_experiment_holds_what_the_readme_says(data_dir: Path, tmp_path: Path) -> None:
    place = [f"place.out={tmp_path}", f"place.data_dir={data_dir}", "place.threads=1"]
    summary = run_local(load(EXPERIMENT, place)).summary
    assert summary is not None
    federated = summary["metrics"]
    central = summary["reference"]["centralised"]
    assert federated["intent_accuracy"] >= 0.80
    assert central["intent_accuracy"] - federated["intent_accuracy"] <= 0.02


@pytest.mark.slow
@pytest.mark.parametrize(("model", "accuracy"), [("bag", 0.70), ("bilstm", 0.15)])
def test_thirty_rounds_learn_a_good_part(
    data_dir: Path, tmp_path: Path, model: str, accuracy: float
) -> None:
    """A part of the experiment; its whole figures stand in the README."""
    rounds = 30 if model == "bag" else 12
    settings = [
        f"train.rounds={rounds}",
        "train.centralised=false",
        f"model.name={model}",
        "model.hidden=32",
    ]
    place = [f"place.out={tmp_path}", f"place.data_dir={data_dir}", "place.threads=1"]
    summary = run_local(load(EXPERIMENT, settings + place)).summary
    assert summary is not None
    assert summary["metrics"]["intent_accuracy"] > accuracy
    assert (summary["devices"], summary["devices_all"], summary["devices_empty"]) == (682, 691, 9)
    assert summary["test_labels_unseen"] == 0
