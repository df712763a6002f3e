"""Runs a sweep: its plan, its parallel runs, its table."""

import os
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from fedsim.app.rundir.run_dir import RunDir
from fedsim.app.sweeps.cost import known_cost
from fedsim.app.sweeps.grid import Member, Sweep
from fedsim.app.sweeps.pareto import (
    cheapest_sentence,
    first_metric,
    markdown,
    pareto_table,
    shown,
    write_table,
)
from fedsim.app.sweeps.sweep_dir import SweepDir, named
from fedsim.app.sweeps.worker_pool import run_all
from fedsim.config import Place, load


def shared_threads(place: Place, jobs: int) -> int:
    """Return the threads of each run: as named, else an equal share of the cores."""
    return place.threads or max(1, (os.cpu_count() or 1) // jobs)


def print_plan(
    sweep: Sweep, runs: Sequence[Member], jobs: int, out: Path, console: Console
) -> None:
    """Print every run with its state and its estimated cost; run nothing."""
    cost = known_cost(out, [sweep.name, load(sweep.base).name])
    table = Table(
        "", *(axis.name for axis in sweep.axes), "seed", "folder", "state", "seconds, about"
    )
    left = 0.0
    for number, member in enumerate(runs, start=1):
        state = state_of(RunDir.of(member.config))
        seconds = cost.seconds(member.config) if cost else None
        left += seconds or 0.0 if state != "finished" else 0.0
        told = "unknown" if seconds is None else f"{seconds:.0f}"
        where = member.where.values()
        table.add_row(str(number), *where, str(member.config.seed), member.config.hash, state, told)
    console.print(table)
    if cost is None:
        console.print(
            "What they will take is not known: no run of this base or sweep is finished yet."
        )
        return
    console.print(
        f"About {left / jobs / 60:.1f} minutes with {jobs} at a time, by rounds and cohort, from "
        f"{cost.runs} finished run(s) of this base or sweep; audits and centralised references "
        "come on top.",
        soft_wrap=True,
    )


def print_search(sweep: Sweep, jobs: int, out: Path, console: Console) -> None:
    """Print the size of a search and its cost, estimated from its base experiment."""
    base = load(sweep.base)
    cost = known_cost(out, [sweep.name, base.name])
    runs = sweep.search["trials"] * len(sweep.seeds)
    console.print(
        f"{sweep.search['trials']} trials of {len(sweep.seeds)} seed(s): at most {runs} runs."
    )
    if cost is None:
        console.print(
            "What they will take is not known: no run of this base or sweep is finished yet."
        )
        return
    minutes = cost.seconds(base) * runs / jobs / 60
    console.print(
        f"About {minutes:.1f} minutes with {jobs} at a time, if all cost what the base does."
    )


def state_of(run: RunDir) -> str:
    """Return the state of a run: finished, begun or new."""
    if run.summary is not None:
        return "finished"
    return "begun" if run.exists else "new"


def do_runs(folder: SweepDir, runs: Sequence[Member], jobs: int, console: Console) -> None:
    """Do the unfinished runs; report each when it ends."""
    todo = [number for number, m in enumerate(runs) if RunDir.of(m.config).summary is None]
    if len(todo) < len(runs):
        console.print(f"{len(runs) - len(todo)} of {len(runs)} runs were finished already.")
    rows = folder.plan["runs"]
    ended = len(runs) - len(todo)

    def told(i: int, error: str) -> None:
        nonlocal ended
        ended += 1
        folder.write_error(todo[i], error)
        end = f"FAILED: {error}" if error else "done"
        console.print(f"{ended} of {len(runs)}: {named(rows[todo[i]])}: {end}", soft_wrap=True)

    configs = [folder.config_file(runs[number]) for number in todo]
    threads = max((m.config.place.threads for m in runs), default=1)
    run_all(configs, jobs, threads, folder.log, told)


def write_results(folder: SweepDir, within: float) -> list[str]:
    """Write the sweep's tables into its folder; return the lines to print.

    They give the table, the cheapest setting and the failed runs.
    """
    frame = folder.frame()
    axes = folder.axes
    failed = folder.failed()
    metric = folder.plan["metric"] or first_metric(frame)
    table = pareto_table(frame, axes, metric)
    paths = write_table(table, folder.path, failed)
    lines = [*markdown(shown(table)), "", cheapest_sentence(table, axes, metric, within)]
    lines += [f"FAILED: {name}: {why}" for name, why in failed.items()]
    return [*lines, f"Tables: {', '.join(str(path) for path in paths.values())}"]
