"""The README's commands, word by word."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def commands() -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
    return [
        line.split(" #")[0].strip()
        for block in blocks
        for line in block.splitlines()
        if line.strip()
    ]


def test_every_command_is_of_a_kind_that_is_tried() -> None:
    assert {shlex.split(c)[0] for c in commands()} == {"make", "fedsim"}
    assert "make quickstart" in commands()
    assert "make test" in commands()


def test_make_knows_what_the_readme_names() -> None:
    for command in commands():
        if command.startswith("make"):
            # -n prints what would be done
            done = subprocess.run(
                [*shlex.split(command), "-n"], cwd=ROOT, capture_output=True, text=True
            )
            assert done.returncode == 0, done.stderr
            assert (
                "pip install" in done.stdout
                or "fedsim run" in done.stdout
                or "pytest" in done.stdout
            )


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.docs
def test_the_readme_s_commands_work_in_their_order(tmp_path: Path, data_dir: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    (project / "experiments").symlink_to(ROOT / "experiments")
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "data").symlink_to(data_dir)
    bin_folder = str(Path(sys.executable).parent)
    env = os.environ | {
        "PATH": bin_folder + os.pathsep + os.environ["PATH"],
        "OMP_NUM_THREADS": "1",
    }
    for command in commands():
        if command.startswith("fedsim"):
            done = subprocess.run(
                shlex.split(command), cwd=project, env=env, capture_output=True, text=True
            )
            assert done.returncode == 0, f"{command}\n{done.stderr}"
            assert done.stdout.strip()


def test_links_point_to_files_that_are_there() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", README) + re.findall(
        r"`([\w/]+\.(?:py|toml|md|cff))`", README
    )
    assert len(links) > 5
    run_files = {"config.toml", "privacy.md"}
    assert [link for link in links if link not in run_files and not (ROOT / link).exists()] == []
