"""A federation over records in memory: one table sorted by device, each device a view of its rows."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fedsim.config import Data, Partition
from fedsim.data.encode import (
    Vocabulary,
    encode_labels,
    encode_tags,
    encode_tokens,
    make_vocabulary,
    tokenize,
)
from fedsim.data.records import Records, Splits
from fedsim.errors import WrongInput
from fedsim.types import DeviceId, Examples, Spec


class Table:
    """A federation from the records of each split, under natural devices or those of `[partition]`."""

    def __init__(self, data: Data, partition: Partition, splits: Splits, data_dir: Path | None) -> None:
        notes: list[str] = []
        owned = partition.name in ("natural", "grouped_natural")
        clean = {
            name: _clean(data, name, records, notes, owned and name == "train")
            for name, records in splits.records.items()
        }
        self.devices: NDArray[np.str_]
        self.fingerprint = splits.fingerprint
        if partition.name == "natural":
            owners, self.devices = _natural(clean)
        else:
            # imported here because flwr_datasets takes a second that natural federations need not wait
            from fedsim.data.partitions.assign import assign_devices

            given = assign_devices(data, partition, clean["train"], data_dir)
            owners, self.devices = given.owners[given.held], given.devices
            clean["train"] = clean["train"].rows(np.flatnonzero(given.held))
            self.fingerprint = self.fingerprint | {"partition": given.fingerprint}
            notes += given.notes
        order = np.argsort(owners, kind="stable")
        owners = owners[order]
        self._start = np.searchsorted(owners, self.devices, side="left")
        self.activity = np.searchsorted(owners, self.devices, side="right") - self._start
        encode = _Encoding(data, clean)
        self.spec = encode.spec
        self._train = encode.examples(clean["train"].rows(order)) if len(order) else None
        self.dev = encode.examples(clean["dev"]) if "dev" in clean else None
        self.test = encode.examples(clean["test"]) if "test" in clean else None
        self.notes = tuple(notes + encode.notes)

    def train(self, device: DeviceId) -> Examples:
        """Return views of the device's rows."""
        i = int(np.searchsorted(self.devices, device))
        if i == len(self.devices) or self.devices[i] != device or self._train is None:
            raise WrongInput(f"the federation has no device {device!r}")
        return self._train[int(self._start[i]) : int(self._start[i] + self.activity[i])]


def _natural(splits: Mapping[str, Records]) -> tuple[NDArray[np.str_], NDArray[np.str_]]:
    """Return the owner of each training record, and all devices that any split names, sorted."""
    owners = {
        name: np.array([str(o) for o in r.columns.get("device", []) if o is not None], dtype=np.str_)
        for name, r in splits.items()
    }
    return owners["train"], np.unique(np.concatenate(list(owners.values())))


class _Encoding:
    """Ids for one federation, from its training split; what only other splits hold comes behind."""

    def __init__(self, data: Data, splits: Mapping[str, Records]) -> None:
        self._data = data
        self.notes: list[str] = []
        train, others = splits["train"], [r for n, r in splits.items() if n != "train"]
        labels = sorted({*map(str, train.columns["label"])})
        labels_unseen = {str(x) for r in others for x in r.columns["label"]} - set(labels)
        tags, tags_unseen = _tag_names(train, others)
        self._labels = [*labels, *sorted(labels_unseen)]
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
            labels_unseen=tuple(sorted(labels_unseen)),
            tags_unseen=tuple(tags_unseen),
            image=(shape[0], shape[1], shape[2]),
        )

    def examples(self, records: Records) -> Examples:
        columns, length = records.columns, self._data.max_length
        fields = {"label": encode_labels([str(x) for x in columns["label"]], self._labels)}
        if self._data.task == "image":
            fields["image"] = _image_tensor(records)
        else:
            fields["tokens"] = encode_tokens(self._vocabulary, columns["tokens"], length)
        if self._data.task == "intent_slots":
            fields["tags"] = encode_tags(columns["tags"], self._tags, length)
        return Examples(fields)


def _tag_names(train: Records, others: Sequence[Records]) -> tuple[list[str], list[str]]:
    seen = {tag for row in train.columns.get("tags", []) for tag in row}
    unseen = {tag for r in others for row in r.columns.get("tags", []) for tag in row} - seen
    return sorted(seen, key=lambda tag: (tag != "O", tag)), sorted(unseen)


def _clean(data: Data, split: str, records: Records, notes: list[str], owned: bool) -> Records:
    """Check the columns that the task needs, tokenize, and drop records that cannot be used.

    `owned` records must each name their device.
    """
    for role in _NEEDED[data.task]:
        _require(records, role, data)
    if owned:
        _require_device(records)
    records = _drop_gaps(records, "label", notes)
    if owned:
        records = _drop_gaps(records, "device", notes)
    columns = dict(records.columns)
    if data.task != "image":
        columns["tokens"] = [[token.lower() for token in row] for row in _tokens(records, data)]
    if data.task == "intent_slots":
        columns["tags"] = _lists(records, "tags")
        _check_tags(columns["tokens"], columns["tags"], records.origin)
    return Records(columns, records.size, records.origin, records.available)


def _drop_gaps(records: Records, role: str, notes: list[str]) -> Records:
    keep = np.array([i for i, x in enumerate(records.columns[role]) if x is not None and x != ""], int)
    if len(keep) == records.size:
        return records
    notes.append(f"{records.size - len(keep)} records of {records.origin} have no {role}: left out")
    return records.rows(keep)


_NEEDED = {"image": ("image", "label"), "classification": ("label",), "intent_slots": ("label", "tags")}


def _require(records: Records, role: str, data: Data) -> None:
    if role not in records.columns:
        raise WrongInput(
            f"{records.origin} has no column for {role!r}, which data.task = {data.task!r} needs; it has "
            f'{", ".join(records.available)}: name one as in data.columns = "{role}=COLUMN"'
        )


def _require_device(records: Records) -> None:
    if "device" not in records.columns:
        raise WrongInput(
            f"{records.origin} has no column for 'device'; it has {', '.join(records.available)}: name one "
            'as in data.columns = "device=COLUMN", or make devices as with partition.name = "fednlp_label"'
        )


def _refuse_gaps(records: Records, role: str) -> None:
    for i, value in enumerate(records.columns[role]):
        if value is None:
            raise WrongInput(f"record {i + 1} of {records.origin} has no {role}; fill it in or drop it")


def _tokens(records: Records, data: Data) -> list[list[str]]:
    """Return each record's tokens, given or split from its text."""
    if "tokens" in records.columns:
        return _lists(records, "tokens")
    if data.task == "intent_slots" or "text" not in records.columns:
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
