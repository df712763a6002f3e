"""The command line as people and scripts use it."""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import Cli

from fedsim.app.cli.main import COMMANDS

CONTINUAL = [f"--set=stream.{s}" for s in ("mode=continual", "arrivals=poisson", "periods=2")]
SMALL = ("train.rounds=3", "train.centralised=false", "data.devices=60", "data.examples=600")
QUICK = ["experiments/quickstart.toml", *(f"--set={setting}" for setting in SMALL)]


def test_run_prints_a_summary_and_where_the_results_are(fedsim: Cli, tmp_path: Path) -> None:
    done = fedsim("run", *QUICK, "--report")
    assert "intent_accuracy" in done.stdout
    folder = done.stdout.split("Results: ")[1].splitlines()[0]
    assert (tmp_path / folder / "report.html").is_file()
    again = fedsim("run", *QUICK)
    assert "done already" in again.stdout
    assert "completed" in fedsim("runs").stdout


def test_json_is_all_that_stdout_gets(fedsim_process: Cli) -> None:
    done = fedsim_process("run", *QUICK, "--json", "--nodes", "2")
    summary = json.loads(done.stdout)
    assert summary["status"] == "completed"
    assert summary["rounds"] == 3
    assert done.stderr == ""
    assert json.loads(fedsim_process("run", *QUICK, "--json").stdout) == summary


def test_show_tells_config_federation_and_plan_without_training(
    fedsim: Cli, tmp_path: Path
) -> None:
    text = fedsim("show", *QUICK).stdout
    for part in (
        "train.rounds *",
        "Gini of activity",
        "label skew",
        "3 rounds; about 30 devices",
        "parameters",
    ):
        assert part in text
    assert not (tmp_path / "runs").exists()


def test_show_warns_when_activity_counts_twice(fedsim: Cli) -> None:
    text = fedsim("show", *QUICK, "--set", "aggregation.weights=examples").stdout
    assert "activity counts twice" in text
    assert "activity counts twice" not in fedsim("show", *QUICK).stdout


def test_export_writes_npz_and_json_without_pickle(fedsim: Cli, tmp_path: Path) -> None:
    fedsim("run", *QUICK)
    folder = tmp_path / fedsim("export", "runs").stdout.strip()
    description = json.loads((folder / "model.json").read_text())
    with np.load(folder / "model.npz", allow_pickle=False) as arrays:
        assert {n: list(arrays[n].shape) for n in arrays.files} == description["parameters"]
    assert description["round"] == 3
    assert len(description["spec"]["words"]) + 2 == description["spec"]["vocabulary"]
    assert "music_play" in description["spec"]["labels"]


def test_help_names_every_command(fedsim: Cli) -> None:
    text = fedsim("--help").stdout
    assert all(command in text for command in ("run", "show", "data", "report", "runs", "export"))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["run", "none.toml"], "'none.toml' does not exist"),
        (["run", *QUICK, "--set", "train.lrr=1"], "did you mean 'train.lr'?"),
        (["run", *QUICK, "--set", "train.lr=-1"], "train.lr = -1 is not allowed"),
        (["run", *QUICK, "--set", "train.lr"], "--set wants section.key=value"),
        (["run", *QUICK, "--set", "data.source=nope"], "choose one of"),
        (["run", *QUICK, "--set", "model.name=mlp"], "choose bag or bilstm"),
        (
            ["run", *QUICK, "--set", "selection.rule=a.b:c"],
            "the module 'a.b' could not be imported",
        ),
        (
            ["run", *QUICK, "--set", "data.devices=6000"],
            "raise data.examples or lower data.devices",
        ),
        (["run", *QUICK, "--device", "tpu"], "place.device = 'tpu' is not allowed"),
        (["run", *QUICK, "--backend", "moon"], "choose local"),
        (["run", "experiments/massive.toml", "--data-dir", "nowhere"], "'nowhere' does not exist"),
        (["show", "experiments/massive.toml"], "FEDSIM_DATA"),
        (
            ["run", "experiments/massive.toml", "--data-dir", "/nope/[/x]"],
            "'/nope/[/x]' does not exist",
        ),
        (["run", *QUICK, "--set", "train.lr=[/bold]"], "train.lr = '[/bold]' is not allowed"),
        (["run", *QUICK, "--set", "model.name=:"], "could not be imported"),
        (["run", *QUICK, "--set", "selection.rule=math:pi"], "has no function 'pi'"),
        (["run", *QUICK, "--set", "data.test_share=0.2"], "set data.test_share = 0"),
        (["run", *QUICK, "--out", "experiments/own.toml/x"], "cannot be made"),
        (["data", *QUICK, "--to", "experiments/own.toml"], "cannot be made"),
        (["data", *QUICK, *CONTINUAL], "do not fill"),
        (["report", "nowhere"], "holds no run"),
        (["export", "."], "holds no run"),
    ],
    ids=lambda a: a[-1] if isinstance(a, list) else "",
)
def test_wrong_input_gets_one_sentence_and_exit_code_2(
    fedsim: Cli,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    sentence: str,
) -> None:
    monkeypatch.delenv("FEDSIM_DATA", raising=False)
    done = fedsim(*arguments, check=False)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not (tmp_path / "runs").exists()


def test_wrong_input_ends_a_process_with_exit_code_2(fedsim_process: Cli) -> None:
    done = fedsim_process("run", "none.toml", check=False)
    assert done.returncode == 2
    assert done.stderr == "error: the experiment file 'none.toml' does not exist\n"


@pytest.mark.slow
def test_every_command_works_in_a_process_of_its_own(fedsim_process: Cli, tmp_path: Path) -> None:
    """All other tests of commands call `main` in their own process."""
    (tmp_path / "x.sweep.toml").write_text(f'base = "{QUICK[0]}"\n[grid]\ntrain.lr = [0.1]\n')
    private = ["--set=dp.unit=device", "--set=selection.cap=0.2", "--set=aggregation.rule=fedavg"]
    said = {
        "show": ([*QUICK], "Gini of activity"),
        "run": ([*QUICK], "Results: "),
        "runs": ([], "completed"),
        "export": (["runs"], "model"),
        "report": (["runs"], "report.html"),
        "audit": (["runs/quickstart", "--references=0"], "blind AUC"),
        "data": ([QUICK[0]], "data.html"),
        "calibrate": ([QUICK[0], *private, "--epsilon=4"], "--set dp.noise_multiplier="),
        "sweep": (["x.sweep.toml", "--dry-run"], " new "),
        "config": (["--defaults"], "lr = 0.1"),
        "doctor": ([], "torch"),
        "deploy": (["init", "keys", "--host", "127.0.0.1"], "keys"),
    }
    assert said.keys() == {command.__name__ for command in COMMANDS} | {"deploy"}
    for command, (arguments, part) in said.items():
        assert part in fedsim_process(command, *arguments).stdout, command


def test_an_unexpected_error_shows_no_local_variables(fedsim_process: Cli, tmp_path: Path) -> None:
    """A traceback with variables would print people's data."""
    (tmp_path / "broken.py").write_text(
        "def rule(view, settings, rng):\n    secret = 'my pin is 1234'\n    1 / 0\n"
    )
    done = fedsim_process("run", *QUICK, "--set", "selection.rule=broken:rule", check=False)
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr
    assert "1234" not in done.stderr.replace("secret = 'my pin is 1234'", "")


def test_own_code_is_found_from_the_folder_one_stands_in(fedsim: Cli) -> None:
    done = fedsim("run", "experiments/own.toml", "--json")
    assert json.loads(done.stdout)["metrics"]["accuracy"] > 0.9
