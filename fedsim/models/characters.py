"""A character CNN: features of a word from its letters."""

import torch
from torch import Tensor, nn

from fedsim.errors import WrongInput
from fedsim.models.layers import Embedding, Linear
from fedsim.types import UNKNOWN, Spec

LETTERS = 16
"""Letters of a word that are read; longer words are cut."""
WIDTH = 16
FEATURES = 32


class Characters(nn.Module):
    """Letter embeddings, one convolution over three neighbours, and the maximum over the word.

    Its alphabet is that of the vocabulary's words, so it reveals no more than the vocabulary.
    """

    letters: Tensor
    """[vocabulary, LETTERS] ids, 0 behind the last letter."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        if not spec.words:
            raise WrongInput(
                "model.characters = true reads the letters of words, and the vocabulary names "
                'none; set data.vocabulary = "training"'
            )
        alphabet = {
            letter: i
            for i, letter in enumerate(sorted({c for w in spec.words for c in w}), start=1)
        }
        letters = torch.zeros(spec.vocabulary, LETTERS, dtype=torch.int64)
        for i, word in enumerate(spec.words):
            ids = [alphabet[letter] for letter in word[:LETTERS]]
            letters[UNKNOWN + 1 + i, : len(ids)] = torch.tensor(ids)
        self.register_buffer("letters", letters, persistent=False)
        self.embedding = Embedding(1 + len(alphabet), WIDTH)
        nn.init.normal_(self.embedding.weight, std=0.3)
        self.convolution = Linear(3 * WIDTH, FEATURES)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens: [...] -> features [..., FEATURES]."""
        x = self.embedding(self.letters[tokens])
        gap = torch.zeros_like(x[..., :1, :])
        before = torch.cat([gap, x[..., :-1, :]], dim=-2)
        after = torch.cat([x[..., 1:, :], gap], dim=-2)
        return self.convolution(torch.cat([before, x, after], dim=-1)).relu().amax(-2)
