"""A SuperLink of our own: we start it on a free port and end it by its process id."""

import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedsim.app.engines.connection import QUIET, Connection, script
from fedsim.errors import RunFailed

START_S = 60.0
"""Seconds that a SuperLink has to answer; after that its start has failed."""
END_S = 15.0
LOCALHOST = "127.0.0.1"


@contextmanager
def simulation_superlink(home: Path) -> Iterator[Connection]:
    """Run a SuperLink for the length of the block; its nodes are Flower's simulation (Ray)."""
    port = free_port()
    connection = Connection(f"{LOCALHOST}:{port}", home, insecure=True)
    connection.write()
    command = [str(script("flower-superlink")), "--insecure", "--simulation", "--host", LOCALHOST]
    command += ["--port", str(port), "--disable-runtime-dependency-installation"]
    path = os.pathsep.join(filter(None, [os.getcwd(), os.environ.get("PYTHONPATH", "")]))
    env = os.environ | QUIET | {"FLWR_HOME": str(home), "PYTHONPATH": path, "RAY_DEDUP_LOGS": "0"}
    env["PATH"] = os.pathsep.join(
        [str(script("flower-superlink").parent), os.environ.get("PATH", "")]
    )
    with (home / "superlink.log").open("wb") as log:
        process = subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT)
        try:
            wait_until_healthy(process, port, home / "superlink.log")
            yield connection
        finally:
            end(process)


def wait_until_healthy(process: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
    """Wait until the SuperLink answers. Raises RunFailed with the last line of its log."""
    until = time.monotonic() + START_S
    while time.monotonic() < until and process.poll() is None:
        try:
            urllib.request.urlopen(f"http://{LOCALHOST}:{port}/health", timeout=1)
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
        else:
            return
    said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["nothing"]
    raise RunFailed(
        f"Flower's SuperLink did not start on port {port}; its log ends with {said[-1]!r}"
    )


def end(process: "subprocess.Popen[bytes]") -> None:
    """End a process that we started: first politely, then by force. Its children end with it."""
    process.terminate()
    try:
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def free_port() -> int:
    """Return a free port of this machine."""
    with socket.socket() as found:
        found.bind((LOCALHOST, 0))
        return int(found.getsockname()[1])
