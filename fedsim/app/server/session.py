"""The server's session: everything the rounds of a run need, made once."""

from dataclasses import dataclass

from flwr.serverapp import Grid
from torch import nn

from fedsim.app.audits.audited import Another, Audited
from fedsim.app.budget.spending import Spending
from fedsim.app.rundir.run_dir import RunDir
from fedsim.app.server.nodes import Nodes
from fedsim.config import Config
from fedsim.data.federation import FederatedDataset
from fedsim.data.holdings import Holdings
from fedsim.models.evaluation import evaluate
from fedsim.models.example_metrics import metrics_of
from fedsim.models.tasks import Task
from fedsim.types import Examples
from strategies.federated import Federated


@dataclass(frozen=True)
class Server:
    """Everything the rounds need, made once."""

    config: Config
    holdings: Holdings
    module: nn.Module
    task: Task
    strategy: Federated
    nodes: Nodes
    run: RunDir
    spending: Spending
    another: Another
    """Does another run; audits use it for shadow models."""

    @property
    def grid(self) -> Grid:
        return self.nodes.grid

    @property
    def federation(self) -> FederatedDataset:
        return self.holdings.dataset

    def audited(self, ended: bool) -> Audited:
        """Return the run as its auditors see it now; `ended` tells if this model is its last."""
        state = self.strategy.state
        config = self.config
        events = self.spending.worst_events() if config.audit.evaluators else ()
        return Audited(
            config,
            self.holdings,
            self.module,
            self.task,
            self.run,
            state.round,
            state.params,
            self.another,
            ended,
            events,
            self.spending.delta,
        )

    def evaluate(self, examples: Examples) -> dict[str, float]:
        """Return the metrics of the current model on some examples."""
        metrics = metrics_of(self.config.evaluation.metrics)
        return evaluate(
            self.module, self.task, self.strategy.state.params, examples, metrics=metrics
        )
