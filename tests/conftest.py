"""What several tests share: the data folder, the command line, the bound on a test's time."""

import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from fedsim.app.cli import options
from fedsim.app.cli.main import main

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("FEDSIM_DATA", ROOT.parent / "shared" / "data"))
CPU_S = 20.0
"""The CPU seconds a test may take in its own process unless it is marked `slow`."""
WIDE = "200"

settings.register_profile("dev", max_examples=25, deadline=None)
settings.register_profile("ci", max_examples=100, deadline=None)
settings.load_profile("ci" if os.environ.get("CI") else "dev")

MARKED_BY = {"fedsim_process": "process", "data_dir": "realdata", "browser": "browser"}
"""Fixtures, and the marker of every test that asks for one."""

Cli = Callable[..., subprocess.CompletedProcess[str]]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark tests by their fixtures; where workers share them, slow ones come first and leave no
    long tail.
    """
    for item in items:
        for fixture, marker in MARKED_BY.items():
            if fixture in getattr(item, "fixturenames", ()):
                item.add_marker(marker)
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Tests share the machine's cores; each uses one."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _in_time(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that takes long and does not say so; child processes and shared fixtures do not
    count.

    Seen to fail: the whole sanity battery without its marker (35 s).
    """
    before = time.process_time()
    yield
    taken = time.process_time() - before
    if taken > CPU_S and not request.node.get_closest_marker("slow"):
        pytest.fail(
            f"the test took {taken:.0f} CPU seconds, more than {CPU_S:.0f}: make it cheaper or slow"
        )


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real data; where CI is set, its absence is a failure."""
    if not DATA.is_dir():
        if os.environ.get("CI"):
            pytest.fail(f"the real data are missing: {DATA}")
        pytest.skip(f"the real data are not here ({DATA}); name their folder in FEDSIM_DATA")
    return DATA


def _told(
    command: list[str], code: int, out: str, err: str, check: bool
) -> subprocess.CompletedProcess[str]:
    if check:
        assert code == 0, err
    return subprocess.CompletedProcess(command, code, out, err)


def _with_experiments(folder: Path) -> None:
    if not (folder / "experiments").exists():
        (folder / "experiments").symlink_to(ROOT / "experiments")


def _exit_code() -> int:
    """Run the command line of `sys.argv`; return what a process would end with."""
    try:
        main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except Exception:
        traceback.print_exc()
        return 1
    return 0


@pytest.fixture
def fedsim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Run the command line in this process, in an empty folder, with the own examples at hand."""

    def run(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        _with_experiments(tmp_path)
        modules = set(sys.modules)
        out = StringIO()
        err = StringIO()
        with monkeypatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
            patch.chdir(tmp_path)
            patch.setattr(sys, "argv", ["fedsim", *arguments])
            patch.setattr(sys, "path", [*sys.path])
            patch.setenv("COLUMNS", WIDE)
            for console in (options.out, options.err):
                patch.setattr(console, "width", int(WIDE))
            code = _exit_code()
        for name in set(sys.modules) - modules:  # own code of one test is not that of another
            if str(getattr(sys.modules[name], "__file__", None) or "").startswith(str(tmp_path)):
                del sys.modules[name]
        torch.set_num_threads(1)
        return _told(["fedsim", *arguments], code, out.getvalue(), err.getvalue(), check)

    return run


@pytest.fixture
def fedsim_process(tmp_path: Path) -> Cli:
    """Run the command line in its own process, as people do; its tests are marked `process`."""

    def run(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        _with_experiments(tmp_path)
        done = subprocess.run(
            [sys.executable, "-m", "fedsim", *arguments],
            cwd=tmp_path,
            env=os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": WIDE},
            capture_output=True,
            text=True,
            timeout=300,
        )
        return _told(["fedsim", *arguments], done.returncode, done.stdout, done.stderr, check)

    return run
