"""A federation over records in memory: one table sorted by device, each device a view of its rows."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from fedsim.config import Data
from fedsim.data.encode import (
    Vocabulary,
    encode_labels,
    encode_tags,
    encode_tokens,
    make_vocabulary,
    next_tokens,
    tokenize,
)
from fedsim.data.holdout import hold_out
from fedsim.data.records import Records
from fedsim.errors import WrongInput
from fedsim.types import DeviceId, Examples, Spec


class Table:
    """A federation from the records of each split; `splits` has `train` and may have `dev`, `test`."""

    def __init__(self, data: Data, splits: Mapping[str, Records], fingerprint: dict[str, str]) -> None:
        self.fingerprint = fingerprint
        notes: list[str] = []
        clean = {name: _clean(data, name, records, notes) for name, records in splits.items()}
        if data.test_share:
            clean |= hold_out(data, clean)
        train = clean["train"]
        owners = np.array([str(owner) for owner in train.columns["device"]], dtype=np.str_)
        everyone = [owners] + [
            np.array([str(o) for o in r.columns.get("device", []) if o is not None], dtype=np.str_)
            for r in clean.values()
        ]
        order = np.argsort(owners, kind="stable")
        owners = owners[order]
        self.devices: NDArray[np.str_] = np.unique(np.concatenate(everyone))
        self._start = np.searchsorted(owners, self.devices, side="left")
        self.activity = np.searchsorted(owners, self.devices, side="right") - self._start
        encode = _Encoding(data, clean)
        self.spec = encode.spec
        self._train = encode.examples(train.rows(order)) if len(order) else None
        self.dev = encode.examples(clean["dev"]) if "dev" in clean else None
        self.test = encode.examples(clean["test"]) if "test" in clean else None
        self.notes = tuple(notes + encode.notes)

    def train(self, device: DeviceId) -> Examples:
        """Return views of the device's rows."""
        i = int(np.searchsorted(self.devices, device))
        if i == len(self.devices) or self.devices[i] != device or self._train is None:
            raise WrongInput(f"the federation has no device {device!r}")
        return self._train[int(self._start[i]) : int(self._start[i] + self.activity[i])]


class _Encoding:
    """Ids for one federation, from its training split; what only other splits hold comes behind."""

    def __init__(self, data: Data, splits: Mapping[str, Records]) -> None:
        self._data = data
        self.notes: list[str] = []
        train, others = splits["train"], [r for n, r in splits.items() if n != "train"]
        labels, labels_unseen = _label_names(train, others)
        tags, tags_unseen = _tag_names(train, others)
        self._labels = [*labels, *labels_unseen]
        self._tags = [*tags, *tags_unseen]
        vocabulary = Vocabulary({}, 0)
        shape = torch.Size((0, 0, 0))
        if data.task == "image":
            shape = _image_tensor(train).shape[1:]
        else:
            vocabulary = make_vocabulary(data, train.columns["tokens"])
            cut = sum(len(t) > data.max_length for r in splits.values() for t in r.columns["tokens"])
            if cut:
                self.notes.append(f"{cut} examples were cut to data.max_length = {data.max_length}")
        self._vocabulary = vocabulary
        self.spec = Spec(
            task=data.task,
            vocabulary=0 if data.task == "image" else vocabulary.size,
            words=vocabulary.names,
            labels=tuple(labels),
            tags=tuple(tags),
            labels_unseen=tuple(labels_unseen),
            tags_unseen=tuple(tags_unseen),
            image=(shape[0], shape[1], shape[2]),
            length=0 if data.task == "image" else data.max_length,
        )

    def examples(self, records: Records) -> Examples:
        columns, length = records.columns, self._data.max_length
        fields: dict[str, torch.Tensor] = {}
        if "image" in columns:
            fields["image"] = _image_tensor(records)
        if "tokens" in columns:
            fields["tokens"] = encode_tokens(self._vocabulary, columns["tokens"], length)
        if self._data.task == "language":
            fields = next_tokens(fields["tokens"])
        if "label" in columns:
            fields["label"] = encode_labels(columns["label"], self._labels)
        if "tags" in columns:
            fields["tags"] = encode_tags(columns["tags"], self._tags, length)
        return Examples(fields)


def _label_names(train: Records, others: Sequence[Records]) -> tuple[list[str], list[str]]:
    seen = set(train.columns.get("label", []))
    unseen = {label for r in others for label in r.columns.get("label", [])} - seen
    return sorted(seen), sorted(unseen)


