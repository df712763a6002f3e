"""What of our engine is measured: the models in our layers, and the trainer with and without DP.

The only place that knows how the engine is called.
"""

import torch
from torch import Tensor, nn

from clients.clipping import Clip, clipped_gradients
from clients.training import Trainer
from experiments.benchmarks.peers.settings import Setting
from fedsim.app.place import chunk_bytes
from fedsim.config import Dp, Model, Place, Train
from fedsim.models import build_model
from fedsim.models.layers import Conv2d, Linear, pool
from fedsim.models.tasks import Task, make_task
from fedsim.privacy.noise import Seeded
from fedsim.types import Params, Spec


class PflCnn(nn.Module):
    """The CNN of pfl's published benchmark, in layers that take a device axis."""

    keyed = True

    def __init__(self, s: Setting) -> None:
        super().__init__()
        channels, height, width = s.image
        self.first, self.second = Conv2d(channels, 32, 3), Conv2d(32, 64, 3)
        self.hidden = Linear(64 * ((height - 4) // 2) * ((width - 4) // 2), s.hidden)
        self.label = Linear(s.hidden, s.classes)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """image: [..., B, channels, height, width] -> label logits [..., B, labels]."""
        x = pool(self.second(self.first(image).relu())).relu()
        return {"label": self.label(self.hidden(x.flatten(-3)).relu())}


def spec_of(s: Setting) -> Spec:
    labels = tuple(map(str, range(s.classes)))
    if s.image[0]:
        return Spec("image", labels=labels, image=s.image)
    return Spec("classification", vocabulary=s.vocabulary, labels=labels, length=s.tokens)


def build(s: Setting) -> tuple[nn.Module, Task]:
    spec = spec_of(s)
    if s.model == "pfl_cnn":
        torch.manual_seed(0)
        return PflCnn(s), make_task(spec)
    model = Model(
        name=s.model, embedding=s.embedding, hidden=s.hidden, layers=s.layers, heads=s.heads
    )
    return build_model(spec, model, seed=0), make_task(spec)


def make_trainer(s: Setting, private: bool, layout: str = "dense") -> tuple[Trainer, nn.Module]:
    """Return a trainer as the simulator makes it for a long run, and its module.

    Each device adds its own noise ("dense"), or a trusted node once for its sum ("summed").
    """
    module, task = build(s)
    memory = chunk_bytes(Place())
    workers = torch.get_num_threads()
    if not private:
        train = Train(lr=s.lr, batch_size=s.batch)
        return Trainer(module, task, train, memory, workers=workers, processes=True), module
    dp = Dp.model_validate(
        {
            "unit": "example",
            "trust": "local" if layout == "dense" else "central",
            "clip_norm": s.clip,
            "noise_multiplier": s.noise,
            "noise_layout": layout,
            "sampling_rate": s.batch / s.examples,
        }
    )
    train = Train(lr=s.lr, batch_size=s.batch, local_steps=-(-s.examples // s.batch))
    return Trainer(module, task, train, memory, dp, Seeded(0), workers, processes=True), module


def clipped_sums(
    module: nn.Module, task: Task, batch: Params, clip: float, params: Params | None = None
) -> Params:
    """Return the clipped gradient sums by book-keeping; `params` [K, ...] for K models side by
    side.
    """
    names = sorted(batch)

    def losses(outputs: Params, *targets: Tensor) -> Tensor:
        return task.losses(outputs, dict(zip(names, targets, strict=True)))

    inputs = [batch[name] for name in task.inputs]
    targets = [batch[name] for name in names]
    found = clipped_gradients(module, losses, inputs, targets, Clip(clip), params)
    return {name: s for name, s in found.sums.items() if isinstance(s, Tensor)}


def noise_like(sums: Params, stddev: float, step: int) -> Params:
    """Return the engine's noise for each sum, drawn on one flat buffer."""
    flat = torch.empty(sum(s.numel() for s in sums.values()))
    Seeded(0).normal(flat, "step", step).mul_(stddev)
    parts = flat.split([s.numel() for s in sums.values()])
    return {
        name: part.view(s.shape).to(s.dtype)
        for (name, s), part in zip(sums.items(), parts, strict=True)
    }
