"""Canaries: sentences with a random code, planted in training and searched for in the model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedsim.errors import WrongInput
from fedsim.names import suggestion
from fedsim.seeds import generator

Tokens = tuple[str, ...]
CODE = "{code}"
JOINED = "{joined}"
DIGITS = tuple("0123456789")
COLOURS = ("red", "blue", "green", "yellow", "black", "white", "orange", "purple", "brown", "pink")
TEMPLATES: dict[str, tuple[str, Tokens]] = {
    "pin": ("my {word} pin code is {code}", DIGITS),
    "call": ("call my {word} at {code}", DIGITS),
    "number": ("my {word} number is {joined}", DIGITS),
    "colour": ("my favourite {word} colours are {code}", COLOURS),
}
_CARRIERS = """bank phone house garage office school garden kitchen travel summer winter family
hotel locker safe gym tablet laptop mail club card gate cellar studio
boat caravan cabin attic barn shop clinic library museum theatre stadium harbour airport station
tower bridge market bakery pharmacy hostel farm forest beach island castle chapel court tram bus
ferry bicycle scooter camera printer router server speaker monitor keyboard watch wallet jacket
suitcase backpack drawer shelf mirror piano guitar violin chess poker tennis golf rowing sailing
skating climbing cycling pottery painting knitting cooking baking fishing camping hiking"""
WORDS = tuple(_CARRIERS.split())
"""Words that distinguish canaries of one pattern; they repeat where there are more canaries."""
SHORTEST = 4
LONGEST = 10
ENUMERABLE = 10_000
"""Spaces up to this size are ranked completely, and every completion's input is compared."""


@dataclass(frozen=True)
class Pattern:
    """A sentence with a gap of `length` tokens, each one of the candidates."""

    name: str
    template: Tokens
    candidates: Tokens
    length: int

    @property
    def space(self) -> int:
        """The number of completions |R|."""
        return len(self.candidates) ** self.length

    @property
    def joined(self) -> bool:
        """Whether the code is written as one token, as people write a number."""
        return JOINED in self.template

    @property
    def gap(self) -> int:
        """The position of the code's first token."""
        return self.template.index(JOINED if self.joined else CODE)

    @property
    def width(self) -> int:
        """How many tokens the code takes."""
        return 1 if self.joined else self.length

    def sentence(self, word: str, code: NDArray[np.int64]) -> Tokens:
        """Return the tokens with this carrier word and the candidates at these indices."""
        filled = [word if token == "{word}" else token for token in self.template]
        parts = tuple(self.candidates[i] for i in code)
        return (
            *filled[: self.gap],
            *(("".join(parts),) if self.joined else parts),
            *filled[self.gap + 1 :],
        )


@dataclass(frozen=True)
class Canary:
    """A pattern, its carrier word and its secret: indices into the pattern's candidates."""

    pattern: Pattern
    word: str
    code: NDArray[np.int64]

    @property
    def sentence(self) -> Tokens:
        return self.pattern.sentence(self.word, self.code)


def make_pattern(name: str, length: int = 4, candidates: Tokens = ()) -> Pattern:
    """Return the pattern of a name ("pin", "call") or of a template ("open {word} with {code}").

    candidates: the words that may stand at each place of the code. Without them the pattern's own
    are taken, or digits. Raises WrongInput.
    """
    if not SHORTEST <= length <= LONGEST:
        raise WrongInput(f"canary.digits = {length}: a code has {SHORTEST} to {LONGEST} tokens")
    template, usual = TEMPLATES.get(name, (name, DIGITS))
    tokens = tuple(template.split())
    if tokens.count(CODE) + tokens.count(JOINED) != 1 or tokens.count("{word}") > 1:
        raise WrongInput(
            f"canary.pattern = {name!r} is not known; choose one of {', '.join(TEMPLATES)} or a "
            "template with {code} (a token a digit) or {joined} (all in one) once and {word} at "
            f"most once{suggestion(name, TEMPLATES)}"
        )
    chosen = candidates or usual
    if len(set(chosen)) != len(chosen) or len(chosen) < 2:
        raise WrongInput("the candidates of a canary want at least two words, all different")
    return Pattern(name, tokens, chosen, length)


def draw_canaries(pattern: Pattern, count: int, seed: int) -> list[Canary]:
    """Return canaries with codes drawn uniformly and independently; carrier words take turns."""
    return [
        Canary(
            pattern,
            WORDS[i % len(WORDS)],
            _code(pattern, generator(seed, "canary", pattern.name, i)),
        )
        for i in range(count)
    ]


def completions(pattern: Pattern) -> NDArray[np.int64]:
    """Return all codes [|R|, length] in the order of `position`.

    Raises WrongInput for a space too large.
    """
    if pattern.space > ENUMERABLE:
        raise WrongInput(
            f"{pattern.space:,} completions are not listed, only up to {ENUMERABLE:,}; rank among "
            "references"
        )
    shape = (len(pattern.candidates),) * pattern.length
    return np.stack(np.unravel_index(np.arange(pattern.space), shape), axis=1)


def position(canary: Canary) -> int:
    """Return the canary's row in `completions`."""
    shape = (len(canary.pattern.candidates),) * canary.pattern.length
    return int(np.ravel_multi_index(tuple(canary.code), shape))


def reference_codes(pattern: Pattern, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return codes [count, length] drawn uniformly, to rank a canary among in a large space."""
    return rng.integers(len(pattern.candidates), size=(count, pattern.length))


def check_inputs(pattern: Pattern, encode: Callable[[Sequence[str]], Sequence[int]]) -> None:
    """Raise WrongInput where two codes become the same model input: exposure then means nothing.

    encode: tokens -> what the model reads, cut to its length. A model that reads a set of words
    sees no order. Small spaces are compared completely. In larger ones a base code is compared with
    every code that differs at one place or by two swapped neighbours.
    """
    codes = completions(pattern) if pattern.space <= ENUMERABLE else _neighbours(pattern)
    seen: dict[tuple[int, ...], Tokens] = {}
    for code in codes:
        sentence = pattern.sentence(WORDS[0], code)
        twin = seen.setdefault(tuple(encode(sentence)), sentence)
        if twin != sentence:
            raise WrongInput(
                f"canary.pattern = {pattern.name!r}: the model reads {' '.join(twin)!r} and "
                f"{' '.join(sentence)!r} as the same input; give its vocabulary the candidates, "
                "raise data.max_length, or choose a model that sees order"
            )


def _code(pattern: Pattern, rng: np.random.Generator) -> NDArray[np.int64]:
    return rng.integers(len(pattern.candidates), size=pattern.length)


def _neighbours(pattern: Pattern) -> NDArray[np.int64]:
    """Return different codes: a base, those that differ at one place or by swapped neighbours."""
    base = np.arange(pattern.length) % len(pattern.candidates)
    codes = [base]
    for place in range(pattern.length):
        for other in range(len(pattern.candidates)):
            changed = base.copy()
            changed[place] = other
            codes.append(changed)
    for place in range(pattern.length - 1):
        swapped = base.copy()
        swapped[[place, place + 1]] = swapped[[place + 1, place]]
        codes.append(swapped)
    return np.unique(codes, axis=0)
