"""A federation over records in memory: one table sorted by device.

Each device is a view of its rows.
"""

import unicodedata
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedsim.config import Data, Partition
from fedsim.data.cleaning import COLUMNS, clean_records
from fedsim.data.encode import (
    Vocabulary,
    encode_labels,
    encode_tags,
    encode_tokens,
    label_tokens,
    make_vocabulary,
    next_tokens,
)
from fedsim.data.holdout import hold_out
from fedsim.data.records import Records, Splits
from fedsim.data.times import seconds, seconds_or_never
from fedsim.errors import WrongInput
from fedsim.types import DeviceId, Examples, Spec


class RecordTable:
    """A federation from the records of each split, with natural or with partitioned devices."""

    def __init__(
        self, data: Data, partition: Partition, splits: Splits, data_dir: Path | None
    ) -> None:
        notes: list[str] = []
        owned = partition.name in ("natural", "grouped_natural")
        clean = _cleaned(data, splits, notes, owned)
        self.fingerprint = splits.fingerprint
        self.devices: NDArray[np.str_]
        if partition.name == "natural":
            self.devices = _natural(clean)
        else:
            clean["train"] = self._divide(data, partition, clean["train"], data_dir, notes)
        if data.test_share:
            clean |= hold_out(data, clean)
        encode = _Encoding(data, clean)
        self.spec = encode.spec
        clean["train"] = self._by_device(clean["train"])
        parts = {name: encode.examples(records) for name, records in clean.items() if records.size}
        self._train, self.dev, self.test = (parts.get(name) for name in ("train", "dev", "test"))
        self._times = _only("time", clean)
        self._deleted = _only("deleted", clean).get("train")
        self.notes = tuple(notes + encode.notes)

    def train(self, device: DeviceId) -> Examples:
        """Return views of the device's rows."""
        i = int(np.searchsorted(self.devices, device))
        if i == len(self.devices) or self.devices[i] != device or self._train is None:
            raise WrongInput(f"the federation has no device {device!r}")
        return self._train[int(self._start[i]) : int(self._start[i] + self.activity[i])]

    @cached_property
    def time(self) -> NDArray[np.float64] | None:
        """Seconds of each training record, device by device; None without a time column."""
        return seconds(self._times["train"]) if "train" in self._times else None

    @cached_property
    def test_time(self) -> NDArray[np.float64] | None:
        """Seconds of each test record; None without a time column."""
        return seconds(self._times["test"]) if "test" in self._times else None

    @cached_property
    def deleted_time(self) -> NDArray[np.float64] | None:
        """Seconds at which each training record's owner asked for its deletion; infinity for never.

        None without such a column.
        """
        return None if self._deleted is None else seconds_or_never(self._deleted, "deleted")

    def _by_device(self, train: Records) -> Records:
        """Return the training records device by device; note where each device's begin."""
        owners = _owners(train)
        order = np.argsort(owners, kind="stable")
        owners = owners[order]
        self._start = np.searchsorted(owners, self.devices, side="left")
        self.activity = np.searchsorted(owners, self.devices, side="right") - self._start
        return train.rows(order)

    def _divide(
        self,
        data: Data,
        partition: Partition,
        train: Records,
        data_dir: Path | None,
        notes: list[str],
    ) -> Records:
        """Return the training records under the devices that the partition gives them to."""
        # flwr_datasets takes a second to import, and natural federations do not need it
        from fedsim.data.partitions.assign import assign_devices

        given = assign_devices(data, partition, train, data_dir)
        self.devices = given.devices
        self.fingerprint = self.fingerprint | {"partition": given.fingerprint}
        notes += given.notes
        columns: dict[str, Any] = dict(train.columns) | {"device": given.owners}
        owned = Records(columns, train.size, train.origin, train.available)
        return owned.rows(np.flatnonzero(given.held))


def _natural(splits: Mapping[str, Records]) -> NDArray[np.str_]:
    """Return all devices that any split names, sorted."""
    return np.unique(np.concatenate([_owners(records) for records in splits.values()]))


def _cleaned(data: Data, splits: Splits, notes: list[str], owned: bool) -> dict[str, Records]:
    """Return the records that a task can learn from; `owned` ones must name their device."""
    return {
        name: clean_records(data, records, notes, owned and name == "train")
        for name, records in splits.records.items()
    }


