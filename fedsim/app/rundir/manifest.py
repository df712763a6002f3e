"""The facts of a run: command, versions, commit, data fingerprint, plan, device."""

import hashlib
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.app.place import chunk_bytes, lanes, threads, torch_device
from fedsim.app.rundir.run_dir import RunDir
from fedsim.config import Config, Place
from fedsim.data.federation import FederatedDataset
from fedsim.errors import WrongInput
from fedsim.names import import_object, is_own_code, listed
from fedsim.version import __version__

PACKAGES = ("torch", "numpy", "flwr", "datasets", "scikit-learn", "scipy")


def make_manifest(
    config: Config, federation: FederatedDataset, nodes: int, noise: str, devices: NDArray[np.str_]
) -> dict[str, Any]:
    """Return the manifest of a run that starts now."""
    return {
        "command": command(),
        "versions": {"python": platform.python_version(), "fedsim": __version__}
        | {name: version(name) for name in PACKAGES},
        "commit": _commit(),
        "fingerprint": fingerprint(config, federation),
        "plan": plan_of_work(config, nodes),
        "device_type": torch_device(config.place).type,
        "noise_source": "none" if config.dp.unit == "none" else noise,
        "roster": roster_hash(devices),
        "notes": list(federation.notes),
        "started": now(),
        "finished": "",
    }


def command() -> list[str]:
    """Return the command that started the process, without the token that Flower gives it."""
    secret = {i + 1 for i, word in enumerate(sys.argv) if word == "--token"}
    return ["***" if i in secret else word for i, word in enumerate(sys.argv)]


def plan_of_work(config: Config, nodes: int) -> dict[str, Any]:
    """Return how the work is divided.

    The division can change the last bits of a result, so a resumed run uses it again.
    """
    place = config.place
    return {
        "nodes": nodes,
        "threads": threads(place),
        "lanes": lanes(config, nodes),
        "chunk_bytes": chunk_bytes(place),
    }


def with_plan(place: Place, plan: dict[str, Any]) -> Place:
    """Return the place that gives `plan` again. Old plans name no lanes; they used threads."""
    kind = plan.get("lanes", "threads")
    memory = plan["chunk_bytes"] / 2**30
    return place.model_copy(
        update={"threads": plan["threads"], "lanes": kind, "memory_gib": memory}
    )


def fingerprint(config: Config, federation: FederatedDataset) -> dict[str, str]:
    """Return name -> SHA-256, for the data and for the user's own code that the config names."""
    names = [
        ("data.source", config.data.source),
        ("model.name", config.model.name),
        ("selection.rule", config.selection.rule),
        ("aggregation.rule", config.aggregation.rule),
        *(("evaluation.metrics", name) for name in listed(config.evaluation.metrics)),
        *(("audit.attacks", name) for name in listed(config.audit.attacks)),
        *(("audit.evaluators", name) for name in listed(config.audit.evaluators)),
    ]
    own = {f"{key}={name}": _source_hash(key, name) for key, name in names if is_own_code(name)}
    return federation.fingerprint | own


def check_resume(
    run: RunDir, config: Config, federation: FederatedDataset, noise: str = "none"
) -> None:
    """Refuse to resume with other data, code, noise or device type. Raises WrongInput."""
    before = run.manifest
    after = fingerprint(config, federation)
    changed = sorted(
        name
        for name in before["fingerprint"].keys() | after.keys()
        if before["fingerprint"].get(name) != after.get(name)
    )
    if changed:
        raise WrongInput(
            f"{run.path} was begun with another {', '.join(changed)}; bring that back, or start "
            "over with --fresh (the old run is kept aside)"
        )
    device = torch_device(config.place).type
    if before["device_type"] != device:
        raise WrongInput(
            f"{run.path} was begun on {before['device_type']} and cannot go on on {device}; use "
            f"--device {before['device_type']}, or start over with --fresh"
        )
    if before["noise_source"] not in ("none", noise):
        raise WrongInput(
            f"{run.path} began with noise from {before['noise_source']!r} and cannot go on with "
            f"{noise!r}; run it where it was begun, or start over with --fresh"
        )


def roster_hash(devices: NDArray[np.str_]) -> str:
    """Return the SHA-256 of the sorted ids of all devices that the nodes announce."""
    return hashlib.sha256("\n".join(sorted(devices.tolist())).encode()).hexdigest()


def check_roster(
    before: str, devices: NDArray[np.str_], error: type[Exception] = WrongInput
) -> None:
    """Refuse other devices than the run began with. Raises WrongInput.

    State and ledger refer to devices by their place in the roster.
    """
    if roster_hash(devices) != before:
        raise error(
            "the nodes announce other devices than the run began with, and ledger and selection "
            "count those; bring the same nodes and data back, or start over with --fresh"
        )


def now() -> str:
    """Return the time now in UTC, as ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _source_hash(key: str, name: str) -> str:
    target = import_object(key, name)
    file = sys.modules[target.__module__].__file__
    return hashlib.sha256(Path(str(file)).read_bytes()).hexdigest()


def _commit() -> str:
    """Return the commit of the code, with "+" if files have changed since; "" outside of git."""
    folder = Path(__file__).parent
    try:
        git = ["git", "-C", str(folder)]
        head = subprocess.run(
            [*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        )
        dirty = subprocess.run(
            [*git, "status", "--porcelain"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return head.stdout.strip() + ("+" if dirty.stdout.strip() else "")
