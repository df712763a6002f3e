"""The round loop: select, train, aggregate, evaluate, record. Read it from top to bottom."""

import math
import time
from collections.abc import Mapping
from dataclasses import replace
from logging import getLogger
from typing import Any

import numpy as np
from flwr.app import ConfigRecord

from clients.batches import count_steps
from fedsim.app.rundir.audit_file import FILE as AUDITS
from fedsim.app.rundir.files import Row, Watch
from fedsim.app.rundir.releases import write_release
from fedsim.app.rundir.round_record import Round
from fedsim.app.rundir.run_dir import Checkpoint, RunDir
from fedsim.app.server.early_stopping import dev_metrics, stopped_early
from fedsim.app.server.monitoring import write_health
from fedsim.app.server.release_flips import release_row
from fedsim.app.server.round_metrics import is_evaluated, test_metrics
from fedsim.app.server.session import Server
from fedsim.data.stream import period_of_round
from fedsim.errors import RunFailed
from fedsim.wire import pack_params
from strategies.cohorts import ServerState
from strategies.federated import Federated

logger = getLogger(__name__)


def run_rounds(server: Server, watch: Watch) -> str:
    """Train from the last checkpoint, or from the first parameters, to the last round.

    Returns why the run ended early, or "".
    """
    strategy = server.strategy
    run = server.run
    settings = server.config.train
    resume(strategy, run)
    audit_round(server)
    period = 0
    why = ""
    for round in range(strategy.state.round + 1, settings.rounds + 1):
        if settings.patience and stopped_early(server.config, server.task, run.rows()):
            why = early_sentence(settings.patience, run.rows())
            break
        period = enter_period(server, round, period)
        strategy.roster = server.nodes.follow(strategy.roster, period)
        why = server.spending.enter(round)
        if why:
            break
        row = do_round(server, round, period).row()
        check_finite(row)
        run.append_row(row)
        run.write_checkpoint(as_checkpoint(strategy.state), server.config.place.keep)
        write_health(run, server.config, server.spending)
        logger.info("round %d of %d is done", round, settings.rounds)
        watch(row)
        audit_round(server)
    measure_periods(server)
    audit_round(server, ended=True)
    return why


def do_round(server: Server, round: int, period: int) -> Round:
    """Select, train, aggregate and evaluate once; return what the round did."""
    strategy = server.strategy
    start = time.perf_counter()
    params = pack_params(strategy.state.params)
    messages = strategy.configure_train(round, params, ConfigRecord(), server.grid)
    replies = server.nodes.exchange(messages, round)
    _, metrics = strategy.aggregate_train(round, replies)
    trained = time.perf_counter()
    done = evaluated(server, round_done(server, round, metrics), period)
    return replace(
        done,
        time_train_s=trained - start,
        time_devices_per_s=done.devices / (trained - start),
        time_evaluate_s=time.perf_counter() - trained,
    )


def audit_round(server: Server, ended: bool = False) -> None:
    """Audit the current model if an audit is due; the last round's audit waits for the end."""
    state = server.strategy.state
    if state.round == 0 or (state.round == server.config.train.rounds and not ended):
        return
    if server.config.audit.evaluators:
        from fedsim.app.audits.schedule import (
            audit,
        )  # imports scipy and all attacks, only for audited runs

        audit(server.audited(ended))


def early_sentence(patience: int, rows: list[Row]) -> str:
    return (
        f"stopped after round {rows[-1]['round']}: the dev metric had not improved for {patience} "
        "evaluations; this choice looked at the dev part and is outside any epsilon"
    )


def check_finite(row: Row) -> None:
    """Raise RunFailed if a figure of the round is not finite."""
    wrong = [name for name, value in row.items() if not math.isfinite(value)]
    if wrong:
        raise RunFailed(
            f"training diverged in round {row['round']}: {', '.join(wrong)} is no longer finite; "
            "lower train.lr or aggregation.lr"
        )


def resume(strategy: Federated, run: RunDir) -> None:
    """Restore strategy and rows to the last checkpoint."""
    found = run.last_checkpoint()
    if found is not None:
        strategy.state = ServerState(
            found.round, found.params, found.aggregator, found.participation, found.losses
        )
    run.cut_rows(strategy.state.round)
    run.cut_rows(strategy.state.round, AUDITS)
    run.cut_rows(strategy.state.round - 1, "periods.jsonl")
    run.cut_rows(strategy.state.round - 1, "releases.jsonl")


