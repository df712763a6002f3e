"""`fedsim export`: the trained model as arrays."""

from pathlib import Path
from typing import Annotated

import typer


def export(
    run_path: Annotated[Path, typer.Argument(help="A run's folder.", metavar="RUN")],
    to: Annotated[Path | None, typer.Option(help="Target folder (default: RUN/model).")] = None,
) -> None:
    """Write the trained model as model.npz and model.json (no pickle)."""
    from fedsim.app.rundir.export import export_model
    from fedsim.app.rundir.run_dir import open_run

    found = open_run(run_path)
    print(export_model(found, to or found.path / "model"))
