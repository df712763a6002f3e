"""An embedded generator of voice-assistant requests: no download, any number of devices.

A small grammar of intents, slots and synonyms makes the requests. Each device has habits of its
own: a few intents that it uses most, favourite slot values, a favourite wording and a degree of
politeness. A device's requests are a pure function of (data.seed, device), made when they are asked
for. So a federation of a million devices costs only its vector of activities.
"""

import re
from bisect import bisect_right
from dataclasses import dataclass, field
from itertools import accumulate, chain, pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedsim.config import Data
from fedsim.data.activity import make_activity
from fedsim.data.encode import (
    encode_labels,
    encode_tags,
    encode_tokens,
    label_tokens,
    make_vocabulary,
    next_tokens,
)
from fedsim.errors import WrongInput
from fedsim.seeds import generator
from fedsim.types import DeviceId, Examples, Spec

SLOTS = {
    "artist": "the beatles|nina simone|daft punk|adele|miles davis|queen|bob dylan|aretha franklin",
    "genre": "jazz|rock|classical|blues|hip hop|folk|techno|reggae",
    "room": "kitchen|bedroom|living room|bathroom|hall|garage|office|garden",
    "device": "lights|lamp|heater|fan|radio|television|coffee machine|oven",
    "colour": "red|blue|green|warm white|purple|orange",
    "time": "seven am|noon|half past eight|six in the evening|five thirty|midnight|quarter to nine",
    "duration": "five minutes|ten minutes|half an hour|two hours|ninety seconds|an hour",
    "date": "today|tomorrow|on monday|on friday|this weekend|next week|on the third",
    "person": "mum|dad|anna|doctor lee|my brother|the office|john|grandma|sam",
    "place": "paris|berlin|the station|the airport|new york|work|home|the beach",
    "item": "milk|bread|eggs|batteries|apples|washing powder|coffee|bananas|olive oil",
    "list": "shopping|to do|groceries|birthday|packing",
    "event": "dentist|team meeting|birthday party|yoga class|dinner|school concert",
    "topic": "politics|sports|science|technology|business|the elections",
    "percent": "ten percent|half|fifty percent|maximum|twenty percent",
    "food": "pizza|sushi|curry|burgers|noodles|salad",
}
INTENTS = {
    "music_play": "(play|put on|start) {artist}|(play|put on) some {genre}|i want to hear {artist}|"
    "(play|put on) {genre} in the {room}|play something by {artist}",
    "music_like": "i (like|love) this song|save this {genre} song|remember this one by {artist}",
    "light_on": "(turn|switch) on the {device} in the {room}|{room} lights on|"
    "(turn|switch) the {device} on|make it bright in the {room}",
    "light_off": "(turn|switch) off the {device} in the {room}|{room} lights off|"
    "(turn|switch) the {device} off|make it dark in the {room}",
    "light_colour": "(make|turn) the {room} lights {colour}|set the {device} to {colour}|"
    "i want {colour} light in the {room}",
    "volume_set": "(set|turn) the volume to {percent}|volume {percent}|make it {percent} loud",
    "alarm_set": "(wake me|set an alarm) at {time}|set an alarm for {time} {date}|"
    "wake me {date} at {time}",
    "alarm_remove": "(delete|cancel|remove) my {time} alarm|(delete|cancel) the alarm {date}",
    "timer_set": "(set|start) a timer for {duration}|remind me in {duration}|count down {duration}",
    "weather": "(what is|how is) the weather (in {place}|{date})|will it rain {date} in {place}|"
    "do i need a coat {date}|how (cold|hot|warm) is it in {place}",
    "calendar_add": "(add|put) {event} to my calendar {date}|i have {event} {date} at {time}|"
    "schedule {event} with {person} {date}",
    "calendar_ask": "(what is|what do i have) on my calendar {date}|when is my {event}|"
    "do i have {event} {date}",
    "call": "(call|ring|phone) {person}|(call|phone) {person} at {place}|get {person} on the phone",
    "message": "(text|message) {person} i am late|send {person} a message|"
    "tell {person} i am at {place}",
    "list_add": "(add|put) {item} (to|on) my {list} list|we need {item}|"
    "put {item} and {item} on the list",
    "list_ask": "(read|what is on) my {list} list|is {item} on my {list} list",
    "route": "(how do i get|take me|navigate) to {place}|how long to {place}|"
    "traffic to {place} {date}",
    "news": "(tell me|read) the news about {topic}|what is new in {topic}|"
    "any news on {topic} {date}",
    "food_order": "order {food} for {time}|get me {food} {date}|i want {food} from {place}",
    "joke": "tell me a joke|make me laugh|do you know a joke about {topic}",
}
POLITE = ("please", "could you", "hey", "can you")
TEST_REQUESTS = 1000
MISHEARD = 0.08
"""Chance that a word is replaced by a random one; its tag stays."""
_PHRASE = re.compile(r"\(([^()]*)\)")


