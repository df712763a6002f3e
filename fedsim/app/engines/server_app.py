"""The Flower ServerApp: it does the run that the run config describes."""

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedsim.app.engines.local import run_local
from fedsim.app.server.serve import serve
from fedsim.config import from_flat
from fedsim.errors import WrongInput

app = ServerApp()


WRONG_INPUT = "wrong input: "
"""Marks wrong input in what Flower is told: it passes on sentences, but not error types."""


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the experiment that the run config describes; write the results to its run directory."""
    try:
        serve(grid, from_flat(context.run_config), context.node_config, run_local)
    except WrongInput as error:
        raise WrongInput(f"{WRONG_INPUT}{error}") from error
