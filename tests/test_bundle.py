"""The Flower app bundle: it holds what a node needs, and the quickstart runs from it alone."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the unpacked bundle, as `flwr build` makes it."""
    folder = tmp_path_factory.mktemp("bundle")
    env = os.environ | {
        "FLWR_HOME": str(folder / "home"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
    }
    command = [sys.executable, "-m", "flwr.cli.app", "build", "--app", str(ROOT)]
    flwr = Path(sys.executable).with_name("flwr")
    command = [str(flwr), "build", "--app", str(ROOT)] if flwr.exists() else command
    subprocess.run(command, cwd=folder, env=env, check=True, capture_output=True)
    (fab,) = folder.glob("*.fab")
    zipfile.ZipFile(fab).extractall(folder / "app")
    return folder / "app"


def test_the_bundle_holds_the_application_and_nothing_private(bundle: Path) -> None:
    names = {str(p.relative_to(bundle)) for p in bundle.rglob("*") if p.is_file()}
    assert {
        "fedsim/app/engines/server_app.py",
        "clients/training.py",
        "experiments/quickstart.toml",
    } <= names
    top = {name.split("/")[0] for name in names}
    assert top <= {
        "fedsim",
        "strategies",
        "clients",
        "experiments",
        "pyproject.toml",
        "README.md",
        "LICENSE",
        ".info",
    }
    assert not any(name.startswith("experiments/benchmarks") for name in names)


@pytest.mark.slow
@pytest.mark.process
def test_the_quickstart_runs_from_the_bundle_alone(bundle: Path) -> None:
    where = (
        "import fedsim, strategies, clients; "
        "print(fedsim.__file__, strategies.__file__, clients.__file__)"
    )
    env = os.environ | {"PYTHONPATH": str(bundle), "OMP_NUM_THREADS": "1"}
    found = subprocess.run(
        [sys.executable, "-c", where], cwd=bundle, env=env, capture_output=True, text=True
    )
    assert all(path.startswith(str(bundle)) for path in found.stdout.split())
    command = [sys.executable, "-m", "fedsim", "run", "experiments/quickstart.toml", "--json"]
    done = subprocess.run(
        [*command, "--set", "train.rounds=10"], cwd=bundle, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rounds"] == 10
