"""One training step by every method: without privacy, and with each way to clip every example.

A method is made from a setting, a number of models side by side and a float type. `sums()` is what
it clipped and added up, for the check; `step()` is the whole step: gradients, noise and SGD.
"""

import statistics
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy, max_pool2d

from experiments.benchmarks.peers import engine, plain
from experiments.benchmarks.peers.settings import Setting, made_up, smaller
from fedsim.models import image, recurrent
from fedsim.types import Params


class Method(ABC):
    """Models [K, ...] and a batch of `setting.batch` examples for each."""

    beside = False
    """Whether K models train as one batch; else one after another."""
    private = True

    def __init__(self, setting: Setting, models: int, dtype: torch.dtype = torch.float32) -> None:
        self.setting = setting
        self.models = models
        fields = [made_up(setting, setting.batch, seed) for seed in range(models)]
        self.batches = [
            {name: f.to(dtype) if f.is_floating_point() else f for name, f in one.items()}
            for one in fields
        ]
        self.prepare(dtype)

    @abstractmethod
    def prepare(self, dtype: torch.dtype) -> None:
        """Make the model."""

    @abstractmethod
    def step(self) -> None:
        """Take one step with all models."""

    def sums(self) -> Params:
        """Return the clipped sums of the first batch, by parameter. Private methods only."""
        raise NotImplementedError

    def reference(self) -> Params:
        """Return the same sums by one backward pass an example on the same model."""
        raise NotImplementedError


class Plain(Method):
    """torch's own layers, no privacy."""

    private = False
    kinds: dict[str, dict[str, object]] = {}

    def prepare(self, dtype: torch.dtype) -> None:
        self.model = plain.build(self.setting, **self.kinds.get(self.setting.model, {})).to(dtype)
        self.params = dict(self.model.named_parameters())
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=self.setting.lr)

    def step(self) -> None:
        for batch in self.batches:
            self.optimizer.zero_grad()
            self.losses(batch).mean().backward()
            self.optimizer.step()

    def losses(self, batch: Params) -> Tensor:
        return cross_entropy(
            self.model(batch[self.setting.input]), batch["label"], reduction="none"
        )

    def reference(self) -> Params:
        return clip_one_by_one(self.losses, self.params, self.batches[0], self.setting.clip)


class Loop(Plain):
    """One example at a time on torch's own layers: the original DP-SGD."""

    private = True

    def step(self) -> None:
        for batch in self.batches:
            sums = clip_one_by_one(self.losses, self.params, batch, self.setting.clip)
            descend(self.params, sums, self.setting)

    def sums(self) -> Params:
        return clip_one_by_one(self.losses, self.params, self.batches[0], self.setting.clip)


class Hooks(Plain):
    """Opacus, per-example gradients by hooks."""

    private = True

    def prepare(self, dtype: torch.dtype) -> None:
        from experiments.benchmarks.peers.opacus_client import KINDS

        self.kinds = KINDS
        super().prepare(dtype)
        self.wrap()

    def wrap(self) -> None:
        from opacus import GradSampleModule
        from opacus.optimizers import DPOptimizer

        self.model = GradSampleModule(self.model, loss_reduction="mean")
        self.optimizer = DPOptimizer(self.optimizer, **self._bounds())

    def _bounds(self) -> dict[str, float]:
        return {
            "noise_multiplier": self.setting.noise,
            "max_grad_norm": self.setting.clip,
            "expected_batch_size": self.setting.batch,
        }

    def backward(self, batch: Params) -> None:
        self.losses(batch).mean().backward()

    def step(self) -> None:
        for batch in self.batches:
            self.optimizer.zero_grad()
            self.backward(batch)
            self.optimizer.step()

    def sums(self) -> Params:
        self.optimizer.noise_multiplier = 0.0
        self.optimizer.zero_grad()
        self.backward(self.batches[0])
        self.optimizer.pre_step()
        self.optimizer.noise_multiplier = self.setting.noise
        return {name: p.grad * self.setting.batch for name, p in self.params.items()}

    def reference(self) -> Params:
        self.model.disable_hooks()
        found = super().reference()
        self.model.enable_hooks()
        return found


