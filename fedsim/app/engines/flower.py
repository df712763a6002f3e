"""An experiment on a Flower engine: the simulation runtime (Ray), or a running SuperLink.

The ServerApp writes the run directory, and this module only follows it. So a run looks the same on
every engine.
"""

import signal
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsim.app.engines.connection import Connection, RunState
from fedsim.app.engines.local import run_local
from fedsim.app.engines.server_app import WRONG_INPUT
from fedsim.app.engines.superlink import simulation_superlink
from fedsim.app.rundir.files import Watch
from fedsim.app.rundir.run_dir import RunDir
from fedsim.config import Config, to_toml
from fedsim.errors import RunFailed, WrongInput

APP = Path(__file__).parents[3]
"""The Flower app: the folder of pyproject.toml, in a checkout or in an unpacked bundle."""
PATIENCE_S = 20.0
"""Seconds that we wait for a silent SuperLink. After that the run goes on without us."""
DIED = "No heartbeat"
"""Flower's details contain this when a run's ServerApp has stopped answering."""
POLL_S = 0.5
"""Seconds between two looks at a run's rows; every fourth look also asks the SuperLink."""


@dataclass(frozen=True)
class Backend:
    """Where the nodes of a run are."""

    name: str = "local"
    nodes: int = 0
    """Nodes in this process (local) or in Flower's simulation (ray).

    0 means one node, or as many as the resumed run has.
    """
    cpus: int = 1
    """CPU cores for each node of the simulation. They limit how many nodes run at a time."""
    gpus: float = 0.0
    address: str = ""
    """HOST:PORT of the SuperLink."""
    root_certificates: Path | None = None
    insecure: bool = False

    def __post_init__(self) -> None:
        if self.name not in ("local", "ray", "superlink"):
            raise WrongInput(
                f"--backend {self.name!r} is not known; choose local, ray or superlink"
            )
        if (self.name == "superlink") != bool(self.address):
            raise WrongInput(
                "--backend superlink wants --address HOST:PORT, and --address wants --backend "
                "superlink"
            )
        if self.insecure and self.root_certificates is not None:
            raise WrongInput("--insecure and --root-certificates exclude each other; leave one out")
        if self.name == "superlink" and self.nodes:
            raise WrongInput(
                "--nodes says how many nodes local and ray make; a SuperLink has those that "
                "connect (--set place.nodes=N waits for N)"
            )


def run_on(
    backend: Backend, config: Config, fresh: bool = False, watch: Watch = lambda row: None
) -> RunDir:
    """Run or resume the experiment; `fresh` sets an earlier run aside.

    Raises WrongInput for what cannot be done, and RunFailed for a run that cannot go on.
    """
    if backend.name == "local":
        return run_local(config, backend.nodes or 1, fresh, watch)
    config = at_home(config)
    run = RunDir.of(config)
    if run.summary is not None and not fresh:
        return run
    _check_app()
    with run.locked():
        if fresh:
            run.set_aside()
    with tempfile.TemporaryDirectory(prefix="fedsim-") as home, _politely():
        if backend.name == "superlink":
            there = Connection(
                backend.address, Path(home), backend.insecure, backend.root_certificates
            )
            there.write()
            return _follow(there, config, run, watch)
        nodes = run.manifest["plan"]["nodes"] if run.exists else backend.nodes or 1
        with simulation_superlink(Path(home)) as own:
            size = {"num-supernodes": nodes, "client-resources-num-cpus": backend.cpus}
            return _follow(
                own, config, run, watch, size | {"client-resources-num-gpus": backend.gpus}
            )


@contextmanager
def _politely() -> Iterator[None]:
    """Let SIGTERM end us as Ctrl-C does, so that the processes that we started end too."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def at_home(config: Config) -> Config:
    """Return the config with absolute folders: they do not depend on where a process starts."""
    place = config.place
    named = {"out": str(Path(place.out).resolve())}
    if place.data_dir:
        named["data_dir"] = str(Path(place.data_dir).expanduser().resolve())
    return config.model_copy(update={"place": place.model_copy(update=named)})


def _follow(
    there: Connection,
    config: Config,
    run: RunDir,
    watch: Watch,
    federation: Mapping[str, Any] | None = None,
) -> RunDir:
    """Submit the run and follow its rows until it ends. An interrupt also stops the run."""
    resolved = there.home / "experiment.toml"
    resolved.write_text(to_toml(config), encoding="utf-8")
    run_id = there.submit(str(APP), resolved, federation)
    seen = 0
    state = RunState("pending", "")
    heard = time.monotonic()
    try:
        while not state.finished:
            for _ in range(4):
                time.sleep(POLL_S)
                seen = _tell(run, watch, seen)
            try:
                state = there.state(run_id)
                heard = time.monotonic()
            except RunFailed:
                if time.monotonic() - heard > PATIENCE_S:
                    raise
        _tell(run, watch, seen)
    except KeyboardInterrupt:
        there.stop(run_id)
        raise RunFailed(
            f"run {run_id} was stopped; run it again to go on from the last round"
        ) from None
    _check_end(state, run, there.address)
    return run


def _tell(run: RunDir, watch: Watch, seen: int) -> int:
    """Show the rows after the first `seen`; return the number of all rows."""
    rows = run.rows()
    for row in rows[seen:]:
        watch(row)
    return len(rows)


def _check_end(state: RunState, run: RunDir, address: str) -> None:
    """Check that a run ended well and that its results can be read here.

    Raises WrongInput or RunFailed with one sentence that says why not.
    """
    if not state.completed:
        why = state.details.removeprefix("ServerApp failed with exception: ").strip()
        if why.startswith(WRONG_INPUT):
            raise WrongInput(why.removeprefix(WRONG_INPUT))
        if DIED in why:
            why = f"the ServerApp died ({why}); run it again to go on from the last round"
        raise RunFailed(why or f"the SuperLink at {address} says {state.status!r} and no more")
    if run.summary is None:
        raise RunFailed(
            f"the run is completed, and its results are where the SuperLink at {address} runs, in "
            f"{run.path}; copy that folder here to look at them"
        )


def _check_app() -> None:
    if not (APP / "pyproject.toml").is_file():
        raise WrongInput(
            f"Flower ships an app from its folder, and {APP} has no pyproject.toml; run from a "
            "checkout that was installed by `pip install -e .`"
        )
