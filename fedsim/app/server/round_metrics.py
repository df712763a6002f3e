"""The metrics that are measured after a round."""

from fedsim.app.rundir.files import Row
from fedsim.config import Config
from fedsim.data.holdings import Holdings
from fedsim.types import Evaluate


def is_evaluated(config: Config, round: int) -> bool:
    """Return whether this round is evaluated: every `n`-th round, and the last."""
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