class Ghost(Hooks):
    """Opacus, norms without gradients and a second backward pass."""

    def wrap(self) -> None:
        from opacus.grad_sample import GradSampleModuleFastGradientClipping
        from opacus.optimizers import DPOptimizerFastGradientClipping
        from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping

        self.model = GradSampleModuleFastGradientClipping(
            self.model,
            max_grad_norm=self.setting.clip,
            use_ghost_clipping=True,
            loss_reduction="mean",
        )
        self.optimizer = DPOptimizerFastGradientClipping(self.optimizer, **self._bounds())
        criterion = nn.CrossEntropyLoss()
        self.loss = DPLossFastGradientClipping(self.model, self.optimizer, criterion, "mean")

    def backward(self, batch: Params) -> None:
        self.loss(self.model(batch[self.setting.input]), batch["label"]).backward()


class Engine(Method):
    """Our layers, no privacy; K models as one batch."""

    beside = True
    private = False

    def prepare(self, dtype: torch.dtype) -> None:
        self.module, self.task = engine.build(self.setting)
        self.module.to(dtype)
        self.batch = {
            name: torch.stack([b[name] for b in self.batches]) for name in self.batches[0]
        }
        self.params = {
            name: p.detach().expand(self.models, *p.shape).clone()
            for name, p in self.module.named_parameters()
        }
        if self.models == 1:  # one model needs no device axis
            self.batch, self.params = (
                self.batches[0],
                {name: p[0] for name, p in self.params.items()},
            )

    def losses(self, params: Params, batch: Params) -> Tensor:
        outputs = functional_call(self.module, params, (batch[self.setting.input],))
        return self.task.losses(outputs, batch)

    def step(self) -> None:
        leaves = {name: p.detach().requires_grad_() for name, p in self.params.items()}
        found = torch.autograd.grad(
            self.losses(leaves, self.batch).mean(-1).sum(),
            list(leaves.values()),
            materialize_grads=True,
        )
        with torch.no_grad():
            for p, g in zip(self.params.values(), found, strict=True):
                p.sub_(g, alpha=self.setting.lr)

    def reference(self) -> Params:
        first = {
            name: (p if self.models == 1 else p[0]).detach() for name, p in self.params.items()
        }
        leaves = {name: p.clone().requires_grad_() for name, p in first.items()}
        return clip_one_by_one(
            lambda batch: self.losses(leaves, batch), leaves, self.batches[0], self.setting.clip
        )


class Ours(Engine):
    """Our book-keeping: one forward, one backward, exact clipping."""

    private = True

    steps = 0

    def step(self) -> None:
        sums = self._clip()
        self.steps += 1
        noise = engine.noise_like(sums, self.setting.noise * self.setting.clip, self.steps)
        rate = self.setting.lr / self.setting.batch
        with torch.no_grad():
            for name, p in self.params.items():
                p.sub_(sums[name].add_(noise[name]), alpha=rate)

    def _clip(self) -> Params:
        stacked = None if self.models == 1 else self.params
        if stacked is None:
            with torch.no_grad():
                for name, p in self.module.named_parameters():
                    p.set_(self.params[name])
        return engine.clipped_sums(self.module, self.task, self.batch, self.setting.clip, stacked)

    def sums(self) -> Params:
        return {name: s if self.models == 1 else s[0] for name, s in self._clip().items()}


