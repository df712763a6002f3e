"""A SuperLink as its users see it: they submit, watch and stop runs by Flower's own commands."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from fedsim.errors import RunFailed, WrongInput

QUIET = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
NAME = "fedsim"
"""The name of the connection in Flower's config file."""


@dataclass(frozen=True)
class RunState:
    """The state of a run."""

    status: str
    """Flower's word for it: "pending", "running", "finished:completed", "finished:failed", ..."""
    details: str

    @property
    def finished(self) -> bool:
        return self.status.startswith("finished")

    @property
    def completed(self) -> bool:
        return self.status == "finished:completed"


@dataclass(frozen=True)
class Connection:
    """Where a SuperLink is. `home` is our own FLWR_HOME, which holds only this connection."""

    address: str
    home: Path
    insecure: bool = False
    root_certificates: Path | None = None

    def write(self) -> None:
        """Write Flower's config file. Raises WrongInput if the CA's certificate is missing."""
        found: dict[str, Any] = {"address": self.address}
        if self.insecure:
            found["insecure"] = True
        elif self.root_certificates is not None:
            if not self.root_certificates.is_file():
                raise WrongInput(
                    f"the CA certificate {str(self.root_certificates)!r} does not exist"
                )
            found["root-certificates"] = str(self.root_certificates.resolve())
        self.home.mkdir(parents=True, exist_ok=True)
        text = tomli_w.dumps({"superlink": {"default": NAME, NAME: found}})
        (self.home / "config.toml").write_text(text, encoding="utf-8")

    def submit(
        self, app: str, run_config: Path, federation: Mapping[str, Any] | None = None
    ) -> str:
        """Submit a run of `app`, a folder or "@publisher/name==version"; return its id.

        Raises RunFailed.
        """
        extra = []
        if federation:
            pairs = " ".join(f"{key}={json.dumps(value)}" for key, value in federation.items())
            extra = ["--federation-config", pairs]
        found = self._flwr("run", app, NAME, "--run-config", str(run_config), *extra)
        return str(found["run-id"])

    def state(self, run_id: str) -> RunState:
        """Return the state of a run. Raises RunFailed if the SuperLink does not answer."""
        (found,) = self._flwr("list", NAME, "--run-id", run_id)["runs"]
        return RunState(found["status"], found["status-details"])

    def stop(self, run_id: str) -> None:
        self._flwr("stop", run_id, NAME)

    def _flwr(self, *arguments: str) -> dict[str, Any]:
        done = subprocess.run(
            [str(script("flwr")), *arguments, "--format", "json"],
            env=os.environ | QUIET | {"FLWR_HOME": str(self.home)},
            capture_output=True,
            text=True,
        )
        found = _last_json(done.stdout)
        if done.returncode or not found.get("success", False):
            raise RunFailed(
                f"the SuperLink at {self.address} did not do `flwr {arguments[0]}`: {_why(done)}"
            )
        return found


def script(name: str) -> Path:
    """Return the path of a command that Flower installed beside our Python. Raises RunFailed."""
    found = Path(sys.executable).with_name(name)
    if not found.exists():
        raise RunFailed(f"the command {name!r} is not beside {sys.executable}; install flwr there")
    return found


def _last_json(text: str) -> dict[str, Any]:
    """Return the JSON object at the end of a command's output; {} if it has none."""
    start = text.find("{\n")
    try:
        return dict(json.loads(text[start:])) if start >= 0 else {}
    except ValueError:
        return {}


def _why(done: subprocess.CompletedProcess[str]) -> str:
    said = str(_last_json(done.stdout).get("error-message", "")) or done.stderr or done.stdout
    lines = [line.strip() for line in said.strip().splitlines() if line.strip()]
    return lines[-1] if lines else f"exit code {done.returncode}"
