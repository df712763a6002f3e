"""An experiment on this machine, in this process."""

from fedsim.app.engines.local_grid import LocalGrid
from fedsim.app.node.app import app as client_app
from fedsim.app.node.node import make_node
from fedsim.app.rundir.files import Watch
from fedsim.app.rundir.manifest import with_plan
from fedsim.app.rundir.run_dir import RunDir
from fedsim.app.server.serve import serve
from fedsim.config import Config, to_flat


def run_local(
    config: Config, nodes: int = 1, fresh: bool = False, watch: Watch = lambda row: None
) -> RunDir:
    """Run or resume the experiment on `nodes` in-process nodes; `fresh` sets an earlier run aside.

    A resumed run keeps the plan that it began with: nodes, threads and chunks.
    """
    run = RunDir.of(config)
    if run.exists and not fresh:
        plan = run.manifest["plan"]
        nodes = plan["nodes"]
        config = config.model_copy(update={"place": with_plan(config.place, plan)})
    try:
        return serve(
            LocalGrid(client_app, to_flat(config), nodes), config, {}, run_local, watch, fresh
        )
    finally:
        make_node.cache_clear()  # ends the training processes of these nodes
