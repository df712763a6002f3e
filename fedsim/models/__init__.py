"""Name -> torch module, with its first parameters and its evaluation."""

from collections.abc import Callable

import torch
from torch import nn

from fedsim.config import Model
from fedsim.errors import WrongInput
from fedsim.models.image import Cnn, Mlp
from fedsim.models.projection import Projection
from fedsim.models.text import Bag, JointBiLSTM, WordLSTM
from fedsim.models.transformer import Transformer
from fedsim.names import is_own_code, lookup
from fedsim.seeds import torch_generator
from fedsim.types import Params, Spec

MODELS: dict[str, Callable[[Spec, Model], nn.Module]] = {
    "bag": Bag,
    "bilstm": JointBiLSTM,
    "cnn": Cnn,
    "lstm": WordLSTM,
    "mlp": Mlp,
    "projection": Projection,
    "transformer": Transformer,
}
UNDERSTANDING = ("intent_slots", "classification", "tagging")
SERVES = {
    "bag": UNDERSTANDING,
    "bilstm": UNDERSTANDING,
    "cnn": ("image",),
    "lstm": ("language",),
    "mlp": ("image",),
    "projection": ("classification",),
    "transformer": (*UNDERSTANDING, "language"),
}
"""The tasks that each model has outputs for."""


def build_model(spec: Spec, model: Model, seed: int) -> nn.Module:
    """Return the module with the first parameters of this seed. Raises WrongInput."""
    make = lookup("model.name", model.name, MODELS)
    if not is_own_code(model.name) and spec.task not in SERVES[model.name]:
        fitting = [name for name, tasks in SERVES.items() if spec.task in tasks]
        raise WrongInput(
            f"model.name = {model.name!r} serves {', '.join(SERVES[model.name])}, not data.task = "
            f"{spec.task!r}; choose {' or '.join(fitting)}"
        )
    if model.characters and model.name in MODELS and model.name != "bilstm":
        raise WrongInput(
            f"model.characters = true is for model.name = 'bilstm', got {model.name!r}; set it to false"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_generator(seed, "init").initial_seed())
        module = make(spec, model)
    _refuse_shared_statistics(module)
    return module


def parameters_of(module: nn.Module) -> Params:
    """Return a copy of the trainable parameters by name, on the CPU."""
    return {name: p.detach().cpu().clone() for name, p in module.named_parameters() if p.requires_grad}


def _refuse_shared_statistics(module: nn.Module) -> None:
    for name, layer in module.named_modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            raise WrongInput(
                f"the model's layer {name!r} is a {type(layer).__name__}, which mixes the examples of a "
                "batch; use GroupNorm or LayerNorm"
            )
