"""Name -> torch module, with its first parameters.

A model is a file of its own and one entry here.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from fedsim.config import Model
from fedsim.errors import WrongInput
from fedsim.models.image import Cnn, Mlp
from fedsim.models.projection import Projection
from fedsim.models.tasks import TASKS
from fedsim.models.text import Bag, JointBiLSTM, WordLSTM
from fedsim.models.transformer import Transformer
from fedsim.models.word_order import Reads, as_bag, as_bag_or_windows, in_order
from fedsim.names import import_object, is_own_code, lookup
from fedsim.seeds import torch_generator
from fedsim.types import Params, Spec

UNDERSTANDING = ("intent_slots", "classification", "tagging")


@dataclass(frozen=True)
class Kind:
    """A model: how it is made, what it serves and what it reads."""

    make: Callable[[Spec, Model], nn.Module]
    tasks: tuple[str, ...]
    """The tasks that it has outputs for."""
    reads: Reads = in_order
    """What it can know of a text; canaries whose codes it cannot tell apart are refused."""
    letters: bool = False
    """Whether it can read the letters of words (`model.characters`)."""


MODELS = {
    "bag": Kind(Bag, UNDERSTANDING, reads=as_bag_or_windows),
    "bilstm": Kind(JointBiLSTM, UNDERSTANDING, letters=True),
    "transformer": Kind(Transformer, (*UNDERSTANDING, "language")),
    "projection": Kind(Projection, ("classification",), reads=as_bag),
    "lstm": Kind(WordLSTM, ("language",)),
    "cnn": Kind(Cnn, ("image",)),
    "mlp": Kind(Mlp, ("image",)),
}


def kind_of(model: Model) -> Kind:
    """Return the model that the settings name; user code may serve and read everything."""
    if not is_own_code(model.name):
        return lookup("model.name", model.name, MODELS)
    return Kind(import_object("model.name", model.name, "spec, model"), tuple(TASKS), letters=True)


def build_model(spec: Spec, model: Model, seed: int) -> nn.Module:
    """Return the module with the first parameters of this seed. Raises WrongInput."""
    kind = kind_of(model)
    _check_kind(model, kind, spec)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_generator(seed, "init").initial_seed())
        module = kind.make(spec, model)
    if not isinstance(module, nn.Module) or not parameters_of(module):
        what = "without a trainable parameter" if isinstance(module, nn.Module) else "instead"
        raise WrongInput(
            f"model.name = {model.name!r} must return a torch module that can be trained, got a "
            f"{type(module).__name__} {what}"
        )
    _refuse_shared_statistics(module)
    return module


def parameters_of(module: nn.Module) -> Params:
    """Return a copy of the trainable parameters by name, on the CPU."""
    return {
        name: p.detach().cpu().clone() for name, p in module.named_parameters() if p.requires_grad
    }


def _check_kind(model: Model, kind: Kind, spec: Spec) -> None:
    if spec.task not in kind.tasks:
        fitting = [name for name, other in MODELS.items() if spec.task in other.tasks]
        raise WrongInput(
            f"model.name = {model.name!r} serves {', '.join(kind.tasks)}, not data.task = "
            f"{spec.task!r}; choose {' or '.join(sorted(fitting))}"
        )
    if model.characters and not kind.letters:
        able = " or ".join(repr(name) for name, other in MODELS.items() if other.letters)
        raise WrongInput(
            f"model.characters = true is for model.name = {able}, got {model.name!r}; set it to "
            "false"
        )


def _refuse_shared_statistics(module: nn.Module) -> None:
    for name, layer in module.named_modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            raise WrongInput(
                f"the model's layer {name!r} is a {type(layer).__name__}, which mixes the "
                "examples of a batch; use GroupNorm or LayerNorm"
            )
