"""Real Flower processes on this machine, for tests and scripts: each started by us and ended by its
id.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from fedsim.app.engines.connection import NAME, QUIET, Connection, script
from fedsim.app.engines.deployment import node_command, superlink_command, write_deployment
from fedsim.app.engines.superlink import LOCALHOST, end, free_port, wait_until_healthy

ROOT = Path(__file__).parents[2]
Process = subprocess.Popen[bytes]
LONG_S = 900.0
"""Longer than anything here takes on a busy machine: who waits so long waits in vain."""
POLL = {"FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.05"}


class Federation:
    """A SuperLink on loopback and the SuperNodes that connect to it; `home` keeps configs, keys and
    logs.

    Every process writes `<name>.log`. On exit all are ended, the newest first.
    """

    def __init__(self, home: Path, python_path: Sequence[Path] = (ROOT,)) -> None:
        self.home, self.port = home, free_port()
        self.python_path = os.pathsep.join(map(str, python_path))
        self.running: dict[str, Process] = {}
        home.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> "Federation":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for name in reversed(list(self.running)):
            self.end(name)

    @property
    def address(self) -> str:
        return f"{LOCALHOST}:{self.port}"

    def env(self, name: str, **extra: str) -> dict[str, str]:
        """Return the environment of a process: its own FLWR_HOME, our code, one thread, no data of
        ours.
        """
        around = {key: value for key, value in os.environ.items() if key != "FEDSIM_DATA"}
        own = {
            "FLWR_HOME": str(self.home / name),
            "PYTHONPATH": self.python_path,
            "OMP_NUM_THREADS": "1",
        }
        path = os.pathsep.join([str(script("flwr").parent), os.environ["PATH"]])
        return around | QUIET | POLL | own | {"PATH": path} | extra

    def start(self, name: str, command: Sequence[str], **extra: str) -> Process:
        with (self.home / f"{name}.log").open("ab") as log:
            self.running[name] = subprocess.Popen(
                command,
                env=self.env(name, **extra),
                cwd=self.home,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        return self.running[name]

    def superlink(self, *options: str, **extra: str) -> Process:
        """Start the SuperLink; without options it has no TLS, no authentication, its state in
        memory.
        """
        command = [str(script("flower-superlink")), "--host", LOCALHOST, "--port", str(self.port)]
        command += ["--disable-runtime-dependency-installation", *(options or ("--insecure",))]
        process = self.start("superlink", command, **extra)
        if "--insecure" in command:
            wait_until_healthy(process, self.port, self.home / "superlink.log")
        return process

    def node(
        self, name: str, config: Mapping[str, Any], *options: str, superlink: str = "", **extra: str
    ) -> Process:
        """Start a SuperNode with its node-config; without options it has no TLS."""
        command = [str(script("flower-supernode")), "--superlink", superlink or self.address]
        command += ["--port", str(free_port()), *(options or ("--insecure",))]
        command += ["--node-config", node_config(config)]
        return self.start(name, command, **extra)

    def secured(self, nodes: int = 2) -> Path:
        """Write keys and certificates, start the SuperLink with TLS for known nodes; return their
        folder.
        """
        folder = self.home / "keys"
        write_deployment(folder, LOCALHOST, self.port, nodes)
        self.secured_superlink()
        return folder

    def secured_superlink(self) -> Process:
        """Start the SuperLink as `fedsim deploy init` has it, and wait until it answers."""
        process = self.start("superlink", superlink_command(self.home / "keys", self.port))
        until(lambda: "Uvicorn running" in self.log("superlink")[-2000:], LONG_S, "the SuperLink")
        return process

    def register(self, name: str) -> str:
        """Let the SuperLink know a node's public key; return what the command said."""
        return self.flwr("supernode", "register", str(self.home / "keys" / f"{name}.pub"), NAME)

    def flwr(self, *arguments: str) -> str:
        """Run Flower's command line over the secured connection."""
        env = self.env("user") | {"FLWR_HOME": str(self.home / "keys" / "flwr")}
        command = [str(script("flwr")), *arguments]
        done = subprocess.run(command, env=env, cwd=self.home, capture_output=True, text=True)
        return done.stdout + done.stderr

    def secured_node(
        self, name: str, config: Mapping[str, Any], port: int = 0, key: str = "", **extra: str
    ) -> Process:
        """Start a SuperNode with TLS and a key of `fedsim deploy init`; `port` may be that of a
        relay.
        """
        command = node_command(
            self.home / "keys", LOCALHOST, port or self.port, key or name, free_port()
        )
        return self.start(name, [*command, "--node-config", node_config(config)], **extra)

    def revive(self, name: str, config: Mapping[str, Any], port: int = 0) -> bool:
        """Start a node again if it has ended, as its unit would; return whether it is connected.

        One that read a broken TLS record hangs, connected to nothing: its owner would restart it.
        """
        process = self.running.get(name)
        if process is not None and "SSL/TLS handshake error" in self.log(name):
            self.end(name)
            process = None
        if process is None or process.poll() is not None:
            (self.home / f"{name}.log").unlink(missing_ok=True)
            self.secured_node(name, config, port)
            time.sleep(3)
        return "SuperNode ID" in self.log(name)

    def secured_address(self) -> list[str]:
        """Return the options with which our command line finds this SuperLink."""
        trusted = ["--root-certificates", str(self.home / "keys" / "ca.crt")]
        return ["--backend", "superlink", "--address", self.address, *trusted]

    def connection(self, root_certificates: Path | None = None) -> Connection:
        """Return a written connection of users without TLS, or with a CA."""
        found = Connection(
            self.address, self.home / "user", root_certificates is None, root_certificates
        )
        found.write()
        return found

    def fedsim(self, *arguments: str, **extra: str) -> "subprocess.CompletedProcess[str]":
        """Run our command line to its end."""
        command = [sys.executable, "-m", "fedsim", *arguments]
        env = self.env("user", COLUMNS="200", **extra)
        return subprocess.run(
            command, env=env, cwd=self.home, capture_output=True, text=True, timeout=LONG_S
        )

    def fedsim_in_background(self, name: str, *arguments: str) -> Process:
        return self.start(name, [sys.executable, "-m", "fedsim", *arguments])

    def end(self, name: str) -> None:
        end(self.running.pop(name))

    def kill(self, name: str) -> None:
        """Kill a process, and what it started, as a loss of power would."""
        process = self.running.pop(name)
        send_all(process.pid, signal.SIGKILL)
        process.wait()

    def log(self, name: str) -> str:
        return (self.home / f"{name}.log").read_text(encoding="utf-8", errors="replace")


