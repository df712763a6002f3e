"""Two slow references for book-keeping: one example after another, and Opacus' hooks.

They take the same arguments and give the same sums.
"""

import copy
import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from clients.bookkeeping import Losses
from clients.example_clip import Clip, Clipped
from fedsim.errors import WrongInput
from fedsim.types import Params

Tensors = Sequence[Tensor]
Slow = Callable[[nn.Module, Losses, Tensors, Tensors, Clip, Params, Tensor | None, bool], Clipped]


def loop(
    module: nn.Module,
    losses: Losses,
    inputs: Tensors,
    targets: Tensors,
    clip: Clip,
    params: Params,
    mask: Tensor | None,
    stacked: bool,
) -> Clipped:
    """Clip one example after another by autograd, for any module (Abadi et al., 2016)."""
    if stacked:
        return _one_by_one(loop, module, losses, inputs, targets, clip, params, mask)
    names = [name for name, p in module.named_parameters() if p.requires_grad]
    leaves = {name: p.detach().requires_grad_(name in names) for name, p in params.items()}
    found: dict[str, list[Tensor]] = {name: [] for name in names}
    each = []
    for b in range(len(inputs[0])):
        outputs = functional_call(module, leaves, tuple(i[b : b + 1] for i in inputs))
        loss = losses(outputs, *(t[b : b + 1] for t in targets))
        grads = torch.autograd.grad(loss.sum(), [leaves[name] for name in names], allow_unused=True)
        for name, grad in zip(names, grads, strict=True):
            found[name].append(torch.zeros_like(params[name]) if grad is None else grad)
        each.append(loss.detach())
    return clip_each(
        {name: torch.stack(g) for name, g in found.items()}, clip, mask, torch.cat(each)
    )


def opacus_hooks(
    module: nn.Module,
    losses: Losses,
    inputs: Tensors,
    targets: Tensors,
    clip: Clip,
    params: Params,
    mask: Tensor | None,
    stacked: bool,
) -> Clipped:
    """Clip the per-example gradients of Opacus' GradSampleModule, for any module it supports.

    Raises WrongInput for a module that Opacus does not support.
    """
    if stacked:
        return _one_by_one(opacus_hooks, module, losses, inputs, targets, clip, params, mask)
    from opacus import GradSampleModule  # it takes four seconds, which only its users should wait

    twin = copy.deepcopy(module)
    twin.load_state_dict(params, strict=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it registers hooks that torch warns of
        try:
            watched = GradSampleModule(twin, loss_reduction="sum")
        except NotImplementedError as error:
            raise WrongInput(f"Opacus does not support this model: {error}") from error
        each = losses(watched(*inputs), *targets)
        counted = each if mask is None else torch.where(mask, each, torch.zeros_like(each))
        counted.sum().backward()
    grads = {
        name: vars(p).get("grad_sample") for name, p in twin.named_parameters() if p.requires_grad
    }
    unused = {name: torch.zeros(len(inputs[0]), *p.shape) for name, p in twin.named_parameters()}
    return clip_each(
        {n: unused[n] if g is None else g for n, g in grads.items()}, clip, mask, each.detach()
    )


def clip_each(each: Params, clip: Clip, mask: Tensor | None, losses: Tensor) -> Clipped:
    """Return the clipped sum of per-example gradients [B, ...]."""
    squares = {name: g.flatten(1).square().sum(1) for name, g in each.items()}
    norms = torch.stack(list(squares.values())).sum(0).sqrt()
    good = norms.isfinite() if mask is None else norms.isfinite() & mask
    layers = {name.rpartition(".")[0] for name in each}
    sums: dict[str, Tensor] = {}
    for name, grads in each.items():
        layer = name.rpartition(".")[0]
        own = (
            torch.stack([s for n, s in squares.items() if n.rpartition(".")[0] == layer])
            .sum(0)
            .sqrt()
        )
        factors = clip.factors(own if clip.rule == "per_layer" else norms, len(layers))
        sums[name] = torch.einsum("b,b...->...", factors[good], grads[good])
    return Clipped(dict(sums), norms if mask is None else torch.where(mask, norms, 0.0), losses)


def _one_by_one(
    method: Slow,
    module: nn.Module,
    losses: Losses,
    inputs: Tensors,
    targets: Tensors,
    clip: Clip,
    params: Params,
    mask: Tensor | None,
) -> Clipped:
    """Clip one model after another and stack the results."""
    parts = [
        method(
            module,
            losses,
            [i[k] for i in inputs],
            [t[k] for t in targets],
            clip,
            {name: p[k] for name, p in params.items()},
            None if mask is None else mask[k],
            False,
        )
        for k in range(len(inputs[0]))
    ]
    sums = {
        name: torch.stack([_tensor(part.sums[name]) for part in parts]) for name in parts[0].sums
    }
    return Clipped(
        dict(sums), torch.stack([p.norms for p in parts]), torch.stack([p.losses for p in parts])
    )


def _tensor(value: object) -> Tensor:
    assert isinstance(value, Tensor), "the slow methods give whole tensors"
    return value
