"""`fedsim data`: a page about the federation."""

from pathlib import Path
from typing import Annotated

import typer

from fedsim.app.cli.options import DataDir, Experiment, Settings, resolve


def data(
    experiment: Experiment,
    settings: Settings = None,
    data_dir: DataDir = None,
    to: Annotated[Path | None, typer.Option(help="Target folder (default: reports/NAME).")] = None,
) -> None:
    """Write a page of figures about the federation: activity, labels, arrivals, availability."""
    config = resolve(experiment, settings, data_dir=data_dir)
    from fedsim.app.place import data_dir as find_data_dir
    from fedsim.app.report.dataset_page import write_data_page

    folder = find_data_dir(config.place, {})
    print(write_data_page(config, folder, experiment, to or Path("reports") / config.name))
