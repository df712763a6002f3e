"""Maps columns of files to their roles, and records to their splits."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedsim.config import Config, Data, parse_pairs
from fedsim.data.records import Records
from fedsim.errors import WrongInput
from fedsim.names import suggestion

TRAINING_ONLY = ("device", "deleted")
"""Roles that only training records must have."""
SPLIT_NAMES = {"train": "train", "dev": "dev", "valid": "dev", "validation": "dev", "test": "test"}


def split_records(
    data: Data, columns: Mapping[str, Mapping[str, Any]], origins: Mapping[str, str]
) -> dict[str, Records]:
    """Return the records of each split, with columns under their roles.

    Where only training files are named and these have a split column, that column divides them.
    Raises WrongInput for unknown roles, missing columns and unknown split names.
    """
    roles = column_roles(data)
    splits = {
        split: _records(data, split, found, roles, f"{split} ({origins[split]})")
        for split, found in columns.items()
    }
    if list(splits) == ["train"] and "split" in splits["train"].columns:
        return _divide(splits["train"], origins["train"])
    _refuse_other_splits(splits["train"])
    return splits


def _refuse_other_splits(train: Records) -> None:
    """Refuse training rows that the split column gives to another split."""
    others = sorted({str(x) for x in train.columns.get("split", [])} - {"train"})
    if others:
        raise WrongInput(
            f"{train.origin} has rows of the split {', '.join(others)}; name no data.test and "
            "data.dev, so that the split column divides them, or pass the column over with "
            'data.columns = "split="'
        )


def column_roles(data: Data) -> dict[str, str]:
    """Return role -> column; roles that `data.columns` leaves out keep their default."""
    default = parse_pairs("data.columns", Config().data.columns)
    given = parse_pairs("data.columns", data.columns)
    for role in given:
        if role not in default:
            raise WrongInput(
                f"data.columns: unknown role {role!r}; the roles are {', '.join(default)}"
                f"{suggestion(role, default)}"
            )
    return {role: column for role, column in (default | given).items() if column}


def _records(
    data: Data, split: str, found: Mapping[str, Any], roles: Mapping[str, str], origin: str
) -> Records:
    given = parse_pairs("data.columns", data.columns) if data.columns != Data().columns else {}
    columns = {}
    for role, column in roles.items():
        parts = column.split("+")
        missing = [part for part in parts if part not in found]
        if not missing:
            columns[role] = _joined([found[part] for part in parts])
        elif role in given and (split == "train" or role not in TRAINING_ONLY):
            raise WrongInput(
                f"{origin} has no column {missing[0]!r} (data.columns has {role}={column}); "
                f"it has {', '.join(found)}{suggestion(missing[0], found)}"
            )
    sizes = {role: len(values) for role, values in columns.items()}
    if len(set(sizes.values())) > 1:
        raise WrongInput(f"{origin}: columns differ in length: {sizes}")
    return Records(columns, next(iter(sizes.values()), 0), origin, tuple(found))


def _joined(columns: Sequence[Any]) -> Any:
    """Return the column, or for "a+b" the values of both with a dash between."""
    if len(columns) == 1:
        return columns[0]
    return ["-".join(map(str, values)) for values in zip(*columns, strict=True)]


def _divide(records: Records, origin: str) -> dict[str, Records]:
    names = np.array([SPLIT_NAMES.get(str(x), str(x)) for x in records.columns["split"]])
    unknown = sorted(set(names) - set(SPLIT_NAMES.values()))
    if unknown:
        raise WrongInput(
            f"the split column of {origin} has {', '.join(unknown)}; want {', '.join(SPLIT_NAMES)}"
        )
    found = {}
    for split in ("train", "dev", "test"):
        keep = np.flatnonzero(names == split)
        if len(keep) or split == "train":
            part = records.rows(keep)
            found[split] = Records(part.columns, part.size, f"{split} ({origin})", part.available)
    return found
