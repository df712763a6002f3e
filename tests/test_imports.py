"""Heavy packages are loaded by the functions that use them, and by no run that does not."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = (
    "datasets",
    "dp_accounting",
    "flwr_datasets",
    "jinja2",
    "matplotlib",
    "opacus",
    "pandas",
    "pyarrow",
    "ray",
    "scipy",
    "sklearn",
)
SMALL = {
    "data.devices": 5,
    "data.examples": 20,
    "selection.cohort": 2,
    "train.rounds": 1,
    "place.threads": 1,
    "place.device": "cpu",
}


def loaded(code: str, folder: Path, among: tuple[str, ...]) -> set[str]:
    """Return which packages a fresh process has loaded after this code."""
    asked = f"import sys; sys.path.insert(0, {str(ROOT)!r}); {code}; print(*sys.modules, sep='\\n')"
    command = [sys.executable, "-c", asked]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return set(among) & set(done.stdout.splitlines())


@pytest.mark.parametrize(
    ("code", "packages"),
    [
        ("import fedsim.config", ("torch", "flwr", *HEAVY)),
        ("import fedsim.app.cli.main", ("torch", "flwr", *HEAVY)),
        ("import fedsim.app.engines.local", HEAVY),
        (f"from fedsim.app import run; run({SMALL})", HEAVY),
        (
            "from fedsim.app.cli.main import cli; "
            f"cli(['show', {str(ROOT / 'experiments/quickstart.toml')!r}], standalone_mode=False)",
            ("flwr", *HEAVY),
        ),
    ],
    ids=["config", "commands", "engine", "run", "show"],
)
def test_what_is_not_used_is_not_loaded(
    code: str, packages: tuple[str, ...], tmp_path: Path
) -> None:
    """Sabotage: `from scipy.stats import norm` at the top of accounting.py fails engine, run and
    show.
    """
    assert loaded(code, tmp_path, packages) == set()


def test_a_package_that_is_used_is_seen(tmp_path: Path) -> None:
    code = "from fedsim.privacy.accounting import Event, epsilon; epsilon([Event(1.0)], 1e-5)"
    assert loaded(code, tmp_path, HEAVY) >= {"dp_accounting", "scipy"}