def _templates(text: str) -> list[str]:
    """Split alternatives at top level and expand each `(a|b)` into its wordings."""
    parts = re.split(r"\|(?![^()]*\))", text)
    out: list[str] = []
    while parts:
        part = parts.pop(0)
        choice = _PHRASE.search(part)
        if choice is None:
            out.append(part)
        else:
            parts += [
                part[: choice.start()] + w + part[choice.end() :] for w in choice[1].split("|")
            ]
    return sorted(out)


_INTENTS = tuple(sorted(INTENTS))
_TEMPLATES = {intent: _templates(text) for intent, text in INTENTS.items()}
_VALUES = {slot: text.split("|") for slot, text in SLOTS.items()}
_SPOKEN = {
    slot: [
        (words, [f"B-{slot}"] + [f"I-{slot}"] * (len(words) - 1))
        for words in map(str.split, values)
    ]
    for slot, values in _VALUES.items()
}
"""For each slot, the words and the tags of each value."""
_TAGS = ("O", *(f"{prefix}-{slot}" for slot in sorted(SLOTS) for prefix in "BI"))


def _all_words() -> list[str]:
    phrases = [*POLITE, *chain(*_TEMPLATES.values()), *chain(*_VALUES.values())]
    return sorted(
        {word for phrase in phrases for word in phrase.split() if not word.startswith("{")}
    )


_WORDS = _all_words()
_OPTIONS = {"intent": len(_INTENTS)} | {
    name: len(each) for name, each in (_TEMPLATES | _VALUES).items()
}
"""How many options each choice has: the intents, an intent's wordings, a slot's values."""
_BOUNDS = dict(zip(_OPTIONS, pairwise(accumulate(_OPTIONS.values(), initial=0)), strict=True))
FINGERPRINT = "1d209f384f0ab8803277cf6f8ae08ccb27275e483467ad0c477d2ba61f182983"
"""Names this generator in a run's notes.

Give it a new value when the same seed makes other requests.
"""


@dataclass(frozen=True)
class _Habits:
    """How one device speaks: what it chooses most, and how often it is polite."""

    gammas: NDArray[np.float64]
    """The odds of all options, not yet divided by their sums."""
    politeness: float
    sums: dict[str, list[float]] = field(default_factory=dict)
    """The running sums of each choice's odds; filled at first use, because most devices use few."""

    def choose(self, name: str, rng: np.random.Generator) -> int:
        """Draw an option; sums are rounded as NumPy's `dirichlet` and `choice` round them."""
        if name not in self.sums:
            drawn = self.gammas[slice(*_BOUNDS[name])].tolist()
            scale = 1.0 / [*accumulate(drawn)][-1]
            found = [*accumulate(each * scale for each in drawn)]
            self.sums[name] = [each / found[-1] for each in found]
        return bisect_right(self.sums[name], rng.random())


