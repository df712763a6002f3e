"""What is measured after a round, and when a run stops early."""

from collections.abc import Callable, Sequence

from fedsim.app.rundir import Row
from fedsim.config import Config
from fedsim.data.federation import FederatedDataset
from fedsim.data.holdings import Holdings
from fedsim.errors import WrongInput
from fedsim.models.tasks import Task
from fedsim.names import suggestion
from fedsim.types import Examples

Evaluate = Callable[[Examples], dict[str, float]]

LOWER_IS_BETTER = {"loss", "perplexity"}


def is_evaluated(config: Config, round: int) -> bool:
    """Whether this round is measured: every so many, and the last."""
    return round % config.evaluation.every == 0 or round == config.train.rounds


def test_metrics(evaluate: Evaluate, config: Config, holdings: Holdings, period: int) -> Row:
    """Return the metrics on all test examples, and on those of this period as `period_...`."""
    test = holdings.dataset.test
    if test is None or config.evaluation.on == "devices":
        return {}
    row: Row = dict(evaluate(test))
    if config.stream.mode == "continual":
        now = holdings.test(period)
        row["period"] = period
        row |= {f"period_{name}": value for name, value in evaluate(now).items()} if now else {}
    return row


def check_evaluation(config: Config, holdings: Holdings) -> None:
    """Refuse an evaluation or early stopping that has no examples. Raises WrongInput."""
    if config.train.patience and holdings.dataset.dev is None:
        raise WrongInput(
            "train.patience needs examples to watch, and the federation has no dev part; name files in "
            "data.dev, or set train.patience = 0"
        )
    if holdings.dataset.test is None and config.data.test_share:
        raise WrongInput(
            f"data.test_share = {config.data.test_share} is too small: no device has enough examples to hold "
            "one out; raise it"
        )
    if holdings.dataset.test is None and config.train.centralised:
        raise WrongInput(
            "train.centralised needs test examples to compare on; name files in data.test, or set "
            "data.test_share"
        )
    wanted = config.evaluation.on
    if wanted != "central" and not holdings.holds_out:
        raise WrongInput(
            f"evaluation.on = {wanted!r} needs evaluation.holdout, large enough that some device holds an "
            f"example out; got {config.evaluation.holdout}"
        )


def dev_metrics(evaluate: Evaluate, config: Config, federation: FederatedDataset) -> Row:
    """Return the metrics that early stopping watches, as `dev_...`."""
    if not config.train.patience or federation.dev is None:
        return {}
    return {f"dev_{name}": value for name, value in evaluate(federation.dev).items()}


def check_patience(evaluate: Evaluate, config: Config, federation: FederatedDataset) -> None:
    """Refuse early stopping by a metric that is not measured. Raises WrongInput."""
    settings, dev = config.train, federation.dev
    if not settings.patience or dev is None:
        return
    known = evaluate(dev[:16])
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
