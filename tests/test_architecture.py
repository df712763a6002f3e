"""The architecture, as far as a machine can hold it."""

import ast
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from fedsim import app
from fedsim.config import Config

ROOT = Path(__file__).parents[1]
# A module imports only from lower rows, or from its own entry.
ROWS = [
    ["fedsim.config", "fedsim.seeds", "fedsim.types", "fedsim.errors", "fedsim.names"],
    ["fedsim.data", "fedsim.models", "fedsim.privacy", "fedsim.wire"],
    ["strategies", "clients", "fedsim.audit"],
    ["fedsim.app"],
    ["experiments"],
]
OURS = ("fedsim", "strategies", "clients", "experiments")
FORBIDDEN_NAMES = {"utils.py", "helpers.py", "common.py", "base.py", "manager.py"}


def sources() -> list[Path]:
    return [p for top in OURS for p in sorted((ROOT / top).rglob("*.py"))]


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def row_of(module: str) -> int | None:
    """The row that a module lies in; None for the version-only `fedsim` itself."""
    for number, row in enumerate(ROWS):
        if any(module == entry or module.startswith(entry + ".") for entry in row):
            return number
    return None


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name.split(".")[0] in OURS}


def same_entry(a: str, b: str) -> bool:
    return any(
        a.startswith(entry) and b.startswith(entry)
        for row in ROWS
        for entry in row
        if "." in entry or row != ROWS[0]
    )


def violations(modules: dict[str, set[str]]) -> list[str]:
    bad = []
    for module, wanted in modules.items():
        for name in wanted:
            here, there = row_of(module), row_of(name)
            if here is None or there is None or same_entry(module, name):
                continue
            if there > here or (there == here and here != 0):
                bad.append(f"{module} imports {name}")
    return bad


def test_imports_go_down_the_rows() -> None:
    modules = {module_name(p): imports(p) for p in sources()}
    assert len(modules) > 30
    assert violations(modules) == []


def test_an_upward_import_would_be_seen() -> None:
    assert violations({"fedsim.models.text": {"clients.training.Trainer"}}) != []
    assert violations({"clients.training": {"strategies.selection.select"}}) != []


def test_every_module_lies_in_a_row() -> None:
    assert [m for p in sources() if row_of(m := module_name(p)) is None and m != "fedsim"] == []


def test_the_top_package_imports_nothing() -> None:
    assert imports(ROOT / "fedsim" / "__init__.py") == set()


def test_no_file_has_a_name_that_says_nothing() -> None:
    assert [p for p in sources() if p.name in FORBIDDEN_NAMES] == []


def test_the_defaults_stand_in_pyproject_too() -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
    assert config == Config().model_dump(by_alias=True)


def test_a_foreign_package_called_clients_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "clients").mkdir()
    (tmp_path / "clients" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "clients", raising=False)
    with pytest.raises(ImportError, match="pip uninstall clients"):
        app.check_side_by_side()


def test_the_wheel_holds_the_three_packages_and_nothing_else(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    top = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert top == {"fedsim", "strategies", "clients"}
    assert "fedsim/app/report.html.jinja" in names
