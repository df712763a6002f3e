"""The work of the Flower ServerApp: set up, rounds, reference, summary."""

import errno
import time
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.serverapp import Grid

from fedsim.app.audits.audited import Another
from fedsim.app.budget.spending import make_spending
from fedsim.app.budget.statement import write_statement
from fedsim.app.experiment.loading import announced_holdings, load_holdings
from fedsim.app.experiment.planting import write_plan
from fedsim.app.place import data_dir, threads
from fedsim.app.rundir.files import Watch
from fedsim.app.rundir.manifest import check_resume, check_roster, make_manifest, now, with_plan
from fedsim.app.rundir.run_dir import RunDir
from fedsim.app.server.centralised import train_centralised
from fedsim.app.server.check_experiment import (
    check_audited,
    check_config,
    check_examples,
    check_experiment,
)
from fedsim.app.server.monitoring import logged, write_health
from fedsim.app.server.nodes import Nodes
from fedsim.app.server.rounds import run_rounds
from fedsim.app.server.session import Server
from fedsim.app.server.summary import summarise
from fedsim.app.server.trackers import Mirrors
from fedsim.config import Config
from fedsim.data.activity import public_activity
from fedsim.data.holdings import Holdings
from fedsim.errors import RunFailed, WrongInput
from fedsim.privacy.noise import noise_source
from fedsim.wire import EVER
from strategies.federated import Federated
from strategies.roster import Roster

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def serve(
    grid: Grid,
    config: Config,
    node_config: Mapping[str, Any],
    another: Another,
    watch: Watch = lambda row: None,
    fresh: bool = False,
) -> RunDir:
    """Run or resume the experiment on the nodes of `grid`; `watch` receives each round's row.

    `another` runs another config, for audits that train shadow models.

    A finished run is left unchanged, unless `fresh` sets it aside after the input passed its
    checks. Raises WrongInput before anything is written, RunFailed later.
    """
    run = RunDir.of(config)
    with run.locked():
        if fresh or run.summary is None:
            try:
                _run(grid, config, node_config, another, run, watch, fresh)
            except OSError as error:
                if error.errno not in NO_ROOM:
                    raise
                raise RunFailed(
                    f"{run.path} cannot be written ({error.strerror}); make room and run it again "
                    "to go on from the last round"
                ) from error
    return run


def _run(
    grid: Grid,
    config: Config,
    node_config: Mapping[str, Any],
    another: Another,
    run: RunDir,
    watch: Watch,
    fresh: bool,
) -> None:
    start = time.perf_counter()
    resumed = run.exists and not fresh
    if resumed:
        config = config.model_copy(update={"place": with_plan(config.place, run.manifest["plan"])})
    torch.set_num_threads(threads(config.place))
    check_config(config)
    server = _make_server(grid, config, data_dir(config.place, node_config), run, another)
    if resumed:
        _check_begun(server)
    else:
        _begin(server)
    setup_s = time.perf_counter() - start
    mirrors = Mirrors(config)
    mirrors.begin(run.path)
    with logged(run.path) if config.place.metrics else nullcontext():
        why = rounds_or_reason(server, mirrors.watching(watch))
    mirrors.close()
    _finish(server, setup_s, why)


def _make_server(
    grid: Grid, config: Config, folder: Path | None, run: RunDir, another: Another
) -> Server:
    """Ask the nodes for their devices and build what the rounds need; write nothing."""
    nodes = Nodes(grid, config.place)
    roster = nodes.roster(1 if config.stream.mode == "static" else EVER)
    holdings = _holdings(config, folder, roster)
    roster = nodes.follow(roster, 1)
    check_audited(config, roster.real)
    noise = noise_source(config, roster.real)
    found = check_experiment(config, holdings, roster, noise)
    hours = holdings.active_hours() if config.availability.rule == "clock" else None
    strategy = Federated(config, roster, found.cohorts.state.params, hours, noise)
    spending = make_spending(config, holdings, strategy, run)
    return Server(
        config,
        holdings,
        found.module,
        found.task,
        strategy,
        nodes,
        run,
        spending,
        another,
    )


def _check_begun(server: Server) -> None:
    """Refuse to go on with other data, code, noise or devices than the run began with."""
    roster = server.strategy.roster
    check_resume(server.run, server.config, server.federation, server.strategy.noise.kind)
    check_roster(server.run.manifest.get("roster", ""), roster.devices)


def _begin(server: Server) -> None:
    """Set an earlier run aside and write what is known before the first round."""
    config = server.config
    run = server.run
    federation = server.federation
    roster = server.strategy.roster
    run.set_aside()
    nodes = len(np.unique(roster.nodes))
    noise = server.strategy.noise.kind
    manifest = make_manifest(config, federation, nodes, noise, roster.devices)
    activity = public_activity(federation.activity, config.data.activity_public)
    run.create(config, manifest, federation.spec, federation.devices, activity)
    write_plan(run, config, federation)


def _finish(server: Server, setup_s: float, why: str) -> None:
    """Train the reference, write the privacy statement and the summary."""
    config = server.config
    run = server.run
    reference = train_centralised(config, server.holdings) if config.train.centralised else {}
    run.write_manifest(run.manifest | {"finished": now()})
    # a shadow is a tool of an audit and makes no privacy promise
    privacy = {} if config.audit.shadow else write_statement(server.spending, server.federation)
    run.write_summary(summarise(server, reference, setup_s, why, privacy))
    write_health(run, config, server.spending, why or "completed")


def rounds_or_reason(server: Server, watch: Watch) -> str:
    """Run the rounds; on a failure, write its reason to the metrics."""
    try:
        return run_rounds(server, watch)
    except (RunFailed, WrongInput) as error:
        write_health(server.run, server.config, server.spending, str(error))
        raise


def _holdings(config: Config, folder: Path | None, roster: Roster) -> Holdings:
    """Return what the server knows of the data; real nodes with files announce it."""
    check_examples(roster.activity)
    if roster.real and config.data.source == "files":
        return announced_holdings(config, folder, roster.devices, roster.activity)
    return load_holdings(config, folder)
