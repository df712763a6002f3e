"""The architecture, as far as a machine can hold it."""

import ast
import subprocess
import sys
import tomllib
import zipfile
from collections import Counter
from pathlib import Path

import pytest

import fedsim
from fedsim import app
from fedsim.config import Config

ROOT = Path(__file__).parents[1]
# A module imports only from lower rows, or from its own entry. Entries of one row do not import
# each other, but for the first row, whose files are the alphabet of all others. Lazy and
# type-checking imports count.
ROWS = [
    [
        "fedsim.config",
        "fedsim.errors",
        "fedsim.names",
        "fedsim.seeds",
        "fedsim.types",
        "fedsim.version",
    ],
    [
        "strategies.aggregation",
        "strategies.selection",
    ],  # rules on arrays; what is claimed of them goes up
    ["fedsim.data", "fedsim.models", "fedsim.privacy", "fedsim.wire"],
    [
        "strategies",
        "clients",
        "fedsim.audit",
    ],  # what a server decides, what a device does, attacks on arrays
    ["fedsim.app.place", "fedsim.app.allocator"],
    ["fedsim.app.rundir"],  # a run's folder and its files
    ["fedsim.app.experiment"],  # the federation of an experiment: loaded, planted, checked
    ["fedsim.app.budget", "fedsim.app.node"],  # what a run costs in privacy; what a node answers
    [
        "fedsim.app.audits"
    ],  # attacks on a run; a shadow model is trained by a function that is handed in
    ["fedsim.app.server"],  # the rounds
    ["fedsim.app.engines"],  # where a run happens: this process, Ray, a SuperLink
    ["fedsim.app.sweeps"],
    ["fedsim.app.report"],
    ["fedsim.app.api", "fedsim.app.cli"],
    ["fedsim.app", "fedsim.__main__"],  # the application as a whole
    ["fedsim"],  # the door: what `import fedsim` offers
    ["experiments"],
]
OURS = ("fedsim", "strategies", "clients", "experiments")
FORBIDDEN_NAMES = {"utils.py", "helpers.py", "common.py", "base.py", "manager.py"}
COMMANDS = "fedsim/app/cli/commands"
DOOR = ROOT / "fedsim" / "__init__.py"


def sources() -> list[Path]:
    return [p for top in OURS for p in sorted((ROOT / top).rglob("*.py"))]


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def entry_of(module: str) -> tuple[int, str] | None:
    """The row and the entry that a module lies in: the longest that fits.

    The entry `fedsim` is the door alone; other modules need an entry of their own.
    """
    fitting = [
        (number, entry)
        for number, row in enumerate(ROWS)
        for entry in row
        if module == entry or (entry != "fedsim" and module.startswith(entry + "."))
    ]
    return max(fitting, key=lambda found: len(found[1]), default=None)


def types_block(tree: ast.Module) -> ast.If:
    """The one `if TYPE_CHECKING:` at a file's top level."""
    (block,) = [
        n for n in tree.body if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"
    ]
    return block


