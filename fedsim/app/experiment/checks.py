"""Checks of settings against the model and the data, before anything is written."""

from torch import nn

from clients.clipping import SLOW
from clients.dp_sgd import check_private
from clients.tape import no_rule, without_rule
from fedsim.app.experiment.planting import reading_of
from fedsim.audit.canary_patterns import check_inputs
from fedsim.config import Config
from fedsim.data.federation import FederatedDataset
from fedsim.data.holdings import Holdings
from fedsim.errors import WrongInput
from fedsim.models import kind_of
from fedsim.names import suggestion
from fedsim.types import Evaluate, Spec


def check_training(config: Config, module: nn.Module) -> None:
    """Refuse settings, or a model, that example-level DP cannot train. Raises WrongInput."""
    dp = config.dp
    train = config.train
    if dp.unit != "example":
        return
    check_private(
        dp, train, train.optimizer == "sgd" and not train.weight_decay and not train.proximal
    )
    missing = None if dp.method in SLOW else without_rule(module)
    if missing is not None:
        raise WrongInput(no_rule(*missing))


def check_evaluation(config: Config, holdings: Holdings) -> None:
    """Refuse an evaluation or early stopping that has no examples. Raises WrongInput."""
    if config.train.patience and holdings.dataset.dev is None:
        raise WrongInput(
            "train.patience needs examples to watch, and the federation has no dev part; name "
            "files in data.dev, or set train.patience = 0"
        )
    if holdings.dataset.test is None and config.data.test_share:
        raise WrongInput(
            f"data.test_share = {config.data.test_share} is too small: no device has enough "
            "examples to hold one out; raise it"
        )
    if holdings.dataset.test is None and config.train.centralised:
        raise WrongInput(
            "train.centralised needs test examples to compare on; name files in data.test, or set "
            "data.test_share"
        )
    wanted = config.evaluation.on
    if wanted != "central" and not holdings.holds_out:
        raise WrongInput(
            f"evaluation.on = {wanted!r} needs evaluation.holdout, large enough that some device "
            f"holds an example out; got {config.evaluation.holdout}"
        )


def check_patience(evaluate: Evaluate, config: Config, federation: FederatedDataset) -> None:
    """Refuse early stopping by a metric that is not measured. Raises WrongInput."""
    settings = config.train
    dev = federation.dev
    if not settings.patience or dev is None:
        return
    known = evaluate(dev[:16])
    if settings.patience_metric and settings.patience_metric not in known:
        raise WrongInput(
            f"train.patience_metric = {settings.patience_metric!r} is not measured; choose "
            f"{', '.join(sorted(known))}{suggestion(settings.patience_metric, known)}"
        )


def check_canaries(config: Config, spec: Spec) -> None:
    """Refuse canaries whose codes the model cannot tell apart. Raises WrongInput."""
    if config.canary.count:
        reading = reading_of(spec, config.data, config.canary)
        reads = kind_of(config.model).reads
        check_inputs(reading.pattern, lambda tokens: reads(reading.ids(tokens), spec))