def _tag_names(train: Records, others: Sequence[Records]) -> tuple[list[str], list[str]]:
    seen = {tag for row in train.columns.get("tags", []) for tag in row}
    unseen = {tag for r in others for row in r.columns.get("tags", []) for tag in row} - seen
    return sorted(seen, key=lambda tag: (tag != "O", tag)), sorted(unseen)


def _clean(data: Data, split: str, records: Records, notes: list[str]) -> Records:
    """Return the columns that the task learns from, and `device`: tokens split, gaps left out."""
    wanted = COLUMNS[data.task]
    for role in (*wanted, "device") if split == "train" else wanted:
        if role != "tokens":
            _require(records, role, data)
    if "label" in wanted:
        records = _drop_gaps(records, "label", notes)
    if split == "train":
        records = _drop_gaps(records, "device", notes)
    columns = {role: records.columns[role] for role in (*wanted, "device") if role in records.columns}
    if "tokens" in wanted:
        columns["tokens"] = [[token.lower() for token in row] for row in _tokens(records, data)]
    if "label" in wanted:
        columns["label"] = [str(label) for label in columns["label"]]
    if "tags" in wanted:
        columns["tags"] = _lists(records, "tags")
        _check_tags(columns["tokens"], columns["tags"], records.origin)
    clean = Records(columns, records.size, records.origin, records.available)
    return _drop_short(clean, notes) if data.task == "language" else clean


COLUMNS = {
    "image": ("image", "label"),
    "classification": ("tokens", "label"),
    "intent_slots": ("tokens", "label", "tags"),
    "tagging": ("tokens", "tags"),
    "language": ("tokens",),
}
"""What each task learns from; tokens may be given or split from the text."""


def _drop_short(records: Records, notes: list[str]) -> Records:
    keep = np.array([i for i, row in enumerate(records.columns["tokens"]) if len(row) > 1], int)
    if len(keep) == records.size:
        return records
    notes.append(f"{records.size - len(keep)} records of {records.origin} have no next word: left out")
    return records.rows(keep)


def _drop_gaps(records: Records, role: str, notes: list[str]) -> Records:
    keep = np.array([i for i, x in enumerate(records.columns[role]) if x is not None and x != ""], int)
    if len(keep) == records.size:
        return records
    notes.append(f"{records.size - len(keep)} records of {records.origin} have no {role}: left out")
    return records.rows(keep)


def _require(records: Records, role: str, data: Data) -> None:
    if role not in records.columns:
        raise WrongInput(
            f"{records.origin} has no column for {role!r}, which data.task = {data.task!r} needs; it has "
            f'{", ".join(records.available)}: name one as in data.columns = "{role}=COLUMN"'
        )


def _refuse_gaps(records: Records, role: str) -> None:
    for i, value in enumerate(records.columns[role]):
        if value is None:
            raise WrongInput(f"record {i + 1} of {records.origin} has no {role}; fill it in or drop it")


def _tokens(records: Records, data: Data) -> list[list[str]]:
    """Return each record's tokens, given or split from its text."""
    if "tokens" in records.columns:
        return _lists(records, "tokens")
    if "tags" in COLUMNS[data.task] or "text" not in records.columns:
        _require(records, "tokens", data)
    _refuse_gaps(records, "text")
    return [tokenize(str(text)) for text in records.columns["text"]]


def _lists(records: Records, role: str) -> list[list[str]]:
    """Return a column of lists; a string (as CSV has it) is split at white space."""
    _refuse_gaps(records, role)
    return [x.split() if isinstance(x, str) else list(x) for x in records.columns[role]]


def _check_tags(tokens: Sequence[Sequence[str]], tags: Sequence[Sequence[str]], origin: str) -> None:
    for i, (words, names) in enumerate(zip(tokens, tags, strict=True)):
        if len(words) != len(names):
            raise WrongInput(
                f"record {i + 1} of {origin} has {len(words)} tokens but {len(names)} tags; "
                "each token needs one tag"
            )


def _image_tensor(records: Records) -> torch.Tensor:
    """Return float32 [n, channels, height, width] in [0, 1] for uint8 input."""
    images = np.asarray(records.columns["image"])
    if images.ndim not in (3, 4):
        raise WrongInput(
            f"{records.origin}: images want [n, height, width] or [n, height, width, channels], "
            f"got the shape {list(images.shape)}"
        )
    if images.ndim == 3:
        images = images[..., None]
    scale = 255.0 if images.dtype == np.uint8 else 1.0
    tensor = torch.from_numpy(np.ascontiguousarray(np.moveaxis(images, -1, 1), dtype=np.float32))
    return tensor / scale
