"""Models over small images."""

from itertools import pairwise

from torch import Tensor, nn

from fedsim.config import Model
from fedsim.models.layers import Dropout, Linear
from fedsim.types import Spec


class Mlp(nn.Module):
    """Fully connected layers with ReLU over the flattened image."""

    def __init__(self, spec: Spec, model: Model) -> None:
        super().__init__()
        channels, height, width = spec.image
        sizes = [channels * height * width] + [model.hidden] * model.layers
        self.hidden = nn.ModuleList(Linear(a, b) for a, b in pairwise(sizes))
        self.dropout = Dropout(model.dropout)
        self.label = Linear(sizes[-1], len(spec.labels))

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """image: [..., B, channels, height, width] -> label logits [..., B, labels]."""
        x = image.flatten(-3)
        for layer in self.hidden:
            x = self.dropout(layer(x).relu())
        return {"label": self.label(x)}
