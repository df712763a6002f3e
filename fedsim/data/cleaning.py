"""Records that a task can learn from: the columns are there, text is split, gaps are left out."""

from collections.abc import Sequence

import numpy as np

from fedsim.config import Data
from fedsim.data.encode import tokenize
from fedsim.data.records import Records
from fedsim.errors import WrongInput

COLUMNS = {
    "image": ("image", "label"),
    "classification": ("tokens", "label"),
    "intent_slots": ("tokens", "label", "tags"),
    "tagging": ("tokens", "tags"),
    "language": ("tokens",),
}
"""What each task learns from; tokens may be given or split from the text."""


def clean_records(data: Data, records: Records, notes: list[str], owned: bool) -> Records:
    """Return the records that the task can use, with lower-case tokens.

    `notes` gets a sentence on what is left out. `owned` records must each name their device. Raises
    WrongInput for missing columns and for tokens and tags of different length.
    """
    wanted = COLUMNS[data.task]
    for role in wanted:
        if role != "tokens":
            _require(records, role, data)
    if owned:
        _require_device(records)
    if "label" in wanted:
        records = _drop_gaps(records, "label", notes)
    if owned:
        records = _drop_gaps(records, "device", notes)
    columns = dict(records.columns)
    if "tokens" in wanted:
        columns["tokens"] = [[token.lower() for token in row] for row in _tokens(records, data)]
    if "label" in wanted:
        columns["label"] = [str(label) for label in columns["label"]]
    if "tags" in wanted:
        columns["tags"] = _lists(records, "tags")
        _check_tags(columns["tokens"], columns["tags"], records.origin)
    clean = Records(columns, records.size, records.origin, records.available)
    return _drop_short(clean, notes) if data.task == "language" else clean


def _drop_short(records: Records, notes: list[str]) -> Records:
    keep = np.array([i for i, row in enumerate(records.columns["tokens"]) if len(row) > 1], int)
    if len(keep) == records.size:
        return records
    notes.append(
        f"{records.size - len(keep)} records of {records.origin} have no next word: left out"
    )
    return records.rows(keep)


def _drop_gaps(records: Records, role: str, notes: list[str]) -> Records:
    keep = np.array(
        [i for i, x in enumerate(records.columns[role]) if x is not None and x != ""], int
    )
    if len(keep) == records.size:
        return records
    notes.append(f"{records.size - len(keep)} records of {records.origin} have no {role}: left out")
    return records.rows(keep)


def _require(records: Records, role: str, data: Data) -> None:
    if role not in records.columns:
        raise WrongInput(
            f"{records.origin} has no column for {role!r}, which data.task = {data.task!r} needs; "
            f'it has {", ".join(records.available)}: name one as in data.columns = "{role}=COLUMN"'
        )


def _require_device(records: Records) -> None:
    if "device" not in records.columns:
        raise WrongInput(
            f"{records.origin} has no column for 'device'; it has {', '.join(records.available)}: "
            'name one as in data.columns = "device=COLUMN", or make devices as with '
            'partition.name = "fednlp_label"'
        )


def _refuse_gaps(records: Records, role: str) -> None:
    for i, value in enumerate(records.columns[role]):
        if value is None:
            raise WrongInput(
                f"record {i + 1} of {records.origin} has no {role}; fill it in or drop it"
            )


def _tokens(records: Records, data: Data) -> list[list[str]]:
    """Return each record's tokens, given or split from its text."""
    if "tokens" in records.columns:
        return _lists(records, "tokens")
    if "tags" in COLUMNS[data.task] or "text" not in records.columns:
        _require(records, "tokens", data)
    _refuse_gaps(records, "text")
    return [tokenize(str(text)) for text in records.columns["text"]]


def _lists(records: Records, role: str) -> list[list[str]]:
    """Return a column of lists of strings; a string (as CSV has it) is split at white space."""
    _refuse_gaps(records, role)
    rows = []
    for i, value in enumerate(records.columns[role]):
        row = value.split() if isinstance(value, str) else value
        if not isinstance(row, list | tuple | np.ndarray) or any(part is None for part in row):
            raise WrongInput(
                f"record {i + 1} of {records.origin} has {role} that are no list of words"
            )
        rows.append([str(part) for part in row])
    return rows


def _check_tags(
    tokens: Sequence[Sequence[str]], tags: Sequence[Sequence[str]], origin: str
) -> None:
    for i, (words, names) in enumerate(zip(tokens, tags, strict=True)):
        if len(words) != len(names):
            raise WrongInput(
                f"record {i + 1} of {origin} has {len(words)} tokens but {len(names)} tags; "
                "each token needs one tag"
            )