def node_config(config: Mapping[str, Any]) -> str:
    """Return node-config as Flower wants it: TOML values, strings with their quotes."""
    return " ".join(f"{key}={_toml(value)}" for key, value in config.items())


def _toml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value).replace("'", '"')


def descendants(pid: int) -> list[int]:
    """Return the processes that a process started, the deepest first."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            found += [*descendants(child), child]
    return found


def commands(pid: int) -> dict[int, str]:
    """Return the command lines of what a process started."""
    found = {}
    for child in descendants(pid):
        try:
            found[child] = Path(f"/proc/{child}/cmdline").read_text().replace("\0", " ")
        except OSError:
            continue
    return found


def send(pid: int, sign: signal.Signals) -> None:
    """Send a signal; a process that is gone already is as good."""
    try:
        os.kill(pid, sign)
    except ProcessLookupError:
        return


def send_all(pid: int, sign: signal.Signals) -> None:
    """Send a signal to a process and to all that it started."""
    for each in [*descendants(pid), pid]:
        send(each, sign)


def until(condition: Any, seconds: float, what: str) -> Any:
    """Wait for a condition and return its value.

    Raises TimeoutError that says `what` did not come.
    """
    end_at = time.monotonic() + seconds
    while time.monotonic() < end_at:
        if found := condition():
            return found
        time.sleep(0.2)
    raise TimeoutError(f"{what} did not come within {seconds:g} s")
