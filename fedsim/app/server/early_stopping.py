"""Early stopping: the watched dev metric ends a run."""

from collections.abc import Sequence

from fedsim.app.rundir.files import Row
from fedsim.config import Config
from fedsim.data.federation import FederatedDataset
from fedsim.models.tasks import Task
from fedsim.types import Evaluate

LOWER_IS_BETTER = {"loss", "perplexity"}


def dev_metrics(evaluate: Evaluate, config: Config, federation: FederatedDataset) -> Row:
    """Return the metrics that early stopping watches, as `dev_...`."""
    if not config.train.patience or federation.dev is None:
        return {}
    return {f"dev_{name}": value for name, value in evaluate(federation.dev).items()}


def stopped_early(config: Config, task: Task, rows: Sequence[Row]) -> bool:
    """Return whether the dev metric has not improved for `train.patience` evaluations.

    It depends only on the rows, so a resumed run stops where an uninterrupted one does.
    """
    name = config.train.patience_metric or task.metric
    values = [row[f"dev_{name}"] for row in rows if f"dev_{name}" in row]
    if name in LOWER_IS_BETTER:
        values = [-value for value in values]
    best = max(range(len(values)), key=values.__getitem__, default=0)
    return len(values) - 1 - best >= config.train.patience
