"""A small transformer: an encoder for labels and tags, causal for the next word."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from fedsim.config import Model
from fedsim.errors import WrongInput
from fedsim.models.dropout import Dropout
from fedsim.models.layers import Attention, Embedding, LayerNorm, Linear
from fedsim.models.text import TextHeads
from fedsim.types import PAD, Spec


class Transformer(nn.Module):
    """Pre-norm blocks over learned word and position embeddings (Xiong et al., 2020).

    For `language` a token sees only those before it, and each state gives the odds of the next
    word. Otherwise all tokens see each other; the label comes from their mean, each tag from its
    own state.
    """

    tables = {"embedding.weight": "tokens"}

    def __init__(self, spec: Spec, model: Model) -> None:
        super().__init__()
        if model.embedding % model.heads:
            raise WrongInput(
                f"model.embedding = {model.embedding} cannot be shared by model.heads = "
                f"{model.heads}; choose a multiple"
            )
        width = model.embedding
        self.causal = spec.task == "language"
        self.attention_heads = model.heads
        self.hidden = model.hidden
        self.embedding = Embedding(spec.vocabulary, width)
        self.position = Embedding(spec.length, width)
        nn.init.normal_(self.embedding.weight, std=0.3)
        nn.init.normal_(self.position.weight, std=0.1)
        self.dropout = Dropout(model.dropout)
        self.blocks = nn.ModuleList(Block(model) for _ in range(model.layers))
        self.norm = LayerNorm(width)
        self.next = Linear(width, spec.vocabulary) if self.causal else None
        self.heads = None if self.causal else TextHeads(width, width, spec)

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        """tokens: [..., B, T] -> logits `next` [..., B, T, vocabulary], or label and tag logits."""
        mask = tokens != PAD
        time = torch.arange(tokens.shape[-1], device=tokens.device)
        places = self.position(time.expand_as(tokens))
        states = self.dropout(self.embedding(tokens) + places)
        visible = time <= time.unsqueeze(-1) if self.causal else mask.unsqueeze(-2)
        for block in self.blocks:
            states = block(states, visible)
        states = self.norm(states)
        if self.next is not None:
            return {"next": self.next(states)}
        assert self.heads is not None, "a transformer has one kind of output"
        there = mask.unsqueeze(-1)
        mean = (states * there).sum(-2) / there.sum(-2).clamp(min=1)
        return self.heads(mean, states)

    def activations(self, tokens: Sequence[int]) -> int:
        """Attention scores, what each position keeps and, for words, three times the logits."""
        length = tokens[0]
        words = 3 * length * self.next.out_features if self.next is not None else 0
        width = self.position.embedding_dim
        hidden = self.hidden
        block = 2 * self.attention_heads * length**2 + 3 * length * (5 * width + hidden)
        return words + len(self.blocks) * block


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed-forward(norm(x)) with GELU."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        width = model.embedding
        self.attention_norm, self.norm = LayerNorm(width), LayerNorm(width)
        self.attention = Attention(width, model.heads)
        self.widen, self.narrow = Linear(width, model.hidden), Linear(model.hidden, width)
        self.dropout = Dropout(model.dropout)
        self.last_dropout = Dropout(model.dropout)

    def forward(self, x: Tensor, visible: Tensor) -> Tensor:
        """x: [..., B, T, width] -> the same shape."""
        x = x + self.dropout(self.attention(self.attention_norm(x), visible))
        return x + self.last_dropout(self.narrow(gelu(self.widen(self.norm(x)))))
