"""Files that are written completely or not at all."""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedsim.errors import WrongInput


def make_folder(path: Path) -> None:
    """Make a folder and its parents. Raises WrongInput if that fails."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WrongInput(f"the folder {str(path)!r} cannot be made: {error.strerror}") from error


def read_json(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    with replaced(path) as aside:
        aside.write_text(text, encoding="utf-8")


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Yield a path to write to; when the block ends, the synced file replaces `path`."""
    aside = path.with_name(f".{path.name}.part")
    yield aside
    with aside.open("rb") as stream:
        os.fsync(stream.fileno())
    os.replace(aside, path)


Row = dict[str, Any]
"""A line of a file of JSON lines."""
Watch = Callable[[Row], None]
"""A function that receives each round's row when the round ends."""
