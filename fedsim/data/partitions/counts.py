"""Examples per device of a real set, from a file: what `partition.tail = "copy"` follows."""

import gzip
import json
from collections import Counter
from pathlib import Path

from fedsim.errors import WrongInput


def read_counts(copy_from: str, data_dir: Path | None) -> tuple[int, ...]:
    """Return the counts that `partition.copy_from` names, each at least 0.

    A .txt file has one count a line, a .json file a list or {device: count}. For JSON lines
    ("file.jsonl.gz#client") each value of that column is counted. Raises WrongInput.
    """
    name, _, column = copy_from.partition("#")
    if not name or data_dir is None:
        raise WrongInput(
            'partition.tail = "copy" needs a data directory and partition.copy_from = "FILE" '
            'below it, as in "counts.txt" or "train.jsonl.gz#client"'
        )
    try:
        counts = _count(data_dir / name, column) if column else _listed(data_dir / name)
    except (OSError, EOFError, UnicodeDecodeError, ValueError, TypeError, KeyError) as error:
        raise WrongInput(
            f"partition.copy_from = {copy_from!r} cannot be read below {str(data_dir)!r} "
            f"({type(error).__name__}: {error}); it wants one count a line (.txt), a JSON list or "
            "object of counts, or FILE.jsonl#COLUMN"
        ) from error
    if min(counts, default=0) < 0:
        raise WrongInput(
            f"partition.copy_from = {copy_from!r} holds {min(counts)}; a count is at least 0"
        )
    return counts


def _listed(path: Path) -> tuple[int, ...]:
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".json":
        return tuple(int(line) for line in text.split())
    found = json.loads(text)
    return tuple(int(value) for value in (found.values() if isinstance(found, dict) else found))


def _count(path: Path, column: str) -> tuple[int, ...]:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as stream:
        return tuple(
            Counter(str(json.loads(line)[column]) for line in stream if line.strip()).values()
        )
