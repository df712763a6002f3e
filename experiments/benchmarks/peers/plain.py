"""The models in torch's own layers, and one device's training by torch's own optimiser.

Every peer runs this code; a plain loop runs nothing else.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from experiments.benchmarks.peers.settings import Setting


class Bag(nn.Module):
    """Mean of word embeddings, then a linear head."""

    def __init__(self, s: Setting) -> None:
        super().__init__()
        self.embedding = nn.Embedding(s.vocabulary, s.embedding)
        self.label = nn.Linear(s.embedding, s.classes)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.label(self.embedding(tokens).mean(1))


class BiLstm(nn.Module):
    """Embedding, one bidirectional LSTM layer, the maximum over time, a linear head."""

    def __init__(self, s: Setting, lstm: Callable[..., nn.Module] = nn.LSTM) -> None:
        super().__init__()
        self.embedding = nn.Embedding(s.vocabulary, s.embedding)
        self.recurrent = lstm(s.embedding, s.hidden, batch_first=True, bidirectional=True)
        self.label = nn.Linear(2 * s.hidden, s.classes)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.label(self.recurrent(self.embedding(tokens))[0].amax(1))


class SelfAttention(nn.Module):
    """Multi-head attention of two linear layers, which every method has a rule for."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.inner, self.outer = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (
            part.transpose(1, 2)
            for part in self.inner(x).unflatten(-1, (3, self.heads, -1)).unbind(2)
        )
        scores = (query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5).softmax(-1)
        return self.outer((scores @ value).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed-forward(norm(x))."""

    def __init__(self, s: Setting) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(s.embedding), nn.LayerNorm(s.embedding)
        self.attention = SelfAttention(s.embedding, s.heads)
        self.widen, self.narrow = nn.Linear(s.embedding, s.hidden), nn.Linear(s.hidden, s.embedding)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.first(x))
        return x + self.narrow(nn.functional.gelu(self.widen(self.second(x))))


def torch_block(s: Setting) -> nn.Module:
    """Return torch's own block with its fused attention."""
    return nn.TransformerEncoderLayer(
        s.embedding,
        s.heads,
        s.hidden,
        dropout=0.0,
        activation="gelu",
        batch_first=True,
        norm_first=True,
    )


class Transformer(nn.Module):
    """Word and position embeddings, pre-norm blocks, the mean over time, a linear head."""

    def __init__(self, s: Setting, block: Callable[[Setting], nn.Module] = torch_block) -> None:
        super().__init__()
        self.embedding = nn.Embedding(s.vocabulary, s.embedding)
        self.position = nn.Embedding(s.tokens, s.embedding)
        self.blocks = nn.ModuleList(block(s) for _ in range(s.layers))
        self.norm, self.label = nn.LayerNorm(s.embedding), nn.Linear(s.embedding, s.classes)

    def forward(self, tokens: Tensor) -> Tensor:
        places = (
            torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape).contiguous()
        )
        x = self.embedding(tokens) + self.position(places)
        for block in self.blocks:
            x = block(x)
        return self.label(self.norm(x).mean(1))


def cnn(s: Setting) -> nn.Module:
    """Blocks of 3×3 convolution, GroupNorm, ReLU and pooling, then one hidden layer: our `cnn`."""
    channels, height, width = s.image
    layers: list[nn.Module] = []
    for i in range(s.layers):
        out = 16 << i
        layers += [nn.Conv2d(channels, out, 3, padding=1), nn.GroupNorm(out // 8, out)]
        layers += [nn.ReLU(), nn.MaxPool2d(2)]
        channels = out
        height = height // 2
        width = width // 2
    flat = channels * height * width
    return nn.Sequential(
        *layers, nn.Flatten(), nn.Linear(flat, s.hidden), nn.ReLU(), nn.Linear(s.hidden, s.classes)
    )


def pfl_cnn(s: Setting) -> nn.Module:
    """The CNN of pfl's published benchmark (1.6 M parameters at 32×32×3), without its dropout."""
    channels, height, width = s.image
    flat = 64 * ((height - 4) // 2) * ((width - 4) // 2)
    return nn.Sequential(
        *(nn.Conv2d(channels, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(flat, s.hidden), nn.ReLU(), nn.Linear(s.hidden, s.classes)),
    )


MODELS: dict[str, Callable[..., nn.Module]] = {
    "bag": Bag,
    "bilstm": BiLstm,
    "transformer": Transformer,
    "cnn": cnn,
    "pfl_cnn": pfl_cnn,
}


def build(setting: Setting, **kinds: Any) -> nn.Module:
    torch.manual_seed(0)
    return MODELS[setting.model](setting, **kinds)


def train_device(model: nn.Module, setting: Setting, fields: dict[str, Tensor], seed: int) -> int:
    """Train one epoch of shuffled batches by SGD; return the number of examples."""
    optimizer = torch.optim.SGD(model.parameters(), lr=setting.lr)
    for batch in batches(setting, fields, seed):
        optimizer.zero_grad()
        cross_entropy(model(batch[setting.input]), batch["label"]).backward()
        optimizer.step()
    return len(fields["label"])


def batches(setting: Setting, fields: dict[str, Tensor], seed: int) -> list[dict[str, Tensor]]:
    order = torch.randperm(len(fields["label"]), generator=torch.Generator().manual_seed(seed))
    return [{name: f[rows] for name, f in fields.items()} for rows in order.split(setting.batch)]
