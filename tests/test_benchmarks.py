"""The benchmarks run, at sizes that say nothing about speed; those of Flower and pfl are run by
hand.
"""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from experiments.benchmarks.peers import engine, plain
from experiments.benchmarks.peers.launch import ask
from experiments.benchmarks.peers.settings import SETTINGS, cohorts, made_up, sizes

ROOT = Path(__file__).parents[1]


def rows(tmp_path: Path, script: str, arguments: str) -> list[dict[str, object]]:
    """Run a benchmark and return the raw figures that it writes."""
    out = tmp_path / "figures.json"
    subprocess.run(
        [
            sys.executable,
            f"experiments/benchmarks/{script}.py",
            *arguments.split(),
            "--out",
            str(out),
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
        capture_output=True,
    )
    return json.loads(out.read_text())["rows"]


def test_equal_and_heavy_tailed_cohorts_have_as_many_examples() -> None:
    equal = sizes(SETTINGS["cnn"])
    heavy = sizes(SETTINGS["cnn_heavy"])
    assert sum(equal) == sum(heavy)
    assert len(equal) == len(heavy)
    assert min(heavy) >= 1
    assert max(heavy) > 5 * max(equal)


def test_cohorts_repeat_and_do_not_overlap() -> None:
    setting = replace(SETTINGS["nlu"], devices=20, cohort=5)
    found = cohorts(setting, 5)
    assert sorted(d for cohort in found[:4] for d in cohort) == list(range(20))
    assert found[4] == found[0]


@pytest.mark.parametrize("name", SETTINGS)
def test_peers_train_the_same_model_as_ours(name: str) -> None:
    setting = SETTINGS[name]
    module, _ = engine.build(setting)
    ours, theirs = (sum(p.numel() for p in m.parameters()) for m in (module, plain.build(setting)))
    second_bias = (
        8 * setting.hidden if setting.model == "bilstm" else 0
    )  # torch's LSTM has two that add up
    assert theirs - ours == second_bias
    inputs = made_up(setting, 2, 0)[setting.input]
    assert plain.build(setting)(inputs).shape == module(inputs)["label"].shape


@pytest.mark.parametrize("model", ["bag", "cnn", "pfl_cnn"])
def test_with_the_same_parameters_outputs_are_the_same(model: str) -> None:
    setting = next(s for s in SETTINGS.values() if s.model == model)
    module, _ = engine.build(setting)
    theirs = plain.build(setting)
    for p, q in zip(theirs.parameters(), in_their_order(module, model), strict=True):
        p.data.copy_(q)
    inputs = made_up(setting, 2, 0)[setting.input]
    torch.testing.assert_close(theirs(inputs), module(inputs)["label"])


def in_their_order(module: torch.nn.Module, model: str) -> list[torch.Tensor]:
    """Return our parameters in the order of the plain model: there each norm follows its
    convolution.
    """
    named = dict(module.named_parameters())
    if model != "cnn":
        return list(named.values())
    layers = [f"{kind}.{i}" for i in range(2) for kind in ("convolutions", "norms")] + [
        "hidden",
        "label",
    ]
    return [named[f"{layer}.{part}"] for layer in layers for part in ("weight", "bias")]


def test_a_worker_that_fails_says_why() -> None:
    said = ask([sys.executable, "-c", "raise SystemExit('no data')"], {}, timeout=60)
    assert said == {"failed": "no data"}


@pytest.mark.slow
def test_every_peer_clips_as_one_example_at_a_time_does(tmp_path: Path) -> None:
    found = rows(
        tmp_path,
        "privacy_cost",
        "--tiny --steps 1 --cohorts 1,3 --cohort-batch 4 --methods nn,engine,loop,hooks,ghost,vmap",
    )
    assert len(found) == 3 * 2 * 6
    assert all(row["seconds"] and row["mib"] is not None for row in found)


@pytest.mark.slow
def test_throughput_of_ours_and_of_loops(tmp_path: Path) -> None:
    found = rows(
        tmp_path,
        "throughput",
        "--settings nlu,cnn_heavy --peers ours,loop --devices 4 --cohort 2 --examples 6 "
        "--repeats 1 --rounds 1 --private no",
    )
    assert {row["peer"] for row in found} >= {"ours", "loop", "loop (a process a core)"}
    assert all(len(row["seconds"]) == 1 for row in found)


@pytest.mark.slow
def test_growth(tmp_path: Path) -> None:
    found = rows(
        tmp_path,
        "growth",
        "--devices 50 --cohort 5 --cohorts 4,8 --fixed-devices 40 --examples 4 --rounds 2 "
        "--repeats 1",
    )
    assert [row["trained"] for row in found] == [[5], [4], [8]]


@pytest.mark.slow
def test_what_the_machine_allows_is_more_than_any_throughput(tmp_path: Path) -> None:
    measured = {
        "setting": "bilstm",
        "private": False,
        "peer": "ours",
        "cohort": 10,
        "seconds": [2.0, 1.0, 5.0],
    }
    (tmp_path / "measured.json").write_text(json.dumps({"rows": [measured]}))
    found = {
        row["setting"]: row
        for row in rows(tmp_path, "ceiling", f"--repeats 1 --results {tmp_path / 'measured.json'}")
    }
    bag = found["nlu"]
    lstm = found["bilstm"]
    assert lstm["measured"] == 5.0
    assert lstm["measured_private"] is None
    # 5 steps of 10 examples: a head of 64 x 60, forward and two products backward; the first has no
    # input's
    assert bag["gflop_a_device"] == pytest.approx(5 * 10 * 64 * 60 * 2 * 3 / 1e9)
    # a row has noise once, and in each step in which it is read: of 10,000 at most 200 a step
    assert bag["noise_values_a_device"] == 10_000 * 64 + 5 * (200 * 64 + 64 * 60 + 60)