def lstm_by_autograd(
    x: Tensor, mask: Tensor, into: Tensor, hidden: Tensor, bias: Tensor, watch: object = None
) -> Tensor:
    """Return what `fedsim.models.recurrent.lstm` does, by ordinary kernels."""
    models, batch, time, _ = x.shape
    gates = torch.baddbmm(bias.unsqueeze(1), x.flatten(1, 2), into.transpose(1, 2))
    h = c = x.new_zeros(models, batch, hidden.shape[-1])
    outputs = []
    for step in gates.view(models, batch, time, -1).unbind(2):
        i, f, g, o = torch.baddbmm(step, h, hidden.transpose(1, 2)).chunk(4, dim=-1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        outputs.append(h)
    return torch.stack(outputs, dim=2)


def pool_by_autograd(x: Tensor) -> Tensor:
    """Return what `fedsim.models.layers.pool` does, by an ordinary kernel."""
    return max_pool2d(x.flatten(0, -4), 2).unflatten(0, x.shape[:-3])


class Vmap(Engine):
    """`torch.func`: vmap over models of vmap over examples of grad."""

    private = True

    def _clip(self) -> Params:
        def loss(params: Params, example: Params) -> Tensor:
            return self.losses(params, {name: f.unsqueeze(0) for name, f in example.items()})[0]

        each = vmap(grad(loss), in_dims=(None, 0))
        each = each if self.models == 1 else vmap(each)
        # transforms take no backward that is written out
        with (
            patch.object(recurrent, "lstm", lstm_by_autograd),
            patch.object(image, "pool", pool_by_autograd),
        ):
            grads = each(self.params, self.batch)  # [K, B, ...] or [B, ...]
        axes = 1 if self.models == 1 else 2
        squares = [g.flatten(axes).square().sum(-1) for g in grads.values()]
        factors = clip_factors(torch.stack(squares).sum(0), self.setting.clip)
        sums = "b,b...->..." if self.models == 1 else "kb,kb...->k..."
        return {name: torch.einsum(sums, factors, g) for name, g in grads.items()}

    def step(self) -> None:
        descend(self.params, self._clip(), self.setting)

    def sums(self) -> Params:
        return {name: s if self.models == 1 else s[0] for name, s in self._clip().items()}


METHODS: dict[str, type[Method]] = {
    "nn": Plain,
    "engine": Engine,
    "ours": Ours,
    "loop": Loop,
    "hooks": Hooks,
    "ghost": Ghost,
    "vmap": Vmap,
}


def clip_factors(squares: Tensor, clip: float) -> Tensor:
    return (clip / squares.sqrt().clamp(min=1e-12)).clamp(max=1.0)


def clip_one_by_one(
    losses: Callable[[Params], Tensor], params: Params, batch: Params, clip: float
) -> Params:
    """Return the sum of the clipped gradients of single examples."""
    sums = {name: torch.zeros_like(p) for name, p in params.items()}
    for found in one_by_one(losses, params, batch):
        factor = float(clip_factors(square(found), clip))
        for s, g in zip(sums.values(), found, strict=True):
            s.add_(g, alpha=factor)
    return sums


def one_by_one(
    losses: Callable[[Params], Tensor], params: Params, batch: Params
) -> Iterator[tuple[Tensor, ...]]:
    """Yield the gradients of each example."""
    for i in range(len(batch["label"])):
        loss = losses({name: f[i : i + 1] for name, f in batch.items()}).sum()
        yield torch.autograd.grad(loss, list(params.values()), materialize_grads=True)


def square(grads: tuple[Tensor, ...]) -> Tensor:
    return torch.stack([g.square().sum() for g in grads]).sum()


@torch.no_grad()
def descend(params: Params, sums: Params, setting: Setting) -> None:
    """Add a fresh noise tensor to each sum and take an SGD step with the mean."""
    for name, p in params.items():
        noise = torch.normal(0.0, setting.noise * setting.clip, p.shape)
        p.sub_(sums[name].add_(noise), alpha=setting.lr / setting.batch)


def check(name: str, setting: Setting, models: int) -> float:
    """Return the largest difference of a method's sums from single examples', over the largest sum.

    float64, and a clip norm that about half of the examples exceed.
    """
    setting = smaller(setting, clip=middle_norm(setting))
    method = METHODS[name](setting, models, torch.float64)
    expected = method.reference()
    found = method.sums()
    scale = max(float(s.detach().abs().max()) for s in expected.values())
    return max(float((expected[n] - found[n]).detach().abs().max()) for n in expected) / scale


def middle_norm(setting: Setting) -> float:
    """Return the median norm of the gradients of single examples."""
    method = Plain(setting, 1, torch.float64)
    grads = one_by_one(method.losses, method.params, method.batches[0])
    return statistics.median(float(square(g).sqrt()) for g in grads)
