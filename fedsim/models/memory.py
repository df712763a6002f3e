"""How much memory an example takes in training."""

from collections.abc import Sequence

from torch import nn

from fedsim.types import Examples


def activation_floats(module: nn.Module, inputs: Sequence[str], examples: Examples) -> int:
    """Return the floats that training holds for one example; 0 where the model does not say.

    They are those of forward and backward. A model whose outputs outweigh its parameters (a word
    distribution at every token) has a method `activations(*shapes) -> int` over the shapes of one
    example's inputs. It limits chunks of devices and batches of evaluation.
    """
    ask = getattr(module, "activations", None)
    return int(ask(*(examples.fields[name].shape[1:] for name in inputs))) if ask else 0
