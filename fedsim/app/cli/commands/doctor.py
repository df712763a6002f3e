"""`fedsim doctor`: checks whether this machine and this installation can run fedsim."""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer
from packaging.version import Version
from rich.table import Table
from rich.text import Text

from fedsim.app.cli.options import DataDir, Out, out
from fedsim.errors import RunFailed

WANTED = {
    "torch": ("2.6", ""),
    "flwr": ("1.41", "1.43"),
    "ray": ("2.31", ""),
    "opacus": ("1.5", ""),
}
"""Package -> the lowest version that works, and the first that is too new."""
OPTIONAL = {"optuna": "fedsim sweep with [search]", "tensorboard": "place.trackers = tensorboard"}
OURS = ("fedsim", "strategies", "clients")
LEAST_GIB = 1.0


@dataclass(frozen=True)
class Check:
    """One result of a check; `ok` is None where the text only informs."""

    name: str
    ok: bool | None
    found: str
    remedy: str = ""


def doctor(
    data_dir: DataDir = None,
    out_dir: Out = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print only what is red.")] = False,
) -> None:
    """Check Python, torch, CUDA, Ray, Flower, shadowed packages, the data directory and the
    disk.
    """
    checks = list(all_checks(data_dir, Path(out_dir or "runs")))
    table = Table("", "what", "found", "what to do")
    for check in checks:
        mark = {True: Text("ok", "green"), False: Text("RED", "bold red"), None: Text("-", "dim")}[
            check.ok
        ]
        if not quiet or check.ok is False:
            table.add_row(mark, check.name, check.found, check.remedy)
    if table.row_count:
        out.print(table)
    red = sum(check.ok is False for check in checks)
    if red:
        raise RunFailed(f"{red} of {len(checks)} checks are red")


def all_checks(data_dir: str | None, runs: Path) -> Iterator[Check]:
    """Yield every check."""
    python = sys.version_info
    yield Check(
        "Python",
        python >= (3, 11),
        ".".join(map(str, python[:3])),
        _unless(python >= (3, 11), "use 3.11"),
    )
    for name, (lowest, too_new) in WANTED.items():
        yield package_check(name, lowest, too_new)
    yield cuda_check()
    for name in OURS:
        yield shadow_check(name, Path(__file__).parents[4])
    for name, use in OPTIONAL.items():
        yield Check(f"{name} (optional)", None, installed(name) or "not installed", f"for {use}")
    yield data_check(data_dir or os.environ.get("FEDSIM_DATA", ""))
    yield disk_check(runs)


def package_check(
    name: str, lowest: str, too_new: str, find: Callable[[str], str] | None = None
) -> Check:
    """Check that a package is installed in a version that is known to work."""
    found = (find or installed)(name)
    if not found:
        return Check(name, False, "not installed", f"pip install '{name}>={lowest}'")
    good = Version(found) >= Version(lowest) and not (
        too_new and Version(found) >= Version(too_new)
    )
    limit = f">={lowest}" + (f",<{too_new}" if too_new else "")
    return Check(name, good, found, _unless(good, f"pip install '{name}{limit}'"))


def cuda_check() -> Check:
    """Tell whether torch sees a GPU. A machine without one passes too."""
    try:
        import torch
    except ImportError as error:
        return Check("CUDA", False, f"torch cannot be imported: {error}", "install torch again")
    if not torch.cuda.is_available():
        return Check("CUDA", None, "no GPU that torch sees", "runs use the CPU")
    return Check("CUDA", True, f"{torch.version.cuda}, {torch.cuda.get_device_name(0)}")


def shadow_check(name: str, ours: Path) -> Check:
    """Check that Python finds our package of this name, not that of another distribution."""
    spec = find_spec(name)
    origin = Path(spec.origin).parent if spec and spec.origin else None
    good = origin == ours / name
    return Check(
        f"package {name}", good, str(origin or "not found"), _unless(good, f"pip uninstall {name}")
    )


def data_check(named: str) -> Check:
    """Check the data directory, if one is named."""
    if not named:
        return Check(
            "data directory", None, "none named", "--data-dir, place.data_dir or FEDSIM_DATA"
        )
    folder = Path(named).expanduser()
    sets = sorted(p.name for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []
    found = (
        f"{folder}: {', '.join(sets) or 'nothing in it'}"
        if folder.is_dir()
        else f"{folder} does not exist"
    )
    return Check(
        "data directory",
        bool(sets),
        found,
        _unless(bool(sets), "name the folder that holds the sets"),
    )


def disk_check(runs: Path) -> Check:
    """Check that runs can be written and that the disk has room left."""
    folder = next(path for path in (runs.absolute(), *runs.absolute().parents) if path.exists())
    free = shutil.disk_usage(folder).free / 2**30
    good = os.access(folder, os.W_OK) and free >= LEAST_GIB
    remedy = _unless(good, f"--out FOLDER, one that can be written, with {LEAST_GIB:g} GiB")
    return Check("disk", good, f"{free:.1f} GiB free for {runs}", remedy)


def installed(name: str) -> str:
    """Return a package's version; "" where it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _unless(good: bool, remedy: str) -> str:
    return "" if good else remedy
