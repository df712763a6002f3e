"""Per-example clipped gradients of one model or many, in one forward and backward.

To use them without the simulator: `clipped_gradients(module, losses, [x], [y], Clip(1.0))`.
"""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from clients.bookkeeping import Losses, book_keeping
from clients.example_clip import Clip, Clipped
from clients.reference_clipping import loop, opacus_hooks
from clients.rows import Rows
from fedsim.types import Params

__all__ = ["Clip", "Clipped", "clipped_gradients"]

SLOW = {"loop": loop, "opacus": opacus_hooks}


def clipped_gradients(
    module: nn.Module,
    losses: Losses,
    inputs: Sequence[Tensor],
    targets: Sequence[Tensor],
    clip: Clip,
    params: Params | None = None,
    mask: Tensor | None = None,
    method: Literal["exact", "loop", "opacus"] = "exact",
) -> Clipped:
    """Return the clipped gradient sum of a batch and its norms; the module does not change.

    `losses(module(*inputs), *targets)` gives one value an example. Inputs and targets start with
    the examples' axis [B, ...]. Where the tensors of `params` have one axis more than the module's,
    K models run side by side on inputs [K, B, ...]. `mask` says which examples count. An example
    whose gradient has NaN or Inf counts as zero.

    Raises WrongInput that names the layer for which there is no rule. `method="opacus"` then clips
    any module that Opacus supports, one model at a time. `"loop"` clips any module, one example at
    a time.

    Two examples whose gradients are [3, 4] and [0.3, 0.4]; the first is clipped to [0.6, 0.8]:

    >>> import torch
    >>> from fedsim import Clip, clipped_gradients
    >>> module = torch.nn.Linear(2, 1, bias=False)
    >>> inputs = torch.tensor([[3.0, 4.0], [0.3, 0.4]])
    >>> targets = torch.zeros(2)
    >>> losses = lambda out, y: out[:, 0] - y
    >>> found = clipped_gradients(module, losses, [inputs], [targets], Clip(1.0))
    >>> found.norms.tolist()
    [5.0, 0.5]
    >>> [round(value, 3) for value in found.sums["weight"][0].tolist()]
    [0.9, 1.2]
    """
    own = {name: p for name, p in module.named_parameters() if p.requires_grad}
    given = {name: p.detach() for name, p in (params or own).items()}
    stacked = any(given[name].dim() > p.dim() for name, p in own.items())
    if method != "exact":
        return SLOW[method](module, losses, inputs, targets, clip, given, mask, stacked)
    found = book_keeping(module, losses, inputs, targets, clip, given, mask, stacked)
    whole = {name: _whole(found.sums.get(name), given[name], stacked) for name in own}
    if stacked:
        return Clipped(dict(whole), found.norms, found.losses)
    return Clipped({n: s.squeeze(0) for n, s in whole.items()}, found.norms[0], found.losses[0])


def _whole(found: Tensor | Rows | None, like: Tensor, stacked: bool) -> Tensor:
    """Return a parameter's sum as a tensor [K, ...]."""
    full = like.shape if stacked else (1, *like.shape)
    if found is None:
        return like.new_zeros(full)
    return found.dense(full) if isinstance(found, Rows) else found
