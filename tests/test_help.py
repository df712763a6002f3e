"""Help that teaches: every setting is documented, the environment is checked."""

import inspect
import json
import tomllib
from pathlib import Path

import jsonschema
import pytest
from conftest import Cli

import fedsim.config
from fedsim.app.cli.commands.config import NAMES, commented, json_schema
from fedsim.app.cli.commands.doctor import data_check, disk_check, package_check, shadow_check
from fedsim.config import Config, Section
from fedsim.data.partitions.assign import RULES
from fedsim.models import MODELS
from strategies.aggregation import AGGREGATORS
from strategies.selection import SELECTORS


def sections() -> dict[str, type[Section]]:
    kinds = {name: field.annotation for name, field in Config.model_fields.items()}
    return {
        name: kind
        for name, kind in kinds.items()
        if isinstance(kind, type) and issubclass(kind, Section)
    }


def test_every_setting_says_what_it_means() -> None:
    named = {
        f"{key}.{name}": f
        for key, kind in sections().items()
        for name, f in kind.model_fields.items()
    }
    named |= {name: field for name, field in Config.model_fields.items() if name not in sections()}
    assert [name for name, field in named.items() if not field.description] == []
    assert [name for name, kind in sections().items() if not kind.__doc__] == []


def test_the_commented_defaults_are_the_defaults() -> None:
    text = commented()
    assert tomllib.loads(text) == Config().model_dump(by_alias=True)
    assert "# learning rate of the device's optimiser; above 0, at most 1e+09\nlr = 0.1" in text
    assert "none | example | device" in text


def test_names_are_printed_from_their_tables() -> None:
    """Seen to fail: a list of names written into a description in fedsim/config.py."""
    text = commented()
    schema = json.dumps(json_schema())
    assert NAMES not in text + schema
    for table in (SELECTORS, MODELS, AGGREGATORS, RULES):
        assert " | ".join(table) in text
        assert " | ".join(table) in schema
        assert " | ".join(list(table)[:2]) not in inspect.getsource(fedsim.config)


def test_the_schema_takes_experiments_and_refuses_what_a_run_refuses() -> None:
    schema = json_schema()
    for path in sorted((Path(__file__).parents[1] / "experiments").glob("*.toml")):
        if ".sweep" not in path.name:
            jsonschema.validate(tomllib.loads(path.read_text()), schema)
    for wrong in (
        {"train": {"lrr": 1}},
        {"train": {"lr": -1}},
        {"dp": {"unit": "person"}},
        {"seed": "x"},
    ):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema)


def test_the_commands_print_them(fedsim: Cli) -> None:
    assert json.loads(fedsim("config", "--schema").stdout) == json_schema()
    assert fedsim("config", "--defaults").stdout == commented()
    assert fedsim("config", check=False).returncode == 2


def test_a_healthy_environment_is_green(fedsim: Cli, tmp_path: Path) -> None:
    (tmp_path / "data" / "set").mkdir(parents=True)
    text = fedsim("doctor", "--data-dir", str(tmp_path / "data")).stdout
    for part in (
        "torch",
        "CUDA",
        "ray",
        "flwr",
        "package clients",
        "package strategies",
        "GiB free",
    ):
        assert part in text
    assert "RED" not in text


def test_a_red_check_is_told_with_its_remedy_and_exit_code_1(fedsim: Cli) -> None:
    done = fedsim("doctor", "--data-dir", "nowhere", "--quiet", check=False)
    assert done.returncode == 1
    assert "name the folder that holds the sets" in done.stdout
    assert "1 of" in done.stderr


def test_versions_are_compared_as_versions() -> None:
    assert package_check("x", "1.9", "2.0", lambda name: "1.10").ok is True
    assert package_check("x", "1.9", "2.0", lambda name: "2.0").ok is False
    assert package_check("x", "1.9", "", lambda name: "").ok is False
    assert package_check("x", "2.6", "", lambda name: "2.13.0+cpu").ok is True


def test_a_package_of_somebody_else_is_red(tmp_path: Path) -> None:
    found = shadow_check("clients", tmp_path)
    assert (found.ok, found.remedy) == (False, "pip uninstall clients")


def test_a_folder_without_data_and_a_disk_that_is_not_there_are_told(tmp_path: Path) -> None:
    assert data_check("").ok is None
    assert data_check(str(tmp_path)).ok is False
    assert disk_check(tmp_path / "deep" / "runs").found.endswith("runs")
