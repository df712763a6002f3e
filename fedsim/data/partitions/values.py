"""What rules look at in the records: labels, numbers, contents, natural ids; one value a record."""

from collections.abc import Sequence

import numpy as np

from fedsim.config import Partition
from fedsim.data.partitions.owners import codes
from fedsim.data.partitions.wanted import Values
from fedsim.data.records import Records
from fedsim.errors import WrongInput


def label_codes(partition: Partition, records: Records) -> Values:
    """Return each record's label, or what `partition.by` names, as 0, 1, ... in sorted order."""
    role = partition.by or "label"
    return codes(
        _tag_sets(records) if role == "tags" else [str(x) for x in _role(partition, records, role)]
    )


def numbers(partition: Partition, records: Records) -> Values:
    """Return a number of each record: by default how many tokens it has."""
    role = partition.by or "length"
    values = np.array([_number(x) for x in _role(partition, records, role)])
    wrong = np.flatnonzero(~np.isfinite(values))
    if len(wrong):
        raise WrongInput(
            f"partition.name = {partition.name!r} wants numbers, but record {wrong[0] + 1} of "
            f"{records.origin} has none under {role!r}; try another role in partition.by"
        )
    return values


def contents(partition: Partition, records: Records) -> Values:
    """Return each record's text, or its image as one vector."""
    if "tokens" in records.columns:
        return [" ".join(tokens) for tokens in records.columns["tokens"]]
    images = np.asarray(_role(partition, records, "image"), dtype=np.float32)
    return images.reshape(len(images), -1)


def natural_ids(partition: Partition, records: Records) -> Values:
    """Return the code of each record's natural device."""
    return codes([str(x) for x in _role(partition, records, partition.by or "device")])


def _role(partition: Partition, records: Records, role: str) -> Sequence[object]:
    if role == "length" and "tokens" in records.columns:
        return [len(tokens) for tokens in records.columns["tokens"]]
    if role not in records.columns:
        roles = ", ".join(records.columns)
        raise WrongInput(
            f"partition.name = {partition.name!r} needs a {role!r} for each record, but "
            f"{records.origin} has only {roles}; name a column as in data.columns = "
            f'"{role}=COLUMN", look at another role with partition.by, or use partition.name = '
            '"cluster", which needs no label'
        )
    return records.columns[role]


def _number(value: object) -> float:
    try:
        return float(str(value))
    except ValueError:
        return float("nan")


def _tag_sets(records: Records) -> list[str]:
    """Return each record's set of entity types: FedNLP's pseudo-label for tagging."""
    if "tags" not in records.columns:
        raise WrongInput(
            f'partition.by = "tags", but {records.origin} has no tags; see data.columns'
        )
    return [
        "+".join(sorted({_type(tag) for tag in tags} - {"O"})) for tags in records.columns["tags"]
    ]


def _type(tag: str) -> str:
    return tag[2:] if tag[:2] in ("B-", "I-") else tag
