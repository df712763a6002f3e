"""Canaries in a federation: their copies come after the records of the planned devices."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedsim.app.rundir.run_dir import RunDir
from fedsim.audit.canary_patterns import TEMPLATES, Canary, Pattern, draw_canaries, make_pattern
from fedsim.audit.canary_plan import Planting, plan, plan_rows
from fedsim.config import Canary as Settings
from fedsim.config import Config, Data, Stream
from fedsim.data.encode import (
    Vocabulary,
    encode_tokens,
    label_tokens,
    next_tokens,
    ngram_lengths,
)
from fedsim.data.federation import FederatedDataset
from fedsim.data.pool import Pool, pooled
from fedsim.errors import WrongInput
from fedsim.names import listed, suggestion
from fedsim.types import UNKNOWN, Examples, Spec, concatenate

FILE = "canaries.jsonl"
"""The name of the plan in the run directory. The file contains the secrets."""
OUTSIDE = "O"


@dataclass(frozen=True)
class Cell:
    """How a canary is planted: `copies` on each of `devices` light, median or heavy devices."""

    copies: int
    devices: int
    holders: str


@dataclass(frozen=True)
class Reading:
    """How the sentences of a pattern become examples of a federation."""

    pattern: Pattern
    task: str
    vocabulary: Vocabulary
    length: int
    label: int
    tags: tuple[int, ...]
    """The tag of each token; empty where the task has none."""

    def ids(self, tokens: Sequence[str]) -> list[int]:
        return self.vocabulary.ids(tokens[: self.length])[: self.length]

    def examples(self, sentences: Sequence[Sequence[str]]) -> Examples:
        """Return sentences of the pattern as examples [n] with the canaries' label and tags."""
        fields = {"tokens": encode_tokens(self.vocabulary, sentences, self.length)}
        if self.task == "language":
            fields = next_tokens(fields["tokens"])
        if self.label >= 0:
            fields["label"] = torch.full((len(sentences),), self.label)
        if self.tags:
            fields["tags"] = torch.tensor(self.tags).repeat(len(sentences), 1)
        return Examples(fields)

    def completed(self, word: str, codes: NDArray[np.int64]) -> Examples:
        """Return the sentences with this carrier word and each of the codes [n, length]."""
        return self.examples([self.pattern.sentence(word, code) for code in codes])


def cells(settings: Settings) -> list[Cell]:
    """Return the ways of planting. Canaries take them in turns, by their numbers."""
    copies, devices = (
        [int(n) for n in str(numbers).split(",")] for numbers in (settings.copies, settings.devices)
    )
    return [Cell(c, d, h) for h, d, c in product(settings.holders.split(","), devices, copies)]


def pattern_of(settings: Settings) -> Pattern:
    """Return the canaries' pattern. Raises WrongInput."""
    if not settings.pattern:
        raise WrongInput(
            f"canary.count = {settings.count} plants sentences of canary.pattern, which is empty; "
            f"choose {', '.join(TEMPLATES)} or a template"
        )
    candidates = tuple(listed(settings.candidates))
    return make_pattern(settings.pattern, settings.digits, candidates)


def canaries_of(settings: Settings, seed: int) -> list[Canary]:
    """Return the canaries that a run plants: a pure function of settings and seed."""
    return draw_canaries(pattern_of(settings), settings.count, seed)


def plan_of(pool: Pool, settings: Settings, seed: int) -> list[Planting]:
    """Return which device holds which canary.

    It depends only on the number of natural records, so it is the same before and after planting.
    """
    canaries = canaries_of(settings, seed)
    kinds = cells(settings)
    activity = natural_activity(pool)
    found = [
        planting
        for turn, cell in enumerate(kinds)
        for planting in plan(
            canaries,
            pool.devices,
            activity,
            cell.holders,
            cell.devices,
            cell.copies,
            _period(settings),
            seed,
        )
        if planting.canary % len(kinds) == turn
    ]
    return sorted(found, key=lambda planting: (planting.canary, planting.device))


def natural_activity(pool: Pool) -> NDArray[np.int64]:
    """Return how many natural training records each device has."""
    return np.bincount(pool.owner[pool.canary == -1], minlength=len(pool.devices))


def plant(pool: Pool, data: Data, stream: Stream, settings: Settings, seed: int) -> Pool:
    """Return the federation with the canaries' copies after the records of their devices.

    Natural records keep their order, ids, labels and tags. New words, labels and tags of canaries
    come after those of the data. Raises WrongInput.
    """
    period = _period(settings)
    if period > (stream.periods if stream.mode == "continual" else 1):
        raise WrongInput(
            f"canary.period = {settings.period}: the stream has "
            f"{stream.periods if stream.mode == 'continual' else 1} period(s)"
        )
    canaries = canaries_of(settings, seed)
    plantings = plan_of(pool, settings, seed)
    named = _named(pool, data, settings, canaries)
    sentences = [canaries[p.canary].sentence for p in plantings for _ in range(p.copies)]
    numbers = np.array([p.canary for p in plantings for _ in range(p.copies)])
    owners = np.searchsorted(pool.devices, [p.device for p in plantings for _ in range(p.copies)])
    copies = reading_of(named.spec, data, settings).examples(sentences)
    return replace(_joined(named, copies, numbers, owners), arrival=period)


