"""The Flower strategy: one message a node and round, answered by one partial sum."""

from collections.abc import Iterable, Iterator
from logging import getLogger
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from numpy.typing import NDArray

from fedsim.errors import RunFailed
from fedsim.types import Cohort, Reply, Update, no_update
from fedsim.wire import NOT_FINITE, failure, pack_evaluation, pack_params, pack_task, unpack_scores
from strategies.aggregation import combine
from strategies.cohorts import Cohorts, ServerState, part_of
from strategies.device_metrics import spread
from strategies.reply_checks import Guard, guarded
from strategies.weights import with_divisor

logger = getLogger(__name__)


class Federated(Cohorts, Strategy):
    """Sends each node the model and its part of a cohort, and steps on the sum of the replies."""

    cohort: Cohort | None = None
    """The cohort of the round that is under way."""

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Return one message for each node that hosts a device of this round's cohort."""
        self.cohort = self.select(server_round)
        return [
            Message(
                pack_task(arrays, part, self.form),
                dst_node_id=node,
                message_type=MessageType.TRAIN,
                group_id=str(server_round),
            )
            for node, part in self.asked(self.cohort).items()
        ]

    def asked(self, cohort: Cohort) -> dict[int, Cohort]:
        """Return each node's part of the cohort, without devices that drop out."""
        answering = self.answering(cohort)
        nodes = self.roster.nodes_of(answering.devices)
        return {int(node): part_of(answering, nodes == node) for node in np.unique(nodes)}

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord, MetricRecord]:
        """Step on the nodes' answers; wrong ones are left out, counted and logged.

        With fewer valid updates than `aggregation.min_updates` the model does not change, and the
        metric `skipped` is 1. Raises RunFailed where every node failed or training diverged.
        """
        assert self.cohort is not None, "aggregate_train comes after configure_train"
        before = self.state
        settings = guarded(self.config)
        guard = Guard(server_round, self.asked(self.cohort), before.params, self.form, settings)
        answers = list(replies)
        _check_failure(server_round, answers)
        total, losses = self._gather(guard.accepted(self._good(answers)))
        _check_divergence(server_round, total, guard)
        params = before.params
        state = before.aggregator
        skipped = total.devices < settings.min_updates
        if not skipped:
            params, state = self.aggregator.step(params, with_divisor(total, self.config), state)
        if not all(bool(p.isfinite().all()) for p in params.values()):
            raise diverged(server_round, "the model is")
        seen = before.participation.copy()
        seen[np.searchsorted(self.roster.devices, self.cohort.devices)] += 1
        self.state = ServerState(server_round, params, state, seen, losses)
        counts = {
            "cohort": len(self.cohort),
            "devices": total.devices,
            "rejected": len(guard.rejected),
        }
        metrics: dict[str, Any] = counts | {"skipped": int(skipped)} | total.metrics
        return pack_params(params), MetricRecord(metrics)

    def _gather(self, accepted: Iterator[Reply]) -> tuple[Update, NDArray[np.float64]]:
        """Return the sum of the answers, or a robust rule's result, and the devices' last losses.

        Sums are added one at a time as they come. Only single updates are kept until all have
        arrived.
        """
        total = no_update(self.state.params)
        singles = []
        losses = self.state.losses.copy()
        for reply in accepted:
            if self.form.figures and len(reply.devices):
                known = reply.figures["loss_sum"] / np.maximum(reply.figures["loss_examples"], 1.0)
                losses[np.searchsorted(self.roster.devices, reply.devices)] = known
            if self.form.single:
                singles.append(reply)
            else:
                total = total + reply.update
        return (combine(singles, total, self.config.aggregation) if singles else total), losses

    def _good(self, replies: Iterable[Message]) -> Iterator[Message]:
        """Yield the replies without errors, in the order of node ids; errors are logged."""
        for reply in sorted(replies, key=lambda r: r.metadata.src_node_id):
            if reply.has_error():
                logger.warning("node %s failed: %s", reply.metadata.src_node_id, failure(reply))
            else:
                yield reply

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Return one message a node that asks for its devices' scores on their held-out parts.

        There is no message where the config evaluates centrally only.
        """
        if self.config.evaluation.on == "central":
            return []
        return [
            Message(
                pack_evaluation(arrays, self.period(server_round)),
                dst_node_id=int(node),
                message_type=MessageType.EVALUATE,
                group_id=str(server_round),
            )
            for node in np.unique(self.roster.nodes)
        ]

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Return how the metric spreads over devices: mean, worst ones, by decile of activity.

        None where no device was measured.
        """
        found = [unpack_scores(reply.content) for reply in self._good(replies)]
        found = [scores for scores in found if len(scores.devices)]
        if not found:
            return None
        devices = np.concatenate([scores.devices for scores in found])
        values = np.concatenate([scores.values for scores in found])
        order = np.argsort(devices)  # by device, never by arrival
        devices = devices[order]
        values = values[order]
        activity = self.roster.activity[np.searchsorted(self.roster.devices, devices)]
        return MetricRecord(spread(found[0].metric, values, activity, devices))

    def summary(self) -> None:
        """Log who can be selected and how."""
        logger.info(
            "%d devices, %s selection, %s aggregation",
            len(self.roster.devices),
            self.config.selection.rule,
            self.config.aggregation.rule,
        )


def _check_failure(round: int, answers: list[Message]) -> None:
    """Raise RunFailed where every node answers with an error: the settings are then the cause."""
    if answers and all(reply.has_error() for reply in answers):
        raise RunFailed(
            f"every node failed in round {round}, the first with {failure(answers[0])!r}; look at "
            "the nodes' logs and run it again to go on from the last round"
        )


def _check_divergence(round: int, total: Update, guard: Guard) -> None:
    """Raise RunFailed where none of several updates is finite: the model is then the cause."""
    reasons = list(guard.rejected.values())
    if not total.devices and len(reasons) > 1 and set(reasons) == {NOT_FINITE}:
        raise diverged(round, "no device's update is")


def diverged(round: int, what: str) -> RunFailed:
    return RunFailed(
        f"training diverged in round {round}: {what} finite any more; lower train.lr or "
        "aggregation.lr"
    )
