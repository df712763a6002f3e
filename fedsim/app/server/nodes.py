"""The connected nodes of a run: wait for them, ask for their devices, exchange messages."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from logging import getLogger

import numpy as np
from flwr.app import Message, MessageType
from flwr.serverapp import Grid

from fedsim.config import Place
from fedsim.errors import RunFailed, WrongInput
from fedsim.types import Announcement
from fedsim.wire import failure, is_refusal, pack_question, unpack_announcement
from strategies.roster import Roster, merge, moved

logger = getLogger(__name__)
PAUSE_S = 1.0


@dataclass
class Nodes:
    """The nodes that a grid reaches. Simulated nodes are always there; real ones come and go."""

    grid: Grid
    place: Place
    strangers: set[int] = field(default_factory=set)
    """Nodes that joined during the run and host none of its devices; they can join the next run."""
    period: int = 0
    heard: set[int] = field(default_factory=set)
    """Nodes that have announced themselves in `period`."""

    def roster(self, period: int = 1) -> Roster:
        """Return all nodes' devices with their public activity in a period (or `EVER`).

        With `place.nodes`, that many good answers are enough. Otherwise every connected node must
        answer. Raises RunFailed, or WrongInput if two nodes announce the same device.
        """
        here = self.wait(max(self.place.nodes, 1))
        found, failed = self._ask([node for node in here if node not in self.strangers], period)
        if (failed and len(found) < (self.place.nodes or len(here))) or not found:
            raise _worst(failed)
        for node, error in failed.items():
            logger.warning("node %s is left out: %s", node, error)
            self.strangers.add(node)
        self.period, self.heard = period, set(found)
        return merge(found)

    def wait(self, wanted: int) -> list[int]:
        """Return the connected nodes once there are `wanted` of them. Raises RunFailed."""
        until = time.monotonic() + self.place.wait_s
        while len(here := list(self.grid.get_node_ids())) < wanted and time.monotonic() < until:
            time.sleep(PAUSE_S)
        if not here:
            raise RunFailed("no node is connected; start nodes first")
        if len(here) < wanted:
            raise RunFailed(
                f"{len(here)} of {wanted} nodes are connected after {self.place.wait_s:g} s; "
                "start the others, or lower place.nodes"
            )
        return here

    def follow(self, roster: Roster, period: int) -> Roster:
        """Return the roster with each device's node now; nodes may return late or with new ids.

        The devices stay those that the run began with; new devices wait for the next run. In a new
        period a device is inactive until its node announces its data. Raises RunFailed, or
        WrongInput, if no node announces any.
        """
        begins = period != self.period
        if begins:
            self.wait(1)
            roster = replace(roster, activity=np.zeros_like(roster.activity))
            self.period, self.heard = period, set()
        known = self.heard.intersection(np.unique(roster.nodes).tolist()) | self.strangers
        here = set(self.grid.get_node_ids())
        found, failed = self._ask(sorted(here - known), period)
        for node, announced in found.items():
            try:
                roster = moved(roster, node, announced, here - {node})
                self.heard.add(node)
            except WrongInput as error:
                failed[node] = error
                if not np.isin(announced.devices, roster.devices).any():
                    self.strangers.add(node)
        for node, why in failed.items():
            logger.warning("node %s is left out: %s", node, why)
        if begins and not self.heard:
            raise _worst(failed)
        return roster

    def exchange(self, messages: Sequence[Message], round: int) -> list[Message]:
        """Send messages; return the replies within `place.deadline_s`, in order of arrival.

        Absent nodes are not asked. Raises RunFailed if no node is there or none answers.
        """
        if not messages:
            return []
        sent = self._reachable(messages) or self._reachable(messages, self.place.wait_s)
        if not sent:
            raise RunFailed(
                f"no node that hosts a device of round {round} is connected; start the nodes and "
                "run it again to go on from the last round"
            )
        if len(sent) < len(messages):
            logger.warning("round %d: %d node(s) are away", round, len(messages) - len(sent))
        replies = list(self.grid.send_and_receive(sent, timeout=self.place.deadline_s or None))
        late = len(sent) - len(replies)
        if late:
            logger.warning(
                "round %d: %d node(s) did not answer within %g s",
                round,
                late,
                self.place.deadline_s,
            )
        if not replies:
            raise RunFailed(
                f"no node answered round {round} within place.deadline_s = "
                f"{self.place.deadline_s:g}; raise it and run it again to go on from the last "
                "round"
            )
        return replies

    def _reachable(self, messages: Sequence[Message], wait_s: float = 0.0) -> list[Message]:
        until = time.monotonic() + wait_s
        while True:
            here = set(self.grid.get_node_ids())
            sent = [m for m in messages if m.metadata.dst_node_id in here]
            if sent or time.monotonic() >= until:
                return sent
            time.sleep(PAUSE_S)

    def _ask(
        self, nodes: Iterable[int], period: int
    ) -> tuple[dict[int, Announcement], dict[int, Exception]]:
        """Return the announcements and the failures by node, both in the order of node ids."""
        messages = [
            Message(pack_question(period), dst_node_id=node, message_type=MessageType.QUERY)
            for node in nodes
        ]
        limit = self.place.deadline_s or None
        replies = list(self.grid.send_and_receive(messages, timeout=limit)) if messages else []
        found: dict[int, Announcement] = {}
        failed: dict[int, Exception] = {}
        for reply in sorted(replies, key=lambda reply: reply.metadata.src_node_id):
            node = reply.metadata.src_node_id
            try:
                if reply.has_error():
                    failed[node] = (
                        WrongInput(failure(reply))
                        if is_refusal(reply)
                        else RunFailed(failure(reply))
                    )
                else:
                    found[node] = unpack_announcement(reply.content)
            except Exception as error:  # a bad message fails only its own node
                failed[node] = RunFailed(f"its announcement cannot be read: {error}")
        return found, failed


def _worst(failed: dict[int, Exception]) -> Exception:
    """Return the first node's failure with its name; a node's refusal is wrong input."""
    if not failed:
        return RunFailed("no node answered in time; raise place.deadline_s")
    node, error = next(iter(failed.items()))
    told = f"{len(failed)} node(s) take no part; node {node}: {error}"
    return WrongInput(told) if isinstance(error, WrongInput) else RunFailed(told)
