"""A node that trusts one publisher runs nobody else's bundle: `flower-supernode
--trusted-entities`.

The bundle's own packages come first: others of their names that are installed are not imported.
"""

import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from test_engines import settings

from experiments.deployment.hub import hub, load_key, write_keys
from experiments.deployment.processes import LONG_S, ROOT, Federation, free_port, until
from fedsim.app.engines.connection import Connection, RunState, script
from fedsim.config import to_toml

pytestmark = [pytest.mark.slow, pytest.mark.superlink]
APP = "@fedsim/fedsim-privacy==0.1.0"


@contextmanager
def serving(bundle: bytes, keys: Path, port: int) -> Iterator[None]:
    server = hub(bundle, load_key(keys / "publisher.key"), port)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def ended(there: Connection, run_id: str) -> RunState:
    until(lambda: there.state(run_id).finished, LONG_S, "the end of the run")
    return there.state(run_id)


def test_an_unsigned_and_a_foreign_signed_bundle_are_refused_by_the_node(tmp_path: Path) -> None:
    ours = tmp_path / "ours"
    foreign = tmp_path / "foreign"
    port = free_port()
    write_keys(ours)
    write_keys(foreign)
    env = {"FLWR_SUPERGRID_API_URL": f"http://127.0.0.1:{port}/v1"}
    for name in ("clients", "strategies"):  # as `pip install clients` would bring
        (tmp_path / "installed" / name).mkdir(parents=True)
        (tmp_path / "installed" / name / "__init__.py").write_text(
            "raise ImportError('somebody else')"
        )
    with Federation(tmp_path / "home", python_path=[tmp_path / "installed"]) as federation:
        subprocess.run(
            [str(script("flwr")), "build", "--app", str(ROOT)],
            cwd=tmp_path,
            env=federation.env("user"),
            check=True,
            capture_output=True,
        )
        (fab,) = tmp_path.glob("*.fab")
        bundle = fab.read_bytes()
        federation.superlink("--insecure", **env)
        one = {"partition-id": 0, "num-partitions": 1}
        federation.node("node", one, "--insecure", "--trusted-entities", str(ours / "trusted.yaml"))
        there = federation.connection()
        toml = tmp_path / "run.toml"
        toml.write_text(to_toml(settings("plain", tmp_path / "runs")))

        unsigned = ended(there, there.submit(str(ROOT), toml))
        assert unsigned.status == "finished:failed"
        assert "The FAB could not be verified" in unsigned.details
        with serving(bundle, foreign, port):
            foreign_signed = ended(there, there.submit(APP, toml))
        assert foreign_signed.status == "finished:failed"
        assert "The FAB could not be verified" in foreign_signed.details
        assert not list((tmp_path / "runs").glob("**/rounds.jsonl"))
        with serving(bundle, ours, port):
            signed = ended(there, there.submit(APP, toml))
        assert signed.completed, signed.details
    assert len(list((tmp_path / "runs").glob("**/summary.json"))) == 1
