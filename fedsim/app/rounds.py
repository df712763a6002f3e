"""The round loop: select, train, aggregate, evaluate, write down. Reads from top to bottom."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid
from torch import nn

from fedsim.app.rundir import Checkpoint, Row, RunDir
from fedsim.config import Config
from fedsim.data.federation import FederatedDataset
from fedsim.errors import RunFailed, WrongInput
from fedsim.models.evaluation import evaluate
from fedsim.models.tasks import Task
from fedsim.names import suggestion
from fedsim.types import Params
from fedsim.wire import pack_params, unpack_announcement
from strategies.federated import Federated, ServerState
from strategies.roster import Roster, merge

Watch = Callable[[Row], None]
LOWER_IS_BETTER = {"loss", "perplexity"}


@dataclass(frozen=True)
class Server:
    """What the rounds need, made once."""

    config: Config
    federation: FederatedDataset
    module: nn.Module
    task: Task
    strategy: Federated
    grid: Grid
    run: RunDir


def ask_roster(grid: Grid) -> Roster:
    """Ask every node for its devices and their public activity."""
    messages = [
        Message(RecordDict(), dst_node_id=node, message_type=MessageType.QUERY)
        for node in grid.get_node_ids()
    ]
    if not messages:
        raise RunFailed("no node is connected; start nodes first")
    replies = list(grid.send_and_receive(messages))
    failed = [r for r in replies if r.has_error()]
    if failed:
        raise RunFailed(f"node {failed[0].metadata.src_node_id} failed: {failed[0].error.reason}")
    replies.sort(key=lambda reply: reply.metadata.src_node_id)
    return merge({r.metadata.src_node_id: unpack_announcement(r.content) for r in replies})


def run_rounds(server: Server, watch: Watch) -> None:
    """Train from the last checkpoint, or from the first parameters, to the last round."""
    strategy, run, settings = server.strategy, server.run, server.config.train
    resume(strategy, run)
    for round in range(strategy.state.round + 1, settings.rounds + 1):
        if settings.patience and stopped_early(server.config, server.task, run.rows()):
            break
        start = time.perf_counter()
        messages = strategy.configure_train(
            round, pack_params(strategy.state.params), ConfigRecord(), server.grid
        )
        replies = list(server.grid.send_and_receive(messages)) if messages else []
        _, metrics = strategy.aggregate_train(round, replies)
        trained = time.perf_counter()
        row = train_row(round, metrics) | evaluation_row(server, round, strategy.state.params)
        seconds = trained - start
        row |= {
            "time_train_s": seconds,
            "time_devices_per_s": row["devices"] / seconds,
            "time_evaluate_s": time.perf_counter() - trained,
        }
        run.append_row(row)
        run.write_checkpoint(as_checkpoint(strategy.state), server.config.place.keep)
        watch(row)


def resume(strategy: Federated, run: RunDir) -> None:
    """Bring strategy and rows to the last checkpoint."""
    found = run.last_checkpoint()
    if found is not None:
        strategy.state = ServerState(found.round, found.params, found.aggregator, found.participation)
    run.cut_rows(strategy.state.round)


def as_checkpoint(state: ServerState) -> Checkpoint:
    return Checkpoint(state.round, state.params, state.aggregator, state.participation)


def train_row(round: int, metrics: Mapping[str, Any]) -> Row:
    """Return what the cohort did: sizes, local steps and the mean loss over them."""
    row: Row = {
        "round": round,
        "cohort": int(metrics["cohort"]),
        "devices": int(metrics["devices"]),
        "steps": int(metrics.get("steps", 0)),
    }
    if metrics.get("loss_examples"):
        row["train_loss"] = metrics["loss_sum"] / metrics["loss_examples"]
    return row


def evaluation_row(server: Server, round: int, params: Params) -> Row:
    """Return the test metrics, and the dev metrics as `dev_...`, where this round is evaluated."""
    settings, federation = server.config, server.federation
    if round % settings.evaluation.every and round != settings.train.rounds:
        return {}
    row: Row = {}
    if federation.test is not None:
        row |= evaluate(server.module, server.task, params, federation.test)
    if settings.train.patience and federation.dev is not None:
        dev = evaluate(server.module, server.task, params, federation.dev)
        row |= {f"dev_{name}": value for name, value in dev.items()}
    return row


def check_patience(server: Server) -> None:
    """Refuse early stopping without examples or a metric to watch. Raises WrongInput."""
    settings, dev = server.config.train, server.federation.dev
    if not settings.patience:
        return
    if dev is None:
        raise WrongInput(
            "train.patience needs examples to watch, and the federation has no dev part; name files in "
            "data.dev, or set train.patience = 0"
        )
    known = evaluate(server.module, server.task, server.strategy.state.params, dev[:16])
    if settings.patience_metric and settings.patience_metric not in known:
        raise WrongInput(
            f"train.patience_metric = {settings.patience_metric!r} is not measured; choose "
            f"{', '.join(sorted(known))}{suggestion(settings.patience_metric, known)}"
        )


def stopped_early(config: Config, task: Task, rows: Sequence[Row]) -> bool:
    """Whether the watched dev metric has not improved for `train.patience` evaluations.

    A pure function of the rows, so that a resumed run stops where an undisturbed one does.
    """
    name = config.train.patience_metric or task.metric
    values = [row[f"dev_{name}"] for row in rows if f"dev_{name}" in row]
    if name in LOWER_IS_BETTER:
        values = [-value for value in values]
    best = max(range(len(values)), key=values.__getitem__, default=0)
    return len(values) - 1 - best >= config.train.patience
