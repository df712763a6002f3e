"""CONTRIBUTING.md names only files and tables that exist; workflows name real targets."""

import ast
import re
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

GUIDE = (ROOT / "CONTRIBUTING.md").read_text()
QUESTIONS = GUIDE.partition("## Ten questions")[2].partition("\n## ")[0]
PLACES = r"`(\w+)` (?:in|of) `([\w/]+(?:\.py)?)`"


def paths(text: str) -> set[str]:
    return set(re.findall(r"`((?:fedsim|strategies|clients|experiments|tests)/[\w/.]+)`", text))


def code_of(path: str) -> Path:
    """A module's file, whether it is a file or a package."""
    found = ROOT / path
    options = [found, found.with_suffix(".py"), found / "__init__.py"]
    return next(option for option in options if option.is_file())


def test_every_path_of_the_guide_is_there() -> None:
    assert len(paths(GUIDE)) > 10
    assert [
        path for path in paths(GUIDE) if not (ROOT / path).exists() and not code_of(path).exists()
    ] == []


def test_ten_questions_are_answered_by_fourteen_files_at_most() -> None:
    assert QUESTIONS.count("?") == 10
    assert len(paths(QUESTIONS)) <= 14


@pytest.mark.parametrize(("name", "path"), sorted(set(re.findall(PLACES, GUIDE))))
def test_the_guide_names_what_its_file_defines(name: str, path: str) -> None:
    """Seen to fail: with `MODELS` sent to fedsim/models/text.py."""
    defined = set()
    for node in ast.parse(code_of(path).read_text()).body:
        targets = getattr(node, "targets", [getattr(node, "target", node)])
        defined |= {getattr(target, "id", getattr(target, "name", "")) for target in targets}
    assert name in defined


def test_workflows_and_hooks_run_what_there_is() -> None:
    """Seen to fail: with `make tests` in fast.yml."""
    texts = [path.read_text() for path in sorted((ROOT / ".github").rglob("*.yml"))]
    loaded = [
        yaml.safe_load(text) for text in [*texts, (ROOT / ".pre-commit-config.yaml").read_text()]
    ]
    assert all(isinstance(found, dict) for found in loaded)
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    wanted = {name for text in texts for name in re.findall(r"run: make ([\w-]+)", text)}
    assert wanted == {"test"}
    assert wanted <= targets
    assert (ROOT / ".ci" / "run").is_file()