class Requests:
    """A federation of generated requests; its words and labels are public, from the grammar."""

    def __init__(self, data: Data, data_dir: Path | None = None) -> None:
        if data.task == "image" or data.vocabulary_size:
            raise WrongInput(
                "data.source = 'requests' makes text from a grammar: neither images nor rare "
                f"words; got data.task = {data.task!r}, data.vocabulary_size = "
                f"{data.vocabulary_size}"
            )
        if data.test_share:
            raise WrongInput(
                "data.source = 'requests' makes test examples of its own; set data.test_share = 0"
            )
        self._data = data
        self._vocabulary = make_vocabulary(data, [_WORDS])
        self._width = len(str(data.devices - 1))
        self.activity = make_activity(data)
        self.devices: NDArray[np.str_] = np.char.add(
            "d", np.char.zfill(np.arange(data.devices).astype(str), self._width)
        )
        labels = _INTENTS if data.task in ("intent_slots", "classification") else ()
        self.spec = Spec(
            data.task,
            self._vocabulary.size,
            self._vocabulary.names,
            labels=labels,
            tags=_TAGS if data.task in ("intent_slots", "tagging") else (),
            label_tokens=label_tokens(self._vocabulary, labels),
            length=data.max_length,
        )
        self.fingerprint = {"requests": FINGERPRINT}
        self.notes: tuple[str, ...] = ()
        self.dev: Examples | None = self._population("dev")
        self.test: Examples | None = self._population("test")

    def train(self, device: DeviceId) -> Examples:
        """Return the device's examples, made from (data.seed, device) alone."""
        rng = generator(self._data.seed, "requests", device)
        habits = _habits(rng)
        return self._examples([_request(habits, rng) for _ in range(self._size(device))])

    def _size(self, device: DeviceId) -> int:
        return int(self.activity[int(device[1:])])

    def _population(self, split: str) -> Examples:
        """Return `TEST_REQUESTS` requests, each of another device outside the federation."""
        requests = []
        for i in range(TEST_REQUESTS):
            rng = generator(self._data.seed, "requests", split, i)
            requests.append(_request(_habits(rng), rng))
        return self._examples(requests)

    def _examples(self, requests: list[tuple[str, list[str], list[str]]]) -> Examples:
        intents, tokens, tags = zip(*requests, strict=True)
        fields = {"tokens": encode_tokens(self._vocabulary, tokens, self._data.max_length)}
        if self.spec.task == "language":
            fields = next_tokens(fields["tokens"])
        if self.spec.labels:
            fields["label"] = encode_labels(intents, _INTENTS)
        if self.spec.tags:
            fields["tags"] = encode_tags(tags, _TAGS, self._data.max_length)
        return Examples(fields)


def _habits(rng: np.random.Generator) -> _Habits:
    intents = rng.standard_gamma(0.3, _OPTIONS["intent"])
    others = rng.standard_gamma(0.5, sum(_OPTIONS.values()) - len(intents))
    return _Habits(np.concatenate([intents, others]), rng.beta(0.5, 1.5))


def _request(habits: _Habits, rng: np.random.Generator) -> tuple[str, list[str], list[str]]:
    """Return (intent, tokens, tags) of one request."""
    intent = _INTENTS[habits.choose("intent", rng)]
    template = _TEMPLATES[intent][habits.choose(intent, rng)]
    polite = POLITE[rng.integers(len(POLITE))] if rng.random() < habits.politeness else ""
    tokens = polite.split()
    tags = ["O"] * len(polite.split())
    for word in template.split():
        slot = word.strip("{}")
        if slot == word:
            tokens.append(word)
            tags.append("O")
            continue
        words, their_tags = _SPOKEN[slot][habits.choose(slot, rng)]
        tokens += words
        tags += their_tags
    for misheard in np.flatnonzero(rng.random(len(tokens)) < MISHEARD):
        tokens[misheard] = _WORDS[rng.integers(len(_WORDS))]
    return intent, tokens, tags
