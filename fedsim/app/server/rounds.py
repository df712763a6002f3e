"""The round loop: select, train, aggregate, evaluate, write down. Reads from top to bottom."""

import math
import time
from collections.abc import Mapping
from logging import getLogger
from typing import Any

import numpy as np
from flwr.app import ConfigRecord

from clients.batches import count_steps
from fedsim.app.audits.schedule import audit
from fedsim.app.rundir.audit_file import FILE as AUDITS
from fedsim.app.rundir.files import Row
from fedsim.app.rundir.metrics import SPENT
from fedsim.app.rundir.releases import write_release
from fedsim.app.rundir.run_dir import Checkpoint, RunDir
from fedsim.app.server.early_stopping import dev_metrics, stopped_early
from fedsim.app.server.monitoring import write_health
from fedsim.app.server.release_flips import release_row
from fedsim.app.server.round_metrics import is_evaluated, test_metrics
from fedsim.app.server.session import Server, Watch
from fedsim.data.stream import period_of_round
from fedsim.errors import RunFailed
from fedsim.wire import pack_params
from strategies.federated import Federated, ServerState

logger = getLogger(__name__)


def run_rounds(server: Server, watch: Watch) -> str:
    """Train from the last checkpoint, or from the first parameters, to the last round.

    Returns why the run ended before that, or "".
    """
    strategy, run, settings = server.strategy, server.run, server.config.train
    resume(strategy, run)
    audit_round(server)
    period, why = 0, ""
    for round in range(strategy.state.round + 1, settings.rounds + 1):
        if settings.patience and stopped_early(server.config, server.task, run.rows()):
            why = early_sentence(settings.patience, run.rows())
            break
        period = enter_period(server, round, period)
        strategy.roster = server.nodes.follow(strategy.roster, period)
        why = server.spending.enter(round)
        if why:
            break
        start = time.perf_counter()
        messages = strategy.configure_train(
            round, pack_params(strategy.state.params), ConfigRecord(), server.grid
        )
        replies = server.nodes.exchange(messages, round)
        _, metrics = strategy.aggregate_train(round, replies)
        trained = time.perf_counter()
        row = (
            train_row(round, metrics)
            | privacy_row(server)
            | availability_row(server)
            | evaluation_row(server, round, period)
        )
        seconds = trained - start
        row |= {
            "time_train_s": seconds,
            "time_devices_per_s": row["devices"] / seconds,
            "time_evaluate_s": time.perf_counter() - trained,
        }
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


def audit_round(server: Server, ended: bool = False) -> None:
    """Audit the current model where that is due; the last round's waits for the end."""
    state = server.strategy.state
    if state.round == 0 or (state.round == server.config.train.rounds and not ended):
        return
    audit(server.audited(ended))


def early_sentence(patience: int, rows: list[Row]) -> str:
    return (
        f"stopped after round {rows[-1]['round']}: the dev metric had not improved for {patience} "
        "evaluations; this choice looked at the dev part and is outside any epsilon"
    )


def privacy_row(server: Server) -> Row:
    """Return what DP did: epsilon spent so far, the next round's clip norm, how full a secure sum was."""
    strategy = server.strategy
    if strategy.config.dp.unit == "none":
        return {}
    row: Row = {SPENT: server.spending.spent_rdp()}
    if strategy.config.dp.unit == "example":
        return row
    state = strategy.state.aggregator
    row["dp_clip_norm"] = strategy.clip_norm
    if strategy.config.dp.trust == "secure_sum":
        row["dp_sum_headroom"] = float(state["dp/headroom"])
        row["dp_released"] = int(state["dp/released"])
    return row


def check_finite(row: Row) -> None:
    """Raise RunFailed where a figure of the round is no number any more."""
    wrong = [name for name, value in row.items() if not math.isfinite(value)]
    if wrong:
        raise RunFailed(
            f"training diverged in round {row['round']}: {', '.join(wrong)} is no longer finite; lower "
            "train.lr or aggregation.lr"
        )


def resume(strategy: Federated, run: RunDir) -> None:
    """Bring strategy and rows to the last checkpoint."""
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
    """Return the round's period; where it is a new one, measure what came before."""
    stream, rounds = server.config.stream, server.config.train.rounds
    period = period_of_round(stream, rounds, round)
    if stream.mode == "static" or period == before:
        return period
    if round == 1 or period_of_round(stream, rounds, round - 1) != period:
        measure_periods(server)
    return period


def measure_periods(server: Server) -> None:
    """Measure the current model on the test examples of every period, past, present and future."""
    stream, round = server.config.stream, server.strategy.state.round
    if stream.mode == "static":
        return
    done = period_of_round(stream, server.config.train.rounds, round) if round else 0
    measure_release(server, done)
    for period in range(1, stream.periods + 1):
        test = server.holdings.test(period)
        if test is not None:
            row = {"round": round, "after_period": done, "test_period": period} | server.evaluate(test)
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
    return Checkpoint(state.round, state.params, state.aggregator, state.participation, state.losses)


def train_row(round: int, metrics: Mapping[str, Any]) -> Row:
    """Return what the cohort did: sizes, local steps and the mean loss over them."""
    row: Row = {
        "round": round,
        "cohort": int(metrics["cohort"]),
        "devices": int(metrics["devices"]),
        "rejected": int(metrics["rejected"]),
    }
    if (
        "steps" in metrics or not row["devices"]
    ):  # devices do not tell them to a server that is not trusted with their sizes
        row["steps"] = int(metrics.get("steps", 0))
    if metrics["skipped"]:
        row["skipped"] = 1  # too few valid updates: the model stayed, which accounting must not overlook
    if metrics.get("loss_examples"):
        row["train_loss"] = metrics["loss_sum"] / metrics["loss_examples"]
    return row


def availability_row(server: Server) -> Row:
    """Return who was in reach and the round's time on the virtual clock, where these are simulated."""
    settings, strategy = server.config.availability, server.strategy
    row: Row = {}
    if settings.rule != "always":
        row["reachable"] = int(strategy.clock.reachable(strategy.state.round).sum())
    if settings.speed_sigma and strategy.cohort is not None:
        members = np.searchsorted(strategy.roster.devices, strategy.answering(strategy.cohort).devices)
        sizes = strategy.roster.activity[members].tolist()
        steps = np.array([count_steps(server.config.train, n) for n in sizes], dtype=np.int64)
        row["virtual_s"] = strategy.clock.seconds(members, steps)
    return row


def evaluation_row(server: Server, round: int, period: int) -> Row:
    """Return the metrics of this round, where it is evaluated: test, this period's, dev, on devices."""
    config = server.config
    if not is_evaluated(config, round):
        return {}
    row = test_metrics(server.evaluate, config, server.holdings, period)
    row |= dev_metrics(server.evaluate, config, server.federation)
    messages = server.strategy.configure_evaluate(
        round, pack_params(server.strategy.state.params), ConfigRecord(), server.grid
    )
    if messages:
        found = server.strategy.aggregate_evaluate(round, server.nodes.exchange(messages, round))
        row |= dict(found) if found else {}
    return row
