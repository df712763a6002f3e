"""`fedsim deploy`: set up a federation of real nodes."""

from pathlib import Path
from typing import Annotated

import typer

from fedsim.errors import WrongInput

deploy = typer.Typer(no_args_is_help=True, help="Set up a federation of real nodes.")


@deploy.command()
def init(
    folder: Annotated[Path, typer.Argument(help="New folder for keys, certificates and configs.")],
    host: Annotated[
        str, typer.Option(help="Name or address under which nodes reach the SuperLink.")
    ],
    port: Annotated[int, typer.Option(min=1, max=65535, help="The SuperLink's port.")] = 9092,
    nodes: Annotated[int, typer.Option(min=1, max=1000, help="Nodes that get a key.")] = 2,
) -> None:
    """Write a CA, the SuperLink's certificate, node keys, configs, start scripts and systemd
    units.
    """
    if folder.exists() and any(folder.iterdir()):
        raise WrongInput(
            f"{str(folder)!r} is not empty, and keys are never written over; name a new folder"
        )
    from fedsim.app.engines.deployment import (
        write_deployment,
    )  # imports cryptography, only for keys

    write_deployment(folder.resolve(), host, port, nodes)
    print(
        f"Wrote {folder}: start superlink.sh, register.sh, then node-1.sh ...; see README of "
        "deployment"
    )
