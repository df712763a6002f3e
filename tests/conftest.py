"""What several tests share: the data folder, a tiny federation, the command line in a process."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("FEDSIM_DATA", ROOT.parent / "shared" / "data"))

Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Tests share the machine's cores; each uses one."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real data; where CI is set, its absence is a failure."""
    if not DATA.is_dir():
        if os.environ.get("CI"):
            pytest.fail(f"the real data are missing: {DATA}")
        pytest.skip(f"the real data are not here ({DATA}); name their folder in FEDSIM_DATA")
    return DATA


@pytest.fixture
def fedsim(tmp_path: Path) -> Cli:
    """Run the command line in a process of its own, in an empty folder, with the own examples at hand."""

    def run(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        if not (tmp_path / "experiments").exists():
            (tmp_path / "experiments").symlink_to(ROOT / "experiments")
        done = subprocess.run(
            [sys.executable, "-m", "fedsim", *arguments],
            cwd=tmp_path,
            env=os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"},
            capture_output=True,
            text=True,
            timeout=300,
        )
        if check:
            assert done.returncode == 0, done.stderr
        return done

    return run
