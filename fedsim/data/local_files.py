"""Records from local files: JSON lines (also gzip), CSV, Parquet, and images as npz."""

import gzip
import hashlib
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.config import Data
from fedsim.data.columns import split_records
from fedsim.data.records import Splits
from fedsim.errors import WrongInput, first_line

CSV = {"keep_default_na": False, "na_values": [""]}
"""Only an empty cell is missing: "None" and "NA" are words."""
FORMATS = {
    ".jsonl": "json",
    ".jsonl.gz": "json",
    ".json": "json",
    ".json.gz": "json",
    ".csv": "csv",
    ".csv.gz": "csv",
    ".parquet": "parquet",
    ".npz": "npz",
}


def files(data: Data, data_dir: Path | None) -> Splits:
    """Read the records of `data.train`, `data.dev` and `data.test` below the data directory.

    Raises WrongInput for a missing folder, file or column, for text that is not UTF-8 and for files
    that do not parse.
    """
    folder = _folder(data, data_dir)
    named = {"train": data.train, "dev": data.dev, "test": data.test}
    paths = {split: _expand(folder, split, globs) for split, globs in named.items() if globs}
    if "train" not in paths:
        raise WrongInput(f"data.train names no file; {_contents(folder)}")
    columns = {split: _read(found) for split, found in paths.items()}
    origins = {split: ", ".join(p.name for p in found) for split, found in paths.items()}
    fingerprint = {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for found in paths.values()
        for p in found
    }
    return Splits(split_records(data, columns, origins), fingerprint)


def _folder(data: Data, data_dir: Path | None) -> Path:
    if data_dir is None:
        raise WrongInput(
            "no data directory is named; give --data-dir, or place.data_dir, or the environment's "
            "FEDSIM_DATA (a real node: node-config data-path)"
        )
    for folder in (data_dir, data_dir / data.path):
        if not folder.is_dir():
            raise WrongInput(f"the data directory {str(folder)!r} does not exist; check --data-dir")
    return data_dir / data.path


def _expand(folder: Path, split: str, globs: str) -> list[Path]:
    found: list[Path] = []
    for pattern in filter(None, (part.strip() for part in globs.split(","))):
        if Path(pattern).is_absolute():
            raise WrongInput(
                f"data.{split} = {globs!r}: name files below the data directory, by relative paths"
            )
        matches = sorted(p for p in folder.glob(pattern) if p.is_file())
        if not matches:
            raise WrongInput(
                f"data.{split} = {globs!r}: no file {pattern!r} in {str(folder)!r}; "
                f"{_contents(folder)}"
            )
        found += [match for match in matches if match not in found]
    return found


def _contents(folder: Path) -> str:
    names = sorted(p.name for p in folder.iterdir() if _format(p))
    return f"the folder has {', '.join(names[:12])}" if names else "the folder has no data file"


def _format(path: Path) -> str | None:
    for ending, kind in FORMATS.items():
        if path.name.endswith(ending):
            return kind
    return None


def _read(paths: Sequence[Path]) -> dict[str, Any]:
    """Return the columns of one split's files, joined."""
    kinds = {path: _format(path) for path in paths}
    for path, kind in kinds.items():
        if kind is None:
            raise WrongInput(f"{path.name} has an unknown ending; want one of {', '.join(FORMATS)}")
    if len(set(kinds.values())) > 1:
        raise WrongInput(f"one split mixes file types: {', '.join(p.name for p in paths)}")
    kind = kinds[paths[0]]
    if kind == "npz":
        return _read_npz(paths)
    if kind in ("json", "csv"):
        for path in paths:
            _check_utf8(path)
    return _read_table(str(kind), paths)


def _read_table(kind: str, paths: Sequence[Path]) -> dict[str, Any]:
    import datasets  # takes a second; only tables need it

    datasets.disable_progress_bars()
    names = [str(p) for p in paths]
    empty = [p.name for p in paths if p.stat().st_size == 0]
    if empty:
        raise WrongInput(f"{', '.join(empty)} is empty")
    try:
        # The library's own cache would outlive the run. It also misses changes that keep the mtime.
        with tempfile.TemporaryDirectory() as cache:
            options = CSV if kind == "csv" else {}
            table = datasets.load_dataset(
                kind, data_files={"train": names}, split="train", cache_dir=cache, **options
            )
            return {name: table[name][:] for name in table.column_names}
    except Exception as error:  # the library wraps each reader's own errors in several layers
        files = ", ".join(p.name for p in paths)
        raise WrongInput(f"{files} could not be read as {kind}: {first_line(error)}") from error


def _read_npz(paths: Sequence[Path]) -> dict[str, Any]:
    loaded = []
    for path in paths:
        try:
            with np.load(path, allow_pickle=False) as arrays:
                loaded.append({name: arrays[name] for name in arrays.files})
        except (OSError, ValueError, TypeError, AttributeError, zipfile.BadZipFile) as error:
            raise WrongInput(
                f"{path.name} could not be read as npz: {first_line(error)}"
            ) from error
        if loaded[-1].keys() != loaded[0].keys():
            raise WrongInput(f"{path.name} and {paths[0].name} have different arrays")
    try:
        return {name: np.concatenate([part[name] for part in loaded]) for name in loaded[0]}
    except ValueError as error:
        names = ", ".join(path.name for path in paths)
        raise WrongInput(f"the arrays of {names} cannot be joined: {first_line(error)}") from error


def _check_utf8(path: Path) -> None:
    opener = gzip.open if path.name.endswith(".gz") else open
    number = 0
    try:
        with opener(path, "rb") as stream:
            for line in stream:
                number += 1
                line.decode("utf-8")
    except UnicodeDecodeError:
        raise WrongInput(
            f"line {number} of {path.name} is not UTF-8; convert the file, as with iconv -t UTF-8"
        ) from None
    except (OSError, EOFError) as error:
        raise WrongInput(f"{path.name} cannot be read: {error}") from error
