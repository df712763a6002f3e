"""Name -> torch module, with its first parameters and its evaluation."""

from collections.abc import Callable

import torch
from torch import nn

from fedsim.config import Model
from fedsim.errors import WrongInput
from fedsim.models.image import Mlp
from fedsim.models.text import Bag, JointBiLSTM
from fedsim.names import is_own_code, lookup
from fedsim.seeds import torch_generator
from fedsim.types import Params, Spec

MODELS: dict[str, Callable[[Spec, Model], nn.Module]] = {
    "bag": Bag,
    "bilstm": JointBiLSTM,
    "mlp": Mlp,
}
READS = {"bag": "tokens", "bilstm": "tokens", "mlp": "image"}


def build_model(spec: Spec, model: Model, seed: int) -> nn.Module:
    """Return the module with the first parameters of this seed. Raises WrongInput."""
    make = lookup("model.name", model.name, MODELS)
    reads = "image" if spec.task == "image" else "tokens"
    if not is_own_code(model.name) and READS[model.name] != reads:
        fitting = [name for name, field in READS.items() if field == reads]
        raise WrongInput(
            f"model.name = {model.name!r} reads {READS[model.name]}, but data.task = {spec.task!r} "
            f"has {reads}; choose {' or '.join(fitting)}"
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