def _image_shape(train: Records, others: Sequence[Records]) -> torch.Size:
    """Return the shape of every image. Raises WrongInput where a split has images of another."""
    shape = _image_tensor(train).shape[1:]
    for other in others:
        if other.size and _image_tensor(other).shape[1:] != shape:
            raise WrongInput(
                f"{other.origin} has images of the shape "
                f"{list(_image_tensor(other).shape[1:])}, {train.origin} of "
                f"{list(shape)}; they must be alike"
            )
    return shape


def _only(role: str, splits: Mapping[str, Records]) -> dict[str, Records]:
    """Return one column of each split that has it."""
    return {name: found.only(role) for name, found in splits.items() if role in found.columns}


def _owners(records: Records) -> NDArray[np.str_]:
    named = [str(owner) for owner in records.columns.get("device", []) if owner is not None]
    odd = next((name for name in named if any(unicodedata.category(c) == "Cc" for c in name)), None)
    if odd is not None:
        raise WrongInput(
            f"{records.origin} has the device {odd!r}; control characters cannot be in an id"
        )
    return np.array(named, dtype=np.str_)


class _Encoding:
    """Ids for one federation: names of the training split first, then those of other splits."""

    def __init__(self, data: Data, splits: Mapping[str, Records]) -> None:
        self._data = data
        self.notes: list[str] = []
        train = splits["train"]
        others = [r for n, r in splits.items() if n != "train"]
        wanted = COLUMNS[data.task]
        labels, labels_unseen = _label_names(train, others) if "label" in wanted else ([], [])
        labels, labels_unseen = _fixed("labels", data.labels, labels, labels_unseen)
        tags, tags_unseen = _tag_names(train, others) if "tags" in wanted else ([], [])
        tags, tags_unseen = _fixed("tags", data.tags, tags, tags_unseen)
        self._labels = [*labels, *labels_unseen]
        self._tags = [*tags, *tags_unseen]
        vocabulary = Vocabulary({}, 0)
        shape = torch.Size((0, 0, 0))
        if data.task == "image":
            shape = _image_shape(train, others)
        else:
            vocabulary = make_vocabulary(data, train.columns["tokens"])
            cut = sum(
                len(t) > data.max_length for r in splits.values() for t in r.columns["tokens"]
            )
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
            label_tokens=label_tokens(vocabulary, labels),
            length=0 if data.task == "image" else data.max_length,
        )

    def examples(self, records: Records) -> Examples:
        columns = records.columns
        length = self._data.max_length
        wanted = COLUMNS[self._data.task]
        fields: dict[str, torch.Tensor] = {}
        if "image" in wanted:
            fields["image"] = _image_tensor(records)
        if "tokens" in wanted:
            fields["tokens"] = encode_tokens(self._vocabulary, columns["tokens"], length)
        if self._data.task == "language":
            fields = next_tokens(fields["tokens"])
        if "label" in wanted:
            fields["label"] = encode_labels(columns["label"], self._labels)
        if "tags" in wanted:
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


def _fixed(key: str, named: str, seen: list[str], unseen: list[str]) -> tuple[list[str], list[str]]:
    """Return the names that the config fixes, and further ones that only other splits hold.

    Where the config fixes none, both lists stay as found.
    """
    fixed = [name.strip() for name in named.split(",") if name.strip()]
    if not fixed:
        return seen, unseen
    strange = sorted(set(seen) - set(fixed))
    if strange or len(set(fixed)) < len(fixed):
        raise WrongInput(
            f"data.{key} must name each of the {key} once, and the training examples have "
            f"{', '.join(map(repr, strange[:3])) or 'no other'}; got {named!r}"
        )
    return fixed, sorted(set(unseen) - set(fixed))


def public_part(
    data: Data, records: Records | None
) -> tuple[Spec, Examples | None, NDArray[np.float64] | None]:
    """Return the spec that the config alone fixes, and the records' examples and times under it."""
    if records is None:
        nothing: dict[str, list[Any]] = {role: [] for role in COLUMNS[data.task]}
        return _Encoding(data, {"train": Records(nothing, 0, "no file")}).spec, None, None
    clean = clean_records(data, records, [], False)
    encode = _Encoding(data, {"train": clean})
    time = seconds(clean) if "time" in clean.columns else None
    return encode.spec, encode.examples(clean), time


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
    if not bool(tensor.isfinite().all()):
        raise WrongInput(f"{records.origin} has images with pixels that are no finite numbers")
    return tensor / scale
