"""Models over token ids: a bag of embeddings and a BiLSTM, each with intent and tag heads."""

import torch
from torch import Tensor, nn

from fedsim.config import Model
from fedsim.models.layers import BiLSTM, Dropout, Embedding, Linear
from fedsim.types import PAD, Spec


class TextHeads(nn.Module):
    """A label head on the sentence and, where the spec has tags, a tag head on each token."""

    def __init__(self, sentence: int, token: int, spec: Spec) -> None:
        super().__init__()
        self.label = Linear(sentence, len(spec.labels))
        self.tag = Linear(token, len(spec.tags)) if spec.tags else None

    def forward(self, sentence: Tensor, token: Tensor) -> dict[str, Tensor]:
        outputs = {"label": self.label(sentence)}
        if self.tag is not None:
            outputs["tags"] = self.tag(token)
        return outputs


class Bag(nn.Module):
    """Mean of word embeddings for the label; each word with both neighbours and that mean for its tag."""

    tables = {"embedding.weight": "tokens"}

    def __init__(self, spec: Spec, model: Model) -> None:
        super().__init__()
        width = model.embedding
        self.embedding = Embedding(spec.vocabulary, width)
        nn.init.normal_(self.embedding.weight, std=0.3)
        self.dropout = Dropout(model.dropout)
        self.heads = TextHeads(width, 4 * width, spec)

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        """tokens: [..., B, T] -> label logits [..., B, labels], tag logits [..., B, T, tags]."""
        mask = (tokens != PAD).unsqueeze(-1)
        words = self.embedding(tokens) * mask
        mean = words.sum(-2) / mask.sum(-2).clamp(min=1)
        mean = self.dropout(mean)
        if self.heads.tag is None:
            return self.heads(mean, mean)
        gap = torch.zeros_like(words[..., :1, :])
        before = torch.cat([gap, words[..., :-1, :]], dim=-2)
        after = torch.cat([words[..., 1:, :], gap], dim=-2)
        around = torch.cat([words, before, after, mean.unsqueeze(-2).expand_as(words)], dim=-1)
        return self.heads(mean, around)


class JointBiLSTM(nn.Module):
    """Embedding and BiLSTM; the label from the maximum over time, each tag from its own state."""

    tables = {"embedding.weight": "tokens"}

    def __init__(self, spec: Spec, model: Model) -> None:
        super().__init__()
        self.embedding = Embedding(spec.vocabulary, model.embedding)
        nn.init.normal_(self.embedding.weight, std=0.3)
        widths = [model.embedding] + [2 * model.hidden] * model.layers
        self.recurrent = nn.ModuleList(BiLSTM(width, model.hidden) for width in widths[:-1])
        self.dropout = Dropout(model.dropout)
        self.heads = TextHeads(widths[-1], widths[-1], spec)

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        """tokens: [..., B, T] -> label logits [..., B, labels], tag logits [..., B, T, tags]."""
        mask = tokens != PAD
        states = self.dropout(self.embedding(tokens))
        for layer in self.recurrent:
            states = self.dropout(layer(states, mask))
        sentence = states.masked_fill(~mask.unsqueeze(-1), -2.0).amax(-2)  # tanh stays above -1
        return self.heads(sentence, states)
