"""`fedsim sweep`."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedsim.app.cli.options import DataDir, Out, Settings, out
from fedsim.errors import RunFailed

if TYPE_CHECKING:  # pandas is imported only by the commands that need it
    from fedsim.app.sweeps.sweep_dir import SweepDir


def sweep(
    file: Annotated[Path, typer.Argument(help="The sweep's TOML file.", metavar="SWEEP.toml")],
    settings: Settings = None,
    jobs: Annotated[
        int, typer.Option(min=1, max=1024, help="Runs side by side; they share the cores.")
    ] = os.cpu_count() or 1,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Print the runs and what they will take; train nothing."),
    ] = False,
    within: Annotated[
        float,
        typer.Option(min=0.0, max=1.0, help="Share of the best utility that a cheap run may lack."),
    ] = 0.05,
    data_dir: DataDir = None,
    out_dir: Out = None,
) -> None:
    """Do every run of a grid or a search; repeated, go on without repeating finished runs."""
    from fedsim.app.server.calibration import reaching
    from fedsim.app.sweeps.check import check_runs
    from fedsim.app.sweeps.execute import do_runs, print_plan, print_search, shared_threads
    from fedsim.app.sweeps.grid import load_sweep, members
    from fedsim.app.sweeps.search import check_search, do_search, open_search
    from fedsim.app.sweeps.sweep_dir import SweepDir
    from fedsim.config import Place, load

    given = load_sweep(file, settings or [])
    named = {"data_dir": data_dir, "out": out_dir}
    base = load(given.base).place.model_copy(
        update={k: v for k, v in named.items() if v is not None}
    )
    place = base.model_copy(update={"threads": shared_threads(base, jobs)})
    folder = SweepDir(Path(place.out) / given.name)
    named_place = {f"place.{key}": getattr(place, key) for key in Place.model_fields}
    calibrate = folder.remembered(reaching)
    if given.search:
        check_search(given)
        if dry_run:
            print_search(given, jobs, Path(place.out), out)
            return
        with folder.locked():
            runs = do_search(open_search(given, folder, named_place, calibrate), jobs, out)
            _tell(folder, len(runs), within)
    else:
        runs = members(given, named_place, calibrate)
        if dry_run:
            print_plan(given, runs, jobs, Path(place.out), out)
            check_runs(runs)
            return
        with folder.locked():
            folder.write_plan(given.metric, [axis.name for axis in given.axes], runs)
            do_runs(folder, runs, jobs, out)
            _tell(folder, len(runs), within)


def _tell(folder: "SweepDir", runs: int, within: float) -> None:
    """Write and print the results. Raises RunFailed where a run failed."""
    from fedsim.app.sweeps.execute import write_results

    out.print(*write_results(folder, within), sep="\n", soft_wrap=True)
    out.print(f"Look at them: fedsim report '{folder.path}'", soft_wrap=True)
    failed = len(folder.failed())
    if failed:
        raise RunFailed(
            f"{failed} of {runs} runs failed; their sentences stand above and in the table"
        )
