"""Models over token ids: a bag of embeddings, a BiLSTM, and an LSTM for the next word."""

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedsim.config import Model
from fedsim.models.characters import FEATURES, Characters
from fedsim.models.dropout import Dropout
from fedsim.models.layers import Embedding, Linear, MeanEmbedding
from fedsim.models.recurrent import LSTM, BiLSTM
from fedsim.types import PAD, Params, Spec


class TextHeads(nn.Module):
    """A label head on the sentence and a tag head on each token, where the spec has them."""

    def __init__(self, sentence: int, token: int, spec: Spec) -> None:
        super().__init__()
        self.label = Linear(sentence, len(spec.labels)) if spec.labels else None
        self.tag = Linear(token, len(spec.tags)) if spec.tags else None

    def forward(self, sentence: Tensor, token: Tensor) -> dict[str, Tensor]:
        outputs = {}
        if self.label is not None:
            outputs["label"] = self.label(sentence)
        if self.tag is not None:
            outputs["tags"] = self.tag(token)
        return outputs


class Bag(nn.Module):
    """A bag of word embeddings: the label comes from their mean.

    A tag comes from its word, both neighbours and that mean.
    """

    tables = {"embedding.weight": "tokens"}

    def __init__(self, spec: Spec, model: Model) -> None:
        super().__init__()
        width = model.embedding
        self.embedding = (Embedding if spec.tags else MeanEmbedding)(spec.vocabulary, width)
        nn.init.normal_(self.embedding.weight, std=0.3)
        self.dropout = Dropout(model.dropout)
        self.heads = TextHeads(width, 4 * width, spec)

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        """tokens: [..., B, T] -> label logits [..., B, labels], tag logits [..., B, T, tags]."""
        if self.heads.tag is None:
            mean = self.dropout(self.embedding(tokens))
            return self.heads(mean, mean)
        mask = (tokens != PAD).unsqueeze(-1)
        words = self.embedding(tokens) * mask
        mean = self.dropout(words.sum(-2) / mask.sum(-2).clamp(min=1))
        gap = torch.zeros_like(words[..., :1, :])
        before = torch.cat([gap, words[..., :-1, :]], dim=-2)
        after = torch.cat([words[..., 1:, :], gap], dim=-2)
        around = torch.cat([words, before, after, mean.unsqueeze(-2).expand_as(words)], dim=-1)
        return self.heads(mean, around)


class JointBiLSTM(nn.Module):
    """Word embedding, with letter features if wanted, and a BiLSTM.

    The label comes from the maximum over time, each tag from its own state.
    """

    tables: Mapping[str, str] = {"embedding.weight": "tokens"}

    def __init__(self, spec: Spec, model: Model) -> None:
        super().__init__()
        self.embedding = Embedding(spec.vocabulary, model.embedding)
        nn.init.normal_(self.embedding.weight, std=0.3)
        self.characters = Characters(spec) if model.characters else None
        if self.characters is not None:
            self.tables = {}  # letters are looked up by a word's own id, so rows keep their places
        first = model.embedding + (FEATURES if model.characters else 0)
        widths = [first] + [2 * model.hidden] * model.layers
        self.recurrent = nn.ModuleList(BiLSTM(width, model.hidden) for width in widths[:-1])
        self.dropouts = nn.ModuleList(Dropout(model.dropout) for _ in widths)
        self.heads = TextHeads(widths[-1], widths[-1], spec)

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        """tokens: [..., B, T] -> label logits [..., B, labels], tag logits [..., B, T, tags]."""
        mask = tokens != PAD
        words = self.embedding(tokens)
        if self.characters is not None:
            words = torch.cat([words, self.characters(tokens)], dim=-1)
        states = self.dropouts[0](words)
        for layer, dropout in zip(self.recurrent, self.dropouts[1:], strict=True):
            states = dropout(layer(states, mask))
        sentence = states.masked_fill(~mask.unsqueeze(-1), -2.0).amax(-2)  # tanh stays above -1
        return self.heads(sentence, states)

    def as_one_table(self, params: Params) -> tuple[nn.Module, Params]:
        """Return the same function with letter features as part of one wider embedding table."""
        if self.characters is None:
            return self, params
        mine = {
            n.removeprefix("characters."): p
            for n, p in params.items()
            if n.startswith("characters.")
        }
        with torch.no_grad():
            every = torch.arange(len(self.characters.letters))
            letters = functional_call(copy.deepcopy(self.characters).cpu(), mine, (every,))
        rest = {n: p for n, p in params.items() if not n.startswith("characters.")}
        twin = copy.deepcopy(self)
        twin.characters = None
        twin.tables = {"embedding.weight": "tokens"}
        return twin, {
            **rest,
            "embedding.weight": torch.cat([rest["embedding.weight"], letters], dim=1),
        }


class WordLSTM(nn.Module):
    """Embedding and LSTM layers from left to right; each state gives the odds of the next word."""

    tables = {"embedding.weight": "tokens"}

    def __init__(self, spec: Spec, model: Model) -> None:
        super().__init__()
        self.embedding = Embedding(spec.vocabulary, model.embedding)
        nn.init.normal_(self.embedding.weight, std=0.3)
        widths = [model.embedding] + [model.hidden] * model.layers
        self.recurrent = nn.ModuleList(LSTM(width, model.hidden) for width in widths[:-1])
        self.dropouts = nn.ModuleList(Dropout(model.dropout) for _ in widths)
        self.next = Linear(model.hidden, spec.vocabulary)

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        """tokens: [..., B, T] -> logits of the next token [..., B, T, vocabulary]."""
        mask = tokens != PAD
        states = self.dropouts[0](self.embedding(tokens))
        for layer, dropout in zip(self.recurrent, self.dropouts[1:], strict=True):
            states = dropout(layer(states, mask))
        return {"next": self.next(states)}

    def activations(self, tokens: Sequence[int]) -> int:
        """Return the floats of the logits, their softmax and their gradient.

        They outweigh all else.
        """
        return 3 * tokens[0] * self.next.out_features
