"""Encodes words, labels and tags as ids."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from fedsim.config import Data
from fedsim.errors import WrongInput
from fedsim.types import PAD, UNKNOWN

Tokens = Sequence[str]


@dataclass(frozen=True)
class Vocabulary:
    """Word -> id.

    A vocabulary of training text *reveals the words of that text* to everyone who gets the model or
    the vocabulary. No DP guarantee covers that. Hashed buckets reveal nothing.
    """

    words: dict[str, int]
    buckets: int
    """Hash buckets; 0 where `words` holds the ids."""
    ngrams: tuple[int, ...] = ()
    """Lengths of the character n-grams, whose ids follow those of the words; needs buckets."""

    @property
    def size(self) -> int:
        """How many ids there are: padding, the unknown word, and words or buckets."""
        return UNKNOWN + 1 + (self.buckets or len(self.words))

    @property
    def names(self) -> tuple[str, ...]:
        """The words in the order of their ids, without padding and the unknown word."""
        return tuple(sorted(self.words, key=self.words.__getitem__))

    def ids(self, tokens: Tokens) -> list[int]:
        if self.buckets:
            pieces = (piece for token in tokens for piece in character_ngrams(token, self.ngrams))
            return [UNKNOWN + 1 + _hash(text) % self.buckets for text in (*tokens, *pieces)]
        return [self.words.get(token, UNKNOWN) for token in tokens]


def make_vocabulary(data: Data, texts: Iterable[Tokens]) -> Vocabulary:
    """Return hashed buckets, or the words of `texts` in alphabetical order.

    `data.vocabulary_size` keeps only the most frequent words; among equally frequent ones, the
    first in the alphabet. All other words then are UNKNOWN.
    """
    if data.vocabulary == "hashed":
        return Vocabulary({}, data.buckets, ngram_lengths(data))
    ngram_lengths(data)
    counts = Counter(token for text in texts for token in text)
    frequent = sorted(counts, key=lambda word: (-counts[word], word))
    known = sorted(frequent[: data.vocabulary_size or None])
    return Vocabulary({word: UNKNOWN + 1 + i for i, word in enumerate(known)}, 0)


def tokenize(text: str) -> list[str]:
    """Split into lower-case words and punctuation marks."""
    return re.findall(r"\w+|[^\w\s]", text.lower())


def ngram_lengths(data: Data) -> tuple[int, ...]:
    """Return the lengths that `data.ngrams` names. Raises WrongInput where they cannot be used."""
    lengths = tuple(int(part) for part in data.ngrams.split(",") if part.strip())
    if lengths and (data.vocabulary != "hashed" or data.task != "classification"):
        raise WrongInput(
            f"data.ngrams = {data.ngrams!r} puts hashed pieces behind the words of a text; it "
            'needs data.vocabulary = "hashed" and data.task = "classification", got '
            f"{data.vocabulary!r} and {data.task!r}"
        )
    return lengths


def character_ngrams(token: str, lengths: Sequence[int]) -> list[str]:
    """Return the n-grams of `<token>`, marked with # so that none is taken for a word."""
    edged = f"<{token}>"
    return [f"#{edged[i : i + n]}" for n in lengths for i in range(len(edged) - n + 1)]


def label_tokens(vocabulary: Vocabulary, labels: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """Return the ids of the words in each label's name; empty where words are not hashed."""
    if not vocabulary.buckets:
        return ()
    return tuple(tuple(vocabulary.ids(tokenize(re.sub(r"[_\W]+", " ", label)))) for label in labels)


def encode_tokens(vocabulary: Vocabulary, texts: Sequence[Tokens], length: int) -> Tensor:
    """Return ids [n, longest text, at most `length`], PAD behind the last token."""
    return pad([vocabulary.ids(text[:length])[:length] for text in texts], fill=0)


def encode_tags(tags: Sequence[Tokens], names: Sequence[str], length: int) -> Tensor:
    """Return tag ids [n, longest text, at most `length`], -1 behind the last token."""
    position = {name: i for i, name in enumerate(names)}
    return pad([[position[tag] for tag in row[:length]] for row in tags], fill=-1)


def next_tokens(tokens: Tensor) -> dict[str, Tensor]:
    """Return `tokens` and `next`, both [n, length - 1]: views of tokens [n, length].

    Raises WrongInput where no example has two tokens.
    """
    if tokens.shape[1] == 1:
        if len(tokens):
            raise WrongInput(
                "next words need at least two tokens an example; raise data.max_length"
            )
        tokens = torch.nn.functional.pad(tokens, (0, 1), value=PAD)
    return {"tokens": tokens[:, :-1], "next": tokens[:, 1:]}


def encode_labels(labels: Sequence[str], names: Sequence[str]) -> Tensor:
    """Return label ids [n]."""
    position = {name: i for i, name in enumerate(names)}
    return torch.tensor([position[label] for label in labels], dtype=torch.int64)


def pad(rows: Sequence[Sequence[int]], fill: int) -> Tensor:
    """Stack ragged rows into int64 [n, longest], at least one column."""
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    out = np.full((len(rows), max(1, int(lengths.max(initial=1)))), fill, dtype=np.int64)
    flat = np.fromiter(chain.from_iterable(rows), np.int64, int(lengths.sum()))
    out[np.arange(out.shape[1]) < lengths[:, None]] = flat
    return torch.from_numpy(out)


@lru_cache(maxsize=1 << 18)
def _hash(token: str) -> int:
    return int.from_bytes(hashlib.blake2b(token.encode(), digest_size=8).digest(), "little")
