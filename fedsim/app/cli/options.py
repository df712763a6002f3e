"""What commands share: the consoles, and the options that mean the same in every command."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fedsim.config import Config, from_flat, load, to_flat

out = Console(markup=False)  # text from users and data is never markup
err = Console(stderr=True, markup=False)

Experiment = Annotated[
    Path,
    typer.Argument(
        help="The experiment's TOML file.", metavar="EXPERIMENT.toml", show_default=False
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change a setting; may be repeated."),
]
DataDir = Annotated[
    str | None,
    typer.Option(
        "--data-dir", help="Folder that holds the data sets; else place.data_dir, FEDSIM_DATA."
    ),
]
Out = Annotated[
    str | None, typer.Option("--out", help="Folder of the run directories (default: runs).")
]


def resolve(experiment: Path, settings: list[str] | None, **place: str | None) -> Config:
    """Return the config of an experiment with `--set` and the place options applied."""
    config = load(experiment, settings or [])
    named = {f"place.{key}": value for key, value in place.items() if value is not None}
    return from_flat(to_flat(config) | named)
