"""A model of your own: any torch module whose forward returns logits by name.

    [model]
    name = "experiments.own.model:average"

Made of `fedsim.models.layers` and indexed from the right, as here, it trains stacked, a whole
cohort in one batch. Made of torch's own layers it works as well; its devices then train one after
another. Rows are filled up with PAD to the longest of a batch: a model must not depend on how far.
"""

from torch import Tensor, nn

from fedsim.config import Model
from fedsim.models.layers import Embedding, Linear
from fedsim.types import PAD, Spec


class Average(nn.Module):
    """The mean of word embeddings through one hidden layer."""

    def __init__(self, spec: Spec, model: Model) -> None:
        super().__init__()
        self.words = Embedding(spec.vocabulary, model.embedding)
        self.hidden = Linear(model.embedding, model.hidden)
        self.label = Linear(model.hidden, len(spec.labels))

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        """tokens: [..., B, T] -> label logits [..., B, labels]."""
        mask = (tokens != PAD).unsqueeze(-1)
        mean = (self.words(tokens) * mask).sum(-2) / mask.sum(-2).clamp(min=1)
        return {"label": self.label(self.hidden(mean).tanh())}


class TorchAverage(nn.Module):
    """The same of torch's own layers: no device axis, so it trains device by device."""

    def __init__(self, spec: Spec, model: Model) -> None:
        super().__init__()
        self.words = nn.Embedding(spec.vocabulary, model.embedding)
        self.hidden = nn.Linear(model.embedding, model.hidden)
        self.label = nn.Linear(model.hidden, len(spec.labels))

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        """tokens: [B, T] -> label logits [B, labels]."""
        mask = (tokens != PAD).unsqueeze(-1)
        mean = (self.words(tokens) * mask).sum(1) / mask.sum(1).clamp(min=1)
        return {"label": self.label(self.hidden(mean).tanh())}


def average(spec: Spec, model: Model) -> nn.Module:
    """Called with the data's sizes and the `[model]` section."""
    return Average(spec, model)


def torch_average(spec: Spec, model: Model) -> nn.Module:
    """The same from torch's own layers."""
    return TorchAverage(spec, model)
