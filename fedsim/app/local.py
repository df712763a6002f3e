"""An experiment on this machine, in this process."""

from fedsim.app.client import app as client_app
from fedsim.app.local_grid import LocalGrid
from fedsim.app.rounds import Watch
from fedsim.app.rundir import RunDir
from fedsim.app.server import serve
from fedsim.config import Config, to_flat


def run_local(config: Config, nodes: int = 1, fresh: bool = False, watch: Watch = lambda row: None) -> RunDir:
    """Run or resume the experiment on `nodes` in-process nodes; `fresh` sets an earlier run aside.

    A resumed run keeps the number of nodes that it began with.
    """
    run = RunDir.of(config)
    if fresh and run.exists:
        with run.locked():
            run.set_aside()
    if run.exists:
        nodes = run.manifest["plan"]["nodes"]
    return serve(LocalGrid(client_app, to_flat(config), nodes), config, {}, watch)
