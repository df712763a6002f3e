"""Gradients of a local DP-SGD step: clipped by example, noised, divided by a public number."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from clients.bookkeeping import book_keeping
from clients.clipping import SLOW
from clients.example_clip import Clip, Clipped
from clients.packing import Chunk, Work
from clients.rows import Grads, Rows, add_rows
from clients.stacked_model import LocalModel
from fedsim.config import Dp, Train
from fedsim.errors import WrongInput
from fedsim.privacy.local_plan import LocalPlan
from fedsim.privacy.noise import NoiseSource
from fedsim.seeds import Name
from fedsim.types import Params


class PrivateGradients:
    """(sum of clipped gradients + N(0, stddev²)) / divisor, for each device of a chunk at once.

    Guarantee: the unit is one example, added or removed. Each device's step is a Gaussian mechanism
    on a sum of sensitivity `plan.sensitivity`, sampled at `plan.sampling_rate`. Noise, divisor and
    number of steps are functions of config and public activity. No noise is used twice. Losses and
    batch sizes are not covered, and the device does not send them.

    With `late`, the trainer adds the noise of the tables when their rows are next read.
    """

    def __init__(self, local: LocalModel, dp: Dp, noise: NoiseSource, late: bool = False) -> None:
        self.local = local
        self.dp = dp
        self.noise = noise
        self.clip = clip_of(dp)
        self.late = late

    def __call__(
        self, params: Params, batch: Params, mask: Tensor, chunk: Chunk, step: int
    ) -> tuple[Grads, Tensor]:
        """Return noisy gradients [K, ...] and the losses [K, B].

        Losses are zero where `mask` [K, slots, size] is false.
        """
        rows = None if self.dp.method in SLOW else chunk.rows_of(step)
        with self.local.arithmetic(chunk.keys[: len(mask)], step, rows):
            clipped = self._clipped(params, batch, mask)
        works = chunk.works[: len(mask)]
        names = [(*chunk.names, "step", work.device, step) for work in works]
        noise = self._noise(params, chunk, names, step)
        divisor = torch.tensor([_plan(work).divisor for work in works], device=mask.device)
        grads = {
            name: _over(_added(clipped.sums.get(name), noise.get(name), p), divisor)
            for name, p in params.items()
        }
        told = mask.flatten(1) & clipped.losses.isfinite()
        return grads, torch.where(told, clipped.losses, torch.zeros_like(clipped.losses))

    def _clipped(self, params: Params, batch: Params, mask: Tensor) -> Clipped:
        local = self.local
        real = mask.flatten(1)
        counted = real if local.stacked else real[0]
        what = (
            local.module,
            local.losses(batch),
            local.inputs(batch),
            local.targets(batch),
            self.clip,
        )
        given = local.params(params)
        if self.dp.method in SLOW:  # devices then come one at a time
            found = SLOW[self.dp.method](*what, given, counted, False)
            sums = {name: s.unsqueeze(0) for name, s in found.sums.items() if isinstance(s, Tensor)}
            return Clipped(dict(sums), found.norms.unsqueeze(0), found.losses.unsqueeze(0))
        if self.dp.method == "edp":
            return book_keeping(
                *what, given, counted, local.stacked, mask.shape[2], mask.sum(2).clamp(min=1)
            )
        return book_keeping(*what, given, counted, local.stacked)

    def _noise(
        self, params: Params, chunk: Chunk, names: Sequence[tuple[Name, ...]], step: int
    ) -> Params:
        """Return fresh noise for every parameter.

        Each device has one stream, and one more for each of its tables.
        """
        like = next(iter(params.values()))
        stddev = torch.tensor([_plan(w).stddev(step) for w in chunk.works[: len(like)]]).unsqueeze(
            1
        )

        def draw(width: int, *more: Name) -> Tensor:
            flat = torch.empty(len(like), width)
            return self.noise.normals(flat, [(*each, *more) for each in names])

        def scaled(part: Tensor, p: Tensor) -> Tensor:
            return part.mul_(stddev).to(like.device, like.dtype).view(p.shape)

        whole = {name: p for name, p in params.items() if name not in chunk.table_rows}
        parts = draw(sum(p[0].numel() for p in whole.values())).split(
            [p[0].numel() for p in whole.values()], 1
        )
        found = {
            name: scaled(part, p) for (name, p), part in zip(whole.items(), parts, strict=True)
        }
        for name in () if self.late else chunk.table_rows:
            p = params[name]
            filling = (
                torch.arange(p.shape[1], device=p.device)
                >= chunk.table_counts[name][: len(p), None]
            )
            found[name] = scaled(draw(p[0].numel(), name), p).masked_fill_(
                filling.unsqueeze(-1), 0.0
            )
        return found


def _added(found: Tensor | Rows | None, noise: Tensor | None, like: Tensor) -> Tensor | Rows:
    """Return the sum plus the noise; the noise tensor is overwritten."""
    if noise is None:
        return torch.zeros_like(like) if found is None else found
    if isinstance(found, Rows):
        noise = noise.contiguous()
        add_rows(noise, found, 1.0)
    elif found is not None:
        noise.add_(found)
    return noise


def _over(grad: Tensor | Rows, divisor: Tensor) -> Tensor | Rows:
    if isinstance(grad, Rows):
        return replace(grad, values=grad.values.div_(divisor.to(grad.values.dtype).view(-1, 1, 1)))
    return grad.div_(divisor.to(grad.dtype).view(-1, *[1] * (grad.dim() - 1)))


def check_private(dp: Dp, train: Train, linear: bool) -> None:
    """Refuse settings of example-level DP that contradict each other. Raises WrongInput.

    `linear` says whether the optimiser's update is linear in its gradients alone.
    """
    if dp.clipping == "adaptive":
        raise WrongInput(
            'dp.clipping = "adaptive" bounds devices by the quantile of their norms; for dp.unit '
            '= "example" use flat, per_layer or automatic'
        )
    if train.grad_clip:
        raise WrongInput(
            f"train.grad_clip = {train.grad_clip} cuts what DP has clipped and noised; set it to "
            "0 and use dp.clip_norm"
        )
    if dp.noise_layout == "summed" and dp.trust != "central":
        raise WrongInput(
            'dp.noise_layout = "summed" draws noise for a whole sum, and under dp.trust = '
            f'{dp.trust!r} each device draws its own; use dp.noise_layout = "dense"'
        )
    if dp.noise_layout == "summed" and not linear:
        raise WrongInput(
            'dp.noise_layout = "summed" needs an update that is linear in its gradients: '
            'train.optimizer = "sgd" without weight_decay and proximal; use dp.noise_layout = '
            '"dense"'
        )
    if dp.noise_decay < 1.0 and dp.method != "edp":
        raise WrongInput(
            f'dp.noise_decay = {dp.noise_decay} belongs to dp.method = "edp"; set it to 1.0'
        )


def clip_of(dp: Dp) -> Clip:
    """Return the clip that `dp` describes."""
    assert dp.clipping != "adaptive", "check_private refuses adaptive clipping of examples"
    return Clip(dp.clip_norm, dp.clipping)


def _plan(work: Work) -> LocalPlan:
    assert work.plan is not None, "a device under example-level DP has a plan"
    return work.plan