def imports(path: Path, modules: set[str]) -> set[str]:
    """The modules of ours that a file imports: at its top, inside functions and for types alone."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in modules else str(node.module) for name in names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name.split(".")[0] in OURS}


def graph() -> dict[str, set[str]]:
    paths = {module_name(path): path for path in sources()}
    return {module: imports(path, set(paths)) - {module} for module, path in paths.items()}


def violations(modules: dict[str, set[str]]) -> list[str]:
    bad = []
    for module, wanted in modules.items():
        for name in wanted:
            here = entry_of(module)
            there = entry_of(name)
            if here is None or there is None or here[1] == there[1]:
                continue
            if there[0] > here[0] or (there[0] == here[0] != 0):
                bad.append(f"{module} imports {name}")
    return bad


def circle(modules: dict[str, set[str]]) -> list[str]:
    """A circle of imports; empty where there is none."""
    done: set[str] = set()

    def walk(module: str, way: list[str]) -> list[str]:
        if module in way:
            return way[way.index(module) :]
        if module in done:
            return []
        for name in sorted(modules.get(module, ())):
            found = walk(name, [*way, module])
            if found:
                return found
        done.add(module)
        return []

    return next((found for module in sorted(modules) if (found := walk(module, []))), [])


def test_imports_go_down_the_rows() -> None:
    modules = graph()
    assert len(modules) > 30
    assert violations(modules) == []


def test_an_upward_import_would_be_seen() -> None:
    assert violations({"fedsim.models.text": {"clients.training"}}) != []
    assert violations({"clients.training": {"strategies.roster"}})
    assert violations({"strategies.selection.by_loss": {"fedsim.privacy.claims"}}) != []
    assert violations({"fedsim.app.audits.replay": {"fedsim.app.engines.local"}}) != []
    assert violations({"fedsim.app.node.app": {"fedsim.app.budget.plan"}}) != []


def test_no_imports_make_a_circle() -> None:
    assert circle(graph()) == []


def test_a_circle_would_be_seen() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c"]


def test_every_module_lies_in_a_row() -> None:
    assert [name for name in graph() if entry_of(name) is None] == []


def test_nothing_below_imports_the_door() -> None:
    """The door names what lies below it, for types; whoever imported it would close a circle.

    Seen to fail: the version read from `fedsim` by the manifest.
    """
    assert [name for name, wanted in graph().items() if "fedsim" in wanted] == []


def test_type_checkers_see_exactly_what_the_door_offers() -> None:
    """Seen to fail: with a name that only the table has, and with one under another module."""
    block = types_block(ast.parse(DOOR.read_text()))
    assert all(isinstance(node, ast.ImportFrom) for node in block.body)
    seen = {
        alias.asname: node.module
        for node in ast.walk(block)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == fedsim.OFFERED
    assert set(fedsim.__all__) == {*fedsim.OFFERED, "__version__"}
    assert set(fedsim.OFFERED) <= set(dir(fedsim))


def test_no_offered_name_is_that_of_a_part() -> None:
    """An import of `fedsim.config` sets the attribute `config`: a name like it would mean two
    things.
    """
    parts = {path.stem for path in (ROOT / "fedsim").iterdir()}
    assert parts & set(fedsim.OFFERED) == set()


def test_the_door_opens_without_torch_or_flower() -> None:
    """Seen to fail: with an import of fedsim.audit.scores at the top of the door."""
    code = "import sys, fedsim; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    loaded = set(done.stdout.split())
    assert "fedsim" in loaded
    assert {"torch", "flwr", "numpy", "pydantic"} & loaded == set()


def test_an_unknown_name_is_no_part_of_the_door() -> None:
    with pytest.raises(AttributeError, match="no attribute 'epsilom'"):
        fedsim.epsilom  # type: ignore[attr-defined]  # noqa: B018


def test_few_files_lie_directly_in_the_application() -> None:
    assert len(list((ROOT / "fedsim" / "app").glob("*.py"))) <= 5


def test_no_basename_stands_for_two_ideas() -> None:
    """Commands are named by what one types, so that their files may share a name with what they
    show.
    """
    own = [
        p
        for p in sources()
        if p.name not in ("__init__.py", "__main__.py") and COMMANDS not in str(p)
    ]
    names = Counter(p.name for p in own if "experiments" not in p.parts)
    assert [name for name, count in names.items() if count > 1] == []


def test_no_file_has_a_name_that_says_nothing() -> None:
    assert [p for p in sources() if p.name in FORBIDDEN_NAMES] == []


def long_functions() -> list[str]:
    """Functions whose body, docstring aside, has more than 40 lines."""
    found = []
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.FunctionDef) or "experiments" in path.parts:
                continue
            first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
            if int(node.end_lineno or 0) - first.lineno + 1 > 40:
                found.append(f"{module_name(path)}.{node.name}")
    return found


def test_no_function_is_longer_than_forty_lines() -> None:
    """Complexity is held by ruff: C901 in pyproject.toml."""
    assert long_functions() == []


def test_the_defaults_stand_in_pyproject_too() -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
    assert config == Config().model_dump(by_alias=True)


def test_the_version_is_the_same_wherever_it_stands() -> None:
    """Flower reads it from pyproject.toml as it stands, so it cannot be computed from the package.

    Seen to fail: with another version in each of the four.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == fedsim.__version__
    assert f"\nversion: {fedsim.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## [{fedsim.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_a_foreign_package_called_clients_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
    assert "fedsim/app/report/report.html.jinja" in names
    assert {f"{package}/py.typed" for package in top} <= set(names)
