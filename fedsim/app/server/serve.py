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
    Experiment,
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
    folder = data_dir(config.place, node_config)
    check_config(config)
    mirrors = Mirrors(config)
    nodes = Nodes(grid, config.place)
    roster = nodes.roster(1 if config.stream.mode == "static" else EVER)
    holdings = _holdings(config, folder, roster)
    roster = nodes.follow(roster, 1)
    federation = holdings.dataset
    noise = noise_source(config, roster.real)
    check_audited(config, roster.real)
    server = _make_server(check_experiment(config, holdings, roster, noise), nodes, run, another)
    if resumed:
        check_resume(run, config, federation, noise.kind)
        check_roster(run.manifest.get("roster", ""), roster.devices)
    else:
        run.set_aside()
        manifest = make_manifest(
            config, federation, len(np.unique(roster.nodes)), noise.kind, roster.devices
        )
        activity = public_activity(federation.activity, config.data.activity_public)
        run.create(config, manifest, federation.spec, federation.devices, activity)
        write_plan(run, config, federation)
    setup_s = time.perf_counter() - start
    mirrors.begin(run.path)
    with logged(run.path) if config.place.metrics else nullcontext():
        why = rounds_or_reason(server, mirrors.watching(watch))
    mirrors.close()
    reference = train_centralised(config, holdings) if config.train.centralised else {}
    run.write_manifest(run.manifest | {"finished": now()})
    # a shadow is a tool of an audit and makes no privacy promise
    privacy = {} if config.audit.shadow else write_statement(server.spending, federation)
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


def _make_server(found: Experiment, nodes: Nodes, run: RunDir, another: Another) -> Server:
    config = found.config
    hours = found.holdings.active_hours() if config.availability.rule == "clock" else None
    drawn = found.cohorts
    strategy = Federated(config, drawn.roster, drawn.state.params, hours, drawn.noise)
    spending = make_spending(config, found.holdings, strategy, run)
    return Server(
        config,
        found.holdings,
        found.module,
        found.task,
        strategy,
        nodes,
        run,
        spending,
        another,
    )
