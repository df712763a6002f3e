"""The guide for real nodes works word by word: its shell blocks are run as they stand, on a free
port.
"""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from experiments.deployment.processes import ROOT, Federation, free_port

GUIDE = (ROOT / "experiments" / "deployment" / "README.md").read_text()
BLOCKS = re.findall(r"^```sh\n(.*?)^```$", GUIDE, flags=re.DOTALL | re.MULTILINE)


@pytest.mark.slow
@pytest.mark.superlink
@pytest.mark.docs
def test_a_new_user_comes_to_a_federation_with_tls_by_the_guide(tmp_path: Path) -> None:
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    script = "set -e\ntrap 'kill $(cat federation/*.pid 2>/dev/null) 2>/dev/null || true' EXIT\n"
    script += "\n".join(BLOCKS).replace("9092", str(free_port()))
    env = Federation(tmp_path / "env").env("user")
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (summary,) = (tmp_path / "federation" / "runs").glob("assistant/*/seed=1/summary.json")
    found = json.loads(summary.read_text())
    assert found["status"] == "completed"
    assert found["devices_all"] == 6
    assert found["privacy"]["noise_source"] == "os"
    assert 'fedsim_rounds_done{run="assistant",seed="1"} 3' in done.stdout
    ledgers = (tmp_path / "federation").glob("node-*/state/*/privacy.jsonl")
    assert [len(path.read_text().splitlines()) for path in ledgers] == [3, 3]
    keys = "".join(p.read_text() for p in (tmp_path / "federation").glob("*.key"))
    kept = [
        p.read_text()
        for p in summary.parent.glob("*.*")
        if p.suffix in (".json", ".jsonl", ".toml")
    ]
    assert not [
        line for line in keys.splitlines()[1:-1] for text in kept if line in text and line[0] != "-"
    ]


@pytest.mark.skipif(not Path("/usr/bin/systemd-analyze").exists(), reason="systemd is not here")
def test_the_units_are_what_systemd_wants(tmp_path: Path) -> None:
    made = Federation(tmp_path / "env").fedsim(
        "deploy", "init", str(tmp_path / "f"), "--host", "127.0.0.1"
    )
    assert made.returncode == 0, made.stderr
    (tmp_path / "f" / "fedsim-node@.service").rename(tmp_path / "f" / "fedsim-node@1.service")
    units = [str(path) for path in (tmp_path / "f").glob("*.service")]
    assert len(units) == 2
    command = ["systemd-analyze", "verify", "--man=no", *units]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"SYSTEMD_LOG_LEVEL": "err"}
    )
    ours = [line for line in done.stderr.splitlines() if "fedsim" in line]
    assert ours == []


def test_keys_are_never_written_over_and_belong_to_their_owner(tmp_path: Path) -> None:
    federation = Federation(tmp_path / "env")
    first = federation.fedsim(
        "deploy", "init", str(tmp_path / "f"), "--host", "fed.example", "--nodes", "3"
    )
    assert first.returncode == 0, first.stderr
    keys = sorted(path.name for path in (tmp_path / "f").glob("*.key"))
    assert keys == ["ca.key", "node-1.key", "node-2.key", "node-3.key", "server.key"]
    assert all(path.stat().st_mode & 0o077 == 0 for path in (tmp_path / "f").glob("*.key"))
    again = federation.fedsim("deploy", "init", str(tmp_path / "f"), "--host", "fed.example")
    assert again.returncode == 2
    assert "keys are never written over" in again.stderr
