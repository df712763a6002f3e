"""`fedsim runs`: lists the runs."""

from pathlib import Path

from rich.table import Table

from fedsim.app.cli.options import Out, out
from fedsim.app.cli.tables import state_of_run
from fedsim.config import Config


def runs(out_dir: Out = None) -> None:
    """List the runs that there are, with their state."""
    from fedsim.app.rundir.run_dir import find_runs

    folder = Path(out_dir or Config().place.out)
    table = Table("run", "state", "rounds", "metrics")
    for found in find_runs(folder):
        table.add_row(str(found.path.relative_to(folder)), *state_of_run(found))
    out.print(table if table.row_count else f"No run below {str(folder)!r} yet.")