def enter_period(server: Server, round: int, before: int) -> int:
    """Return the round's period. Before a new period, measure the model of the last one."""
    stream = server.config.stream
    rounds = server.config.train.rounds
    period = period_of_round(stream, rounds, round)
    if stream.mode == "static" or period == before:
        return period
    if round == 1 or period_of_round(stream, rounds, round - 1) != period:
        measure_periods(server)
    return period


def measure_periods(server: Server) -> None:
    """Measure the current model on the test examples of every period, past, present and future."""
    stream = server.config.stream
    round = server.strategy.state.round
    if stream.mode == "static":
        return
    done = period_of_round(stream, server.config.train.rounds, round) if round else 0
    measure_release(server, done)
    for period in range(1, stream.periods + 1):
        test = server.holdings.test(period)
        if test is not None:
            row = {"round": round, "after_period": done, "test_period": period} | server.evaluate(
                test
            )
            check_finite(row)
            server.run.append_row(row, "periods.jsonl")


def measure_release(server: Server, period: int) -> None:
    """Compare a period's last model with that of the period before, and keep it."""
    if period == 0:
        return
    row = release_row(server, period)
    if row:
        server.run.append_row(row, "releases.jsonl")
    write_release(server.run, period, server.strategy.state.params, server.config.place.keep)


def as_checkpoint(state: ServerState) -> Checkpoint:
    return Checkpoint(
        state.round, state.params, state.aggregator, state.participation, state.losses
    )


def round_done(server: Server, round: int, metrics: Mapping[str, Any]) -> Round:
    """Return the record of a round's training: participants, losses, privacy cost."""
    strategy = server.strategy
    device_level = strategy.config.dp.unit == "device"
    securely = device_level and strategy.config.dp.trust == "secure_sum"
    state = strategy.state.aggregator
    return Round(
        round=round,
        cohort=int(metrics["cohort"]),
        devices=int(metrics["devices"]),
        rejected=int(metrics["rejected"]),
        steps=steps_of(metrics),
        skipped=1 if metrics["skipped"] else None,
        train_loss=train_loss(metrics),
        reachable=reachable(server),
        virtual_s=virtual_seconds(server),
        dp_epsilon_spent_rdp=server.spending.spent_rdp(),
        dp_clip_norm=strategy.clip_norm if device_level else None,
        dp_sum_headroom=float(state["dp/headroom"]) if securely else None,
        dp_released=int(state["dp/released"]) if securely else None,
    )


def steps_of(metrics: Mapping[str, Any]) -> int | None:
    """Return the local steps; None where devices hide their sizes from the server."""
    if "steps" in metrics or not metrics["devices"]:
        return int(metrics.get("steps", 0))
    return None


def train_loss(metrics: Mapping[str, Any]) -> float | None:
    """Return the mean loss over the examples of all local steps; None if it was not reported."""
    if not metrics.get("loss_examples"):
        return None
    return float(metrics["loss_sum"] / metrics["loss_examples"])


def reachable(server: Server) -> int | None:
    """Return the number of reachable devices; None if all are always reachable."""
    strategy = server.strategy
    if server.config.availability.rule == "always":
        return None
    return int(strategy.clock.reachable(strategy.state.round).sum())


def virtual_seconds(server: Server) -> float | None:
    """Return the round's seconds on the virtual clock; None without simulated speeds."""
    strategy = server.strategy
    if not server.config.availability.speed_sigma or strategy.cohort is None:
        return None
    answering = strategy.answering(strategy.cohort).devices
    members = np.searchsorted(strategy.roster.devices, answering)
    sizes = strategy.roster.activity[members].tolist()
    steps = np.array([count_steps(server.config.train, n) for n in sizes], dtype=np.int64)
    return strategy.clock.seconds(members, steps)


def evaluated(server: Server, done: Round, period: int) -> Round:
    """Return the round with its metrics if it is evaluated: test, this period, dev, devices."""
    config = server.config
    round = done.round
    if not is_evaluated(config, round):
        return done
    found = test_metrics(server.evaluate, config, server.holdings, period)
    found |= dev_metrics(server.evaluate, config, server.federation)
    messages = server.strategy.configure_evaluate(
        round, pack_params(server.strategy.state.params), ConfigRecord(), server.grid
    )
    if messages:
        on_devices = server.strategy.aggregate_evaluate(
            round, server.nodes.exchange(messages, round)
        )
        found |= dict(on_devices) if on_devices else {}
    return replace(done, period=found.pop("period", None), measured=found)
