"""Records from the Hugging Face hub, by name."""

from pathlib import Path
from typing import Any

from fedsim.config import Data
from fedsim.data.columns import split_records
from fedsim.data.records import Splits
from fedsim.errors import WrongInput, first_line

SPLITS = {"train": ("train",), "dev": ("dev", "validation", "valid"), "test": ("test",)}


def hub(data: Data, data_dir: Path | None) -> Splits:
    """Read `data.path` from the hub; `data.train`, `data.dev`, `data.test` may name its splits.

    `data.path` may also be a local folder in the hub's layout. Raises WrongInput when the data set
    cannot be loaded.
    """
    if not data.path:
        raise WrongInput(
            'data.source = "hub" needs the name in data.path, as in "AmazonScience/massive"'
        )
    import datasets  # takes a second; only this source needs it

    datasets.disable_progress_bars()
    try:
        found = datasets.load_dataset(data.path)
    except Exception as error:  # the hub's client has dozens of error types
        raise WrongInput(
            f"the data set {data.path!r} could not be loaded: {first_line(error)}"
        ) from error
    wanted = {"train": data.train, "dev": data.dev, "test": data.test}
    columns = {}
    origins = {}
    for split, name in wanted.items():
        names = (name,) if name else SPLITS[split]
        chosen = next((n for n in names if n in found), None)
        if chosen is None and (name or split == "train"):
            raise WrongInput(f"{data.path!r} has no split {names[0]!r}, only {', '.join(found)}")
        if chosen is not None:
            columns[split] = {c: _values(found[chosen], c) for c in found[chosen].column_names}
            origins[split] = f"{data.path}/{chosen}"
    fingerprint = {f"{data.path}/{split}": d._fingerprint for split, d in found.items()}
    return Splits(split_records(data, columns, origins), fingerprint)


def _values(table: Any, column: str) -> Any:
    """Return a column; class ids become their names."""
    from datasets import ClassLabel

    feature = table.features[column]
    values = table[column][:]
    inner = getattr(feature, "feature", None)
    if isinstance(feature, ClassLabel):
        return [feature.int2str(v) for v in values]
    if isinstance(inner, ClassLabel):
        return [inner.int2str(v) for v in values]
    return values
