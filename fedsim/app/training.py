"""Whether devices could train by the settings at all, told before anything is written."""

from torch import nn

from clients.clipping import SLOW
from clients.private import check_private
from clients.tape import no_rule, without_rule
from fedsim.config import Config
from fedsim.errors import WrongInput


def check_training(config: Config, module: nn.Module) -> None:
    """Refuse settings, or a model, that example-level DP cannot train. Raises WrongInput."""
    dp, train = config.dp, config.train
    if dp.unit != "example":
        return
    check_private(dp, train, train.optimizer == "sgd" and not train.weight_decay and not train.proximal)
    missing = None if dp.method in SLOW else without_rule(module)
    if missing is not None:
        raise WrongInput(no_rule(*missing))