def reading_of(spec: Spec, data: Data, settings: Settings) -> Reading:
    """Return how canaries become examples, in a federation that knows their words and labels."""
    pattern = pattern_of(settings)
    return Reading(
        pattern,
        spec.task,
        _vocabulary(spec, data),
        data.max_length,
        spec.labels.index(_label(settings)) if spec.labels else -1,
        tuple(spec.tags.index(tag) for tag in _tags(pattern, settings)) if spec.tags else (),
    )


def write_plan(run: RunDir, config: Config, federation: FederatedDataset) -> None:
    """Write the plan into the run directory, if canaries were planted."""
    if config.canary.count:
        seed = config.audit.seed or config.seed
        plantings = plan_of(pooled(federation), config.canary, seed)
        run.rewrite_rows(plan_rows(canaries_of(config.canary, seed), plantings), FILE)


def _period(settings: Settings) -> int:
    return settings.period or 1


def _short(settings: Settings) -> str:
    return settings.pattern if settings.pattern in TEMPLATES else "template"


def _label(settings: Settings) -> str:
    return settings.label or f"canary_{_short(settings)}"


def _tags(pattern: Pattern, settings: Settings) -> list[str]:
    """Return the tag of each token of a sentence."""
    tags = [OUTSIDE] * (len(pattern.template) - 1 + pattern.width)
    if settings.tags == "own":
        name = f"canary_{_short(settings)}"
        code = slice(pattern.gap, pattern.gap + pattern.width)
        tags[code] = [f"B-{name}"] + [f"I-{name}"] * (pattern.width - 1)
    return tags


def _vocabulary(spec: Spec, data: Data) -> Vocabulary:
    """Return the vocabulary that made the ids of a federation. Raises WrongInput."""
    if spec.words:
        return Vocabulary({word: UNKNOWN + 1 + i for i, word in enumerate(spec.words)}, 0)
    hashed = Vocabulary({}, data.buckets, ngram_lengths(data))
    if data.vocabulary != "hashed" or hashed.size != spec.vocabulary:
        raise WrongInput(
            f"canaries want the vocabulary of data.source = {data.source!r}, which names no words "
            f"and is not hashed into data.buckets = {data.buckets}"
        )
    return hashed


def _named(pool: Pool, data: Data, settings: Settings, canaries: Sequence[Canary]) -> Pool:
    """Return the pool with the canaries' words, labels and tags, still without the canaries.

    Raises WrongInput.
    """
    spec = pool.spec
    if spec.task == "image":
        raise WrongInput(
            'canaries are sentences; data.task = "image" has none, set canary.count = 0'
        )
    if settings.label and settings.label not in spec.labels:
        raise WrongInput(
            f"canary.label = {settings.label!r} is no label of the training "
            f"data{suggestion(settings.label, spec.labels)}; leave it empty for one of the "
            "canaries' own"
        )
    pattern = pattern_of(settings)
    labels = _missing([_label(settings)], spec.labels) if spec.labels else ()
    tags = _missing([OUTSIDE, *_tags(pattern, settings)], spec.tags) if spec.tags else ()
    words = [*(word for canary in canaries for word in canary.sentence), *pattern.candidates]
    if spec.words:
        new = _missing(words, spec.words)
        spec = replace(spec, words=(*spec.words, *new), vocabulary=spec.vocabulary + len(new))
    elif spec.label_tokens:
        own = label_tokens(_vocabulary(spec, data), labels)
        spec = replace(spec, label_tokens=(*spec.label_tokens, *own))
    grown = replace(spec, labels=(*spec.labels, *labels), tags=(*spec.tags, *tags))
    return replace(
        pool,
        spec=grown,
        dev=_shifted(pool.dev, pool.spec, grown),
        test=_shifted(pool.test, pool.spec, grown),
    )


def _missing(wanted: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    there = set(known)
    return tuple(word for word in dict.fromkeys(wanted) if word not in there)


def _shifted(examples: Examples | None, before: Spec, after: Spec) -> Examples | None:
    """Return the examples with ids of unseen labels and tags moved behind the new ones."""
    if examples is None:
        return None
    fields = dict(examples.fields)
    for name, old, new in (
        ("label", before.labels, after.labels),
        ("tags", before.tags, after.tags),
    ):
        if name in fields:
            fields[name] = fields[name] + (fields[name] >= len(old)) * (len(new) - len(old))
    return Examples(fields)


def _joined(
    pool: Pool, copies: Examples, numbers: NDArray[np.int64], owners: NDArray[np.int64]
) -> Pool:
    """Return the pool with the copies after the records of their devices."""
    order = np.argsort(np.concatenate([pool.owner, owners]), kind="stable")
    middle = (
        np.nan if pool.time is None else float(np.median(pool.time))
    )  # pool.arrival says when they arrive

    def with_copies(values: NDArray[Any], of_copies: object) -> NDArray[Any]:
        filled = np.broadcast_to(np.asarray(of_copies, dtype=values.dtype), len(copies))
        return np.concatenate([values, filled])[order]

    return replace(
        pool,
        records=concatenate([pool.records, copies])[torch.from_numpy(order)],
        activity=pool.activity + np.bincount(owners, minlength=len(pool.devices)),
        time=None if pool.time is None else with_copies(pool.time, middle),
        deleted_time=None if pool.deleted_time is None else with_copies(pool.deleted_time, np.inf),
        mislabelled=with_copies(pool.mislabelled, False),
        canary=with_copies(pool.canary, numbers),
    )
