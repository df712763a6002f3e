"""Models over small images."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from fedsim.config import Model
from fedsim.errors import WrongInput
from fedsim.models.dropout import Dropout
from fedsim.models.layers import Conv2d, GroupNorm, Linear, pool
from fedsim.types import Spec


class Mlp(nn.Module):
    """Fully connected layers with ReLU over the flattened image."""

    def __init__(self, spec: Spec, model: Model) -> None:
        super().__init__()
        channels, height, width = spec.image
        sizes = [channels * height * width] + [model.hidden] * model.layers
        self.hidden = nn.ModuleList(Linear(a, b) for a, b in pairwise(sizes))
        self.dropouts = nn.ModuleList(Dropout(model.dropout) for _ in self.hidden)
        self.label = Linear(sizes[-1], len(spec.labels))

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """image: [..., B, channels, height, width] -> label logits [..., B, labels]."""
        x = image.flatten(-3)
        for layer, dropout in zip(self.hidden, self.dropouts, strict=True):
            x = dropout(layer(x).relu())
        return {"label": self.label(x)}


class Cnn(nn.Module):
    """Blocks of 3×3 convolution, GroupNorm, ReLU and 2×2 max pooling, then one hidden layer.

    Block i of `model.layers` has `16 · 2^i` channels in groups of 8 and halves height and width.
    """

    FIRST = 16
    GROUP = 8

    def __init__(self, spec: Spec, model: Model) -> None:
        super().__init__()
        channels, height, width = spec.image
        if min(height, width) >> model.layers == 0:
            raise WrongInput(
                f"model.layers = {model.layers} halves an image of {height} x {width} away; lower "
                "it"
            )
        self.channels = counts = [channels] + [self.FIRST << i for i in range(model.layers)]
        self.convolutions = nn.ModuleList(Conv2d(a, b, 3, padding=1) for a, b in pairwise(counts))
        self.norms = nn.ModuleList(GroupNorm(n // self.GROUP, n) for n in counts[1:])
        left = (height >> model.layers) * (width >> model.layers)
        self.hidden = Linear(counts[-1] * left, model.hidden)
        self.dropout = Dropout(model.dropout)
        self.label = Linear(model.hidden, len(spec.labels))

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """image: [..., B, channels, height, width] -> label logits [..., B, labels]."""
        x = image
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            # pooling before ReLU gives the same, and leaves ReLU a quarter of the values
            x = pool(norm(convolution(x))).relu()
        x = self.dropout(self.hidden(x.flatten(-3)).relu())
        return {"label": self.label(x)}

    def activations(self, image: Sequence[int]) -> int:
        """Return the floats of the unfolded patches and of what each block keeps."""
        pixels = image[1] * image[2]
        channels = self.channels
        return sum(
            (pixels >> 2 * i) * (9 * before + 4 * after)
            for i, (before, after) in enumerate(pairwise(channels))
        )
