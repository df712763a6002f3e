"""An experiment on this machine, in this process."""

from fedsim.app.client import app as client_app
from fedsim.app.client import make_node
from fedsim.app.local_grid import LocalGrid
from fedsim.app.manifest import with_plan
from fedsim.app.rounds import Watch
from fedsim.app.rundir import RunDir
from fedsim.app.server import serve
from fedsim.config import Config, to_flat


def run_local(config: Config, nodes: int = 1, fresh: bool = False, watch: Watch = lambda row: None) -> RunDir:
    """Run or resume the experiment on `nodes` in-process nodes; `fresh` sets an earlier run aside.

    A resumed run keeps the plan that it began with: nodes, threads and chunks.
    """
    run = RunDir.of(config)
    if run.exists and not fresh:
        plan = run.manifest["plan"]
        nodes, config = plan["nodes"], config.model_copy(update={"place": with_plan(config.place, plan)})
    try:
        return serve(LocalGrid(client_app, to_flat(config), nodes), config, {}, watch, fresh)
    finally:
        make_node.cache_clear()  # the processes that train end with the nodes that began them
