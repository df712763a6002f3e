"""A Flower grid in this process: the ServerApp's messages go straight to the ClientApp.

It uses no SuperLink, no thread and no Ray. It is the default way to run, and tests use it in place
of a real grid.
"""

from collections.abc import Iterable

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fedsim.config import Scalar

RUN_ID = 1
SERVER_NODE = 1


class LocalGrid(Grid):
    """A grid of `nodes` in-process nodes; each has its context, and they answer one after another.

    An error in the ClientApp is raised here unchanged; a real grid would send an error reply.
    """

    def __init__(self, client_app: ClientApp, run_config: dict[str, Scalar], nodes: int) -> None:
        self._client_app = client_app
        self._run = Run.create_empty(RUN_ID)
        self._contexts = {
            SERVER_NODE + 1 + i: Context(
                run_id=RUN_ID,
                node_id=SERVER_NODE + 1 + i,
                node_config={"partition-id": i, "num-partitions": nodes},
                state=RecordDict(),
                run_config=dict(run_config),
            )
            for i in range(nodes)
        }
        self._replies: dict[str, Message] = {}
        self._sent = 0
        # Flower sets these when it starts a task; a message built outside a task needs them.
        TaskIdentity.run_id = RUN_ID
        TaskIdentity.task_id = 1
        TaskIdentity.node_id = SERVER_NODE

    def set_run(self, run: Run) -> None:
        self._run = run

    @property
    def run(self) -> Run:
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        return Message(content, dst_node_id, message_type, group_id=group_id, ttl=ttl)

    def get_node_ids(self) -> list[int]:
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Run the ClientApp on each message at once; the replies wait to be pulled."""
        ids = []
        for message in messages:
            self._sent += 1
            ids.append(str(self._sent))
            message.metadata.__dict__["_message_id"] = ids[-1]  # a SuperLink would set it
            context = self._contexts[message.metadata.dst_node_id]
            self._replies[ids[-1]] = self._client_app(message, context)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        return [self._replies.pop(i) for i in message_ids if i in self._replies]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        return self.pull_messages(self.push_messages(messages))
