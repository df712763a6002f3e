"""Book-keeping: clipped gradient sums of K models in one forward and one backward.

After Bu et al. (2023), "Differentially private optimization on large model at small cost", with a
device axis. Each op's input A and output gradient G give the norms and the clipped sum, so no
second backward is needed.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from clients.example_clip import Clip, Clipped
from clients.layer_records import Record
from clients.rows import Rows
from clients.tape import Tape, recording
from fedsim.errors import WrongInput
from fedsim.types import Params

Losses = Callable[..., Tensor]
"""losses(outputs, *targets) -> the loss of each example, [B], or [K, B] of K models."""


def book_keeping(
    module: nn.Module,
    losses: Losses,
    inputs: Sequence[Tensor],
    targets: Sequence[Tensor],
    clip: Clip | None,
    params: Params,
    mask: Tensor | None,
    stacked: bool,
    group: int = 1,
    divisors: Tensor | None = None,
) -> Clipped:
    """Return the clipped sums [K, ...] by parameter; a parameter that is not used has no entry.

    K is 1 where the models are not `stacked`. With `group` > 1 that many neighbouring examples
    form a micro-batch and count as one; its gradient is that of the sum of its losses over
    `divisors` [K, B / group]. Without `clip` nothing is clipped.

    Raises WrongInput for losses of another shape, for rounded products, for a layer without a rule
    and for a parameter that is used outside its layer.
    """
    check_precision(inputs[0].device)
    models, examples = (inputs[0].shape[:2]) if stacked else (1, len(inputs[0]))
    tape = Tape(models, examples, stacked, inputs[0].device)
    trained = {name for name, p in module.named_parameters() if p.requires_grad}
    leaves = {name: p.detach().requires_grad_(name in trained) for name, p in params.items()}
    with recording(module, tape):
        each = losses(functional_call(module, leaves, tuple(inputs)), *targets)
    if each.shape != inputs[0].shape[: each.dim()] or each.dim() != 1 + stacked:
        raise WrongInput(
            "losses must have one value an example, shape "
            f"{tuple(inputs[0].shape[: 1 + stacked])}, got {tuple(each.shape)}"
        )
    with torch.autocast(
        each.device.type, enabled=False
    ):  # norms and sums are taken in full precision
        counted = each if mask is None else torch.where(mask, each, torch.zeros_like(each))
        records, leaks = tape.backward(counted, {name: leaves[name] for name in sorted(trained)})
        if leaks:
            raise WrongInput(
                f"the parameter {next(iter(leaks))!r} is used outside its layer's forward, where "
                "its gradient cannot be clipped by example; use it through a layer, or use "
                'dp.method = "opacus"'
            )
        real = (
            each.new_ones(models, examples, dtype=torch.bool)
            if mask is None
            else mask.view(models, examples)
        )
        if group > 1:
            records = [record.grouped(group) for record in records]
            real = real.unflatten(1, (-1, group)).any(2)
        layers = len({name.rpartition(".")[0] for name in trained})
        return _clip(records, clip, layers, real, divisors, each.detach().view(models, examples))


def check_precision(device: torch.device) -> None:
    """Raise WrongInput where float32 products round their factors.

    Norms and sums come from different products of the same factors. With rounded factors they would
    differ by more than the clip's margin.
    """
    backend = torch.backends.cuda if device.type == "cuda" else torch.backends.mkldnn
    found = backend.matmul.fp32_precision
    if found not in ("none", "ieee"):
        raise WrongInput(
            "per-example clipping needs exact float32 products, and torch rounds their factors to "
            f'{found}; call torch.set_float32_matmul_precision("highest")'
        )


def _clip(
    records: Sequence[Record],
    clip: Clip | None,
    layers: int,
    real: Tensor,
    divisors: Tensor | None,
    losses: Tensor,
) -> Clipped:
    squares = [record.squares() for record in records]
    total = torch.stack(squares).sum(0) if squares else losses.new_zeros(real.shape)
    scale = torch.ones_like(total) if divisors is None else 1 / divisors
    norms = total.clamp(min=0.0).sqrt() * scale
    good = total.isfinite()
    if good.is_cuda or not bool(good.all()):  # a GPU does not wait for the answer
        records = [record.keep(good) for record in records]
    sums: dict[str, Tensor | Rows] = {}
    for record, factors in zip(
        records, _factors(records, squares, clip, layers, norms, scale), strict=True
    ):
        sums |= record.sums(torch.where(good & real, factors * scale, torch.zeros_like(factors)))
    return Clipped(sums, torch.where(real, norms, torch.zeros_like(norms)), losses)


def _factors(
    records: Sequence[Record],
    squares: Sequence[Tensor],
    clip: Clip | None,
    layers: int,
    norms: Tensor,
    scale: Tensor,
) -> list[Tensor]:
    """Return one tensor [K, B] a record."""
    if clip is None:
        return [torch.ones_like(norms)] * len(records)
    if clip.rule != "per_layer":
        return [clip.factors(norms, 1)] * len(records)
    owners = [record.weights[0].rpartition(".")[0] for record in records]
    alone = {
        owner: torch.stack([s for s, of in zip(squares, owners, strict=True) if of == owner]).sum(0)
        for owner in owners
    }
    return [clip.factors(alone[owner].clamp(min=0.0).sqrt() * scale, layers) for owner in owners]
